"""The auto-encoder baseline: its size, what it learns, and that a score depends on its own frames alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anodiff.anomaly.clip_autoencoder import AutoEncoder, ClipAutoEncoder, weights_of, width_for
from anodiff.errors import DataError


def bars(count: int, seed: int, turned: range = range(0)) -> list[np.ndarray]:
    """A vertical bar that walks, 17x24 pixels; horizontal where it is ``turned``."""
    rng = np.random.default_rng(seed)
    start, frames = int(rng.integers(24)), []
    for n in range(count):
        frame = rng.integers(95, 105, (17, 24, 1)).astype(np.uint8)
        if n in turned:
            frame[8:11, 2:20] = 230
        else:
            frame[:, (start + n + np.arange(2)) % 24] = 230
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def fitted() -> ClipAutoEncoder:
    torch.set_num_threads(1)
    method = ClipAutoEncoder(9000, 1600, (17, 24), 5, past=1, step=1, flip=False, batch_size=16, lr=4e-3)
    return method.fit([bars(40, seed) for seed in range(4)])


@pytest.mark.parametrize("parameters", [9000, 300_000, 3_500_000])
def test_it_is_of_the_size_asked_for(parameters: int) -> None:
    width = width_for(parameters, 4)
    with torch.device("meta"):
        sizes = [weights_of(AutoEncoder(4, each)) for each in (width - 8, width, width + 8) if each]
    assert min(sizes, key=lambda size: abs(size - parameters)) == sizes[-2]


def test_it_gives_back_the_shape_it_was_given_whatever_the_sides() -> None:
    assert AutoEncoder(3, 8)(torch.zeros(2, 3, 17, 24)).shape == (2, 3, 17, 24)


def test_what_it_never_saw_comes_back_worse(fitted: ClipAutoEncoder) -> None:
    scores = fitted.scores(iter(bars(30, 99, turned=range(12, 20))))
    assert len(scores) == 30
    assert scores[0] == scores[1]  # the first frame has no past
    assert scores[13:20].min() > np.r_[scores[1:12], scores[21:]].max()


def test_scores_do_not_depend_on_batches_and_training_repeats_itself(fitted: ClipAutoEncoder) -> None:
    frames = bars(37, 5)
    whole = fitted.scores(frames)
    assert fitted.scores(frames[20:23])[1:] == pytest.approx(whole[21:23], rel=0, abs=0)
    again = ClipAutoEncoder(9000, 32, (17, 24), 5, past=1, step=1)
    one, other = (again.fit([bars(20, 1)]).scores(frames) for _ in range(2))
    assert np.array_equal(one, other)


def test_without_a_clip_of_enough_frames_it_says_so() -> None:
    with pytest.raises(DataError, match="at least 7 frames, found none in 2"):
        ClipAutoEncoder(9000, 16, (17, 24)).fit([bars(6, 0), []])
