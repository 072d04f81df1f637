"""Trivial baselines that every table carries: the same verbs, polarity, smoothing and score as the detector, no
diffusion.

They are meant to be strong: what is spatial is standardised per place (and channel) on normals, with the width of the
neighbourhood chosen on held-out groups, and the PCA residual is standardised by errors of normals that its components
have not seen. What follows the errors (amount first or not, smoothing, reduction) each chooses for itself by anomalies
planted in held-out groups, as a tuning does for the detector (see :mod:`anodiff.anomaly.baseline_choice`), and so its
``scale_floor`` (see :class:`anodiff.anomaly.settings.DetectorSettings`). Another baseline, the feature memory, is in
:mod:`anodiff.anomaly.memory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anodiff.anomaly.baseline_choice import (
    FORMS,
    Finish,
    Form,
    Limits,
    Trials,
    choose_map,
    choose_reduction,
    choose_width,
    planted_folds,
)
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.planted import PlantedImages
from anodiff.anomaly.residuals import Polarity
from anodiff.anomaly.smoothing import smooth_spatial
from anodiff.anomaly.standardise import (
    SCALE_FLOOR,
    Moments,
    Standardisation,
    fit_granularity,
    fit_standardisation,
    last_as_good,
)
from anodiff.anomaly.tuning_grid import SCALE_FLOORS
from anodiff.errors import DataError

#: folds of the normals by which widths are chosen and PCA errors are made honest
FOLDS = 4
#: most images whose principal components are computed (evenly spaced through the normals beyond it)
PCA_IMAGES = 2000
#: width of the blur residual: 8 px of 128
BLUR_SHARE = 1 / 16


@dataclass(frozen=True)
class Learnt:
    """Of each held-out fold the raw errors (C, n, *S) of its planted images, and each fold's moments of normal error.

    No moments: the errors are not standardised.
    """

    planted: Sequence[Tensor]
    moments: Sequence[Moments] = ()


class Baseline(ABC):
    """fit(normals), then maps(images) and scores(maps).

    Args:
        polarity: what an anomaly may be, as in the detector: "brighter" and "darker" keep the signed map.
        finish: from errors to map and score; None lets planted anomalies choose.
        limits: to choose from besides none, for errors that are standardised; the detector's, where it has some.

    Attributes:
        name: of its row in a table. nfe: denoiser calls an image.
        finish_: the finish that was given or chosen.
        planted_ap_: the pixel AP of planted anomalies with it; None where nothing was chosen.
    """

    name: str
    nfe = 0
    #: folds that are held out in turn to choose on, and forms to choose from
    held_out = FOLDS
    forms: tuple[Form, ...] = FORMS

    def __init__(
        self, polarity: Polarity = "both", finish: Finish | None = None, *, limits: Limits | None = None
    ) -> None:
        self.polarity: Polarity = polarity
        self.finish, self.limits = finish, limits
        self.standardisation_: Standardisation | None = None
        self.planted_ap_: float | None = None

    def fit(
        self, normals: Tensor, groups: Sequence[object] | None = None, foreground: Tensor | None = None
    ) -> Baseline:
        """Learn from normals (N, C, *S); ``groups`` names the patient, clip or part of each image.

        Raises DataError for fewer than 2 images.
        """
        if len(normals) < 2:
            raise DataError(f"{self.name}: expected at least 2 normal images to fit on, found {len(normals)}")
        parts = _folds(len(normals), groups)
        held_out = parts.unique().tolist()[: self.held_out]
        planted: list[PlantedImages] = []
        # a single fold cannot be held out, nor one without which there is nothing to learn from
        if self._chooses and all(_shows_tissue(foreground, parts != fold) for fold in held_out):
            planted = planted_folds(normals, parts, foreground, self.polarity, held_out)
            if not any(found.planted for found in planted):
                planted = []
        learnt = self._learn(normals, parts, foreground, planted)
        self._decide(learnt, planted, normals.shape[2:])
        return self

    def maps(self, images: Tensor, foreground: Tensor | None = None) -> Tensor:
        """Anomaly maps (N, *S), larger = more anomalous, of images (N, C, *S)."""
        errors = self._errors(images)
        if self.standardisation_ is not None:
            errors = self.standardisation_(errors)
        return self.finish_.maps(errors, self._sign, foreground)

    def scores(self, maps: Tensor, foreground: Tensor | None = None) -> Tensor:
        """One score an image (N,)."""
        return self.finish_.scores(maps, foreground)

    def settings(self) -> dict[str, Any]:
        """What was given or chosen, as plain values."""
        return {**self.finish_.to_json(), "planted_ap": self.planted_ap_}

    @abstractmethod
    def _learn(
        self, normals: Tensor, parts: Tensor, foreground: Tensor | None, planted: Sequence[PlantedImages]
    ) -> Learnt:
        """Learn from all normals; errors of what is planted in a fold by what was learnt from the others."""

    @abstractmethod
    def _errors(self, images: Tensor) -> Tensor:
        """Signed errors (C, N, *S) of images (N, C, *S), positive = brighter than normal, not standardised."""

    @property
    def _sign(self) -> Polarity:
        return self.polarity

    @property
    def _chooses(self) -> bool:
        return self.finish is None

    def _decide(self, learnt: Learnt, planted: Sequence[PlantedImages], size: Sequence[int]) -> None:
        """The finish that shows what is planted best."""
        self.finish_ = self.finish or Finish.usual(size)
        if self.finish is None and planted:
            trials = Trials(planted, lambda _: learnt.planted, self._sign)
            self.finish_ = choose_map(trials, self.finish_, 0.0, None, self.forms)
            self._conclude(trials, 0.0)

    def _conclude(self, trials: Trials, floor: float) -> None:
        """The reduction, which follows the map, and how well the choice shows what is planted."""
        if self.finish is None:
            self.finish_ = choose_reduction(trials, self.finish_, floor)
        found = trials.pixel_ap(self.finish_, floor)
        self.planted_ap_ = sum(found) / len(found)


class StandardisedBaseline(Baseline):
    """A baseline whose errors become local z-scores, a channel at a time.

    Args:
        scale_floor: None lets planted anomalies choose.
    """

    def __init__(
        self,
        polarity: Polarity = "both",
        finish: Finish | None = None,
        *,
        limits: Limits | None = None,
        scale_floor: float | None = None,
    ) -> None:
        super().__init__(polarity, finish, limits=limits)
        self.scale_floor = scale_floor

    def settings(self) -> dict[str, Any]:
        """What was given or chosen, as plain values."""
        assert self.standardisation_ is not None
        chosen = {"scale_floor": self.scale_floor_, "standardise": str(self.standardisation_.granularity)}
        return {**super().settings(), **chosen}

    @property
    def _chooses(self) -> bool:
        return self.finish is None or self.scale_floor is None

    def _decide(self, learnt: Learnt, planted: Sequence[PlantedImages], size: Sequence[int]) -> None:
        """The finish at the usual floor, the floor, then the width and the reduction that go with it."""
        folds = learnt.moments
        self.finish_ = self.finish or Finish.usual(size)
        floor = SCALE_FLOOR if self.scale_floor is None else self.scale_floor
        if planted:
            trials = Trials(planted, lambda floor: self._z_scores(learnt, floor), self._sign)
            if self.finish is None:
                self.finish_ = choose_map(trials, self.finish_, floor, self.limits, self.forms)
            if self.scale_floor is None:
                floor = self._floor(trials)
            if self.finish is None:
                self.finish_ = choose_width(trials, self.finish_, floor)
            self._conclude(trials, floor)
        self.scale_floor_ = floor
        self.standardisation_ = fit_standardisation(folds, "map", scale_floor=floor)

    def _floor(self, trials: Trials) -> float:
        """The smallest floor that shows the planted anomalies as well as the best one does: it must earn its place.

        To within a standard error of the difference over folds.
        """
        largest_first = sorted(SCALE_FLOORS, reverse=True)
        return largest_first[last_as_good([trials.pixel_ap(self.finish_, floor) for floor in largest_first])]

    def _z_scores(self, learnt: Learnt, floor: float) -> list[Tensor]:
        """Errors of what is planted in each fold, standardised by the other folds."""
        granularity = fit_standardisation(learnt.moments, "map", scale_floor=floor).granularity
        found = []
        for k, errors in enumerate(learnt.planted):
            others = Moments.sum_of(fold for j, fold in enumerate(learnt.moments) if j != k)
            location, scale = fit_granularity(others, granularity, floor)
            found.append(Standardisation(location.float(), scale.float(), granularity, {})(errors))
        return found


class RawIntensity(Baseline):
    """The image itself; for polarity "both" the distance from the mean of the normals."""

    name = "raw intensity"

    def _learn(
        self, normals: Tensor, parts: Tensor, foreground: Tensor | None, planted: Sequence[PlantedImages]
    ) -> Learnt:
        """The mean intensity of normal (foreground) pixels, by channel."""
        values = normals.float().movedim(1, 0)
        inside = torch.ones_like(values[0], dtype=torch.bool) if foreground is None else foreground

        def mean_of(rows: Tensor) -> Tensor:
            return torch.stack([channel[rows][inside[rows]].double().mean() for channel in values]).float()

        self.mean_ = mean_of(parts >= 0)
        labels = parts.unique().tolist()
        means = [mean_of(parts != labels[k]) for k in range(len(planted))]
        return Learnt([_above(found.images, mean) for found, mean in zip(planted, means, strict=True)])

    def _errors(self, images: Tensor) -> Tensor:
        return _above(images, self.mean_)


class BlurResidual(Baseline):
    """The image minus its own Gaussian blur: what stands out from its neighbourhood.

    Args:
        blur_px: standard deviation of the blur; None takes a sixteenth of the shortest side (8 px of 128).
    """

    name = "blur residual"

    def __init__(
        self,
        polarity: Polarity = "both",
        finish: Finish | None = None,
        *,
        blur_px: float | None = None,
    ) -> None:
        super().__init__(polarity, finish)
        self.blur_px = blur_px

    def settings(self) -> dict[str, Any]:
        """What was given or chosen, as plain values."""
        return {**super().settings(), "blur_px": self.blur_px_}

    def _learn(
        self, normals: Tensor, parts: Tensor, foreground: Tensor | None, planted: Sequence[PlantedImages]
    ) -> Learnt:
        """There is nothing to learn but how large an image is."""
        self.blur_px_ = BLUR_SHARE * min(normals.shape[2:]) if self.blur_px is None else self.blur_px
        return Learnt([self._errors(found.images) for found in planted])

    def _errors(self, images: Tensor) -> Tensor:
        values = images.float().movedim(1, 0)
        return values - smooth_spatial(values, self.blur_px_, range(2, values.ndim))


class IntensityZScore(StandardisedBaseline):
    """(x - mean of normals there) / (their standard deviation there)."""

    name = "intensity z-score"

    def _learn(
        self, normals: Tensor, parts: Tensor, foreground: Tensor | None, planted: Sequence[PlantedImages]
    ) -> Learnt:
        """The moments of normal intensity, by fold."""
        values = self._errors(normals)
        moments = [_moments(values, parts == k, foreground) for k in parts.unique().tolist()]
        return Learnt([self._errors(found.images) for found in planted], moments)

    def _errors(self, images: Tensor) -> Tensor:
        return images.float().movedim(1, 0)


class PCAResidual(StandardisedBaseline):
    """What the first ``components`` principal components of the normals do not explain, as a local z-score.

    The errors that fit the z-score come from components of the other folds, as a new image's errors do.
    """

    def __init__(
        self,
        polarity: Polarity = "both",
        finish: Finish | None = None,
        *,
        limits: Limits | None = None,
        scale_floor: float | None = None,
        components: int = 30,
    ) -> None:
        super().__init__(polarity, finish, limits=limits, scale_floor=scale_floor)
        self.components = components
        self.name = f"PCA({components}) residual"

    def settings(self) -> dict[str, Any]:
        """What was given or chosen, as plain values."""
        return {**super().settings(), "components": self.components}

    def _learn(
        self, normals: Tensor, parts: Tensor, foreground: Tensor | None, planted: Sequence[PlantedImages]
    ) -> Learnt:
        """The components of all normals, and the moments of held-out residuals, by fold."""
        flat = normals.float().flatten(1)
        centred = flat - flat.mean(dim=0)
        kept = torch.linspace(0, len(flat) - 1, min(len(flat), PCA_IMAGES)).round().long()
        gram = (centred[kept] @ centred[kept].T).double()
        moments, trials = [], []
        labels = parts.unique().tolist()
        for place, fold in enumerate(labels):
            others = parts[kept] != fold if len(labels) > 1 else torch.ones_like(kept, dtype=torch.bool)
            model = _principal_axes(flat, kept[others], gram[others][:, others], self.components)
            held_out = parts == fold
            errors = _unexplained(normals[held_out], *model)
            moments.append(_moments(errors, None, foreground[held_out] if foreground is not None else None))
            if place < len(planted):
                trials.append(_unexplained(planted[place].images, *model))
        self.model_ = _principal_axes(flat, kept, gram, self.components)
        return Learnt(trials, moments)

    def _errors(self, images: Tensor) -> Tensor:
        return _unexplained(images, *self.model_)


def standard_baselines(
    polarity: Polarity, finish: Finish | None = None, *, limits: Limits | None = None
) -> list[Baseline]:
    """The four of every table, unfitted: raw intensity, blur residual, intensity z-score, PCA(30) residual."""
    return [
        RawIntensity(polarity, finish),
        BlurResidual(polarity, finish),
        IntensityZScore(polarity, finish, limits=limits),
        PCAResidual(polarity, finish, limits=limits, components=30),
    ]


def _above(images: Tensor, means: Tensor) -> Tensor:
    """Images minus a mean a channel; (N, C, *S) -> (C, N, *S)."""
    values = images.float().movedim(1, 0)
    return values - means.to(values.device).reshape(-1, *[1] * (values.ndim - 1))


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
    """Images minus their projection; (N, C, *S) -> (C, N, *S)."""
    centred = images.float().flatten(1) - mean
    return (centred - (centred @ axes) @ axes.T).reshape(images.shape).movedim(1, 0)


def _moments(errors: Tensor, chosen: Tensor | None, foreground: Tensor | None) -> Moments:
    moments = Moments.empty(errors.shape[0], errors.shape[2:])
    if chosen is not None:
        errors = errors[:, chosen]
        foreground = foreground[chosen] if foreground is not None else None
    moments.add(errors, foreground)
    return moments


def _shows_tissue(foreground: Tensor | None, rows: Tensor) -> bool:
    """Whether there are such rows (N,) bool, and any foreground in them."""
    return bool(rows.any()) and (foreground is None or bool(foreground[rows].any()))


def _folds(count: int, groups: Sequence[object] | None) -> Tensor:
    labels = [str(group) for group in (groups if groups is not None else range(count))]
    return torch.tensor(assign_parts(labels, [1.0] * FOLDS))
