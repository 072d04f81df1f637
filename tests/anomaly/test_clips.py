"""Clips scored by a denoiser whose answer is known: it expects every square to go on by one pixel a frame."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from anodiff.anomaly.clip_calibration import ClipCalibration
from anodiff.anomaly.clip_fit import Choice, NormalClip, best, fit_clips, separation
from anodiff.anomaly.clip_planting import KINDS, frames_needed, plant_clip
from anodiff.anomaly.clips import ClipDetector, ScoredFrame
from anodiff.anomaly.frame_scores import FrameScorer, row_scale, window_means
from anodiff.anomaly.temporal import smooth_in_time
from anodiff.config import parse_config
from anodiff.data.video.clip import Frame
from anodiff.errors import ConfigError, DataError, InputError

SIZE = 16
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [SIZE, SIZE]},
    "video": {"past": 1, "step": 1, "background": "none", "gain": 1.0, "smooth_s": 0.2},
    "engine": {"network_batch": 4},
    "presets": {
        "default": {"levels": [0.1], "antithetic": True, "residual": "squared", "standardise": "none", "smooth_px": 0}
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class GoesOn(nn.Module):
    """Sure that everything goes one pixel to the right a frame: the change that the given frame announces."""

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            return torch.zeros_like(x)
        newest = context[:, :1]
        return newest.roll(1, dims=-1) - newest + 0.01 * sigma.reshape(-1, 1, 1, 1) * x


def model(**video: Any) -> SimpleNamespace:
    config = parse_config({**RECIPE, "video": {**RECIPE["video"], **video}})
    return SimpleNamespace(config=config, denoiser=GoesOn(), calibrations={}, constants={}, schedule=None)


def detector(**video: Any) -> ClipDetector:
    return ClipDetector(model(**video), device="cpu")


def moving(count: int, seed: int = 0, fast: range = range(0)) -> np.ndarray:
    """A square that goes right by one pixel a frame, by three where it is fast; uint8 (count, SIZE, SIZE, 1)."""
    rng = np.random.default_rng(seed)
    top, left = (int(value) for value in rng.integers(1, SIZE - 5, 2))
    frames = rng.integers(40, 80, (1, SIZE, 1, 1)).repeat(SIZE, axis=2).repeat(count, axis=0).astype(np.uint8)
    for n in range(count):
        left += 3 if n in fast else 1
        frames[n, top : top + 4][:, (left + np.arange(4)) % SIZE] = 200
    return frames


def as_clip(frames: np.ndarray, fps: float = 10.0) -> list[Frame]:
    return [Frame(n, n / fps, pixels) for n, pixels in enumerate(frames)]


def values(scored: list[ScoredFrame]) -> np.ndarray:
    return np.array([each.score for each in scored])


def test_what_the_past_announces_is_normal_and_what_it_does_not_is_found_in_its_place() -> None:
    fast = range(12, 18)
    scored = list(detector().scores(as_clip(moving(24, fast=fast))))
    found = values(scored)
    others = [n for n in range(24) if n not in fast]
    assert found[list(fast)].min() > 100 * found[others].max()
    assert [each.frame.index for each in scored] == list(range(24))
    top = int(np.argwhere(moving(24)[0, :, :, 0] == 200)[0, 0])
    for n in fast:
        _, y, _, height = scored[n].box
        assert y <= top + 3
        assert y + height > top
    assert scored[14].map.shape == (SIZE, SIZE)


def test_the_context_of_a_frame_is_its_own() -> None:
    """Without a past, or with that of another row, normal motion would be as surprising as a jump."""
    plain, lost = detector(), detector()
    lost.denoiser.denoiser = type(
        "Forgets", (GoesOn,), {"forward": lambda self, x, s, c=None: GoesOn.forward(self, x, s)}
    )()
    clip = as_clip(moving(12))
    assert values(list(plain.scores(clip))).max() < 0.01 * values(list(lost.scores(clip))).min()


def test_a_score_does_not_depend_on_batches_streams_or_frames_before_its_past() -> None:
    frames = moving(23, fast=range(9, 14))
    whole = values(list(detector().scores(as_clip(frames))))
    for size in (1, 3, 50):
        assert np.array_equal(values(list(detector().scores(iter(as_clip(frames)), size))), whole)
    later = values(list(detector().scores(as_clip(frames)[8:])))
    assert np.array_equal(later[1:], whole[9:])


def test_frames_without_enough_past_take_the_first_score_and_thinned_ones_the_last() -> None:
    found = values(list(detector(past=2, step=2).scores(as_clip(moving(12, fast=range(5, 8))))))
    assert (found[:4] == found[4]).all()
    assert len(set(found[4:8])) > 1
    thinned = values(list(detector(fps=10.0).scores(as_clip(moving(20), fps=20.0), 4)))
    assert (thinned[3::2] == thinned[2::2]).all()
    assert len(thinned) == 20


def test_clips_that_cannot_be_scored_say_why() -> None:
    with pytest.raises(InputError, match="at least 2 frames at the model's rate, found 1"):
        list(detector().scores(as_clip(moving(1))))
    images = model()
    images.config = parse_config({"name": "images"})
    with pytest.raises(ConfigError, match="expected a model of clips, found one of images"):
        ClipDetector(images, device="cpu")
    wrong = model()
    wrong.config = parse_config({**RECIPE, "presets": {"default": {"residual": "features"}}})
    with pytest.raises(ConfigError, match="found residual 'features'"):
        ClipDetector(wrong, device="cpu")


def test_window_means_are_those_of_every_whole_window() -> None:
    maps = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0))
    found = window_means(maps, 3, (1, 2, 5, 6))
    assert found.shape == (2, 3, 4)
    for row in range(3):
        for column in range(4):
            direct = maps[:, 1 + row : 4 + row, 2 + column : 5 + column].double().mean(dim=(1, 2))
            torch.testing.assert_close(found[:, row, column], direct)
    assert window_means(maps, 20).shape == (2, 1, 1)


def test_bands_make_near_and_far_alike() -> None:
    """Near the camera (below) everything errs more: without bands, what is anomalous far away is never seen."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.linspace(0.1, 3.0, 32).reshape(1, 32, 1)
    normal = depth * torch.rand(40, 32, 24, generator=generator)
    far = normal.clone()
    far[:, 4:8, 10:14] += 0.6
    plain = FrameScorer.plain(4, 1)
    banded = FrameScorer(torch.ones(1), 4, row_scale(normal, 4))
    assert float(banded.band_scale.mean()) == pytest.approx(1)  # type: ignore[union-attr]
    assert float(separation(plain, normal, [far])) < 0.7
    assert float(separation(banded, normal, [far])) > 0.9
    assert row_scale(torch.zeros(2, 8, 8), 2).tolist() == [1.0] * 8


def test_separation_is_the_auroc() -> None:
    generator = torch.Generator().manual_seed(0)
    normal, planted = torch.rand(20, 8, 8, generator=generator), torch.rand(6, 8, 8, generator=generator) + 0.02
    scorer = FrameScorer.plain(3, 1)
    scores = [scorer.frames(maps)[0] for maps in (normal, planted)]
    expected = roc_auc_score([0] * 20 + [1] * 6, torch.cat(scores))
    assert float(separation(scorer, normal, [planted])) == pytest.approx(expected)


def test_bands_must_be_clearly_better() -> None:
    plain = Choice(FrameScorer.plain(4, 1), torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64))
    bands = FrameScorer(torch.ones(1), 8, torch.ones(8))
    hardly = Choice(bands, plain.separation + torch.tensor([0.06, -0.05, 0.05, -0.04]))
    clearly = Choice(bands, plain.separation + 0.05 + torch.tensor([0.01, 0.0, -0.01, 0.0]))
    assert best([plain, hardly]) is plain
    assert best([plain, clearly]) is clearly


@pytest.mark.parametrize("kind", KINDS)
def test_planted_episodes_change_what_they_should_and_repeat(kind: str) -> None:
    clip = moving(60, 3).transpose(0, 3, 1, 2)
    episode = plant_clip(clip, kind, 8, 3, seed=5)
    assert episode.frames.shape == (11, 1, SIZE, SIZE)
    assert episode.frames.dtype == np.uint8
    assert np.array_equal(plant_clip(clip, kind, 8, 3, seed=5).frames, episode.frames)
    assert not np.array_equal(plant_clip(clip, kind, 8, 3, seed=6).frames, episode.frames)
    scenes = [clip[start : start + 11] for start in range(len(clip) - 11)]
    assert all((scene != episode.frames).any() for scene in scenes)
    if kind == "faster":  # the past is as it was; then frames of the clip come in leaps
        assert any(np.array_equal(scene[:3], episode.frames[:3]) for scene in scenes)
        assert all(any(np.array_equal(frame, known) for known in clip) for frame in episode.frames)
    with pytest.raises(ValueError, match="at least"):
        plant_clip(clip[: frames_needed(8, 3) - 1], kind, 8, 3, seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        plant_clip(clip, "unknown", 8, 3, seed=0)


def normals(count: int, length: int = 64) -> list[NormalClip]:
    times = torch.arange(length, dtype=torch.float64) / 10
    clips = []
    for seed in range(count):
        noise = np.random.default_rng(seed + 100).integers(-3, 4, (length, SIZE, SIZE, 1))
        frames = (moving(length, seed).astype(int) + noise).clip(0, 255).astype(np.uint8)
        clips.append(NormalClip(torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()), times, f"clip {seed}"))
    return clips


def test_a_calibration_keeps_its_promise_and_travels() -> None:
    found, clips = detector(), normals(4)
    calibration = fit_clips(found, clips, rate=0.1)
    assert found.calibration is calibration
    assert calibration.counts == {"choosing_clips": 2, "threshold_clips": 2, "threshold_frames": 126}
    assert calibration.lengths == (63, 63)
    assert len(calibration.series) == 126
    for times, scores, smoothed in zip(
        *(x.split(63) for x in (calibration.times, calibration.series, calibration.smoothed)), strict=True
    ):
        np.testing.assert_allclose(smooth_in_time(times.numpy(), scores.numpy(), 0.2), smoothed.numpy())
    ordered = calibration.smoothed.sort().values
    assert torch.equal(ordered, calibration.scores)
    assert calibration.threshold == float(ordered[126 - int(0.1 * 127)])
    assert len(calibration.choices) == 2 * len({choice[0] for choice in calibration.choices})
    chosen = max(mean for window, bands, mean in calibration.choices if window == calibration.window_px)
    assert chosen > 0.9  # what is planted is seen
    again = ClipCalibration.from_parts(calibration.to_json(), calibration.to_tensors())
    loaded = model()
    loaded.calibrations = {"default": again}
    other = ClipDetector(loaded, device="cpu")
    assert other.calibration is again
    clip = as_clip(moving(24, 9, fast=range(12, 18)))
    assert np.array_equal(values(list(other.scores(clip))), values(list(found.scores(clip))))
    assert calibration.clip_p_value(np.inf) == pytest.approx(1 / 3)
    assert calibration.clip_p_value(0.0) == 1.0


def test_a_calibration_is_for_its_settings_alone() -> None:
    calibration = fit_clips(detector(window_px=4, bands=False), normals(2, 20), rate=0.1)
    assert calibration.window_px == 4
    assert calibration.choices == ()
    other = model(window_px=4, bands=False, gain=2.0)
    other.calibrations = {"default": calibration}
    assert ClipDetector(other, device="cpu").calibration is None
    same = model(window_px=4, bands=False, false_alarms_per_hour=1.0)
    same.calibrations = {"default": calibration}
    assert ClipDetector(same, device="cpu").calibration is calibration


def test_a_calibration_needs_two_groups_and_room_for_what_is_planted() -> None:
    with pytest.raises(DataError, match="at least 2 groups, found 1"):
        fit_clips(detector(), normals(1))
    with pytest.raises(DataError, match="long enough to plant anomalies in"):
        fit_clips(detector(), normals(2, 10))
