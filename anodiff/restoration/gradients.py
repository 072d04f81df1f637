"""The denoiser of inference with its gradient: fixed batch shape, device and precision as ever, J'v where asked.

Volumes go through overlapping windows, the gradient too: it is one of the whole volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from itertools import product
from types import EllipsisType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anodiff.diffusion.denoiser import NEEDS_IMAGE
from anodiff.diffusion.linearise import Pullback
from anodiff.engine.device import Precision, autocast
from anodiff.engine.inference import InferenceDenoiser, _memory_format, _same_algorithms
from anodiff.engine.windows import WindowDenoiser, _batches, _cut, _outer, axis_plan
from anodiff.errors import ConfigError

Result = TypeVar("Result")
#: what a batch came to, and v -> J'v of it
Graph = tuple[Tensor, Pullback]


class GradientDenoiser(InferenceDenoiser):
    """An :class:`InferenceDenoiser` that solvers can take gradients of, row by row and bit-equal like its values.

    Attributes:
        gradients: gradients taken so far, in rows without padding; each costs about two calls, and one more, counted in
            ``calls``, where its batch is run forward again for want of memory.
    """

    gradients = 0
    _one_graph = False

    @property
    def chain_rows(self) -> int:
        """Rows of one chain: as many as the network sees, so that all arithmetic has one shape."""
        return self.network_batch

    def __init__(self, denoiser: nn.Module, *settings: Any, **options: Any) -> None:
        if getattr(denoiser, "sees_image", False):
            raise ConfigError(NEEDS_IMAGE)
        super().__init__(denoiser, *settings, **options)

    def linearise(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Pullback]:
        """D(x, sigma) (N, C, *S) float32 and the map v -> J'v, J = dD/dx; the network runs forward once.

        The graph lives as long as the map does. x, sigma and v as for a call, on any device; results are on its own.
        Where memory runs out, forward or backward, the internal batch is halved as in a call, and from then on one
        batch of several lies in memory with its graph: it is run forward again for every v.
        """
        rows = x.shape[0]
        x = x.to(self.device, torch.float32)
        level = torch.as_tensor(sigma, dtype=torch.float32).to(self.device).expand(rows)
        self.calls += rows
        values, kept = self._enough(lambda: self._forward(x, level))

        def pullback(v: Tensor) -> Tensor:
            self.gradients += rows
            return self._enough(lambda: self._backward(x, level, v, kept), kept.clear)

        return values, pullback

    def _enough(self, function: Callable[[], Result], release: Callable[[], object] = lambda: None) -> Result:
        """The function's result, by smaller batches where memory runs out; ``release`` lets go of the larger ones."""
        while True:
            with suppress(torch.OutOfMemoryError):
                return function()
            # not while the error is handled, see `_run`
            release()
            self._halve()

    def _halve(self) -> None:
        super()._halve()
        self._one_graph = True

    def _forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, list[Graph]]:
        """D(x, level), and the graphs of its batches; none where one alone can be held and there are several."""
        batches = self._in_batches(x, level)
        if self._one_graph and len(batches) > 1:
            return torch.cat([self._graph(*batch)[0] for batch in batches]), []
        kept = [self._graph(*batch) for batch in batches]
        return torch.cat([denoised for denoised, _ in kept]), kept

    def _backward(self, x: Tensor, level: Tensor, v: Tensor, kept: Sequence[Graph]) -> Tensor:
        """J'v by the graphs that were kept, else by one batch after the other, run forward again."""
        if kept:
            parts = v.split([len(denoised) for denoised, _ in kept])
            return torch.cat([pull(part) for (_, pull), part in zip(kept, parts, strict=True)])
        found = torch.cat([self._graph(*batch)[1](part) for *batch, part in self._in_batches(x, level, v)])
        self.calls += len(x)
        return found

    def _in_batches(self, *rows: Tensor) -> list[tuple[Tensor, ...]]:
        return list(zip(*(each.split(self.network_batch) for each in rows), strict=True))

    def _graph(self, x: Tensor, sigma: Tensor) -> Graph:
        rows, batch = len(x), self.network_batch
        padding = torch.arange(batch, device=x.device).clamp(max=rows - 1)
        with torch.inference_mode(False), torch.enable_grad(), self._context():
            leaf = x[padding].clone(memory_format=_memory_format(x.ndim)).requires_grad_()
            with autocast(self.device, self.precision):
                out = self.denoiser(leaf, sigma[padding].clone()).float()

        def pull(v: Tensor) -> Tensor:
            with torch.inference_mode(False), self._context():
                v = v.to(self.device, torch.float32)
                whole = torch.cat([v, v.new_zeros(batch - rows, *v.shape[1:])])
                return torch.autograd.grad(out, leaf, whole, retain_graph=True)[0][:rows]

        return out.detach()[:rows], pull

    def _context(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(_same_algorithms())
        # The fused kernels of CUDA add up gradients in the order in which threads happen to finish.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH) if self.device.type == "cuda" else nullcontext())
        return stack


class WindowGradientDenoiser(WindowDenoiser):
    """A :class:`WindowDenoiser` over a :class:`GradientDenoiser` that solvers can take gradients of.

    Attributes:
        gradients: windows that gradients were taken of so far; each costs about three calls, one of them counted in
            ``calls``.
        chain_rows: a chain is of one volume, whose windows fill the batches of the network.
    """

    denoiser: GradientDenoiser
    precision: Precision
    gradients = 0
    chain_rows = 1

    def __init__(self, denoiser: GradientDenoiser, window: Sequence[int], overlap: float = 0.5) -> None:
        super().__init__(denoiser, window, overlap)

    def linearise(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Pullback]:
        """D(x, sigma) (N, C, *S) float32 and the map v -> J'v, J = dD/dx; see :meth:`GradientDenoiser.linearise`.

        Windows are run forward again for every v, so that only one batch of them lies in memory with its graph.
        """
        x = x.to(self.device, torch.float32)
        levels = torch.as_tensor(sigma, dtype=torch.float32).to(self.device).expand(len(x))

        def pullback(v: Tensor) -> Tensor:
            v = v.to(self.device, torch.float32)
            total = torch.zeros_like(x)
            for places in self._places(x):
                windows = torch.stack([x[row][cut] for row, cut, _ in places])
                weighted = torch.stack([v[row][cut] * weight for row, cut, weight in places])
                self.calls += len(places)
                self.gradients += len(places)
                # no name for the map: its graph would lie in memory beside that of the next batch
                parts = self.denoiser.linearise(windows, levels[[row for row, _, _ in places]])[1](weighted)
                for (row, cut, _), part in zip(places, parts, strict=True):
                    total[row][cut] += part
            return total

        return self(x, levels), pullback

    def _places(self, x: Tensor) -> Iterator[list[tuple[int, tuple[EllipsisType | slice, ...], Tensor]]]:
        """Row, voxels and weights of every window, in batches."""
        axes = zip(x.shape[2:], self.window, strict=True)
        plans = [axis_plan(side, edge, self.overlap, self.taper) for side, edge in axes]
        every = product(range(len(x)), product(*(range(len(plan)) for plan in plans)))
        for batch in _batches(every, self.network_batch):
            yield [
                (row, _cut(plans, at), _outer([plan[n][1].to(x.device) for plan, n in zip(plans, at, strict=True)]))
                for row, at in batch
            ]
