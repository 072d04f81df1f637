"""Quantised block transforms, as in JPEG: a measurement that is no linear map but whose images form a box."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anodiff.errors import ConfigError
from anodiff.restoration.operators import Operator

BLOCK = 8
#: grey level 128, which JPEG takes off first, where 0 and 255 are -1 and 1
GREY_ZERO = 1 / 255
#: the luminance table of ITU-T T.81 (JPEG), annex K, for quality 50
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
#: what a projected coefficient keeps from the border of its cell, as a share of it, so that rounding finds it inside
INSIDE = 1e-4


class Jpeg(Operator):
    """Rounding of the 8x8 cosine coefficients to the steps of a JPEG of ``quality`` 1..100; each channel alone.

    y is the decoded picture, (N, C, *S) like x, with sides of the last two axes divisible by 8. -1 and 1 are the grey
    levels 0 and 255 of a file. Raises ConfigError for a quality or sides outside.
    """

    def __init__(self, quality: int) -> None:
        if not 1 <= quality <= 100:
            raise ConfigError(f"jpeg: expected a quality from 1 to 100, found {quality}")
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality  # the rule of the reference implementation
        table = torch.tensor(LUMINANCE, dtype=torch.float64)
        self.steps = ((table * scale + 50) / 100).floor().clamp(1, 255) / 127.5

    def __call__(self, x: Tensor) -> Tensor:
        """The picture after compression."""
        steps = self.steps.to(x.device, x.dtype)
        return self._from_blocks((self._to_blocks(x) / steps).round() * steps, x)

    def pinv(self, y: Tensor) -> Tensor:
        """The decoded picture itself."""
        return y

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Each coefficient of x clamped to the cell that y stands for."""
        steps = self.steps.to(x.device, x.dtype)
        centre = (self._to_blocks(y) / steps).round() * steps
        reach = steps * (0.5 - INSIDE)
        return self._from_blocks(torch.clamp(self._to_blocks(x), centre - reach, centre + reach), x)

    @staticmethod
    def _transform(x: Tensor) -> Tensor:
        """The orthonormal cosine transform (DCT-II) as a matrix (8, 8), rows are frequencies."""
        k, n = torch.arange(BLOCK, dtype=torch.float64)[:, None], torch.arange(BLOCK, dtype=torch.float64)
        matrix = torch.cos(math.pi * k * (2 * n + 1) / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
        matrix[0] /= math.sqrt(2)
        return matrix.to(x.device, x.dtype)

    def _to_blocks(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % BLOCK or width % BLOCK:
            raise ConfigError(f"jpeg: expected sides divisible by {BLOCK}, found {height}x{width}")
        blocks = (x - GREY_ZERO).unfold(-2, BLOCK, BLOCK).unfold(-2, BLOCK, BLOCK)
        matrix = self._transform(x)
        return matrix @ blocks @ matrix.T

    def _from_blocks(self, coefficients: Tensor, x: Tensor) -> Tensor:
        matrix = self._transform(x)
        return (matrix.T @ coefficients @ matrix).transpose(-3, -2).reshape(x.shape) + GREY_ZERO
