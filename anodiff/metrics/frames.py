"""Frames of clips: AUROC and average precision, over all frames (micro) and clip by clip (macro).

Two habits of the field change the numbers and are off here; the names of metrics say where one is on. *Padding* gives
every clip one normal frame of score 0 and one anomalous frame of score 1, so that clips of one class have an AUROC too:
nearly 1, for free (random scores reach 0.69 on Ped2). *Per-clip min-max* stretches each clip's scores to [0, 1], which
says of every clip, a normal one too, that something in it is most anomalous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.errors import DataError
from anodiff.metrics.arrays import BoolArray
from anodiff.metrics.bootstrap import bootstrap_intervals
from anodiff.metrics.pools import ImagePool, PixelPool, Pool
from anodiff.metrics.ranking import auroc, average_precision, why_undefined

Floats = NDArray[np.float64]

#: number of frames above which the bootstrap bins scores by rank; the values themselves are exact always
EXACT_FRAMES = 100_000
PADDED, MINMAX = "_padded", "_per_clip_minmax"


@dataclass(frozen=True)
class ClipScores:
    """What is known of the frames of one clip.

    Attributes:
        id: of the clip.
        scores: (n,) higher = more anomalous; NaN = this frame has none, and is left out.
        truth: (n,) bool, True = anomalous.
        times: (n,) seconds, rising.
        group: clips of one group are drawn together in the bootstrap; "" = the clip alone.
    """

    id: str
    scores: Floats
    truth: BoolArray
    times: Floats
    group: str = ""

    @property
    def step(self) -> float:
        """Seconds that one frame stands for: the median distance of two; 0 for a single frame."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0


def clip_scores(
    id: str, scores: ArrayLike, truth: ArrayLike, times: ArrayLike | None = None, *, fps: float = 25.0, group: str = ""
) -> ClipScores:
    """A checked ClipScores; without ``times`` frames follow each other at ``fps``.

    Raises:
        DataError: another number of scores, flags and times, an infinite score, or times that do not rise.
    """
    values, flags = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    seconds = np.arange(len(values)) / fps if times is None else np.asarray(times, dtype=np.float64)
    if not values.shape == flags.shape == seconds.shape or values.ndim != 1:
        raise DataError(
            f"clip {id}: expected as many scores, flags and times, "
            f"found {values.size}, {flags.size} and {seconds.size} of them"
        )
    if np.isinf(values).any() or not (np.diff(seconds) > 0).all():
        raise DataError(f"clip {id}: expected finite scores and rising times, found others")
    return ClipScores(id, values, flags, seconds, group)


def evaluate_frames(
    clips: Sequence[ClipScores],
    *,
    padded: bool = False,
    per_clip_minmax: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Frame-level metrics of a test set, with 95 % intervals over clips (or their groups).

    Args:
        clips: the test set.
        padded: macro AUROC over all clips, each with one frame (normal, 0) and one (anomalous, 1) added.
        per_clip_minmax: stretch each clip's scores to [0, 1] first.
        n_boot, seed: of the bootstrap.

    Returns:
        Plain numbers, ready for JSON, each with `<name>_ci95`: frame_auroc_micro, frame_ap_micro (all frames together)
        and frame_auroc_macro (mean over clips that have both classes). With the options the names end in
        `_per_clip_minmax`, and macro's in `_padded`. Without intervals: n_clips, n_clips_one_class (left out of an
        unpadded macro mean), n_frames, n_anomalous_frames, n_without_score; reasons {key: sentence} for what is None.

    Raises:
        DataError: there is no clip.
        ValueError: padding of scores outside [0, 1], which would not be what padding means.
    """
    if not clips:
        raise DataError("expected the scores of at least one clip, found none")
    known = [_scored(clip) for clip in clips]
    used = [_stretched(clip) for clip in known] if per_clip_minmax else known
    end = MINMAX if per_clip_minmax else ""
    micro, macro = frame_pool(used), MacroPool(used, padded=padded)
    n_frames, n_anomalous = (sum(map(len, (clip.truth for clip in used))), sum(int(c.truth.sum()) for c in used))
    reasons: dict[str, str] = {}
    out: dict[str, Any] = {}
    for name, metric in (("frame_auroc_micro", "auroc"), ("frame_ap_micro", "ap")):
        reason = why_undefined(metric, n_anomalous, n_frames - n_anomalous, "frame")
        out |= _with_interval(name + end, micro, metric, reason, n_boot, seed, reasons)
    reason = None if macro.per_clip else "no clip has frames of both classes"
    name = f"frame_auroc_macro{PADDED if padded else ''}{end}"
    out |= _with_interval(name, macro, "auroc", reason, n_boot, seed, reasons)
    return out | {
        "n_clips": len(clips),
        "n_clips_one_class": sum(not 0 < clip.truth.sum() < len(clip.truth) for clip in known),
        "n_frames": n_frames,
        "n_anomalous_frames": n_anomalous,
        "n_without_score": sum(len(clip.scores) for clip in clips) - n_frames,
        "n_boot": n_boot,
        "reasons": reasons,
    }


def per_clip_table(clips: Iterable[ClipScores]) -> list[dict[str, Any]]:
    """One row a clip: clip, frames, anomalous_frames, seconds, auroc, ap, highest (score), reason why one is None."""
    rows = []
    for clip in map(_scored, clips):
        count, anomalous = len(clip.truth), int(clip.truth.sum())
        rows.append(
            {
                "clip": clip.id,
                "frames": count,
                "anomalous_frames": anomalous,
                "seconds": float(clip.times[-1] - clip.times[0]) + clip.step if count else 0.0,
                "auroc": auroc(clip.truth, clip.scores),
                "ap": average_precision(clip.truth, clip.scores),
                "highest": float(clip.scores.max()) if count else None,
                "reason": why_undefined("auroc", anomalous, count - anomalous, "frame"),
            }
        )
    return rows


def frame_pool(clips: Sequence[ClipScores], exact_frames: int = EXACT_FRAMES) -> Pool:
    """Every frame of the clips in one pool, groups being clips; binned by rank above ``exact_frames``."""
    groups = [clip.group or clip.id for clip in clips]
    if sum(len(clip.scores) for clip in clips) > exact_frames:
        anomalous = [clip.scores[clip.truth] for clip in clips]
        return PixelPool(anomalous, [clip.scores[~clip.truth] for clip in clips], groups)
    labels = np.concatenate([clip.truth for clip in clips])
    of_frame = [group for clip, group in zip(clips, groups, strict=True) for _ in clip.scores]
    return ImagePool(labels, np.concatenate([clip.scores for clip in clips]), of_frame)


class MacroPool:
    """The mean of the clips' own AUROC, for the bootstrap; clips of one class are left out unless ``padded``.

    Attributes:
        per_clip: {id: AUROC} of the clips that count.

    Raises:
        ValueError: padding of scores outside [0, 1].
    """

    def __init__(self, clips: Sequence[ClipScores], *, padded: bool = False) -> None:
        found = [(clip, auroc(*(_padded(clip) if padded else (clip.truth, clip.scores)))) for clip in clips]
        counted = [(clip, value) for clip, value in found if value is not None]
        self.per_clip: Mapping[str, float] = {clip.id: value for clip, value in counted}
        self.groups = tuple(sorted({clip.group or clip.id for clip, _ in counted}))
        number = {name: i for i, name in enumerate(self.groups)}
        group = np.array([number[clip.group or clip.id] for clip, _ in counted], dtype=np.int64)
        self._sums = np.bincount(group, [value for _, value in counted], len(self.groups))
        self._clips = np.bincount(group, minlength=len(self.groups))
        anomalous = [int(clip.truth.sum()) + padded for clip, _ in counted]
        frames = [len(clip.truth) + 2 * padded for clip, _ in counted]
        self.group_positives = np.bincount(group, anomalous, len(self.groups)).astype(np.int64)
        self.group_negatives = np.bincount(group, frames, len(self.groups)).astype(np.int64) - self.group_positives

    def value(self, metric: str) -> float | None:
        """The mean over clips; None where none counts."""
        return float(self._sums.sum() / self._clips.sum()) if self.groups else None

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Floats]:
        """The mean, (n_boot,), when group g is drawn weights[b, g] times."""
        return dict.fromkeys(metrics, weights @ self._sums / (weights @ self._clips))


def _with_interval(
    name: str, pool: Pool, metric: str, reason: str | None, n_boot: int, seed: int, reasons: dict[str, str]
) -> dict[str, Any]:
    if reason is not None:
        reasons[name] = reasons[f"{name}_ci95"] = reason
        return {name: None, f"{name}_ci95": None}
    interval = bootstrap_intervals(pool, (metric,), n_boot, seed)[metric]
    if interval.reason is not None:
        reasons[f"{name}_ci95"] = interval.reason
    return {name: pool.value(metric), f"{name}_ci95": interval.as_list()}


def _scored(clip: ClipScores) -> ClipScores:
    """Without the frames that have no score."""
    there = ~np.isnan(clip.scores)
    return replace(clip, scores=clip.scores[there], truth=clip.truth[there], times=clip.times[there])


def _stretched(clip: ClipScores) -> ClipScores:
    if not len(clip.scores):
        return clip
    low, high = clip.scores.min(), clip.scores.max()
    return replace(clip, scores=(clip.scores - low) / (high - low) if high > low else np.zeros_like(clip.scores))


def _padded(clip: ClipScores) -> tuple[BoolArray, Floats]:
    if len(clip.scores) and not (clip.scores.min() >= 0 and clip.scores.max() <= 1):
        raise ValueError(
            f"padding needs scores in [0, 1] (per_clip_minmax makes them so), found {clip.scores.min():g} ... "
            f"{clip.scores.max():g} in clip {clip.id}"
        )
    return np.concatenate([[False], clip.truth, [True]]), np.concatenate([[0.0], clip.scores, [1.0]])
