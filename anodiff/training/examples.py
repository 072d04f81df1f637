"""What a trainer draws from: images in memory here, patches of volumes and windows of clips elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anodiff.config import AugmentConfig
from anodiff.training.augment import augment


@dataclass(frozen=True)
class Drawn:
    """A batch: clean (N, C, *S) in [-1, 1]; context (N, K, *S), what the denoiser is given beside, or None."""

    clean: Tensor
    context: Tensor | None = None

    def rows(self, part: slice) -> Drawn:
        """Some of its rows."""
        return Drawn(self.clean[part], None if self.context is None else self.context[part])

    def to(self, device: torch.device) -> Drawn:
        """The same on a device."""
        context = None if self.context is None else self.context.to(device, non_blocking=True)
        return Drawn(self.clean.to(device, non_blocking=True), context)


class Examples(Protocol):
    """A set of examples of one shape."""

    def __len__(self) -> int:
        """How many there are: the length of an epoch."""

    def draw(self, index: Tensor, u: Tensor, device: torch.device) -> Drawn:
        """The examples of ``index`` (N,), on the device, augmented by ``u`` (N, augment.NUMBERS) uniform in [0, 1).

        Nothing else may decide what is drawn, so that a resumed run repeats an uninterrupted one.
        """


@dataclass
class ImageExamples:
    """Images (M, C, *S) float32 in memory, augmented on the device."""

    images: Tensor
    settings: AugmentConfig

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: Tensor, u: Tensor, device: torch.device) -> Drawn:
        """See `Examples`."""
        return Drawn(augment(self.images[index].to(device, non_blocking=True), self.settings, u))
