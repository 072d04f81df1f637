"""Images that the network sees a window at a time, of any size: what a preset may ask for, and calibration on them.

A map of normal error is of one grid. Images of any size share none, so that what is known of normal error is one
number a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from anodiff.anomaly.calibration import Calibration, check_promise
from anodiff.anomaly.normals import Progress, check_images, normal_scores, refuse_shared, two_parts
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.standardise import Moments, Standardisation, Standardise, fit_standardisation
from anodiff.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anodiff.anomaly.detector import AnomalyDetector


class NormalImages(Protocol):
    """Normals that are read when they are needed, since all of them would not fit into memory.

    groups: patient, clip or part of each. sizes: its spatial size.
    """

    @property
    def groups(self) -> tuple[str, ...]: ...
    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]: ...

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """One image (C, *S) float32 in [-1, 1] and its foreground (*S) bool."""


def check_windows(settings: DetectorSettings, any_size: bool) -> None:
    """Raises ConfigError for a preset that needs the whole image at once, or maps of images that share no grid."""
    if settings.residual.startswith("features"):
        raise ConfigError(
            f"residual {settings.residual!r} needs the whole image at once: expected another with engine.window"
        )
    if settings.where == "boxes":
        raise ConfigError(
            "where 'boxes' keeps a copy of the image for each box: expected where 'all' with engine.window"
        )
    if any_size and settings.standardise in ("map", "rows"):
        raise ConfigError(
            f"standardise {settings.standardise!r} is of images of one size: expected 'auto', 'scalar' or 'none' for "
            "those of any size (preprocess.resize none with engine.window)"
        )


def usable(standardise: Standardise, any_size: bool) -> Standardise:
    """What ``auto`` leaves to choose from: one number a level where images have any size."""
    return "scalar" if any_size and standardise == "auto" else standardise


def fit_any_size(
    detector: AnomalyDetector,
    normals: NormalImages,
    rate: float = 0.05,
    unit: Literal["image", "slice", "group"] = "image",
    *,
    standardise_on: NormalImages | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrates a detector on normals of any size, one at a time; see :meth:`AnomalyDetector.fit`.

    Raises:
        DataError: no image, groups that are in both parts, or a single group where two parts are needed.
        ConfigError: a rate outside (0, 1), another unit, or maps of normal error asked for.
    """
    check_promise(rate, unit)
    check_windows(detector.settings, any_size=True)
    if not normals.groups:
        raise DataError("calibration: expected at least one normal image, found none")
    deciding: Sequence[int] = range(len(normals.groups))
    standardisation: Standardisation | None = None
    counts: dict[str, int] = {}
    if detector.settings.standardise != "none":
        fitting: Sequence[int]
        if standardise_on is None:
            standardise_on = normals
            fitting, deciding = two_parts(normals.groups, detector.seed)
        else:
            fitting = range(len(standardise_on.groups))
            refuse_shared(standardise_on.groups, normals.groups)
        standardisation = _standardisation(detector, standardise_on, fitting, progress)
        counts |= _counts("standardise", standardise_on, fitting)
    pixels_in_all = sum(math.prod(normals.sizes[row]) for row in deciding)
    scores, pixels = normal_scores(detector, _read(normals, deciding), pixels_in_all, standardisation, progress)
    groups = [normals.groups[row] for row in deciding]
    counts |= _counts("threshold", normals, deciding)
    detector.calibration = detector.calibrated(scores, groups, pixels, rate, unit, standardisation, counts)
    return detector.calibration


def _standardisation(
    detector: AnomalyDetector, normals: NormalImages, rows: Sequence[int], progress: Progress | None
) -> Standardisation:
    """One location and scale of normal error a level, over all pixels of the rows' foregrounds."""
    every = Moments.empty(detector.settings.error_maps, (1,) * len(normals.sizes[0]), detector.denoiser.device)
    for images, inside in _read(normals, rows):
        errors = detector.errors(images, detector.reconstruct(images))
        every.add_anywhere(errors, detector.used(inside, errors.device))
        if progress is not None:
            progress(1)
    return fit_standardisation([every], "scalar", None, detector.settings.scale_floor)


def _read(normals: NormalImages, rows: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each of the rows as a batch of one, checked."""
    for row in rows:
        image, foreground = normals.read(row)
        check_images(image[None], foreground[None])
        yield image[None], foreground[None]


def _counts(name: str, normals: NormalImages, rows: Sequence[int]) -> dict[str, int]:
    return {f"{name}_images": len(rows), f"{name}_groups": len({normals.groups[row] for row in rows})}
