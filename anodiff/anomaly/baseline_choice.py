"""What a baseline chooses for itself, on anomalies planted in held-out normals, as a tuning does for the detector.

The same grids (:mod:`anodiff.anomaly.tuning_grid`), anomalies of the same kinds and sizes, and the same measure: pixel
average precision (AP), averaged over kinds and classes of size, for the map; image AP for the score. What is measured
was fitted on normals of other groups. Its map is the best it finds, where a tuning must gain a standard error to change
anything; its reduction to a score, of which image AP tells little, must earn one too. No label is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly.planted import CLEAN, Normals, PlantedImages
from anodiff.anomaly.planting import kinds_for
from anodiff.anomaly.reduce import Reduction, reduce_maps
from anodiff.anomaly.residuals import Polarity, apply_polarity, residual
from anodiff.anomaly.smoothing import smooth_maps
from anodiff.anomaly.tuning_grid import REDUCTIONS, smoothings
from anodiff.anomaly.tuning_measure import RESAMPLES, Draws, defined_mean, resampled_ap, standard_error
from anodiff.metrics.bootstrap import group_weights
from anodiff.metrics.ranking import average_precision

Form = Literal["signed", "squared", "absolute"]
Limits = tuple[float, float]

FORMS: tuple[Form, ...] = ("signed", "squared", "absolute")
#: the width that nothing is chosen with: 4 px of 128
USUAL_WIDTH = 1 / 32
#: normals (over all folds) in which anomalies are planted, each kind in each, as many as `anodiff tune` takes
PLANTED_NORMALS = 48


@dataclass(frozen=True)
class Finish:
    """From errors to a map, and from a map to a score; the slots of a detector that follow the standardisation.

    form: ``signed`` errors are averaged over channels and smoothed with their sign (finds weak shifts); of the others
        the amount is taken first (finds wrong texture, and a colour whose channels cancel).
    limits: the map is kept within them before it is smoothed; in standard deviations of normal error (``squared``: in
        their squares).
    smooth_px: standard deviation of the final Gaussian smoothing, px on the model grid.
    reduction, topk: see :func:`anodiff.anomaly.reduce.reduce_maps`.
    """

    form: Form = "signed"
    limits: Limits | None = None
    smooth_px: float = 0.0
    reduction: Reduction = "topk"
    topk: float = 0.005

    @classmethod
    def usual(cls, size: Sequence[int]) -> Finish:
        """What is taken where there is nothing to choose on, in proportion to the image."""
        return cls(smooth_px=USUAL_WIDTH * min(size))

    def maps(self, errors: Tensor, polarity: Polarity, foreground: Tensor | None = None) -> Tensor:
        """Anomaly maps (N, *S) of signed errors (C, N, *S), positive = brighter than normal."""
        there = errors.movedim(0, 1)
        amount = residual(there, torch.zeros_like(there[:1]), self.form, polarity)
        if self.limits is not None:
            amount = amount.clamp(*self.limits)
        return apply_polarity(smooth_maps(amount, self.smooth_px, foreground), self.form, polarity)

    def scores(self, maps: Tensor, foreground: Tensor | None = None) -> Tensor:
        """One score an image (N,)."""
        return reduce_maps(maps, self.reduction, topk=self.topk, foreground=foreground)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


#: errors (C, n, *S) of the images of each held-out fold, given a scale floor
Errors = Callable[[float], Sequence[Tensor]]


@dataclass
class Trials:
    """What the choices of a baseline are measured on.

    Args:
        planted: of each held-out fold the images, planted and clean.
        errors: their signed errors, by what was learnt from other folds; a function of the scale floor.
        polarity: as declared.
    """

    planted: Sequence[PlantedImages]
    errors: Errors
    polarity: Polarity

    def __post_init__(self) -> None:
        self._foregrounds = [_inside(found) for found in self.planted]
        self._cells = [
            [(torch.tensor(rows), *_counted(found, inside, rows)) for cells in found.cells().values() for rows in cells]
            for found, inside in zip(self.planted, self._foregrounds, strict=True)
        ]
        self._known: dict[tuple[Finish, float], list[float]] = {}
        self._last: tuple[float, Sequence[Tensor]] | None = None

    def pixel_ap(self, finish: Finish, floor: float) -> list[float]:
        """Of each fold the AP of planted pixels, averaged over kinds and sizes."""
        key = (replace(finish, reduction="topk", topk=0.005), floor)
        if key not in self._known:
            self._known[key] = [self._fold_ap(k, finish, floor) for k in range(len(self.planted))]
        return self._known[key]

    def image_ap(self, finish: Finish, floor: float) -> tuple[float, Draws]:
        """AP of planted against clean images, averaged over kinds and folds, and the same on resampled normals."""
        aps, draws = [], []
        for k, planted in enumerate(self.planted):
            scores = finish.scores(self._maps(k, finish, floor, len(planted)), self._foregrounds[k]).cpu().numpy()
            names, (_, groups) = np.array(planted.kinds), np.unique(planted.groups, return_inverse=True)
            weights = group_weights(int(groups.max()) + 1, RESAMPLES, k)
            for kind in sorted(set(planted.kinds) - {CLEAN}):
                rows = np.isin(names, (kind, CLEAN))
                labels = names[rows] == kind
                aps.append(average_precision(labels, scores[rows]) or 0.0)
                draws.append(resampled_ap(labels, scores[rows], groups[rows], weights))
        return _mean(aps), defined_mean(draws)

    def _maps(self, k: int, finish: Finish, floor: float, count: int) -> Tensor:
        if self._last is None or self._last[0] != floor:
            self._last = (floor, self.errors(floor))
        inside = self._foregrounds[k]
        return finish.maps(self._last[1][k][:, :count], self.polarity, None if inside is None else inside[:count])

    def _fold_ap(self, k: int, finish: Finish, floor: float) -> float:
        maps = self._maps(k, finish, floor, self.planted[k].planted).cpu()
        aps = []
        for rows, counted, labels in self._cells[k]:
            values = maps[rows].flatten() if counted is None else maps[rows][counted]
            aps.append(average_precision(labels.numpy(), values.numpy()) or 0.0)
        return _mean(aps)


def _counted(planted: PlantedImages, inside: Tensor | None, rows: list[int]) -> tuple[Tensor | None, Tensor]:
    """Where the pixels of these rows count, None for everywhere, and which of those are anomalous."""
    if inside is None:
        return None, planted.masks[rows].flatten()
    counted = inside[rows].cpu()
    return counted, planted.masks[rows][counted]


def choose_map(trials: Trials, start: Finish, floor: float, limits: Limits | None, forms: Sequence[Form]) -> Finish:
    """The form and width that show planted anomalies best, then limits and width; of equal ones the first."""
    widths = smoothings(trials.planted[0].images.shape[2:])
    tried = [replace(start, form=form, smooth_px=width) for form in forms for width in widths]
    best = _best(trials, [start, *tried], floor)
    if limits is None:
        return best
    return _best(trials, [best, *(replace(best, limits=limits, smooth_px=width) for width in widths)], floor)


def choose_width(trials: Trials, start: Finish, floor: float) -> Finish:
    """The width that shows planted anomalies best; of equal ones the present one."""
    widths = smoothings(trials.planted[0].images.shape[2:])
    return _best(trials, [start, *(replace(start, smooth_px=width) for width in widths)], floor)


def choose_reduction(trials: Trials, start: Finish, floor: float) -> Finish:
    """The reduction that tells planted from clean images best, where it gains more than a standard error."""
    tried = [start, *(replace(start, reduction=reduction, topk=topk) for reduction, topk in REDUCTIONS)]
    found = {finish: trials.image_ap(finish, floor) for finish in tried}
    best = max(found, key=lambda finish: found[finish][0])
    (ours, draws), (theirs, others) = found[best], found[start]
    return best if ours - theirs > standard_error(draws - others) else start


def planted_folds(
    normals: Tensor, parts: Tensor, foreground: Tensor | None, polarity: Polarity, held_out: Sequence[int]
) -> list[PlantedImages]:
    """Normals of each held-out fold, evenly spaced, with each kind planted in each, and the same clean.

    Foreign tissue is that of the other folds. Nothing depends on what lies outside the foreground: wherever an anomaly
    would take from there, it takes 0.
    """
    known = Normals(normals, tuple(map(str, range(len(normals)))), foreground)
    most = -(-PLANTED_NORMALS // len(held_out))
    rows = {fold: _evenly((parts == fold).nonzero()[:, 0], most) for fold in parts.unique().tolist()}
    planted = []
    for fold in held_out:
        others = torch.cat([rows[other] for other in rows if other != fold] or [rows[fold]])
        own, tissue = known.take(rows[fold]), known.take(others).inside()
        bare = Normals(own.inside(), own.groups, own.foreground)
        found = PlantedImages.of(bare, kinds_for(polarity), 0, polarity, tissue)
        images = found.images
        if own.foreground is not None:
            # here a group is the row of one normal
            place = {group: n for n, group in enumerate(own.groups)}
            before = own.images.float().cpu()[[place[group] for group in found.groups]]
            images = torch.where(found.foreground[:, None].cpu(), images, before)  # type: ignore[index]
        planted.append(replace(found, images=images.to(normals.device)))
    return planted


def _best(trials: Trials, choices: Sequence[Finish], floor: float) -> Finish:
    return max(choices, key=lambda finish: _mean(trials.pixel_ap(finish, floor)))


def _inside(planted: PlantedImages) -> Tensor | None:
    """The foreground where it leaves anything out: smoothing within all of an image is twice the work for nothing."""
    return None if planted.foreground is None or bool(planted.foreground.all()) else planted.foreground


def _evenly(rows: Tensor, most: int) -> Tensor:
    """At most so many of these row numbers, evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), most)).round().long()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
