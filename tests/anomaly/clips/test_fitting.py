"""Calibration of a detector of clips: what it promises, how much it computes, and what survives a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anodiff.anomaly.clip_calibration import ClipCalibration
from anodiff.anomaly.clip_fit import EPISODE_FRAMES, NormalClip, evenly, fit_clips, frames_to_fit, identity
from anodiff.anomaly.clip_planting import KINDS
from anodiff.anomaly.clips import ClipDetector, ScoredFrame
from anodiff.anomaly.temporal import smooth_in_time
from anodiff.engine.pieces import Pieces
from anodiff.errors import DataError


def values(scored: list[ScoredFrame]) -> np.ndarray:
    return np.array([each.score for each in scored])


def test_a_calibration_keeps_its_promise_and_travels(world: Any) -> None:
    found, clips = world.detector(), world.normals(4)
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
    loaded = world.model()
    loaded.calibrations = {"default": again}
    other = ClipDetector(loaded, device="cpu")
    assert other.calibration is again
    clip = world.as_clip(world.moving(24, 9, fast=range(12, 18)))
    assert np.array_equal(values(list(other.scores(clip))), values(list(found.scores(clip))))
    assert calibration.clip_p_value(np.inf, 6.3) == pytest.approx(1 / 3)
    assert calibration.clip_p_value(0.0, 6.3) == 1.0
    assert calibration.clip_p_value(np.inf, 6.4) == pytest.approx(2 / 3)  # two blocks of two normal clips
    assert calibration.clip_p_value(np.inf, 12.7) is None


def test_a_calibration_is_for_its_settings_alone(world: Any) -> None:
    calibration = fit_clips(world.detector(window_px=4, bands=False), world.normals(2, 20), rate=0.1)
    assert calibration.window_px == 4
    assert calibration.choices == ()
    other = world.model(window_px=4, bands=False, gain=2.0)
    other.calibrations = {"default": calibration}
    assert ClipDetector(other, device="cpu").calibration is None
    same = world.model(window_px=4, bands=False, false_alarms_per_hour=1.0)
    same.calibrations = {"default": calibration}
    assert ClipDetector(same, device="cpu").calibration is calibration


def test_a_calibration_needs_two_groups_and_room_for_what_is_planted(world: Any) -> None:
    with pytest.raises(DataError, match="at least 2 groups, found 1"):
        fit_clips(world.detector(), world.normals(1))
    with pytest.raises(DataError, match="long enough to plant anomalies in"):
        fit_clips(world.detector(), world.normals(2, 10))


def test_a_calibration_is_bounded_in_frames_planted_ones_among_them(world: Any) -> None:
    clips = world.normals(4)
    seen: list[int] = []
    found = world.detector()
    errors = found.errors
    found.errors = lambda frames: seen.append(len(frames)) or errors(frames)  # type: ignore[method-assign,func-returns-value]
    told: list[int] = []
    calibration = fit_clips(found, clips, most_choosing=30, most_deciding=25, progress=told.append)
    assert calibration.counts["threshold_frames"] <= 25
    assert calibration.lengths == (12, 13)
    # so many normal ones, one episode of each kind, and those that decide
    assert sum(seen) <= 30 + len(KINDS) * EPISODE_FRAMES + 25
    assert sum(told) == sum(seen) == frames_to_fit(found, clips, 30, 25)
    whole = world.detector()
    everything = fit_clips(whole, clips)
    assert everything.counts["threshold_frames"] == 126
    for times, series in zip(calibration.times.split([12, 13]), everything.times.split([63, 63]), strict=True):
        assert torch.equal(times, series[: len(times)])  # consecutive: a threshold an hour is made of stretches


def test_what_is_bounded_is_shared_out_evenly() -> None:
    assert evenly([10, 2, 10], 12) == [5, 2, 5]
    assert evenly([3, 3], 100) == [3, 3]
    assert sum(evenly([7] * 10, 4)) == 4
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(0, 40, 8).tolist()
        most = int(rng.integers(1, 200))
        taken = evenly(sizes, most)
        assert sum(taken) == min(most, sum(sizes))
        assert all(took <= size for took, size in zip(taken, sizes, strict=True))
        short = [took for took, size in zip(taken, sizes, strict=True) if took < size]
        assert not short or max(taken) <= min(short) + 1


def test_a_calibration_that_was_killed_goes_on_and_comes_to_the_same(tmp_path: Path, world: Any) -> None:
    clips = world.normals(4)
    whole = fit_clips(world.detector(), clips)

    class Killed(Exception):
        pass

    def calibrated(limit: float) -> tuple[int, ClipCalibration | None]:
        found, calls = world.detector(), []
        errors = found.errors

        def counted(frames: Tensor) -> Tensor:
            if len(calls) >= limit:
                raise Killed
            calls.append(1)
            return errors(frames)

        found.errors = counted  # type: ignore[method-assign]
        try:
            pieces = Pieces(tmp_path / "kept", identity(found))
            return len(calls), fit_clips(found, clips, pieces=pieces, progress=fresh.append, taken=taken.append)
        except Killed:
            return len(calls), None
        finally:
            made.append(len(calls))

    made: list[int] = []
    fresh: list[int] = []
    taken: list[int] = []
    assert calibrated(20)[1] is None
    assert calibrated(15)[1] is None
    _, again = calibrated(np.inf)
    assert again is not None
    assert again.to_json() == whole.to_json()
    for name, tensor in whole.to_tensors().items():
        assert torch.equal(again.to_tensors()[name], tensor), name
    plain, counted = world.detector(), []
    errors = plain.errors
    plain.errors = lambda frames: counted.append(1) or errors(frames)  # type: ignore[method-assign,func-returns-value]
    fit_clips(plain, clips)
    # what was in hand when it was killed is lost, no more: a chunk is one clip here
    assert len(counted) <= sum(made) <= len(counted) + 2 * 5
    fresh.clear()
    taken.clear()
    calibrated(np.inf)
    assert made[-1] == 0
    assert not fresh  # frames of an earlier run are not in the rate of this one
    assert taken
    other = world.detector(gain=2.0)
    assert identity(other) != identity(plain)


def test_the_pixels_that_are_kept_are_bounded_whatever_the_number_of_clips(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anodiff.anomaly import clip_fit

    kept: list[int] = []
    calibrate = clip_fit.calibrate

    def counted(scores: Tensor, maps: Any, pixels: Tensor, **rest: Any) -> Any:
        kept.append(len(pixels))
        return calibrate(scores, maps, pixels, **rest)

    monkeypatch.setattr(clip_fit, "calibrate", counted)
    monkeypatch.setattr(clip_fit, "PIXELS_KEPT", 5000)
    for count in (2, 6):
        fit_clips(world.detector(window_px=4, bands=False), world.normals(count, 40))
    assert kept[0] > 2000
    assert kept[1] <= 5000 + 3 * 40
    # one column after the other would be one place alone
    assert clip_fit.pixel_stride(1000, (80, 100)) % 2
    assert clip_fit.pixel_stride(1, (8, 8)) == 1


def test_no_past_across_a_gap_calibrates(world: Any) -> None:
    def gapped(clip: NormalClip) -> NormalClip:
        times = clip.times.clone()
        times[40:] += 100.0
        return NormalClip(clip.frames, times, clip.group)

    clips = [gapped(clip) for clip in world.normals(2)]
    found = world.detector(window_px=4, bands=False)
    calibration = fit_clips(found, clips)
    assert calibration.lengths == (62,)
    steps = calibration.times.diff()
    assert (steps > 50).sum() == 1
    assert float(calibration.times[0]) == pytest.approx(0.1)
    torch.testing.assert_close(calibration.times[38:40], torch.tensor([3.9, 104.1], dtype=torch.float64))
    scored = [
        each
        for each in found.scores(world.as_clip(clips[1].frames.numpy().transpose(0, 2, 3, 1)))
        if each.basis == "own"
    ]
    gone = [
        NormalClip(clip.frames, 7.0 ** torch.arange(len(clip.frames), dtype=torch.float64), clip.group)
        for clip in clips
    ]
    with pytest.raises(DataError, match="without a gap"):
        fit_clips(world.detector(window_px=4, bands=False, fps=10.0), gone)
    assert len(scored) == 63
