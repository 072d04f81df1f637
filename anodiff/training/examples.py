"""What a trainer draws from: images in memory here, patches of volumes and windows of clips elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anodiff.config import AugmentConfig
from anodiff.engine.device import to_device
from anodiff.training.augment import augment


@dataclass(frozen=True)
class Drawn:
    """A batch: clean (N, C, *S) in [-1, 1]; context (N, K, *S), what the denoiser is given beside, or None.

    label: (N,) int64, the class of each, negative where it has none; None for a model without classes.
    """

    clean: Tensor
    context: Tensor | None = None
    label: Tensor | None = None

    def rows(self, part: slice) -> Drawn:
        """Some of its rows."""
        context, label = (None if each is None else each[part] for each in (self.context, self.label))
        return Drawn(self.clean[part], context, label)

    def to(self, device: torch.device) -> Drawn:
        """The same on a device."""
        context, label = (None if each is None else to_device(each, device) for each in (self.context, self.label))
        return Drawn(to_device(self.clean, device), context, label)


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
    """Images (M, C, *S) float32 in memory, augmented on the device; labels: (M,) int64, where they have classes."""

    images: Tensor
    settings: AugmentConfig
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: Tensor, u: Tensor, device: torch.device) -> Drawn:
        """See `Examples`."""
        clean = augment(to_device(self.images[index], device), self.settings, u)
        return Drawn(clean, label=None if self.labels is None else to_device(self.labels[index], device))
