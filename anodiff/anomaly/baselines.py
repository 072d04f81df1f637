"""Trivial baselines that every table carries: the same verbs, polarity, smoothing and score as the detector, no
diffusion.

They are meant to be strong: what is spatial is standardised per place on normals, with the width of the
neighbourhood chosen on held-out groups, and the PCA residual is standardised by errors of normals that its
components have not seen. Their ``scale_floor`` (see :class:`anodiff.anomaly.settings.DetectorSettings`) is chosen on
normals too, by anomalies planted in held-out groups (see :meth:`Baseline._standardised`). Another baseline, the feature
memory, is in :mod:`anodiff.anomaly.memory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.planted import Normals, PlantedImages
from anodiff.anomaly.reduce import Reduction, reduce_maps
from anodiff.anomaly.residuals import Polarity, channel_mean
from anodiff.anomaly.smoothing import smooth_maps, smooth_spatial
from anodiff.anomaly.standardise import (
    SCALE_FLOOR,
    Moments,
    Standardisation,
    Standardise,
    fit_granularity,
    fit_standardisation,
    last_as_good,
)
from anodiff.errors import DataError
from anodiff.metrics.ranking import average_precision

#: folds of the normals by which widths are chosen and PCA errors are made honest
FOLDS = 4
#: most images whose principal components are computed (evenly spaced through the normals beyond it)
PCA_IMAGES = 2000
#: scale floors to choose from, and the normals (over all folds) in which anomalies are planted for that
SCALE_FLOORS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4)
PLANTED_IMAGES = 200


class Baseline(ABC):
    """fit(normals), then maps(images) and scores(maps).

    Args:
        polarity: what an anomaly may be, as in the detector: "brighter" and "darker" keep the signed map.
        smooth_px: standard deviation of the final Gaussian smoothing, px on the model grid.
        magnitude_first: for polarity "both", take |.| before smoothing (finds wrong texture) and not after it (finds
            weak shifts). Without effect on a declared sign.

    Attributes:
        name: of its row in a table. nfe: denoiser calls an image.
    """

    name: str
    nfe = 0

    def __init__(self, polarity: Polarity = "both", smooth_px: float = 0.0, *, magnitude_first: bool = False) -> None:
        self.polarity: Polarity = polarity
        self.smooth_px = smooth_px
        self.magnitude_first = magnitude_first

    @abstractmethod
    def fit(
        self, normals: Tensor, groups: Sequence[object] | None = None, foreground: Tensor | None = None
    ) -> Baseline:
        """Learn from normals (N, C, *S); ``groups`` names the patient, clip or part of each image."""

    @abstractmethod
    def _signed(self, images: Tensor) -> Tensor:
        """The signed map (N, *S): positive = brighter than normal."""

    def maps(self, images: Tensor, foreground: Tensor | None = None) -> Tensor:
        """Anomaly maps (N, *S), larger = more anomalous, of images (N, C, *S)."""
        return self._finished(self._signed(images), foreground)

    def _finished(self, signed: Tensor, foreground: Tensor | None) -> Tensor:
        """Polarity and smoothing: the signed map (N, *S) -> the anomaly map (N, *S)."""
        if self.polarity == "darker":
            signed = -signed
        if self.polarity != "both":
            return smooth_maps(signed, self.smooth_px, foreground)
        if self.magnitude_first:
            return smooth_maps(signed.abs(), self.smooth_px, foreground)
        return smooth_maps(signed, self.smooth_px, foreground).abs()

    def scores(
        self,
        maps: Tensor,
        foreground: Tensor | None = None,
        *,
        reduction: Reduction = "topk",
        topk: float = 0.005,
    ) -> Tensor:
        """One score an image (N,), by the detector's own reduction."""
        return reduce_maps(maps, reduction, topk=topk, foreground=foreground)

    def _standardised(
        self, folds: Sequence[Moments], trials: Sequence[_Trial], granularity: Standardise, scale_floor: float | None
    ) -> tuple[float, Standardisation]:
        """The scale floor and the local z-score that it belongs to, fitted on all folds.

        A floor must earn its place. One that is not given is the smallest whose maps of the held-out ``trials``,
        standardised by the other folds, show the planted anomalies as well as the best one's do (average precision over
        foreground pixels, to within a standard error of the difference over folds). A single fold cannot be held out.
        """
        if scale_floor is None and len(folds) < 2:
            scale_floor = SCALE_FLOOR
        if scale_floor is not None:
            return scale_floor, fit_standardisation(folds, granularity, scale_floor=scale_floor)
        found = {floor: fit_standardisation(folds, granularity, scale_floor=floor) for floor in SCALE_FLOORS}
        largest_first = sorted(SCALE_FLOORS, reverse=True)
        shown = [self._shown(folds, trials, found[floor], floor) for floor in largest_first]
        chosen = largest_first[last_as_good(shown)]
        return chosen, found[chosen]

    def _shown(
        self, folds: Sequence[Moments], trials: Sequence[_Trial], chosen: Standardisation, floor: float
    ) -> list[float]:
        """Average precision of the planted anomalies of each fold, standardised by the others."""
        shown = []
        for k, trial in enumerate(trials):
            others = Moments.sum_of(fold for j, fold in enumerate(folds) if j != k)
            location, scale = fit_granularity(others, chosen.granularity, floor)
            local = Standardisation(location.float(), scale.float(), chosen.granularity, {})
            maps = self._finished(local(trial.errors)[0], trial.foreground)
            inside = torch.ones_like(trial.masks) if trial.foreground is None else trial.foreground
            shown.append(average_precision(trial.masks[inside].numpy(), maps[inside].cpu().numpy()) or 0.0)
        return shown


@dataclass(frozen=True)
class _Trial:
    """Images of a fold with planted anomalies: raw errors (1, n, *S), masks and foreground (n, *S)."""

    errors: Tensor
    masks: Tensor
    foreground: Tensor | None


class RawIntensity(Baseline):
    """The image itself; for polarity "both" the distance from the mean of the normals."""

    name = "raw intensity"

    def fit(
        self, normals: Tensor, groups: Sequence[object] | None = None, foreground: Tensor | None = None
    ) -> RawIntensity:
        """Remember the mean intensity of normal (foreground) pixels."""
        _require(normals, self.name)
        values = channel_mean(normals.float())
        self.mean_ = float((values[foreground] if foreground is not None else values).double().mean())
        return self

    def _signed(self, images: Tensor) -> Tensor:
        return channel_mean(images) - self.mean_


class BlurResidual(Baseline):
    """The image minus its own Gaussian blur of ``blur_px``: what stands out from its neighbourhood."""

    name = "blur residual"

    def __init__(
        self,
        polarity: Polarity = "both",
        smooth_px: float = 0.0,
        *,
        magnitude_first: bool = False,
        blur_px: float = 8.0,
    ) -> None:
        super().__init__(polarity, smooth_px, magnitude_first=magnitude_first)
        self.blur_px = blur_px

    def fit(
        self, normals: Tensor, groups: Sequence[object] | None = None, foreground: Tensor | None = None
    ) -> BlurResidual:
        """There is nothing to learn."""
        return self

    def _signed(self, images: Tensor) -> Tensor:
        values = channel_mean(images)
        return values - smooth_spatial(values, self.blur_px, range(1, values.ndim))


class IntensityZScore(Baseline):
    """(x - mean of normals there) / (their standard deviation there).

    The local width is chosen on held-out groups, and so is ``scale_floor`` where it is None.
    """

    name = "intensity z-score"

    def __init__(
        self,
        polarity: Polarity = "both",
        smooth_px: float = 0.0,
        *,
        magnitude_first: bool = False,
        scale_floor: float | None = None,
    ) -> None:
        super().__init__(polarity, smooth_px, magnitude_first=magnitude_first)
        self.scale_floor = scale_floor

    def fit(
        self, normals: Tensor, groups: Sequence[object] | None = None, foreground: Tensor | None = None
    ) -> IntensityZScore:
        """Fit the local mean and standard deviation of normal intensity."""
        _require(normals, self.name)
        values = channel_mean(normals.float())[None]
        parts = _folds(len(normals), groups)
        labels = parts.unique().tolist()
        folds = [_moments(values, parts == k, foreground) for k in labels]
        trials = []
        if self.scale_floor is None:
            for found in _planted_folds(normals, parts, foreground, self.polarity):
                trials.append(_Trial(channel_mean(found.images)[None], found.masks, found.foreground))
        self.scale_floor_, self.standardisation_ = self._standardised(folds, trials, "map", self.scale_floor)
        return self

    def _signed(self, images: Tensor) -> Tensor:
        return self.standardisation_(channel_mean(images)[None])[0]


class PCAResidual(Baseline):
    """What the first ``components`` principal components of the normals do not explain, as a local z-score.

    The errors that fit the z-score come from components of the other folds, as a new image's errors do. Its local width
    is chosen on held-out groups, and so is ``scale_floor`` where it is None.
    """

    name = "PCA residual"

    def __init__(
        self,
        polarity: Polarity = "both",
        smooth_px: float = 0.0,
        *,
        magnitude_first: bool = False,
        components: int = 10,
        scale_floor: float | None = None,
    ) -> None:
        super().__init__(polarity, smooth_px, magnitude_first=magnitude_first)
        self.scale_floor = scale_floor
        self.components = components
        self.name = f"PCA({components}) residual"

    def fit(
        self, normals: Tensor, groups: Sequence[object] | None = None, foreground: Tensor | None = None
    ) -> PCAResidual:
        """Fit the components on all normals, and the local scale of their held-out residuals."""
        _require(normals, self.name)
        flat = normals.float().flatten(1)
        parts = _folds(len(normals), groups)
        centred = flat - flat.mean(dim=0)
        kept = torch.linspace(0, len(flat) - 1, min(len(flat), PCA_IMAGES)).round().long()
        gram = (centred[kept] @ centred[kept].T).double()
        moments, trials = [], []
        labels = parts.unique().tolist()
        plants = _planted_folds(normals, parts, foreground, self.polarity) if self.scale_floor is None else []
        for place, fold in enumerate(labels):
            others = parts[kept] != fold if len(labels) > 1 else torch.ones_like(kept, dtype=torch.bool)
            model = _principal_axes(flat, kept[others], gram[others][:, others], self.components)
            held_out = parts == fold
            errors = _unexplained(normals[held_out], *model)
            moments.append(_moments(errors[None], None, foreground[held_out] if foreground is not None else None))
            if plants:
                found = plants[place]
                trials.append(_Trial(_unexplained(found.images, *model)[None], found.masks, found.foreground))
        self.model_ = _principal_axes(flat, kept, gram, self.components)
        self.scale_floor_, self.standardisation_ = self._standardised(moments, trials, "map", self.scale_floor)
        return self

    def _signed(self, images: Tensor) -> Tensor:
        return self.standardisation_(_unexplained(images, *self.model_)[None])[0]


def standard_baselines(polarity: Polarity, smooth_px: float, *, magnitude_first: bool = False) -> list[Baseline]:
    """The four of every table, unfitted: raw intensity, blur residual, intensity z-score, PCA(30) residual."""
    return [
        RawIntensity(polarity, smooth_px, magnitude_first=magnitude_first),
        BlurResidual(polarity, smooth_px, magnitude_first=magnitude_first),
        IntensityZScore(polarity, smooth_px, magnitude_first=magnitude_first),
        PCAResidual(polarity, smooth_px, magnitude_first=magnitude_first, components=30),
    ]


def _principal_axes(flat: Tensor, rows: Tensor, gram: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Mean (d,) and leading axes (d, k) of the given rows of ``flat`` (n, d), from the rows' Gram matrix."""
    centring = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
    values, vectors = torch.linalg.eigh(centring)
    k = min(components, len(rows) - 1)
    leading = vectors[:, -k:] / values[-k:].clamp(min=1e-12).sqrt() if k > 0 else vectors[:, :0]
    data = flat[rows]
    mean = data.mean(dim=0)
    return mean, (data - mean).T @ leading.float()


def _unexplained(images: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Images minus their projection, mean over channels; (N, C, *S) -> (N, *S)."""
    centred = images.float().flatten(1) - mean
    return channel_mean((centred - (centred @ axes) @ axes.T).reshape(images.shape))


def _moments(errors: Tensor, chosen: Tensor | None, foreground: Tensor | None) -> Moments:
    moments = Moments.empty(errors.shape[0], errors.shape[2:])
    if chosen is not None:
        errors = errors[:, chosen]
        foreground = foreground[chosen] if foreground is not None else None
    moments.add(errors, foreground)
    return moments


def _folds(count: int, groups: Sequence[object] | None) -> Tensor:
    labels = [str(group) for group in (groups if groups is not None else range(count))]
    return torch.tensor(assign_parts(labels, [1.0] * FOLDS))


def _planted_folds(
    normals: Tensor, parts: Tensor, foreground: Tensor | None, polarity: Polarity
) -> list[PlantedImages]:
    """A few normals a fold, evenly spaced, with planted anomalies, foreign tissue being that of the other folds.

    In the order of the folds' labels.
    """
    labels = parts.unique().tolist()
    known = Normals(normals, tuple(map(str, range(len(normals)))), foreground)
    most = PLANTED_IMAGES // len(labels)
    folds = {fold: (parts == fold).nonzero()[:, 0] for fold in labels}
    rows = {fold: found[_evenly(len(found), most)] for fold, found in folds.items()}
    planted = []
    for fold in labels:
        others = torch.cat([rows[other] for other in labels if other != fold] or [rows[fold]])
        planted.append(PlantedImages.in_turn(known.take(rows[fold]), polarity, known.take(others)))
    return planted


def _evenly(count: int, most: int) -> Tensor:
    """At most so many row numbers below ``count``, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _require(normals: Tensor, name: str) -> None:
    if len(normals) < 2:
        raise DataError(f"{name}: expected at least 2 normal images to fit on, found {len(normals)}")
