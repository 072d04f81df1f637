"""Exponential moving average of the weights, its memory counted in images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Averages the weights of ``network`` into a copy that is what gets saved and scored.

    The half-life is ``halflife`` images, but never more than ``rampup`` times the images seen so far (the ramp-up of
    Karras et al. 2022): early averages follow the young network instead of remembering its random start.
    """

    def __init__(self, network: nn.Module, average: nn.Module, halflife: float, rampup: float) -> None:
        self.halflife, self.rampup = halflife, rampup
        self.network, self.average = network, average.eval().requires_grad_(False)
        self.average.load_state_dict(network.state_dict())

    def decay(self, batch: int, images_seen: int) -> float:
        """Weight of the old average after a step over ``batch`` images, ``images_seen`` including them."""
        halflife = min(self.halflife, self.rampup * images_seen) if self.rampup else self.halflife
        return 0.5 ** (batch / max(halflife, 1e-8))

    @torch.no_grad()
    def update(self, batch: int, images_seen: int) -> None:
        """Move the average towards the network by one step over ``batch`` images."""
        keep = self.decay(batch, images_seen)
        averages: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, current, 1 - keep)
        for mine, theirs in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)
