"""A denoiser for volumes and images too large for it: overlapping windows whose estimates are averaged.

The averaging happens inside the sampling loop: every sampler sees one estimate of the whole image at each level, so
that no seam is ever denoised twice in two ways. Noise belongs to the whole image and not to the windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from types import EllipsisType
from typing import Literal

import torch
from torch import Tensor

from anodiff.engine.device import Precision
from anodiff.errors import ConfigError

Taper = Literal["hann", "linear"]
#: what is wrapped: (x (N, C, *S), sigma (N,)) -> x0 (N, C, *S) float32; the context (N, K, *S) and, by that name, the
#: label (N,) follow where the windows are given them
Denoises = Callable[..., Tensor]
#: rows that a denoiser is given at once where it names no batch of its own
ROWS = 16


class WindowDenoiser:
    """A denoiser (x, sigma) -> x0 that shows another one windows of x, and averages what it makes of them.

    Each estimate is weighted by a taper that falls towards the window's rim, and weights sum to 1 at every voxel. The
    inner denoiser sees ``network_batch`` windows at a time (its own, or ROWS): beside the estimate itself, memory does
    not grow with the image. What a window cannot see does not count: a denoiser whose reach is one voxel gives the
    same as without windows, to rounding.

    Args:
        denoiser: an `InferenceDenoiser`, or any such function.
        window: sides of a window, one a spatial axis; a smaller image is one window along that axis.
        overlap: share of a window that the next one covers too, at least, in [0, 0.9].
        taper: "hann" (sine squared) or "linear" (triangle).

    Attributes:
        calls: windows asked for so far. device, precision, compiled, notes, sees_image: of the inner denoiser.

    Raises:
        ConfigError: a side below 1, an overlap outside [0, 0.9], another taper.
    """

    def __init__(self, denoiser: Denoises, window: Sequence[int], overlap: float = 0.5, taper: Taper = "hann") -> None:
        if not window or min(window) < 1:
            raise ConfigError(f"window: expected sides of at least 1, found {list(window)}")
        if not 0 <= overlap <= 0.9:
            raise ConfigError(f"overlap: expected a share from 0 to 0.9, found {overlap}")
        if taper not in ("hann", "linear"):
            raise ConfigError(f"taper: expected hann or linear, found {taper!r}")
        self.denoiser = denoiser
        self.window = tuple(int(side) for side in window)
        self.overlap, self.taper = float(overlap), taper
        self.device: torch.device = getattr(denoiser, "device", torch.device("cpu"))
        self.precision: Precision = getattr(denoiser, "precision", "fp32")
        self.compiled: bool = getattr(denoiser, "compiled", False)
        self.notes: list[str] = getattr(denoiser, "notes", [])
        self.sees_image: bool = getattr(denoiser, "sees_image", False)
        self.calls = 0

    @property
    def network_batch(self) -> int:
        """Windows that the inner denoiser sees at a time; it may have gone on with fewer, for want of memory."""
        return getattr(self.denoiser, "network_batch", ROWS)

    @property
    def sentence(self) -> str:
        """All that was decided for the device at hand, and the windows, on one line."""
        sides, inner = "x".join(map(str, self.window)), getattr(self.denoiser, "sentence", str(self.device))
        return f"{inner}, windows of {sides} that overlap by {self.overlap:.0%} and more"

    def count(self, size: Sequence[int]) -> int:
        """Windows of an image of spatial ``size``."""
        return math.prod(len(starts(side, edge, self.overlap)) for side, edge in zip(size, self.window, strict=True))

    def __call__(
        self, x: Tensor, sigma: Tensor | float, context: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """x (N, C, *S), sigma scalar or (N,) -> estimate of x0, (N, C, *S) float32.

        context: (N, K, *S), of which a window is shown its own part. label: (N,) int64, the class of each row.

        Raises ConfigError for an image of another number of spatial axes than the window.
        """
        size = x.shape[2:]
        if len(size) != len(self.window):
            raise ConfigError(f"window: expected {len(size)} sides for {len(size)} spatial axes, found {self.window}")
        x = x.to(self.device, torch.float32)
        given = None if context is None else context.to(self.device, torch.float32)
        levels = torch.as_tensor(sigma, dtype=torch.float32).to(self.device).expand(len(x))
        plans = [axis_plan(side, edge, self.overlap, self.taper) for side, edge in zip(size, self.window, strict=True)]
        out = torch.zeros_like(x)
        places = product(range(len(x)), product(*(range(len(plan)) for plan in plans)))
        for batch in _batches(places, self.network_batch):
            cuts = [(row, _cut(plans, numbers)) for row, numbers in batch]
            rows = [row for row, _ in batch]
            windows = torch.stack([x[row][cut] for row, cut in cuts])
            beside = () if given is None else (torch.stack([given[row][cut] for row, cut in cuts]),)
            told = {} if label is None else {"label": label.to(self.device)[rows]}
            self.calls += len(batch)
            found = self.denoiser(windows, levels[rows], *beside, **told)
            # One after the other, in the order of the places: sums do not depend on how they were batched.
            for (row, cut), (_, numbers), estimate in zip(cuts, batch, found, strict=True):
                weights = [plan[n][1].to(x.device) for plan, n in zip(plans, numbers, strict=True)]
                out[row][cut] += estimate.float() * _outer(weights)
        return out

    def given(self, context: Tensor | None) -> Callable[[Tensor, Tensor | float], Tensor]:
        """This denoiser (x, sigma) -> x0 with its context fixed."""
        return self if context is None else partial(self, context=context)

    def features(self, x: Tensor, sigma: Tensor | float) -> list[Tensor]:
        """Raises ConfigError: the activations of windows make no map of the whole."""
        raise ConfigError("residuals of features need the whole image at once: expected another residual with windows")


def starts(side: int, edge: int, overlap: float) -> list[int]:
    """First voxels of the windows of ``edge`` that cover ``side``, evenly spread, the last one flush with the end."""
    edge = min(side, edge)
    count = 1 + math.ceil((side - edge) / max(1, int(edge * (1 - overlap))))
    return [round(n * (side - edge) / max(1, count - 1)) for n in range(count)]


def taper_weights(edge: int, taper: Taper) -> Tensor:
    """Weights (edge,) float64 above 0: sin^2 (Hann) or a triangle, sampled at voxel centres."""
    place = (torch.arange(edge, dtype=torch.float64) + 0.5) / edge
    return torch.sin(math.pi * place) ** 2 if taper == "hann" else 1 - (2 * place - 1).abs()


def axis_plan(side: int, edge: int, overlap: float, taper: Taper) -> list[tuple[slice, Tensor]]:
    """(voxels, weights float32) of each window along an axis; at every voxel the weights of all windows sum to 1."""
    edge = min(side, edge)
    first, weights = starts(side, edge, overlap), taper_weights(edge, taper)
    total = torch.zeros(side, dtype=torch.float64)
    for start in first:
        total[start : start + edge] += weights
    return [(slice(n, n + edge), (weights / total[n : n + edge]).float()) for n in first]


def _cut(plans: Sequence[Sequence[tuple[slice, Tensor]]], numbers: tuple[int, ...]) -> tuple[EllipsisType | slice, ...]:
    """The index of a window in an image (C, *S)."""
    return (..., *(plan[n][0] for plan, n in zip(plans, numbers, strict=True)))


def _outer(weights: Sequence[Tensor]) -> Tensor:
    """(a,), (b,), ... -> (a, b, ...)."""
    whole = weights[0]
    for axis in weights[1:]:
        whole = whole[..., None] * axis
    return whole


def _batches(places: Iterator[tuple[int, tuple[int, ...]]], size: int) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    while batch := list(islice(places, size)):
        yield batch
