"""Fitting an early exit: the level of its first stage, the threshold at a stated error, and what scales compare.

All on normals and what is planted in them, see :mod:`anodiff.anomaly.early_exit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly.calibration import upper_quantiles
from anodiff.anomaly.early_exit import (
    CONFIDENCE,
    EarlyExit,
    Ladder,
    check_normals,
    check_stageable,
    losses_allowed,
    trials_needed,
    upper_bound,
)
from anodiff.anomaly.normals import NormalsPart
from anodiff.anomaly.planting import kinds_for, plant
from anodiff.diffusion import image_keys
from anodiff.errors import DataError

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration
    from anodiff.anomaly.detector import AnomalyDetector

#: anomalies planted into one normal in turn, until the whole preset finds one
TRIES = 12
#: normals on which the level of the first stage is chosen, at most
CHOOSING = 64
#: normal pixels behind the scale of a map; beyond it an evenly spaced subset is used
PIXELS_KEPT = 1 << 22

Progress = Callable[[int], None]


def fit_early_exit(
    detector: AnomalyDetector,
    part: NormalsPart,
    scores: Tensor,
    fitting: NormalsPart | None,
    error: float,
    *,
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> EarlyExit:
    """The exit of a calibrated detector at a stated error.

    Args:
        part: the normals that set its threshold; scores: theirs (n,), in their order.
        fitting: normals of other groups, on which the level is chosen, and donors of foreign tissue; None takes the
            middle level, and each image as its own donor.
        progress, batch_size: as of :meth:`AnomalyDetector.fit`.

    Raises:
        DataError: no threshold, or too few normals in which the preset finds a planted anomaly.
        ConfigError: an error outside (0, 1), or a preset of one level.
    """
    work = _Work(detector, progress, batch_size)
    calibration = work.calibration
    check_stageable(detector.settings)
    check_normals(error, len(calibration.scores), calibration.unit)
    if calibration.threshold is None:
        raise DataError(f"early exit: expected a threshold, found none: {calibration.message}")
    level = _choose_level(work, fitting)
    shares = sorted(calibration.pixel_quantiles)
    normal, pixels = work.of_normals(part, level, shares)
    whole = scores.double().sort().values
    found = _found(work, part, scores, level, None if fitting is None else fitting.images)
    allowed = losses_allowed(error, len(found))
    if allowed < 0:
        raise DataError(
            f"early exit: an error of {error:g} needs {trials_needed(error)} normal {calibration.unit}s with a planted "
            f"anomaly that the preset finds ({CONFIDENCE:.0%} confidence), found {len(found)} in {len(part.images)} "
            f"normal images; so few support {upper_bound(0, len(found)):.2g} and more"
        )
    ordered = normal.sort().values
    # What leaves is called normal, so its score must stay within the threshold once it is on the preset's scale.
    highest = ordered[int((whole <= calibration.threshold).sum()) - 1]
    threshold = float(min(found[allowed] if allowed < len(found) else highest, highest))
    lost = sum(score < threshold for score in found)
    return EarlyExit(
        level=level,
        threshold=threshold,
        error=error,
        confidence=CONFIDENCE,
        trials=len(found),
        lost=lost,
        bound=upper_bound(lost, len(found)),
        left=float((normal < threshold).double().mean()),
        scores=Ladder(ordered, whole),
        pixels=Ladder(pixels, torch.tensor([calibration.pixel_quantiles[share] for share in shares]).double()),
    )


class _Work:
    """First-stage and whole scores of images, a few at a time."""

    def __init__(self, detector: AnomalyDetector, progress: Progress | None, batch_size: int | None) -> None:
        self.detector, self.batch_size = detector, batch_size
        self.progress = progress or (lambda count: None)

    @property
    def calibration(self) -> Calibration:
        """The detector's, without an exit as yet."""
        assert self.detector.calibration is not None
        return self.detector.calibration

    def of_normals(self, part: NormalsPart, level: int, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """First-stage scores (n,), and values of its maps' foreground pixels at ``shares``; float64 on the CPU."""
        detector = self.detector
        stride = math.ceil(part.images[:, 0].numel() / PIXELS_KEPT)
        scores, pixels = [], []
        for images, inside in detector.chunks(part.images, part.foreground, self.batch_size):
            maps = detector.maps(detector.errors(images, detector.reconstruct(images, [level])), inside, level)
            scores.append(detector.scores(maps, inside).double().cpu())
            used = detector.used(inside, maps.device)
            for n, values in enumerate(maps):  # image by image: the subset must not depend on the batch
                pixels.append((values.flatten() if used is None else values[used[n]])[::stride].cpu())
            self.progress(len(images))
        quantiles = upper_quantiles(torch.cat(pixels), shares)
        return torch.cat(scores), torch.tensor([quantiles[share] for share in shares], dtype=torch.float64)

    def by_level(self, images: Tensor, foreground: Tensor | None, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
        """First-stage scores (len(levels), n) and whole scores (n,), float64 on the CPU."""
        detector = self.detector
        stages, whole = [], []
        for part, inside in detector.chunks(images, foreground, self.batch_size):
            errors = detector.errors(part, detector.reconstruct(part))
            each = [detector.scores(detector.maps(errors[k : k + 1], inside, k), inside) for k in levels]
            stages.append(torch.stack(each).double().cpu())
            whole.append(detector.scores(detector.maps(errors, inside), inside).double().cpu())
            self.progress(len(part))
        return torch.cat(stages, dim=1), torch.cat(whole)


def _choose_level(work: _Work, fitting: NormalsPart | None) -> int:
    """The level whose scores order normals most as the whole preset's do (Spearman); else the middle one."""
    from scipy.stats import spearmanr

    levels = work.detector.settings.levels
    count = len(levels)
    middle = sorted(range(count), key=lambda k: levels[k])[count // 2]
    if fitting is None:
        return middle
    rows = np.random.default_rng(work.detector.seed).permutation(len(fitting.images))[:CHOOSING].tolist()
    if len(rows) < 3:
        return middle
    inside = None if fitting.foreground is None else fitting.foreground[rows]
    stages, whole = work.by_level(fitting.images[rows], inside, range(count))
    agreement = [float(spearmanr(stage.numpy(), whole.numpy()).statistic) for stage in stages]
    return max(range(count), key=lambda k: -math.inf if math.isnan(agreement[k]) else agreement[k])


def _found(work: _Work, part: NormalsPart, scores: Tensor, level: int, donors: Tensor | None) -> list[float]:
    """First-stage scores, ascending, of one planted anomaly a unit (image or group) that the whole preset finds.

    Into each unit anomalies are planted in turn, the kinds in an order of its own, until one is found; images that are
    false alarms without one are left alone. So found anomalies are independent where units are.
    """
    detector, calibration = work.detector, work.calibration
    assert calibration.threshold is not None
    kinds = kinds_for(detector.settings.polarity)
    keys = image_keys(part.images, detector.seed).tolist()
    units: dict[object, list[int]] = {}
    for row, quiet in enumerate((scores.double() <= calibration.threshold).tolist()):
        if quiet:
            units.setdefault(part.groups[row] if calibration.unit == "group" else row, []).append(row)
    draws = {unit: _draws(rows, keys, len(kinds)) for unit, rows in units.items()}
    found: list[float] = []
    for turn in range(TRIES):
        wanted: dict[int, dict[object, int]] = {}
        for unit, drawn in draws.items():
            row, kind = drawn[turn]
            wanted.setdefault(kind, {})[unit] = row
        for kind, rows in wanted.items():
            index = list(rows.values())
            inside = None if part.foreground is None else part.foreground[index]
            images, masks = plant(
                part.images[index], inside, kinds[kind], detector.seed + turn, detector.settings.polarity, donors
            )
            seen = masks.flatten(1).any(dim=1)
            if not seen.any():
                continue
            stages, whole = work.by_level(
                images[seen], None if inside is None else inside[seen.to(inside.device)], [level]
            )
            planted = [unit for unit, shown in zip(rows, seen.tolist(), strict=True) if shown]
            for unit, stage, score in zip(planted, stages[0].tolist(), whole.tolist(), strict=True):
                if score > calibration.threshold:
                    found.append(stage)
                    del draws[unit]
    return sorted(found)


def _draws(rows: list[int], keys: list[int], kinds: int) -> list[tuple[int, int]]:
    """TRIES (row, number of a kind) for a unit, a function of its images' keys: all kinds before one comes again."""
    rng = np.random.default_rng([key % (1 << 64) for key in sorted(keys[row] for row in rows)])
    order: list[int] = []
    while len(order) < TRIES:
        order += rng.permutation(kinds).tolist()
    return [(rows[int(rng.integers(len(rows)))], kind) for kind in order[:TRIES]]
