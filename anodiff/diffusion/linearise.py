"""The denoiser as a linear map at a point: D(x, sigma) and products with the transpose of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anodiff.diffusion.samplers import DenoiserFn

#: v (N, C, *S) -> J'v with J = dD/dx
Pullback = Callable[[Tensor], Tensor]


def linearise(denoiser: DenoiserFn, x: Tensor, sigma: Tensor) -> tuple[Tensor, Pullback]:
    """D(x, sigma) and the map v -> J'v with J = dD/dx, which may be called several times; both without a graph.

    A denoiser that offers ``linearise(x, sigma)`` does it its own way.
    """
    own: Callable[[Tensor, Tensor], tuple[Tensor, Pullback]] | None = getattr(denoiser, "linearise", None)
    if own is not None:
        return own(x, sigma)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        denoised = denoiser(leaf, sigma)

    def pullback(v: Tensor) -> Tensor:
        return torch.autograd.grad(denoised, leaf, v, retain_graph=True)[0]

    return denoised.detach(), pullback
