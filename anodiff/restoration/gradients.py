"""The denoiser of inference with its gradient: fixed batch shape, device and precision as ever, J'v where asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anodiff.engine.device import autocast
from anodiff.engine.inference import InferenceDenoiser, _memory_format, _same_algorithms

Pullback = Callable[[Tensor], Tensor]


class GradientDenoiser(InferenceDenoiser):
    """An :class:`InferenceDenoiser` that solvers can take gradients of, row by row and bit-equal like its values.

    Attributes:
        gradients: gradients taken so far, in rows without padding; each costs about two calls.
    """

    gradients = 0

    def linearise(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Pullback]:
        """D(x, sigma) (N, C, *S) float32 and the map v -> J'v, J = dD/dx; the network runs forward once.

        The graph lives as long as the map does. x, sigma and v as for a call, on any device; results are on its own.
        """
        rows, batch = x.shape[0], self.network_batch
        x = x.to(self.device, torch.float32)
        level = torch.as_tensor(sigma, dtype=torch.float32).to(self.device).expand(rows)
        self.calls += rows
        pieces = [self._graph(x[at : at + batch], level[at : at + batch]) for at in range(0, rows, batch)]

        def pullback(v: Tensor) -> Tensor:
            self.gradients += rows
            return torch.cat(
                [pull(v[at : at + batch]) for (_, pull), at in zip(pieces, range(0, rows, batch), strict=True)]
            )

        return torch.cat([denoised for denoised, _ in pieces]), pullback

    def _graph(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Pullback]:
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
