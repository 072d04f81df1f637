"""What all candidates of a tuning are measured on: errors of planted images, computed once a noise family and level.

From then on a candidate is arithmetic on stored errors (standardise, fuse, smooth), the same as in the detector; the
network is not asked again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.anomaly.detector import VOXELS_AT_ONCE, AnomalyDetector
from anodiff.anomaly.fusion import fuse
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.planted import Normals, PlantedImages
from anodiff.anomaly.presets import change
from anodiff.anomaly.reduce import Reduction, reduce_maps
from anodiff.anomaly.residuals import Polarity, apply_polarity, residual
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.smoothing import smooth_maps
from anodiff.anomaly.standardise import Moments, Standardisation, fit_granularity, fit_standardisation
from anodiff.anomaly.tuning_grid import FROM_DIFFERENCE
from anodiff.anomaly.tuning_noise import TrainedNoise, slots_of
from anodiff.engine.progress import Progress

#: group-disjoint folds of the fitting normals, by which the granularity is chosen
FOLDS = 4
#: images whose maps are worked out at once
IMAGES_AT_ONCE = 32


@dataclass
class _Family:
    """What is stored for a noise family: its levels; errors by residual, of planted images and as moments by fold.

    difference (L, M, C, *S) and errors (L, M, *S) are half precision: normal error is not known to three digits.
    """

    levels: tuple[float, ...]
    difference: list[Tensor] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    moments: dict[str, list[Moments]] = field(default_factory=dict)


class ErrorCache:
    """Errors of planted images and the size of normal error, by noise family and level, and the maps made of them.

    Args:
        model: as of :class:`AnomalyDetector`.
        base: resolved settings whose other slots (pairs, sampler, ...) all candidates share.
        fit, planted: normals that fit the standardisation; images that candidates are measured on, of other groups.
        residuals: those that candidates may have; besides FROM_DIFFERENCE only the base's own.
        batch_size: images computed at once, at most.
    """

    def __init__(
        self,
        model: Any,
        base: DetectorSettings,
        fit: Normals,
        planted: PlantedImages,
        residuals: Sequence[str],
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        seed: int = 0,
        batch_size: int = 16,
        quiet: bool = True,
    ) -> None:
        self.model, self.base, self.fit, self.planted = model, base, fit, planted
        self.residuals, self._trained = tuple(residuals), TrainedNoise.of(model)
        self.size = tuple(planted.images.shape[2:])
        self._options: dict[str, Any] = {"device": device, "precision": precision, "seed": seed}
        self._batch_size, self._quiet = batch_size, quiet
        self._families: dict[str, _Family] = {}
        self._fitted: dict[tuple[Any, ...], Standardisation] = {}
        self.calls = 0
        used = planted.foreground if base.foreground else None
        self._inside = torch.ones_like(planted.masks) if used is None else used
        count = planted.planted
        #: labels of the measured pixels, image after image, and where each image ends
        self.labels: NDArray[np.bool_] = planted.masks[:count][self._inside[:count]].numpy()
        self.ends: NDArray[np.int64] = self._inside[:count].flatten(1).sum(dim=1).cumsum(0).numpy()

    def slots_of(self, noise: str) -> dict[str, Any]:
        """The slots that belong to a noise family, see :func:`anodiff.anomaly.tuning_noise.slots_of`."""
        return slots_of(noise, self.base, self._trained)

    def compute(self, noise: str, levels: Sequence[float]) -> None:
        """Runs the network on all images at these levels of a noise family; what was stored for it is replaced."""
        settings = change(self.base, {**self.slots_of(noise), "levels": tuple(levels)}, "tune")
        detector = AnomalyDetector(self.model, settings, **self._options)
        family = self._families[noise] = _Family(tuple(levels))
        self._fitted = {key: value for key, value in self._fitted.items() if key[0] != noise}
        folds = assign_parts(self.fit.groups, [1.0] * FOLDS)
        device = detector.denoiser.device
        family.moments = {
            kind: [Moments.empty(len(levels), self.size, device) for _ in range(max(folds) + 1)]
            for kind in self.residuals
        }
        total = len(self.fit) + len(self.planted)
        with Progress(total, "images", f"{noise} noise, {len(levels)} levels", quiet=self._quiet) as progress:
            for cut in self._cuts(len(self.fit), settings):
                self._add_normals(family, detector, cut, folds)
                progress.update(cut.stop - cut.start)
            for cut in self._cuts(len(self.planted), settings):
                self._add_planted(family, detector, cut)
                progress.update(cut.stop - cut.start)
        # folds that assign_parts left without a group hold nothing to learn from
        family.moments = {k: [f for f in found if float(f.count.sum()) > 0] for k, found in family.moments.items()}
        family.difference = [torch.cat(family.difference, dim=1)]
        family.errors = [torch.cat(family.errors, dim=1)] if family.errors else []
        self.calls += detector.denoiser.calls

    def forget(self, noise: str) -> None:
        """Frees what is stored for a family."""
        self._families.pop(noise, None)

    def levels(self, noise: str) -> tuple[float, ...]:
        """The levels that are stored for a family."""
        return self._families[noise].levels

    def values(self, settings: DetectorSettings) -> NDArray[np.float32]:
        """Map values at the measured pixels of the planted images, (P,); as the detector would give them."""
        count = self.planted.planted
        parts = [maps[self._inside[cut].to(maps.device)] for cut, maps in self._maps(settings, count)]
        return np.asarray(torch.cat(parts).cpu().numpy())

    def level_values(self, settings: DetectorSettings) -> NDArray[np.float32]:
        """The same for every stored level alone, (L, P), before polarity.

        Smoothing is linear, so without limits means over levels are means of these. The granularity of the
        standardisation is that of ``settings`` with its own levels.
        """
        family = self._families[settings.noise]
        standardisation = self._standardisation(settings, every_level=True)
        rows = []
        for row in range(len(family.levels)):
            parts = []
            for cut in _slices(self.planted.planted, IMAGES_AT_ONCE):
                errors = self._errors(family, settings, [row], cut)
                if standardisation is not None:
                    errors = (errors - standardisation[0][row]) / standardisation[1][row]
                inside = self._inside[cut].to(errors.device)
                smoothed = smooth_maps(
                    fuse(errors[:1], "mean", settings.limits), settings.smooth_px, inside if self._masked else None
                )
                parts.append(smoothed[inside].cpu())
            rows.append(torch.cat(parts).numpy())
        return np.stack(rows)

    def scores(
        self, settings: DetectorSettings, reductions: Sequence[tuple[Reduction, float]]
    ) -> dict[tuple[Reduction, float], Tensor]:
        """Image scores (M,) of all images, clean ones too, for each (reduction, topk)."""
        found: dict[tuple[Reduction, float], list[Tensor]] = {choice: [] for choice in reductions}
        for cut, maps in self._maps(settings, len(self.planted)):
            inside = self._inside[cut].to(maps.device) if self._masked else None
            for choice in reductions:
                reduction, topk = choice
                found[choice].append(reduce_maps(maps, reduction, topk=topk, foreground=inside).cpu())
        return {choice: torch.cat(parts) for choice, parts in found.items()}

    @property
    def _masked(self) -> bool:
        return self.base.foreground and self.planted.foreground is not None

    def _maps(self, settings: DetectorSettings, count: int) -> Iterator[tuple[slice, Tensor]]:
        """Maps (m, *S) of the first ``count`` images, a few at a time."""
        family = self._families[settings.noise]
        rows = [family.levels.index(level) for level in settings.levels]
        standardisation = self._standardisation(settings)
        for cut in _slices(count, IMAGES_AT_ONCE):
            errors = self._errors(family, settings, rows, cut)
            if standardisation is not None:
                errors = (errors - standardisation[0].unsqueeze(1)) / standardisation[1].unsqueeze(1)
            inside = self._inside[cut].to(errors.device) if self._masked else None
            smoothed = smooth_maps(fuse(errors, settings.fusion, settings.limits), settings.smooth_px, inside)
            yield cut, apply_polarity(smoothed, settings.residual, settings.polarity)

    def _errors(self, family: _Family, settings: DetectorSettings, rows: list[int], cut: slice) -> Tensor:
        """Raw errors (L, m, *S) of some levels and images."""
        if settings.residual not in FROM_DIFFERENCE:
            return family.errors[0][rows, cut].float()
        nothing = torch.zeros((), device=family.difference[0].device)
        # The difference already has the sign of the polarity: it is its own residual from an image of zeros, brighter.
        polarity: Polarity = "both" if settings.polarity == "both" else "brighter"
        stored = family.difference[0]
        return torch.stack([residual(stored[row, cut].float(), nothing, settings.residual, polarity) for row in rows])

    def _standardisation(self, settings: DetectorSettings, every_level: bool = False) -> tuple[Tensor, Tensor] | None:
        """Location and scale (L, *S) for the settings' levels, or at their granularity for every stored level."""
        if settings.standardise == "none":
            return None
        family = self._families[settings.noise]
        folds = family.moments[settings.residual]
        rows = [family.levels.index(level) for level in settings.levels]
        key = (
            settings.noise, settings.residual, settings.standardise, settings.map_px, settings.scale_floor, tuple(rows)
        )  # fmt: skip
        if key not in self._fitted:
            own = [Moments(fold.count, fold.total[rows], fold.square[rows]) for fold in folds]
            self._fitted[key] = fit_standardisation(own, settings.standardise, settings.map_px, settings.scale_floor)
        fitted = self._fitted[key]
        device = folds[0].count.device
        if not every_level:
            return fitted.location.to(device), fitted.scale.to(device)
        location, scale = fit_granularity(Moments.sum_of(folds), fitted.granularity, settings.scale_floor)
        return location.float(), scale.float()

    def _add_normals(self, family: _Family, detector: AnomalyDetector, cut: slice, folds: list[int]) -> None:
        images = self.fit.images[cut]
        inside = None if self.fit.foreground is None or not self.base.foreground else self.fit.foreground[cut]
        for kind, errors in self._all_errors(detector, images).items():
            for fold in sorted(set(folds[cut])):
                chosen = torch.tensor([part == fold for part in folds[cut]])
                own = None if inside is None else inside[chosen]
                family.moments[kind][fold].add(errors[:, chosen.to(errors.device)], own)

    def _add_planted(self, family: _Family, detector: AnomalyDetector, cut: slice) -> None:
        images = self.planted.images[cut]
        reconstructions = detector.reconstruct(images)
        difference = images.to(reconstructions.device) - reconstructions
        family.difference.append((-difference if self.base.polarity == "darker" else difference).half())
        if self.base.residual not in FROM_DIFFERENCE:
            family.errors.append(detector.errors(images, reconstructions).half())

    def _all_errors(self, detector: AnomalyDetector, images: Tensor) -> dict[str, Tensor]:
        """Errors (L, n, *S) by residual."""
        reconstructions = detector.reconstruct(images)
        there = images.to(reconstructions.device, torch.float32)
        found = {}
        for kind in self.residuals:
            if kind in FROM_DIFFERENCE:
                each = [residual(there, level, kind, self.base.polarity) for level in reconstructions]  # type: ignore[arg-type]
                found[kind] = torch.stack(each)
            else:
                found[kind] = detector.errors(images, reconstructions)
        return found

    def _cuts(self, count: int, settings: DetectorSettings) -> Iterator[slice]:
        rows = settings.nfe_for(self.size) * math.prod(self.planted.images.shape[1:])
        return _slices(count, max(1, min(self._batch_size, VOXELS_AT_ONCE // rows)))


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
