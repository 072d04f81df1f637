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
#: the chrominance table of the same annex
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
#: red, green and blue to luminance, blue and red difference: ITU-T T.871 (JFIF), full range
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.5),
    (0.5, -0.587 / 1.402, -0.114 / 1.402),
)
#: of the nearest point of a box in oblique axes; each leaves at most 0.21 of the error
SWEEPS = 24
#: what a projected coefficient keeps from the border of its cell, as a share of it, so that rounding finds it inside
INSIDE = 1e-4


class Jpeg(Operator):
    """Rounding of the 8x8 cosine coefficients to the steps of a JPEG of ``quality`` 1..100.

    Three channels are red, green and blue and are rounded as luminance and chrominance, neither of them subsampled
    (4:4:4); with ``colour`` False, and of other counts, each channel is a grey image of its own. y is the decoded
    picture, (N, C, *S) like x, with sides of the last two axes divisible by 8. -1 and 1 are the grey levels 0 and 255
    of a file. Raises ConfigError for a quality or sides outside.
    """

    def __init__(self, quality: int, colour: bool = True) -> None:
        if not 1 <= quality <= 100:
            raise ConfigError(f"jpeg: expected a quality from 1 to 100, found {quality}")
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality  # the rule of the reference implementation
        tables = torch.tensor((LUMINANCE, CHROMINANCE, CHROMINANCE), dtype=torch.float64)
        self.steps = ((tables * scale + 50) / 100).floor().clamp(1, 255) / 127.5
        self.colour = colour

    def __call__(self, x: Tensor) -> Tensor:
        """The picture after compression, before a decoder clips it to what a file can hold."""
        steps = self._steps(x)
        return self._from_blocks((self._to_blocks(x) / steps).round() * steps, x)

    def pinv(self, y: Tensor) -> Tensor:
        """The decoded picture itself."""
        return y

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest image whose coefficients all lie in the cells that y stands for."""
        steps = self._steps(x)
        centre = (self._to_blocks(y) / steps).round() * steps
        reach = steps * (0.5 - INSIDE)
        low, high, wanted = centre - reach, centre + reach, self._to_blocks(x)
        found = torch.clamp(wanted, low, high)
        if self._is_colour(x):
            found = self._nearest(wanted, found, low, high)
        return self._from_blocks(found, x)

    def _nearest(self, wanted: Tensor, start: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The point u of a box with the least |RGB(u - wanted)|, one axis after another.

        The colour axes are oblique: clamping each alone would give an image of the set, but not the nearest.
        """
        back = torch.linalg.inv(torch.tensor(TO_YCC, dtype=torch.float64))
        gram = (back.T @ back).tolist()
        planes, aims = list(start.unbind(1)), wanted.unbind(1)
        for _ in range(SWEEPS):
            for axis, row in enumerate(gram):
                aim = aims[axis]
                for other in (n for n in range(len(row)) if n != axis):
                    aim = aim - (planes[other] - aims[other]) * (row[other] / row[axis])
                planes[axis] = torch.clamp(aim, low[:, axis], high[:, axis])
        return torch.stack(planes, dim=1)

    def _is_colour(self, x: Tensor) -> bool:
        return self.colour and x.shape[1] == len(TO_YCC)

    def _steps(self, x: Tensor) -> Tensor:
        """The steps of each channel, (1 or 3, 1, ..., 8, 8)."""
        steps = self.steps if self._is_colour(x) else self.steps[:1]
        return steps.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 2), BLOCK, BLOCK)

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
        # Off every channel at once: a difference of colours does not see it.
        planes = self._mixed(x - GREY_ZERO, inverse=False)
        blocks = planes.unfold(-2, BLOCK, BLOCK).unfold(-2, BLOCK, BLOCK)
        matrix = self._transform(x)
        return matrix @ blocks @ matrix.T

    def _from_blocks(self, coefficients: Tensor, x: Tensor) -> Tensor:
        matrix = self._transform(x)
        planes = (matrix.T @ coefficients @ matrix).transpose(-3, -2).reshape(x.shape)
        return self._mixed(planes, inverse=True) + GREY_ZERO

    def _mixed(self, x: Tensor, inverse: bool) -> Tensor:
        """Colours (N, 3, *S) as luminance and differences, or back; anything else as it is."""
        if not self._is_colour(x):
            return x
        matrix = torch.tensor(TO_YCC, dtype=torch.float64)
        matrix = torch.linalg.inv(matrix) if inverse else matrix
        return torch.einsum("dc,nc...->nd...", matrix.to(x.device, x.dtype), x)
