"""What a network is told beside the image: the noise level and, where it knows classes, the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoiseEmbedding(nn.Module):
    """c_noise (N,), label -> (N, width): sinusoids on a geometric ladder, two linear layers, the class in between.

    The ladder runs from 0.002 to 16 rad a unit, so that ln(sigma)/4 (a range of about 2) and step indices (a range of
    1000) are both resolved by one embedding. With ``classes`` a vector learnt for each, and one more for "no label"
    (Ho & Salimans 2022), is added before the last non-linearity, so that what a class means may depend on the level.
    It starts at unit deviation (Dhariwal & Nichol 2021): entries that start close together are told apart late.
    A ``shift`` (N, width) of the caller's is added there too.
    """

    def __init__(self, width: int, frequencies: int = 32, classes: int = 0) -> None:
        super().__init__()
        self.width = width
        ladder = torch.exp(torch.linspace(math.log(0.002), math.log(16.0), frequencies))
        self.register_buffer("ladder", ladder, persistent=False)
        self.first = nn.Linear(2 * frequencies, width)
        self.second = nn.Linear(width, width)
        self.classes = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """label: (N,) int64, from 0; negative, or None for all rows, is "no label". ValueError without classes."""
        angle = c_noise.float()[:, None] * self.get_buffer("ladder")
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        hidden = self.second(F.silu(self.first(waves)))
        if self.classes is not None:
            hidden = hidden + self.classes(self._row(label, c_noise))
        elif label is not None:
            raise ValueError("expected no label for a network without classes, found one")
        return F.silu(hidden if shift is None else hidden + shift)

    def _row(self, label: Tensor | None, c_noise: Tensor) -> Tensor:
        """The row of the table for each label; "no label" is the last."""
        assert self.classes is not None
        none = torch.full(c_noise.shape, self.classes.num_embeddings - 1, dtype=torch.long, device=c_noise.device)
        return none if label is None else torch.where(label < 0, none, label)
