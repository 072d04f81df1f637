"""AnomalyDetector: noise -> reconstruct -> compare -> standardise -> fuse -> smooth -> score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from anodiff.anomaly.any_size import check_windows, usable
from anodiff.anomaly.calibration import Calibration, calibrate, check_promise, settings_changes, whole_settings
from anodiff.anomaly.early_exit import EarlyExit, check_normals, check_stageable, known_exit, two_stages
from anodiff.anomaly.fusion import fuse
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.noising import reconstruct
from anodiff.anomaly.normals import NormalsPart, Progress, check_images, normal_scores, refuse_shared
from anodiff.anomaly.perceptual import FeatureDistance
from anodiff.anomaly.presets import resolve, training_note
from anodiff.anomaly.reduce import reduce_maps
from anodiff.anomaly.residuals import apply_polarity, residual
from anodiff.anomaly.result import DetectionResult
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.smoothing import smooth_maps
from anodiff.anomaly.standardise import Moments, Standardisation, fit_standardisation
from anodiff.diffusion import image_keys
from anodiff.engine.inference import InferenceDenoiser
from anodiff.engine.windows import WindowDenoiser
from anodiff.errors import InputError

#: rows x voxels that are in flight at once: 64 MiB of float32, a few times over
VOXELS_AT_ONCE = 1 << 24
#: group-disjoint folds of the standardisation part, by which its granularity is chosen; fewer where sums get large
MOST_FOLDS = 8
VALUES_IN_FOLDS = 1 << 26


class AnomalyDetector:
    """Scores images by what a diffusion model of normal images cannot reproduce.

    A score is a function of the model, the settings, the seed and the pixels: on one device and software it has the
    same bits whatever the other images of the batch are, in any order (for one ``network_batch``; 1e-4 relative across
    them in fp32).

    Args:
        model: anything with ``denoiser`` (nn.Module, D(x, sigma)), ``calibrations`` (dict by preset) and, optionally,
            ``config`` (recipe), ``schedule`` and ``normal_denoiser`` (where there are classes, that of the normal one).
            Its denoiser is moved to the device and set to evaluation mode.
        preset: a preset's name, adapted by the model's recipe, or settings taken as they are.
        device, precision: see :class:`anodiff.engine.inference.InferenceDenoiser`.
        network_batch: rows of the one batch the network sees; None takes the recipe's, or 16.
        seed: of the noise.
        early_exit: let images that the first level shows to be normal leave, as the calibration knows how.

    Attributes:
        name, settings: of the preset, resolved. calibration: fitted, or found in the model for exactly these settings.
        any_size: whether images may have any size. window_settings: "window" and "overlap" of what the network sees of
            an image at a time (``engine.window`` of the recipe); None where it sees all at once.
        notes: sentences for the user.

    Raises:
        ConfigError: unknown preset, device or precision, settings that contradict each other, or no early exit known.
    """

    def __init__(
        self,
        model: Any,
        preset: str | DetectorSettings = "default",
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        network_batch: int | None = None,
        seed: int = 0,
        early_exit: bool = False,
    ) -> None:
        config = getattr(model, "config", None)
        self.name, self.settings = resolve(preset, config)
        self._training_note = training_note(preset, config)
        engine: Any = getattr(config, "engine", None)
        if network_batch is None:
            network_batch = getattr(engine, "network_batch", 16)
        compiled, most = getattr(engine, "compiled", False), getattr(engine, "max_memory", None)
        normal = getattr(model, "normal_denoiser", model.denoiser)
        self.denoiser: InferenceDenoiser | WindowDenoiser
        self.denoiser = InferenceDenoiser(normal, device, precision, network_batch, compiled, most)
        self.any_size: bool = getattr(config, "any_size", False)
        self.window_settings: dict[str, Any] | None = None
        if getattr(engine, "window", None) is not None:
            check_windows(self.settings, self.any_size)
            self.denoiser = WindowDenoiser(self.denoiser, engine.window, engine.overlap)
            self.window_settings = {"window": list(engine.window), "overlap": engine.overlap}
        self.seed = seed
        prepared = getattr(config, "preprocess", None)
        self._channels: int | None = getattr(config, "network_channels", getattr(prepared, "channels", None))
        dump = getattr(prepared, "model_dump", None)
        self._preprocess: dict[str, Any] | None = None if dump is None else dump(mode="json")
        self._schedule = getattr(model, "schedule", None) or getattr(model.denoiser, "schedule", None)
        known: dict[str, Calibration] = getattr(model, "calibrations", None) or {}
        wanted = self.settings.to_json()
        own = known.get(self.name)
        candidates = [*([own] if own is not None else []), *known.values()]
        self.calibration = next((c for c in candidates if whole_settings(c.settings) == wanted), None)
        self._leaves_early = early_exit
        if early_exit:
            known_exit(self)
        self._other_settings = [] if own is None else settings_changes(whole_settings(own.settings), wanted)

    @property
    def early_exit(self) -> EarlyExit | None:
        """What lets images leave early by the present calibration; None where it was not asked for, or is not known."""
        return self.calibration.early_exit if self._leaves_early and self.calibration is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this detector's decisions, one sentence each."""
        trained = () if self._training_note is None else (self._training_note,)
        if self.calibration is not None:
            known, precision = self.calibration, self.denoiser.precision
            said = (*trained, known.message, known.precision_note(precision), known.window_note(self.window_settings))
            return tuple(sentence for sentence in (*said, *self.denoiser.notes) if sentence)
        reason = "is not calibrated for it"
        if self._other_settings:
            reason = f"was calibrated for other settings ({', '.join(self._other_settings)})"
        raw = f"preset {self.name!r}: the model {reason}, so scores are raw, without p-value or threshold"
        return (*trained, raw, *self.denoiser.notes)

    @torch.no_grad()
    def __call__(self, images: Tensor, foreground: Tensor | None = None) -> DetectionResult:
        """Score images (N, C, *S) float32 in [-1, 1]; ``foreground`` (N, *S) bool, where the settings use one.

        Raises:
            InputError: no image, pixels that are not finite, or a size that the model is not calibrated for.
            ConfigError: the recipe prepares images otherwise than the calibration's.
        """
        self.check_preprocess()
        check_images(images, foreground)
        if not len(images):
            raise InputError("images: expected at least one image, found none")
        self._check_channels(images)
        self._check_size(images)
        found = []
        for part, inside in self.chunks(images, foreground):
            leaving = self.early_exit
            parts = self._one_stage(part, inside) if leaving is None else two_stages(self, leaving, part, inside)
            found.append([tensor.to(images.device) for tensor in parts])
        maps, all_scores, mean, *left = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        nfe = self.settings.nfe_for(images.shape[2:])
        calibration = self.calibration
        p = torch.full_like(all_scores, torch.nan, dtype=torch.float64)
        decided = None
        if calibration is not None:
            p = calibration.p_values(all_scores).to(images.device)
            decided = calibration.is_anomalous(all_scores)
        return DetectionResult(
            maps=maps,
            scores=all_scores,
            p_values=p,
            is_anomalous=None if decided is None else decided.to(images.device),
            reconstructions=mean,
            threshold=None if calibration is None else calibration.threshold,
            nfe=nfe,
            notes=self.notes,
            pixel_quantiles=None if calibration is None else dict(calibration.pixel_quantiles),
            left_early=left[0] if left else None,
            calls=torch.where(left[0], nfe // len(self.settings.levels), nfe) if left else None,
        )

    def _one_stage(self, images: Tensor, foreground: Tensor | None) -> tuple[Tensor, ...]:
        """Maps, scores and mean reconstructions of images by all levels."""
        reconstructions = self.reconstruct(images)
        maps = self.maps(self.errors(images, reconstructions), foreground)
        return maps, self.scores(maps, foreground), self.shown(reconstructions)

    def check_preprocess(self) -> None:
        """Raises ConfigError where the recipe prepares images otherwise than it did for the calibration."""
        if self.calibration is not None and self._preprocess is not None:
            self.calibration.require_preprocess(self._preprocess)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, levels: Sequence[int] | None = None) -> Tensor:
        """Reconstructions from each start level, averaged over draws; (N, C, *S) -> (L, N, C, *S) on the device.

        ``levels``: numbers of those that are wanted, by default all; each has the same bits alone.
        """
        keys = image_keys(images, self.seed).to(self.denoiser.device)
        on_device = images.to(self.denoiser.device, torch.float32)
        return reconstruct(self.denoiser, on_device, keys, self.settings, self._schedule, levels)

    @torch.no_grad()
    def errors(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Raw errors, not standardised; images (N, C, *S), reconstructions (L, N, C, *S) -> (E, N, *S).

        E is L (one a level), or what ``settings.error_maps`` says for the residuals that tell more, or less.
        """
        images = images.to(reconstructions.device, torch.float32)
        kind, polarity = self.settings.residual, self.settings.polarity
        if not kind.startswith("features"):
            return torch.stack([residual(images, level, kind, polarity) for level in reconstructions])
        distance = FeatureDistance(self.denoiser, images)
        if kind == "features-stitched":
            first, second = reconstructions
            return (distance.soft_mask(first, polarity) * distance.difference(second, polarity)).unsqueeze(0)
        if kind == "features-relative":
            return torch.stack([distance.relative(level, polarity) for level in reconstructions])
        maps = [distance(level) for level in reconstructions]
        if kind == "features+absolute":
            maps += [distance.difference(level, polarity) for level in reconstructions]
        return torch.stack(maps)

    @torch.no_grad()
    def maps(self, errors: Tensor, foreground: Tensor | None = None, level: int | None = None) -> Tensor:
        """Anomaly maps from raw errors: standardise where calibrated, fuse, smooth; (L, N, *S) -> (N, *S).

        ``level``: the errors (1, N, *S) are those of this one alone.
        """
        standardisation = None if self.calibration is None else self.calibration.standardisation
        if standardisation is not None and level is not None:
            standardisation = standardisation.of_level(level)
        return self.finished(errors, foreground, standardisation)

    def scores(self, maps: Tensor, foreground: Tensor | None = None) -> Tensor:
        """One score an image from its map; (N, *S) -> (N,)."""
        inside = self.used(foreground, maps.device)
        return reduce_maps(maps, self.settings.reduction, topk=self.settings.topk, foreground=inside)

    @torch.no_grad()
    def fit(
        self,
        normals: Tensor,
        groups: Sequence[object] | None = None,
        foreground: Tensor | None = None,
        rate: float = 0.05,
        unit: Literal["image", "slice", "group"] = "image",
        *,
        standardise_on: Tensor | None = None,
        standardise_groups: Sequence[object] | None = None,
        standardise_foreground: Tensor | None = None,
        progress: Progress | None = None,
        batch_size: int | None = None,
        early_exit: float | None = None,
    ) -> AnomalyDetector:
        """Calibrate on normals only, in two group-disjoint parts: one fits the normal error, the other sets the
        threshold.

        The errors of the first part would look smaller than a new image's if they set the threshold too.

        Args:
            normals: (N, C, *S) in [-1, 1].
            groups: patient, clip or part of each image; None takes each (distinct) image for a group of its own.
            foreground: (N, *S) bool.
            rate: false-alarm rate of the threshold, per unit: share of normal units that may score above it.
            unit: "image", "slice" (an image by another name), or "group": the highest image of each group counts.
            standardise_on, standardise_groups, standardise_foreground: normals of other groups (training images,
                say) for the standardisation part, so that all of ``normals`` can set the threshold.
            progress: called with the number of images done, after each batch.
            batch_size: images computed at once, at most; does not change the result.
            early_exit: also learn when an image may leave early, at this share of found anomalies lost; see
                :mod:`anodiff.anomaly.early_exit`.

        Returns:
            The detector itself; its ``calibration`` is what a model file keeps, and is as it was where this fails.

        Raises:
            DataError: no image, groups that are in both parts, a single group where two parts are needed, or too few
                normals for the early exit.
            ConfigError: a rate or an error outside (0, 1), or a preset that has no first stage.
        """
        check_promise(rate, unit)
        threshold_part = NormalsPart.of(normals, groups, foreground, self.seed)
        self._check_channels(threshold_part.images)
        if early_exit is not None:
            check_stageable(self.settings)
        standardisation, fitting_part = None, None
        counts: dict[str, int] = {}
        if self.settings.standardise != "none":
            if standardise_on is None:
                fitting_part, threshold_part = threshold_part.halves(self.seed)
            else:
                fitting_part = NormalsPart.of(standardise_on, standardise_groups, standardise_foreground, self.seed)
                refuse_shared(fitting_part.groups, threshold_part.groups)
        if early_exit is not None:
            check_normals(early_exit, threshold_part.units(unit), unit)
        if fitting_part is not None:
            standardisation = self._fit_standardisation(fitting_part, progress, batch_size)
            counts |= fitting_part.counts("standardise")
        batches = self.chunks(threshold_part.images, threshold_part.foreground, batch_size)
        pixels_in_all = threshold_part.images[:, 0].numel()
        scores, pixels = normal_scores(self, batches, pixels_in_all, standardisation, progress)
        counts |= threshold_part.counts("threshold")
        found = self.calibrated(scores, threshold_part.groups, pixels, rate, unit, standardisation, counts)
        if early_exit is not None:
            from anodiff.anomaly.exit_fitting import fit_early_exit

            # on a copy: where the exit cannot be fitted, this detector stays as it was
            known = copy(self)
            known.calibration = found
            fitted = fit_early_exit(
                known, threshold_part, scores, fitting_part, early_exit, progress=progress, batch_size=batch_size
            )
            found = replace(found, early_exit=fitted)
        self.calibration = found
        return self

    def calibrated(
        self,
        scores: Tensor,
        groups: Sequence[str],
        pixels: Tensor,
        rate: float,
        unit: str,
        standardisation: Standardisation | None,
        counts: dict[str, int],
    ) -> Calibration:
        """What :func:`anodiff.anomaly.calibration.calibrate` makes of normals' scores (n,) and pixels."""
        return calibrate(
            scores, groups, pixels, preset=self.name, settings=self.settings.to_json(), seed=self.seed, rate=rate,
            unit=unit, standardisation=standardisation, counts=counts, precision=self.denoiser.precision,
            preprocess=self._preprocess, windows=self.window_settings,
        )  # fmt: skip

    def _fit_standardisation(
        self, part: NormalsPart, progress: Progress | None, batch_size: int | None
    ) -> Standardisation:
        levels, size = self.settings.error_maps, part.images.shape[2:]
        count = max(2, min(MOST_FOLDS, VALUES_IN_FOLDS // (levels * math.prod(size))))
        folds = torch.tensor(assign_parts(part.groups, [1.0] * count, self.seed))
        labels = folds.unique().tolist()
        moments = {}
        for fold in labels:
            moments[fold] = Moments.empty(levels, size, self.denoiser.device)
            chosen = folds == fold
            inside_part = None if part.foreground is None else part.foreground[chosen]
            for images, inside in self.chunks(part.images[chosen], inside_part, batch_size):
                moments[fold].add(self.errors(images, self.reconstruct(images)), self.used(inside, images.device))
                if progress is not None:
                    progress(len(images))
        settings, kind = self.settings, usable(self.settings.standardise, self.any_size)
        return fit_standardisation(list(moments.values()), kind, settings.map_px, settings.scale_floor)

    def finished(self, errors: Tensor, foreground: Tensor | None, standardisation: Standardisation | None) -> Tensor:
        """Maps (N, *S) from raw errors (E, N, *S), in units of a given normal error; see `maps`."""
        settings = self.settings
        if standardisation is not None:
            errors = standardisation(errors)
        fused = fuse(errors, settings.fusion, settings.limits)
        smoothed = smooth_maps(fused, settings.smooth_px, self.used(foreground, errors.device))
        return apply_polarity(smoothed, settings.residual, settings.polarity)

    def shown(self, reconstructions: Tensor) -> Tensor:
        """The reconstruction that is shown, of those (L, N, C, *S) that are compared; -> (N, C, *S)."""
        return fuse(reconstructions, "mean") if self.settings.refine is None else reconstructions[-1]

    def used(self, foreground: Tensor | None, device: torch.device) -> Tensor | None:
        """The foreground, where the settings use it."""
        return foreground.to(device) if foreground is not None and self.settings.foreground else None

    def chunks(
        self, images: Tensor, foreground: Tensor | None, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images a few at a time, so that memory is bounded; results do not depend on the cut."""
        settings = self.settings
        boxes = settings.nfe_for(images.shape[2:]) if settings.where == "boxes" else 1
        voxels = (
            max(len(settings.levels), settings.reconstructions, settings.error_maps)
            * settings.draws
            * boxes
            * max(1, images[0].numel())
            if len(images)
            else 1
        )
        size = max(1, min(VOXELS_AT_ONCE // voxels, most or len(images)))
        for start in range(0, len(images), size):
            cut = slice(start, start + size)
            yield images[cut], None if foreground is None else foreground[cut]

    def _check_channels(self, images: Tensor) -> None:
        if self._channels is not None and images.shape[1] != self._channels:
            raise InputError(f"images: expected {self._channels} channel(s), found {images.shape[1]}")

    def _check_size(self, images: Tensor) -> None:
        standardisation = None if self.calibration is None else self.calibration.standardisation
        if standardisation is not None and not standardisation.fits(images.shape[2:]):
            expected, found = tuple(standardisation.location.shape[1:]), tuple(images.shape[2:])
            more = " (anodiff calibrate with engine.window makes it one of any)" if self.any_size else ""
            known_size = f"the size {expected} that the model is calibrated for"
            raise InputError(f"images: expected {known_size}, found {found}{more}")
