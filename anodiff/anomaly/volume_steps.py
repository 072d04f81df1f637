"""How far a detector is within one volume: slices along an axis, or windows of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class VolumeStep:
    """``done`` of ``total`` slices across ``axis`` of the model's grid, or windows (axis None), of one volume."""

    done: int
    total: int
    axis: int | None = None

    @property
    def unit(self) -> str:
        """What is counted."""
        return "windows" if self.axis is None else "slices"

    def __str__(self) -> str:
        along = "" if self.axis is None else f" along {'ijk'[self.axis]}"
        return f"{self.done:,} of {self.total:,}{along}"


OnVolumeStep = Callable[[VolumeStep], None]
#: called with how many more are done
Told = Callable[[int], None]


def counter(on_step: OnVolumeStep | None, total: int, axis: int | None = None) -> Told | None:
    """Adds up what is done, and tells it; None where nobody asks."""
    if on_step is None:
        return None
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        on_step(VolumeStep(done, total, axis))

    return more


class CountedDenoiser:
    """A denoiser that says after each call how many rows it has done, to ``told`` where set; else it is the other."""

    def __init__(self, denoiser: Any) -> None:
        self.inner = denoiser
        self.told: Told | None = None

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """See the inner denoiser."""
        found: Tensor = self.inner(x, *rest, **named)
        if self.told is not None:
            self.told(len(x))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
