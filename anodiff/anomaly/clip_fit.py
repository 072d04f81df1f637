"""Calibration of a ClipDetector on normal clips, in two group-disjoint parts.

The first part, with anomalies planted in it, sets the scale of the levels, the window and whether windows are divided
by what is normal at their height. The second gives the scores of normal frames: threshold, p-values, and the series
from which a threshold per hour is made. No clip with a real anomaly is ever looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly.calibration import calibrate
from anodiff.anomaly.clip_calibration import ClipCalibration
from anodiff.anomaly.clip_planting import KINDS, Episode, frames_needed, plant_clip
from anodiff.anomaly.clips import ClipDetector
from anodiff.anomaly.frame_scores import FrameScorer, row_scale
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.temporal import smooth_in_time
from anodiff.errors import DataError

#: sides of the windows that are compared, as shares of the model's height
WINDOW_SHARES = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4)
#: planted episodes of each kind, and their frames
EPISODES = 12
EPISODE_FRAMES = 12
#: bands must separate the planted better by so many standard errors of the difference: where most windows see all that
#: is planted, one episode alone makes a gain of one standard error
CLEARLY = 2.0
#: pixels of normal maps behind the pixel thresholds, at most
PIXELS_KEPT = 1 << 22

Progress = Callable[[int], None]


@dataclass(frozen=True)
class NormalClip:
    """frames: uint8 (T, C, h, w) at the model's size; times: (T,) float64 seconds; group: what it belongs to."""

    frames: Tensor
    times: Tensor
    group: str


@dataclass(frozen=True)
class Choice:
    """A window and whether bands divide it; separation (E,): AUROC of each planted episode against normal frames."""

    scorer: FrameScorer
    separation: Tensor

    @property
    def mean(self) -> float:
        return float(self.separation.mean())


def fit_clips(
    detector: ClipDetector,
    clips: Sequence[NormalClip],
    *,
    rate: float = 0.05,
    most_choosing: int = 600,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ClipCalibration:
    """Calibrates the detector (it scores as calibrated from then on) and returns what a model file keeps.

    Args:
        clips: normal, with more frames each than the model reaches back.
        rate: false-alarm rate of the frame threshold: share of normal frames whose smoothed score may be above it.
        most_choosing: frames of the first part that are used, spread evenly.
        progress: called with the number of frames done.

    Raises:
        DataError: fewer than two groups.
    """
    groups = [clip.group for clip in clips]
    if len(set(groups)) < 2:
        raise DataError(f"calibration: expected normal clips of at least 2 groups, found {len(set(groups))}")
    parts = assign_parts(groups, [1.0, 1.0], detector.seed)
    choosing, deciding = ([clip for clip, part in zip(clips, parts, strict=True) if part == k] for k in (0, 1))
    run = _Run(detector, batch_size, progress or (lambda _: None))
    scorer, choices = choose(run, choosing, most_choosing)
    series = [run.scores(clip, scorer) for clip in deciding]
    smoothed = [
        torch.from_numpy(smooth_in_time(times.numpy(), scores.numpy(), detector.video.smooth_s))
        for times, scores, _ in series
    ]
    plain = calibrate(
        torch.cat(smoothed),
        [],
        torch.cat([pixels for _, _, pixels in series]),
        preset=detector.name,
        settings=detector.settings.to_json(),
        seed=detector.seed,
        rate=rate,
        unit="frame",
        standardisation=None,
        counts={
            "choosing_clips": len(choosing),
            "threshold_clips": len(deciding),
            "threshold_frames": sum(len(scores) for _, scores, _ in series),
        },
        precision=detector.denoiser.precision,
        preprocess=detector.preprocess,
    )
    calibration = ClipCalibration(
        **vars(plain),
        video=detector.video_settings(),
        level_scale=scorer.level_scale,
        window_px=scorer.window_px,
        band_scale=scorer.band_scale,
        series=torch.cat([scores for _, scores, _ in series]),
        smoothed=torch.cat(smoothed),
        times=torch.cat([times for times, _, _ in series]),
        lengths=tuple(len(scores) for _, scores, _ in series),
        choices=tuple((c.scorer.window_px, c.scorer.band_scale is not None, round(c.mean, 5)) for c in choices),
    )
    detector.use(calibration)
    return calibration


def frames_to_fit(detector: ClipDetector, clips: Sequence[NormalClip], most_choosing: int) -> int:
    """How many frames `fit_clips` will compute, about: for a progress bar."""
    total = sum(len(clip.frames) - detector.video.reach for clip in clips)
    fixed = detector.video.window_px is not None and detector.video.bands is not None
    planted = 0 if fixed else len(KINDS) * EPISODES * EPISODE_FRAMES
    return min(most_choosing, total // 2) + total // 2 + planted


def choose(run: _Run, clips: Sequence[NormalClip], most: int) -> tuple[FrameScorer, list[Choice]]:
    """Scales from normal frames; window and bands by how well they separate what is planted in them.

    Windows that separate the planted as well as the best one does, within a standard error, are a plateau, of which the
    middle is taken; bands where they beat none clearly. A window or bands that the recipe fixes are not chosen.
    """
    video, height = run.detector.video, run.detector.size[0]
    normal = run.normal_errors(clips, most)
    level_scale = normal.double().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    base = FrameScorer(level_scale, 1)
    maps = run.detector.maps(normal, base).cpu()
    sides = sorted({max(2, round(share * height)) for share in WINDOW_SHARES})
    sides = [video.window_px] if video.window_px else sides
    kinds = [False, True] if video.bands is None else [video.bands]
    scorers = [
        FrameScorer(level_scale, side, row_scale(maps, side) if bands else None) for bands in kinds for side in sides
    ]
    if len(scorers) == 1:
        return scorers[0], []
    planted = [run.detector.maps(run.errors(episode.frames), base).cpu() for episode in episodes(run.detector, clips)]
    if not planted:
        raise DataError(
            "calibration: expected normal clips long enough to plant anomalies in "
            f"({frames_needed(EPISODE_FRAMES, video.reach)} frames), found none; or fix video.window_px and video.bands"
        )
    choices = [Choice(scorer, separation(scorer, maps, planted)) for scorer in scorers]
    return best(choices).scorer, choices


def best(choices: Sequence[Choice]) -> Choice:
    """The middle of the plateau without bands, unless that with bands is clearly better."""
    plain = [choice for choice in choices if choice.scorer.band_scale is None]
    banded = [choice for choice in choices if choice.scorer.band_scale is not None]
    if not plain or not banded:
        return middle(choices)
    first, second = middle(plain), middle(banded)
    return second if gain(second, first) > CLEARLY else first


def middle(choices: Sequence[Choice]) -> Choice:
    """Of the choices, in the order of their windows, the middle one of those that the best is not better than."""
    top = max(choices, key=lambda choice: choice.mean)
    level = [choice for choice in choices if choice is top or gain(top, choice) <= 1.0]
    return level[(len(level) - 1) // 2]


def gain(one: Choice, other: Choice) -> float:
    """By how many standard errors one separates the episodes better than the other, in pairs."""
    difference = one.separation - other.separation
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    mean = float(difference.mean())
    return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0


def separation(scorer: FrameScorer, normal: Tensor, planted: Sequence[Tensor]) -> Tensor:
    """AUROC of each episode's frames (T, h, w) against the normal ones (N, h, w), ties a half; (E,) float64."""
    below = scorer.frames(normal)[0].sort().values
    rows = []
    for maps in planted:
        values = scorer.frames(maps)[0]
        left = torch.searchsorted(below, values, side="left")
        right = torch.searchsorted(below, values, side="right")
        rows.append((left + right).double().mean() / (2 * len(below)))
    return torch.stack(rows)


def episodes(detector: ClipDetector, clips: Sequence[NormalClip]) -> list[Episode]:
    """Planted episodes of every kind, in turn in all clips that are long enough, figures taken from the next clip."""
    reach = detector.video.reach
    long = [clip.frames.numpy() for clip in clips if len(clip.frames) >= frames_needed(EPISODE_FRAMES, reach)]
    found = []
    for kind in KINDS:
        for number in range(EPISODES if long else 0):
            clip, donor = long[number % len(long)], long[(number + 1) % len(long)]
            found.append(plant_clip(clip, kind, EPISODE_FRAMES, reach, detector.seed + number, donor))
    return found


class _Run:
    """The detector over whole clips, a batch at a time."""

    def __init__(self, detector: ClipDetector, batch_size: int, progress: Progress) -> None:
        self.detector, self.batch_size, self.progress = detector, batch_size, progress

    def errors(self, frames: Tensor | np.ndarray, rows: Tensor | None = None) -> Tensor:
        """Errors (L, N, h, w) of the frames of a clip (T, C, h, w) that have enough past, or of some of those rows."""
        clip = torch.as_tensor(frames)
        if rows is None:
            rows = torch.arange(self.detector.video.reach, len(clip))
        offsets = torch.tensor(self.detector.video.offsets)
        found = []
        for part in rows.split(self.batch_size):
            found.append(self.detector.errors(clip[part[:, None] - offsets]).cpu())
            self.progress(len(part))
        return torch.cat(found, dim=1)

    def normal_errors(self, clips: Sequence[NormalClip], most: int) -> Tensor:
        """Errors of at most ``most`` frames of several clips, spread evenly, (L, N, h, w)."""
        reach = self.detector.video.reach
        total = sum(len(clip.frames) - reach for clip in clips)
        every = max(1, math.ceil(total / most))
        return torch.cat([self.errors(c.frames, torch.arange(reach, len(c.frames), every)) for c in clips], dim=1)

    def scores(self, clip: NormalClip, scorer: FrameScorer) -> tuple[Tensor, Tensor, Tensor]:
        """(times, scores, some pixels of the maps) of a clip, from its first frame with enough past on."""
        detector = self.detector
        reach = detector.video.reach
        offsets = torch.tensor(detector.video.offsets)
        values, pixels = [], []
        for part in torch.arange(reach, len(clip.frames)).split(self.batch_size):
            maps = detector.maps(detector.errors(clip.frames[part[:, None] - offsets]), scorer).cpu()
            values.append(scorer.frames(maps)[0])
            stride = max(1, math.ceil(len(clip.frames) * maps[0].numel() / PIXELS_KEPT))
            pixels.append(maps.flatten()[::stride])
            self.progress(len(part))
        return clip.times[reach:], torch.cat(values), torch.cat(pixels)
