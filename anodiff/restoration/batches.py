"""What a restoring task is given of images, slices or volumes, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from anodiff.restoration.intensity import Intensity
from anodiff.restoration.restored import Restored


@dataclass(frozen=True)
class Batch:
    """What a task is given: images (N, C, h, w), foreground (N, h, w), masks (N, h, w) or None, intensities of each.

    background: bool (N, h, w), made when it is asked for: outside the foreground before erosion, not in padding.
    noise_left: (N,), made when it is asked for: share of the variance of white noise that resizing left.
    """

    images: Tensor
    foreground: Tensor
    masks: Tensor | None
    intensities: Sequence[Intensity]
    background: Callable[[], Tensor]
    noise_left: Callable[[], Tensor]


#: a tensor function: what became of the images, and masks (N, h, w) of where, if the task found them itself
Task = Callable[[Batch], tuple[Restored, Tensor | None]]
