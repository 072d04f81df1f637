"""How large a normal error is, at each place and noise level: fitted on normals, at the granularity that they support.

A map of normal error per pixel turns z = (e - location) / scale into the decisive step on aligned anatomy, and ruins
sparse motion, where most pixels of the fitting part never saw an error. So the granularity is chosen by the
log-likelihood of normal errors of *other groups* (patients, clips) under N(location, scale^2), by cross-validation
inside the standardisation part.

Only counts, sums and sums of squares are kept (float64), a set a fold: no error map is held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from anodiff.anomaly.smoothing import smooth_axis, smooth_spatial

Standardise = Literal["none", "auto", "map", "rows", "scalar"]

#: candidate smoothing widths of a map (px on the model grid), and of the bands
MAP_WIDTHS = (1.0, 2.0, 4.0, 8.0)
ROWS_WIDTH = 2.0
#: share of a level's overall scale that is added to the local one, in quadrature, where nothing else is said
SCALE_FLOOR = 0.35
#: below this (smoothed) number of normal pixels a place falls back to the overall location and scale
MIN_COUNT = 0.5
#: keeps the quotient finite where normal error is the same everywhere
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Granularity:
    """How finely normal error is described: ``map`` (pixels), ``rows`` (along the first spatial axis), ``scalar``."""

    kind: Literal["map", "rows", "scalar"]
    width: float = 0.0

    def __str__(self) -> str:
        return f"map, smoothed by {self.width:g} px" if self.kind == "map" else self.kind


@dataclass
class Moments:
    """Count (*S), sum and sum of squares (L, *S), float64, of the errors of normal foreground pixels."""

    count: Tensor
    total: Tensor
    square: Tensor

    @classmethod
    def empty(cls, levels: int, size: Sequence[int], device: torch.device | str = "cpu") -> Moments:
        """Moments of no image."""
        shape = (levels, *size)
        zeros = [torch.zeros(s, dtype=torch.float64, device=device) for s in (shape[1:], shape, shape)]
        return cls(*zeros)

    def add(self, errors: Tensor, foreground: Tensor | None = None) -> None:
        """Take in errors (L, N, *S) of N normal images, within ``foreground`` (N, *S) bool.

        Image by image, so that the sums are the same to the bit in whatever batches the images come.
        """
        values = errors.double()
        if foreground is None:
            self.count += errors.shape[1]
        else:
            inside = foreground.to(errors.device)
            self.count += inside.sum(dim=0)
            values = values * inside
        for image in values.unbind(dim=1):
            self.total += image
            self.square += image * image

    def add_anywhere(self, errors: Tensor, foreground: Tensor | None = None) -> None:
        """As `add` for moments of the size (1, ...): all places taken as one, which is what images of any size share.

        A level at a time: beside the errors no more is held than one map of one level.
        """
        for n in range(errors.shape[1]):
            inside = None if foreground is None else foreground[n].to(errors.device)
            self.count += errors[0, n].numel() if inside is None else inside.sum()
            for level, error in enumerate(errors[:, n]):
                values = error.double() if inside is None else error.double() * inside
                self.total[level] += values.sum()
                self.square[level] += (values * values).sum()

    @classmethod
    def sum_of(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of the union of disjoint parts."""
        first, *rest = parts
        joint = cls(first.count.clone(), first.total.clone(), first.square.clone())
        for part in rest:
            joint.count += part.count
            joint.total += part.total
            joint.square += part.square
        return joint


def fit_granularity(
    moments: Moments, granularity: Granularity, scale_floor: float = SCALE_FLOOR
) -> tuple[Tensor, Tensor]:
    """Location and scale of normal error at one granularity -> two float64 tensors that broadcast to (L, *S).

    Location: the average over the neighbourhood. Scale: the root of (the mean square about that location over the
    neighbourhood + the square of ``scale_floor`` * the level's overall scale). Without the second term an anatomy
    that is a little larger than the normals' makes a place that was always empty the loudest of the map.
    """
    overall_mean, overall_scale = _overall(moments)
    floor = scale_floor * overall_scale
    if granularity.kind == "scalar":
        return overall_mean, (overall_scale * overall_scale + floor * floor).sqrt()
    count = _pool(moments.count[None], granularity)
    known = count > MIN_COUNT
    safe = count.clamp(min=MIN_COUNT)
    mean = torch.where(known, _pool(moments.total, granularity) / safe, overall_mean)
    deviation = moments.square - 2.0 * mean * moments.total + mean * mean * moments.count
    variance = torch.where(known, (_pool(deviation, granularity) / safe).clamp(min=0), overall_scale * overall_scale)
    return mean, (variance + floor * floor).sqrt().clamp(min=SMALLEST_SCALE)


def _overall(moments: Moments) -> tuple[Tensor, Tensor]:
    axes = tuple(range(1, moments.total.ndim))
    count = moments.count.sum().clamp(min=1)
    mean = moments.total.sum(dim=axes, keepdim=True) / count
    variance = moments.square.sum(dim=axes, keepdim=True) / count - mean * mean
    return mean, variance.clamp(min=0).sqrt().clamp(min=SMALLEST_SCALE)


def _pool(statistic: Tensor, granularity: Granularity) -> Tensor:
    """Average a (L, *S) statistic over the neighbourhood that the granularity names."""
    if granularity.kind == "map":
        return smooth_spatial(statistic, granularity.width, range(1, statistic.ndim))
    other = tuple(range(2, statistic.ndim))
    return smooth_axis(statistic.sum(dim=other, keepdim=True), granularity.width, 1)


def log_likelihood(moments: Moments, location: Tensor, scale: Tensor) -> float:
    """Mean log-density (nats) of the errors behind ``moments`` under N(location, scale^2), a pixel and level."""
    squared = moments.square - 2.0 * location * moments.total + location * location * moments.count
    total = -(moments.count * scale.log() + 0.5 * squared / (scale * scale))
    pixels = float(moments.count.sum()) * moments.total.shape[0]
    return float(total.sum()) / max(pixels, 1.0) - 0.5 * math.log(2.0 * math.pi)


def candidates(standardise: Standardise, map_px: float | None) -> list[Granularity]:
    """What a setting leaves to choose from, finest first."""
    maps = [Granularity("map", width) for width in (MAP_WIDTHS if map_px is None else (map_px,))]
    rows, scalar = Granularity("rows", ROWS_WIDTH), Granularity("scalar")
    return {"none": [], "auto": [*maps, rows, scalar], "map": maps, "rows": [rows], "scalar": [scalar]}[standardise]


@dataclass(frozen=True)
class Standardisation:
    """Fitted location and scale of normal error, float32, broadcasting to (L, *S), and how they were chosen."""

    location: Tensor
    scale: Tensor
    granularity: Granularity
    log_likelihoods: dict[str, float]

    def __call__(self, errors: Tensor) -> Tensor:
        """z = (e - location) / scale; (L, N, *S) -> (L, N, *S)."""
        location, scale = self.location.to(errors.device), self.scale.to(errors.device)
        return (errors - location.unsqueeze(1)) / scale.unsqueeze(1)

    def fits(self, size: Sequence[int]) -> bool:
        """Whether images of spatial ``size`` have its grid: each side that of the normals, or any."""
        own = self.location.shape[1:]
        return len(own) == len(size) and all(mine in (1, side) for mine, side in zip(own, size, strict=True))

    def of_level(self, level: int) -> Standardisation:
        """That of one level alone, for its errors (1, N, *S)."""
        one = slice(level, level + 1)
        return replace(self, location=self.location[one], scale=self.scale[one])


def fit_standardisation(
    folds: Sequence[Moments],
    standardise: Standardise,
    map_px: float | None = None,
    scale_floor: float = SCALE_FLOOR,
) -> Standardisation:
    """Choose the granularity on held-out folds and fit it on all of them.

    ``folds``: moments of group-disjoint parts of the normals. Taken is the coarsest granularity that predicts
    held-out folds
    as well as the best one does, to within a standard error of their difference over folds: finer ones must earn it.
    With one choice there is nothing to choose; with a single fold no choice can be tested, and the coarsest is taken.
    """
    choices = candidates(standardise, map_px)
    if not choices:
        raise ValueError("standardise: expected auto, map, rows or scalar, found 'none'")
    scores: dict[str, float] = {}
    chosen = choices[-1]
    if len(choices) > 1 and len(folds) > 1:
        table = [_cross_validated(folds, choice, scale_floor) for choice in choices]
        scores = {str(choice): sum(values) / len(values) for choice, values in zip(choices, table, strict=True)}
        chosen = choices[last_as_good(table)]
    location, scale = fit_granularity(Moments.sum_of(folds), chosen, scale_floor)
    return Standardisation(location.float().cpu(), scale.float().cpu(), chosen, scores)


def _cross_validated(folds: Sequence[Moments], granularity: Granularity, scale_floor: float) -> list[float]:
    """Held-out log-likelihood of each fold, predicted from the others."""
    values = []
    for held_out, fold in enumerate(folds):
        others = Moments.sum_of(other for k, other in enumerate(folds) if k != held_out)
        values.append(log_likelihood(fold, *fit_granularity(others, granularity, scale_floor)))
    return values


def last_as_good(table: Sequence[Sequence[float]]) -> int:
    """Last row whose mean lies within one standard error (of the paired difference) of the best row's."""
    count = len(table[0])
    best = max(table, key=sum)
    for row in range(len(table) - 1, -1, -1):
        gaps = [theirs - ours for theirs, ours in zip(best, table[row], strict=True)]
        mean = sum(gaps) / count
        variance = sum((gap - mean) ** 2 for gap in gaps) / (count - 1)
        if mean <= math.sqrt(variance / count):
            return row
    raise AssertionError("the best row is as good as itself")
