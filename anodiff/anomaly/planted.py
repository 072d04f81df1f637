"""Normals with anomalies planted in them: what a tuning, and a baseline's scale floor, are measured on.

What is planted in is held out: foreign tissue comes from ``donors`` of other groups, and whatever is measured was
fitted on other groups too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anodiff.anomaly.planting import kinds_for, plant
from anodiff.anomaly.residuals import Polarity

#: the name of images without an anomaly, among the kinds
CLEAN = ""


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

    @classmethod
    def in_turn(cls, normals: Normals, polarity: Polarity, donors: Normals, seed: int = 0) -> PlantedImages:
        """One anomaly in each normal, the kinds that fit the polarity taking turns; in the normals' order and device.

        Nothing depends on what lies outside the foreground. Where nothing visible could be planted the mask is empty.
        """
        kinds = kinds_for(polarity)
        images, inside = normals.inside().clone(), normals.foreground
        tissue = donors.inside()
        masks = torch.zeros(len(normals), *images.shape[2:], dtype=torch.bool)
        for turn, kind in enumerate(kinds):
            own = slice(turn, None, len(kinds))
            where = None if inside is None else inside[own]
            images[own], masks[own] = plant(images[own], where, kind, seed, polarity, tissue)
        if inside is not None:
            images = torch.where(inside[:, None].cpu(), images, normals.images.float().cpu())
        names = tuple(kinds[n % len(kinds)] for n in range(len(normals)))
        return cls(images.to(normals.images.device), masks, inside, names, normals.groups)
