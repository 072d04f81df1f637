"""Video baselines: what each sees, by construction; the frame difference on Ped2 against brute force."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from anodiff.anomaly.video_baselines import (
    FlowMagnitude,
    FrameDifference,
    FrameNumber,
    RandomScore,
    VideoBaseline,
    flow_lengths,
    grey_frames,
    standard_video_baselines,
    window_means,
)
from anodiff.errors import DataError


def walk(speeds: list[int], height: int = 24, width: int = 48) -> list[np.ndarray]:
    """A textured block that moves by speeds[k] px from frame k to k + 1, on a still textured ground."""
    rng = np.random.default_rng(0)
    ground = rng.integers(80, 120, (height, width, 1), dtype=np.uint8)
    block = np.kron(rng.integers(0, 255, (4, 4)), np.ones((3, 3))).astype(np.uint8)[..., None]
    frames, x = [], 2
    for speed in [0, *speeds]:
        x += speed
        frame = ground.copy()
        frame[6:18, x : x + 12] = block
        frames.append(frame)
    return frames


def test_window_means_are_those_of_every_window() -> None:
    values = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    wanted = [[values[i : i + 3, j : j + 3].mean() for j in range(7)] for i in range(5)]
    assert window_means(values, 3) == pytest.approx(np.array(wanted))
    assert window_means(values, 8) == pytest.approx(np.array([[values[:, j : j + 8].mean() for j in range(2)]]))


def test_frame_difference_is_the_largest_window_mean_of_the_change() -> None:
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 255, (10, 12, 3), dtype=np.uint8) for _ in range(4)]
    found = FrameDifference(4).scores(iter(frames))
    grey = [frame.astype(float).mean(axis=2) for frame in frames]
    wanted = [
        max(np.abs(now - past)[i : i + 4, j : j + 4].mean() for i in range(7) for j in range(9))
        for past, now in pairwise(grey)
    ]
    assert found[1:] == pytest.approx(wanted, rel=1e-5)
    assert found[0] == found[1]


def test_what_moves_faster_scores_higher() -> None:
    frames = walk([0, 1, 3, 0])
    difference = FrameDifference(8).scores(frames)
    assert difference[1] == 0
    assert difference[3] > difference[2] > difference[4] == 0
    for method in ("tvl1", "ilk"):
        flow = FlowMagnitude(8, None, method=method).fit([walk([1, 1, 1]), walk([0, 1])])
        scores = flow.scores(frames)
        assert scores[3] > scores[2] > scores[1]
        assert scores[0] == scores[1]


def test_flow_has_the_length_of_the_shift() -> None:
    rng = np.random.default_rng(0)
    wide = np.kron(rng.random((12, 12)), np.ones((4, 4)))
    lengths = flow_lengths(wide[4:44, 2:42], wide[4:44, 4:44])
    assert np.median(lengths[8:-8, 8:-8]) == pytest.approx(2.0, abs=0.3)


def test_flow_is_a_z_score_of_normals() -> None:
    clips = [walk([1, 0, 2]), walk([2, 1])]
    flow = FlowMagnitude(6, None).fit(clips)
    values = np.concatenate([each.ravel() for clip in clips for each in islice(flow._lengths(clip), 1, None)])
    assert (flow.mean_, flow.std_) == pytest.approx((values.mean(), values.std()))
    largest = list(flow._lengths(clips[0]))[1].max()
    assert flow.scores(clips[0])[1] == pytest.approx((largest - values.mean()) / values.std())


def test_flow_needs_normals_that_move() -> None:
    with pytest.raises(DataError, match="something moves"):
        FlowMagnitude(6, None).fit([])
    still = [np.full((16, 16, 1), 7, np.uint8)] * 3
    with pytest.raises(DataError, match="something moves"):
        FlowMagnitude(6, None).fit([still])


def test_random_scores_depend_on_clip_and_seed_only() -> None:
    a, b = walk([1, 2]), walk([1, 2], height=25)
    score = RandomScore(3).scores
    assert np.array_equal(score(a), score(iter(a)))
    assert np.array_equal(score(a)[:2], score(a[:2]))
    assert not np.array_equal(score(a), score(b))
    assert not np.array_equal(score(a), RandomScore(4).scores(a))
    assert 0 <= score(a).min() <= score(a).max() < 1


def test_the_frame_number_is_the_frame_number() -> None:
    assert FrameNumber().scores(iter(walk([1, 1]))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("baseline", standard_video_baselines(), ids=lambda baseline: baseline.name)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_baseline_gives_one_finite_score_a_frame(baseline: VideoBaseline, count: int) -> None:
    frames = walk([1, 2])
    scores = baseline.fit([frames]).scores(frames[:count])
    assert scores.shape == (count,)
    assert np.isfinite(scores).all()


def test_reducing_a_frame_takes_means_of_areas() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    (small,) = grey_frames([pixels], (4, 6))
    assert small == pytest.approx(pixels.astype(float).mean(axis=2).reshape(4, 2, 6, 2).mean(axis=(1, 3)), abs=1e-3)


@pytest.mark.data
def test_on_ped2_a_cyclist_moves_more_than_those_who_walk(data_root: Path) -> None:
    """The first test clip before and after the cyclist comes in: 20 frames of each."""
    from anodiff.data.video.clip import open_clip

    folder = data_root / "ucsd_ped2" / "testing" / "frames" / "01"
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder {folder}")
    with open_clip(folder, fps=10) as clip:
        frames = [frame.pixels for frame in islice(clip, 150)]
    score = FrameDifference(16).scores
    assert np.median(score(frames[130:150])) > np.median(score(frames[:20]))
