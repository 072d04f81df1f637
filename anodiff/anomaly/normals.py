"""Normals that a detector is calibrated on, what it makes of them, and the check that every image passes before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anodiff.anomaly.groups import assign_parts
from anodiff.diffusion import image_keys
from anodiff.errors import DataError, InputError

if TYPE_CHECKING:
    from anodiff.anomaly.detector import AnomalyDetector
    from anodiff.anomaly.standardise import Standardisation

#: normal pixels behind the pixel thresholds; beyond it an evenly spaced subset is used
PIXELS_KEPT = 1 << 25
#: beyond it an image was not brought to the model's range (0..255, say); z-scored data stays well below
LARGEST_INTENSITY = 100.0

#: called with how many more images are done
Progress = Callable[[int], None]


@dataclass(frozen=True)
class NormalsPart:
    """Normals (n, C, *S) with the group of each, and their foreground (n, *S) bool or None."""

    images: Tensor
    groups: list[str]
    foreground: Tensor | None

    @classmethod
    def of(cls, images: Tensor, groups: Sequence[object] | None, foreground: Tensor | None, seed: int) -> NormalsPart:
        """Checked; without ``groups`` each distinct image is one of its own.

        Raises:
            DataError: no image, or not one group an image.
            InputError: see :func:`check_images`.
        """
        if not len(images):
            raise DataError("calibration: expected at least one normal image, found none")
        check_images(images, foreground)
        if groups is None:
            labels = [f"{key:016x}" for key in image_keys(images, seed).tolist()]
        else:
            labels = [str(group) for group in groups]
        if len(labels) != len(images):
            raise DataError(f"calibration: expected one group an image ({len(images)}), found {len(labels)} groups")
        return cls(images, labels, foreground)

    def halves(self, seed: int) -> tuple[NormalsPart, NormalsPart]:
        """Two group-disjoint parts of about equal size. Raises DataError where there is one group only."""
        first, second = (self._take(rows) for rows in two_parts(self.groups, seed))
        return first, second

    def _take(self, index: list[int]) -> NormalsPart:
        inside = None if self.foreground is None else self.foreground[index]
        return NormalsPart(self.images[index], [self.groups[i] for i in index], inside)

    def units(self, unit: str) -> int:
        """How many images, or groups where that is the ``unit``."""
        return len(set(self.groups)) if unit == "group" else len(self.images)

    def counts(self, name: str) -> dict[str, int]:
        """What a calibration says of its part ``name``."""
        return {f"{name}_images": len(self.images), f"{name}_groups": len(set(self.groups))}


def two_parts(groups: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Rows of two group-disjoint parts of about equal size. Raises DataError where there is one group only."""
    distinct = len(set(groups))
    if distinct < 2:
        raise DataError(f"calibration: expected normals of at least 2 groups for two disjoint parts, found {distinct}")
    parts = assign_parts(groups, [1.0, 1.0], seed)
    first, second = ([i for i, part in enumerate(parts) if part == k] for k in (0, 1))
    return first, second


def refuse_shared(fitting: Sequence[str], deciding: Sequence[str]) -> None:
    """Raises DataError where a group is in both parts of a calibration."""
    shared = set(fitting) & set(deciding)
    if shared:
        raise DataError(
            "calibration: expected groups that are in one part only, found "
            f"{len(shared)} in both, {min(shared)!r} first"
        )


def normal_scores(
    detector: AnomalyDetector,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    pixels_in_all: int,
    standardisation: Standardisation | None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (n,) and (a subset of the) foreground pixel values of a detector's maps of normals, on the CPU.

    batches: images (N, C, *S) with their foreground; ``pixels_in_all``: of all of them, in the foreground or not. Which
    pixels are kept does not depend on how the images are batched.
    """
    stride = max(1, math.ceil(pixels_in_all / PIXELS_KEPT))
    scores, pixels, seen = [], [], 0
    for images, inside in batches:
        maps = detector.finished(detector.errors(images, detector.reconstruct(images)), inside, standardisation)
        scores.append(detector.scores(maps, inside).cpu())
        used = detector.used(inside, maps.device)
        values = maps.flatten() if used is None else maps[used]
        pixels.append(values[-seen % stride :: stride].cpu())
        seen += values.numel()
        if progress is not None:
            progress(len(images))
    return torch.cat(scores), torch.cat(pixels)


def check_images(images: Tensor, foreground: Tensor | None) -> None:
    """Raises InputError for what is not a tensor of finite images in the model's range, with a foreground to match."""
    if not isinstance(images, Tensor):
        raise InputError(
            f"images: expected a tensor (N, C, H, W), found {type(images).__name__}; model.prepare(paths) reads files"
        )
    if images.ndim not in (4, 5):
        raise InputError(
            f"images: expected a tensor (N, C, H, W) or (N, C, D, H, W), found shape {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise InputError(f"images: expected floating-point intensities in [-1, 1], found {images.dtype}")
    if foreground is not None and foreground.shape != (images.shape[0], *images.shape[2:]):
        raise InputError(
            f"foreground: expected shape {(images.shape[0], *images.shape[2:])}, found {tuple(foreground.shape)}"
        )
    finite = images.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise InputError(
            f"images: expected finite pixels, found NaN or infinity in image {int((~finite).nonzero()[0])}"
        )
    if images.numel() and float(images.abs().amax()) > LARGEST_INTENSITY:
        raise InputError(
            f"images: expected intensities in [-1, 1] (a z-score: a few units), found {float(images.abs().amax()):g}; "
            "model.prepare(paths) reads files as the model was trained"
        )
