"""Normals with anomalies planted in them: what a tuning, and the choices of a baseline, are measured on.

What is planted in is held out: foreign tissue comes from ``donors`` of other groups, and whatever is measured was
fitted on other groups too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from anodiff.anomaly.planting import plant
from anodiff.anomaly.residuals import Polarity

#: the name of images without an anomaly, among the kinds
CLEAN = ""
#: size classes of a kind's anomalies, of as many each
SIZES = 3


@dataclass(frozen=True)
class Normals:
    """images (N, C, *S) float32, groups: N names, foreground (N, *S) bool or None."""

    images: Tensor
    groups: tuple[str, ...]
    foreground: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int] | Tensor) -> Normals:
        """The images of these row numbers."""
        index = torch.as_tensor(rows, dtype=torch.long)
        inside = None if self.foreground is None else self.foreground[index]
        return Normals(self.images[index], tuple(self.groups[i] for i in index.tolist()), inside)

    def inside(self) -> Tensor:
        """The images float32 on the CPU, 0 outside their foreground."""
        images = self.images.float()
        return (images if self.foreground is None else images * self.foreground[:, None]).cpu()


@dataclass(frozen=True)
class PlantedImages:
    """images (M, C, *S), masks (M, *S) bool, foreground (M, *S) bool or None; kinds and groups: M names.

    Those with an anomaly are the first; the clean ones, if any, are of kind CLEAN.
    """

    images: Tensor
    masks: Tensor
    foreground: Tensor | None
    kinds: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def planted(self) -> int:
        """Images with an anomaly; they are the first."""
        return sum(kind != CLEAN for kind in self.kinds)

    def cells(self, sizes: int = SIZES) -> dict[str, list[list[int]]]:
        """By kind the row numbers of its images in classes of anomalous area, smallest first, each class as large.

        A precision that pools all pixels of a kind is decided by its few largest anomalies: radii are log-uniform, so
        that the largest third of them holds some nine tenths of the anomalous pixels. Within a class areas are alike,
        and pixels are pooled as a table does; the classes then weigh the same, since nobody knows which size of
        anomaly will come. A kind of fewer images than classes has as many classes as images.
        """
        areas = self.masks.flatten(1).sum(dim=1).tolist()
        found: dict[str, list[list[int]]] = {}
        for kind in dict.fromkeys(kind for kind in self.kinds if kind != CLEAN):
            rows = sorted((n for n, name in enumerate(self.kinds) if name == kind), key=lambda n: areas[n])
            count = min(sizes, len(rows))
            ends = [len(rows) * k // count for k in range(count + 1)]
            found[kind] = [rows[low:high] for low, high in pairwise(ends)]
        return found

    @classmethod
    def of(cls, normals: Normals, kinds: Sequence[str], seed: int, polarity: Polarity, donors: Tensor) -> PlantedImages:
        """Each kind in each normal, less those in which nothing visible could be planted, and the same normals clean.

        Kind after kind, all on the CPU.
        """
        images, masks, rows, names = [], [], [], []
        for kind in kinds:
            planted, mask = plant(normals.images, normals.foreground, kind, seed, polarity, donors)
            kept = mask.flatten(1).any(dim=1).nonzero()[:, 0]
            images.append(planted[kept])
            masks.append(mask[kept])
            rows += kept.tolist()
            names += [kind] * len(kept)
        rows += range(len(normals))
        every = normals.take(rows)
        clean = normals.images.to("cpu", torch.float32)
        return cls(
            torch.cat([*images, clean]),
            torch.cat([*masks, torch.zeros(len(clean), *clean.shape[2:], dtype=torch.bool)]),
            every.foreground,
            (*names, *[CLEAN] * len(normals)),
            every.groups,
        )
