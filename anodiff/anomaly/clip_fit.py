"""Calibration of a ClipDetector on normal clips, in two group-disjoint parts.

The first part, with anomalies planted in it, sets the scale of the levels, the window and whether windows are divided
by what is normal at their height. The second gives the scores of normal frames: threshold, p-values, and the series
from which a threshold per hour is made. No clip with a real anomaly is ever looked at, and no past across a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anodiff.anomaly.calibration import calibrate
from anodiff.anomaly.clip_calibration import ClipCalibration
from anodiff.anomaly.clip_planting import KINDS, Episode, frames_needed, plant_clip
from anodiff.anomaly.clips import ClipDetector
from anodiff.anomaly.frame_scores import FrameScorer, row_scale
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.temporal import smooth_in_time
from anodiff.data.video.beat import between_gaps
from anodiff.engine.pieces import Found, Pieces, module_digest
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
#: frames that are kept, or computed again after a kill, at once
CHUNK = 256

Progress = Callable[[int], None]


@dataclass(frozen=True)
class NormalClip:
    """frames: uint8 (T, C, h, w) at the model's size; times: (T,) float64 seconds; group: what it belongs to."""

    frames: Tensor
    times: Tensor
    group: str

    def cut(self, begin: int, end: int) -> NormalClip:
        """Some frames of it."""
        return NormalClip(self.frames[begin:end], self.times[begin:end], self.group)

    def stretches(self, fps: float | None, reach: int) -> list[NormalClip]:
        """The pieces between gaps in which a frame has ``reach`` frames before it."""
        return [self.cut(piece.start, piece.stop) for piece in between_gaps(self.times, fps, reach)]


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
    most_deciding: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    taken: Progress | None = None,
    pieces: Pieces | None = None,
) -> ClipCalibration:
    """Calibrates the detector (it scores as calibrated from then on) and returns what a model file keeps.

    Args:
        clips: normal, with more frames each than the model reaches back.
        rate: false-alarm rate of the frame threshold: share of normal frames whose smoothed score may be above it.
        most_choosing: frames of the first part that are used, spread evenly, and as many planted ones.
        most_deciding: frames of the second part that are scored: the first ones of each clip, shared out evenly; None
            takes all.
        progress: called with the number of frames done. taken: the same for frames that an earlier run computed;
            by default as ``progress``.
        pieces: where what is computed is kept, of `identity`.

    Raises:
        DataError: fewer than two groups, or clips without any frame that has enough past.
    """
    progress = progress or (lambda _: None)
    run = _Run(detector, batch_size, progress, taken or progress, pieces or Pieces())
    choosing, deciding = parts_of(detector, clips, most_deciding)
    scorer, choices = choose(run, [one for clip in choosing for one in run.stretches(clip)], most_choosing)
    stride = pixel_stride(sum(len(clip.frames) for clip in deciding), detector.size)
    series = [run.scores(clip, scorer, stride) for clip in deciding]
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


def parts_of(
    detector: ClipDetector, clips: Sequence[NormalClip], most_deciding: int | None = None
) -> tuple[list[NormalClip], list[NormalClip]]:
    """(clips to choose by, clips that decide, cut to what is scored of them): group-disjoint. Raises DataError."""
    video = detector.video
    groups = [clip.group for clip in clips]
    if len(set(groups)) < 2:
        raise DataError(f"calibration: expected normal clips of at least 2 groups, found {len(set(groups))}")
    parts = assign_parts(groups, [1.0, 1.0], detector.seed)
    usable = [bool(clip.stretches(video.fps, video.reach)) for clip in clips]
    choosing, deciding = (
        [clip for clip, part, there in zip(clips, parts, usable, strict=True) if part == k and there] for k in (0, 1)
    )
    if not choosing or not deciding:
        raise DataError(
            f"calibration: expected normal clips in both parts with {video.reach + 1} frames without a gap, found "
            f"{len(choosing)} and {len(deciding)}"
        )
    if most_deciding is None:
        return choosing, deciding
    shares = evenly([len(clip.frames) - video.reach for clip in deciding], most_deciding)
    kept = [clip.cut(0, video.reach + n) for clip, n in zip(deciding, shares, strict=True) if n]
    return choosing, [clip for clip in kept if clip.stretches(video.fps, video.reach)]


def evenly(sizes: Sequence[int], most: int) -> list[int]:
    """How much of each is taken so that all are ``most`` at most: as alike as their sizes allow."""
    taken, left = [0] * len(sizes), most
    order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    for place, number in enumerate(order):
        taken[number] = min(sizes[number], left // (len(order) - place))
        left -= taken[number]
    return taken


def pixel_stride(frames: int, size: tuple[int, int]) -> int:
    """Every how many pixels of so many maps are kept: PIXELS_KEPT in all, at most, and not of one column alone."""
    height, width = size
    stride = max(1, math.ceil(frames * height * width / PIXELS_KEPT))
    while math.gcd(stride, width) > 1:
        stride += 1
    return stride


def identity(detector: ClipDetector) -> dict[str, Any]:
    """What errors of frames depend on beside their pixels: for `Pieces`."""
    background = detector.input.background
    return {
        "weights": module_digest(detector.denoiser.denoiser),
        "background": None if background is None else background.tolist(),
        "settings": detector.settings.to_json(),
        "video": detector.video_settings(),
        "preprocess": detector.preprocess,
        "seed": detector.seed,
        "device": detector.denoiser.device.type,
        "precision": detector.denoiser.precision,
        "network_batch": detector.denoiser.network_batch,
        "compiled": detector.denoiser.compiled,
        "torch": torch.__version__,
    }


def frames_to_fit(
    detector: ClipDetector, clips: Sequence[NormalClip], most_choosing: int, most_deciding: int | None = None
) -> int:
    """How many frames `fit_clips` will compute: for a progress bar. Raises DataError as that does."""
    video = detector.video

    def count(some: Sequence[NormalClip]) -> int:
        return sum(len(one.frames) - video.reach for clip in some for one in clip.stretches(video.fps, video.reach))

    choosing, deciding = parts_of(detector, clips, most_deciding)
    total = count(choosing)
    fixed = video.window_px is not None and video.bands is not None
    planted = 0 if fixed else len(KINDS) * episodes_of_a_kind(most_choosing) * EPISODE_FRAMES
    return math.ceil(total / max(1, math.ceil(total / most_choosing))) + planted + count(deciding)


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
    planted = [
        run.detector.maps(run.errors(torch.from_numpy(episode.frames)), base).cpu()
        for episode in episodes(run.detector, clips, most)
    ]
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


def episodes_of_a_kind(most: int) -> int:
    """Planted episodes of each kind: of so many frames in all, at most, and one at least."""
    return max(1, min(EPISODES, most // (len(KINDS) * EPISODE_FRAMES)))


def episodes(detector: ClipDetector, clips: Sequence[NormalClip], most: int) -> Iterator[Episode]:
    """Planted episodes of every kind, in turn in all clips that are long enough, figures taken from the next clip."""
    reach = detector.video.reach
    long = [clip.frames.numpy() for clip in clips if len(clip.frames) >= frames_needed(EPISODE_FRAMES, reach)]
    for kind in KINDS:
        for number in range(episodes_of_a_kind(most) if long else 0):
            clip, donor = long[number % len(long)], long[(number + 1) % len(long)]
            yield plant_clip(clip, kind, EPISODE_FRAMES, reach, detector.seed + number, donor)


class _Run:
    """The detector over whole clips, a batch at a time; what it finds is kept in pieces of CHUNK frames."""

    def __init__(
        self, detector: ClipDetector, batch_size: int, progress: Progress, taken: Progress, pieces: Pieces
    ) -> None:
        self.detector, self.batch_size, self.pieces = detector, batch_size, pieces
        self.progress, self.taken = progress, taken

    def stretches(self, clip: NormalClip) -> list[NormalClip]:
        """See `NormalClip.stretches`."""
        return clip.stretches(self.detector.video.fps, self.detector.video.reach)

    def errors(self, frames: Tensor, rows: Tensor | None = None) -> Tensor:
        """Errors (L, N, h, w) of the frames of a clip (T, C, h, w) that have enough past, or of some of those rows."""
        if rows is None:
            rows = torch.arange(self.detector.video.reach, len(frames))
        return torch.cat([self._errors(self._seen(frames, part)) for part in rows.split(CHUNK)], dim=1)

    def normal_errors(self, clips: Sequence[NormalClip], most: int) -> Tensor:
        """Errors of at most ``most`` frames of several clips without gaps, spread evenly, (L, N, h, w)."""
        reach = self.detector.video.reach
        counts = [len(clip.frames) - reach for clip in clips]
        every = max(1, math.ceil(sum(counts) / most))
        found, before = [], 0
        for clip, count in zip(clips, counts, strict=True):
            rows = torch.arange(reach + -before % every, len(clip.frames), every)
            if len(rows):
                found.append(self.errors(clip.frames, rows))
            before += count
        return torch.cat(found, dim=1)

    def scores(self, clip: NormalClip, scorer: FrameScorer, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """(times, scores, every ``stride``-th pixel of the maps) of the frames of a clip that have enough past since
        the last gap."""
        reach = self.detector.video.reach
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for one in self.stretches(clip):
            for part in torch.arange(reach, len(one.frames)).split(CHUNK):
                values, pixels = self._scores(self._seen(one.frames, part), scorer, stride)
                found.append((one.times[part], values, pixels))
        times, scores, pixels = (torch.cat(column) for column in zip(*found, strict=True))
        return times, scores, pixels

    def _seen(self, frames: Tensor, rows: Tensor) -> Tensor:
        """What the model sees of these rows: (N, F, C, h, w)."""
        return frames[rows[:, None] - torch.tensor(self.detector.video.offsets)]

    def _errors(self, seen: Tensor) -> Tensor:
        def make() -> dict[str, Tensor]:
            parts = [self.detector.errors(part).cpu() for part in seen.split(self.batch_size)]
            return {"errors": torch.cat(parts, dim=1)}

        return self._piece("errors", [seen], make, len(seen))["errors"]

    def _scores(self, seen: Tensor, scorer: FrameScorer, stride: int) -> tuple[Tensor, Tensor]:
        def make() -> dict[str, Tensor]:
            values, pixels = [], []
            for part in seen.split(self.batch_size):
                maps = self.detector.maps(self.detector.errors(part), scorer).cpu()
                values.append(scorer.frames(maps)[0])
                pixels.append(maps.flatten()[::stride])
            return {"values": torch.cat(values), "pixels": torch.cat(pixels)}

        bands = torch.zeros(0) if scorer.band_scale is None else scorer.band_scale
        kind = f"scores {scorer.window_px} {stride} {self.batch_size}"
        found = self._piece(kind, [seen, scorer.level_scale, bands], make, len(seen))
        return found["values"], found["pixels"]

    def _piece(self, kind: str, inputs: list[Tensor], make: Callable[[], Found], frames: int) -> Found:
        """A piece, counted as done by this run or by an earlier one."""
        made = []

        def counted() -> Found:
            made.append(kind)
            return make()

        found = self.pieces.get(kind, inputs, counted)
        (self.progress if made else self.taken)(frames)
        return found
