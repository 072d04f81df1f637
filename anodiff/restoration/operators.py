"""Measurement operators: what is left of an image, y = A x, with the transpose and the pseudo-inverse of each.

Images are (N, C, *S) with S of rank 2 or 3, in [-1, 1]; every operator works in the dtype and on the device of its
argument. A linear operator is known by three functions: A, its transpose, and functions of A'A (``spectral``), which
hold all that a solver needs: the pseudo-inverse, regularised solutions, changes in the measured subspace alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anodiff.errors import ConfigError

#: from squared singular values (any shape) to factors of the same shape
Spectrum = Callable[[Tensor], Tensor]

#: frequencies that a blur weakens below this share of the strongest are taken as lost: nobody could measure them
BLUR_CUTOFF = 1e-3
#: points a pixel on the path of a motion blur
MOTION_POINTS = 16
#: halvings of an interval of the size of an image's range, to far below what a file tells apart
BISECTIONS = 40


class Operator(ABC):
    """A measurement: ``operator(x)`` is y, and ``project(x, y)`` the nearest image that would have been measured as y.

    linear: whether A is linear; solvers but "projected" need that. is_mask: whether y is x with voxels missing (zero).
    """

    linear = False
    is_mask = False

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The measurement of images x (N, C, *S). Raises ConfigError for images that it cannot measure."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """An image of which y is the measurement; for a linear operator the one of least norm."""

    @abstractmethod
    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x among those that are measured as y."""

    def rows(self, index: Tensor) -> Operator:
        """The operator of the images ``index`` (n,) of a batch; itself unless it differs from image to image."""
        return self


class LinearOperator(Operator):
    """A linear measurement A, by A, A' and functions of A'A."""

    linear = True

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A' y: <A x, y> = <x, A' y> for all x and y."""

    @abstractmethod
    def spectral(self, x: Tensor, function: Spectrum) -> Tensor:
        """V f(s^2) V' x of the singular value decomposition A = U s V'; f sees 0 for what is not measured."""

    def pinv(self, y: Tensor) -> Tensor:
        """A+ y, the Moore-Penrose pseudo-inverse."""
        return self.spectral(self.adjoint(y), reciprocal)

    def solve(self, y: Tensor, weight: float) -> Tensor:
        """A' (A A' + weight I)^-1 y; the pseudo-inverse where the weight is 0."""
        return self.spectral(self.adjoint(y), lambda s2: reciprocal(torch.where(s2 > 0, s2 + weight, s2)))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """x + A+ (y - A x)."""
        return x + self.pinv(y - self(x))


def reciprocal(values: Tensor) -> Tensor:
    """1 / v, and 0 where v is 0."""
    return torch.where(values > 0, 1 / torch.where(values > 0, values, 1), 0)


class Mask(LinearOperator):
    """Missing voxels: y has the shape of x, with 0 where the mask is True.

    missing: bool, (*S) for all images alike, or (N, 1 or C, *S).
    """

    is_mask = True

    def __init__(self, missing: Tensor) -> None:
        if missing.dtype != torch.bool:
            raise ConfigError(f"a mask must be bool, True = missing, found {missing.dtype}")
        self.missing = missing

    def measured(self, x: Tensor) -> Tensor:
        """1 where x (N, C, *S) is measured and 0 where not, in its dtype, broadcastable to it."""
        missing = self.missing.to(x.device)
        fits = missing.ndim == x.ndim and missing.shape[1] in (1, x.shape[1]) and missing.shape[0] in (1, x.shape[0])
        if missing.shape[-(x.ndim - 2) :] != x.shape[2:] or not (fits or missing.ndim == x.ndim - 2):
            raise ConfigError(f"a mask must fit the images {tuple(x.shape)}, found {tuple(missing.shape)}")
        return (~missing).to(x.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x, zero where it is missing."""
        return x * self.measured(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The mask is its own transpose."""
        return y * self.measured(y)

    def spectral(self, x: Tensor, function: Spectrum) -> Tensor:
        """f(1) where measured, f(0) elsewhere."""
        return x * function(self.measured(x))

    def rows(self, index: Tensor) -> Mask:
        """The masks of some images of the batch."""
        shared = type(self) is not Mask or self.missing.ndim < 4 or self.missing.shape[0] == 1
        return self if shared else Mask(self.missing[index.to(self.missing.device)])


class Slices(Mask):
    """Slices along a spatial axis: every k-th is measured (from the first on), or every k-th is missing.

    every: k >= 2. axis: spatial axis, 0 = depth of a volume, rows of an image. missing_ones: False keeps one of k,
    True loses one of k (the k-th, 2k-th, ...).
    """

    def __init__(self, every: int, axis: int = 0, missing_ones: bool = False) -> None:
        if every < 2:
            raise ConfigError(f"slices: expected every 2nd or sparser, found {every}")
        self.every, self.axis, self.missing_ones = every, axis, missing_ones

    def measured(self, x: Tensor) -> Tensor:
        """1 on the measured slices."""
        rank = x.ndim - 2
        if not -rank <= self.axis < rank:
            raise ConfigError(f"slices: expected a spatial axis below {rank}, found {self.axis}")
        axis = self.axis % rank
        index = torch.arange(x.shape[2 + axis], device=x.device)
        kept = (index + 1) % self.every != 0 if self.missing_ones else index % self.every == 0
        shape = [1] * rank
        shape[axis] = -1
        return kept.to(x.dtype).reshape(shape)


class SuperResolution(LinearOperator):
    """Average over blocks of ``factor`` voxels along each axis: y is (N, C, *S / factor)."""

    def __init__(self, factor: int) -> None:
        if factor < 2:
            raise ConfigError(f"superres: expected a factor of at least 2, found {factor}")
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        """Block averages."""
        if any(side % self.factor for side in x.shape[2:]):
            raise ConfigError(f"superres: expected sides divisible by {self.factor}, found {tuple(x.shape[2:])}")
        pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
        return pool(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each value spread evenly over its block."""
        return self._repeat(y) / self.factor ** (y.ndim - 2)

    def spectral(self, x: Tensor, function: Spectrum) -> Tensor:
        """All singular values are factor^(-rank / 2), on the images that are constant over blocks."""
        s2 = x.new_tensor([self.factor ** (2 - x.ndim), 0.0])
        on, off = function(s2).unbind()
        return x * off + self._repeat(self(x)) * (on - off)

    def project_within(self, x: Tensor, y: Tensor, low: float, high: float) -> Tensor:
        """The image nearest to x among those in [low, high] that are measured as y, which lies in there too.

        One shift a block, clip(x + s), by the conditions of Karush, Kuhn and Tucker; s is found by bisection.
        """
        nearest = self.project(x, y)
        spill = ((nearest < low) | (nearest > high)).to(x.dtype)
        if not spill.any():
            return nearest
        blocks = self._repeat(self(spill)) > 0
        bottom, top = low - self._repeat(self._largest(x)), high + self._repeat(self._largest(-x))
        for _ in range(BISECTIONS):
            shift = (bottom + top) / 2
            less = self._repeat(self((x + shift).clamp(low, high)) < y)
            bottom, top = torch.where(less, shift, bottom), torch.where(less, top, shift)
        return torch.where(blocks, (x + (bottom + top) / 2).clamp(low, high), nearest)

    def _largest(self, x: Tensor) -> Tensor:
        pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
        return pool(x, self.factor)

    def _repeat(self, y: Tensor) -> Tensor:
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.factor, axis)
        return y


class Blur(LinearOperator):
    """Convolution with a kernel, the image continued periodically; frequencies below BLUR_CUTOFF count as lost.

    kernel: from the spatial sizes to the kernel float64 (*S), its centre at index 0, its sum 1.
    """

    def __init__(self, kernel: Callable[[tuple[int, ...]], Tensor]) -> None:
        self._kernel = kernel
        self._transfers: dict[tuple[int, ...], Tensor] = {}

    def transfer(self, shape: tuple[int, ...]) -> Tensor:
        """The factor on each frequency of a real transform (``rfftn``), complex128, exactly 0 where lost."""
        if shape not in self._transfers:
            values = torch.fft.rfftn(self._kernel(shape))
            self._transfers[shape] = torch.where(values.abs() < BLUR_CUTOFF * values.abs().max(), 0, values)
        return self._transfers[shape]

    def __call__(self, x: Tensor) -> Tensor:
        """The blurred image, of the same shape."""
        return self._filter(x, self.transfer(tuple(x.shape[2:])))

    def adjoint(self, y: Tensor) -> Tensor:
        """Correlation with the kernel."""
        return self._filter(y, self.transfer(tuple(y.shape[2:])).conj())

    def spectral(self, x: Tensor, function: Spectrum) -> Tensor:
        """The Fourier transform diagonalises A; squared singular values are |transfer|^2."""
        return self._filter(x, function(self.transfer(tuple(x.shape[2:])).abs() ** 2))

    @staticmethod
    def _filter(x: Tensor, factor: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        transformed = torch.fft.rfftn(x, dim=axes)
        kind = transformed.dtype if factor.is_complex() else x.dtype
        return torch.fft.irfftn(transformed * factor.to(x.device, kind), s=x.shape[2:], dim=axes)


def gaussian_blur(width_px: float) -> Blur:
    """Gaussian blur of standard deviation ``width_px``, along every axis. Raises ConfigError unless it is positive."""
    if not width_px > 0:
        raise ConfigError(f"blur: expected a positive width in pixels, found {width_px}")

    def kernel(shape: tuple[int, ...]) -> Tensor:
        result = torch.ones((), dtype=torch.float64)
        for side in shape:
            reach = math.ceil(8 * width_px)
            offsets = torch.arange(-reach, reach + 1)
            line = torch.zeros(side, dtype=torch.float64)
            line.index_add_(0, offsets % side, torch.exp(-(offsets.double() ** 2) / (2 * width_px**2)))
            result = result.unsqueeze(-1) * (line / line.sum())
        return result

    return Blur(kernel)


def motion_blur(length_px: float, angle_deg: float = 0.0) -> Blur:
    """A straight move of ``length_px`` in the plane of the last two axes, counter-clockwise from the row direction.

    Raises ConfigError unless the length is positive.
    """
    if not length_px > 0:
        raise ConfigError(f"motion blur: expected a positive length in pixels, found {length_px}")

    def kernel(shape: tuple[int, ...]) -> Tensor:
        height, width = shape[-2:]
        count = max(2, math.ceil(length_px * MOTION_POINTS))
        along = (torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5
        turn = math.radians(angle_deg)
        y, x = -math.sin(turn) * length_px * along, math.cos(turn) * length_px * along
        plane = torch.zeros(height * width, dtype=torch.float64)
        for row, share_y in ((y.floor(), 1 - y + y.floor()), (y.floor() + 1, y - y.floor())):
            for column, share_x in ((x.floor(), 1 - x + x.floor()), (x.floor() + 1, x - x.floor())):
                place = row.long() % height * width + column.long() % width
                plane.index_add_(0, place, share_y * share_x)
        result = torch.zeros(shape, dtype=torch.float64)
        result[(0,) * (len(shape) - 2)] = (plane / plane.sum()).reshape(height, width)
        return result

    return Blur(kernel)


class KSpace(LinearOperator):
    """Undersampled MRI of a real image: the orthonormal Fourier transform where ``sampled``, 0 elsewhere.

    sampled: from the spatial sizes to a bool mask broadcastable to (*S), frequency 0 at index 0. y is (N, 2 C, *S):
    the real parts of the C channels, then the imaginary ones.
    """

    def __init__(self, sampled: Callable[[tuple[int, ...]], Tensor]) -> None:
        self._sampled = sampled

    def __call__(self, x: Tensor) -> Tensor:
        """The sampled frequencies."""
        axes = tuple(range(2, x.ndim))
        found = torch.fft.fftn(x, dim=axes, norm="ortho") * self._mask(x)
        return torch.cat([found.real, found.imag], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        """Zero-filled reconstruction, its real part."""
        real, imaginary = (y * self._mask(y)).chunk(2, dim=1)
        axes = tuple(range(2, y.ndim))
        return torch.fft.ifftn(torch.complex(real, imaginary), dim=axes, norm="ortho").real

    def spectral(self, x: Tensor, function: Spectrum) -> Tensor:
        """A real image has conjugate pairs of frequencies: squared singular value 1 where both are sampled, 1/2 where
        one is."""
        axes = tuple(range(2, x.ndim))
        mask = self._mask(x)
        back = mask
        for axis in range(mask.ndim):
            back = back.flip(axis).roll(1, axis)
        transformed = torch.fft.fftn(x, dim=axes, norm="ortho")
        return torch.fft.ifftn(transformed * function((mask + back) / 2), dim=axes, norm="ortho").real

    def _mask(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[2:])
        return self._sampled(shape).expand(shape).to(x.device, x.dtype)


def cartesian_lines(acceleration: float, axis: int = -1, centre: float = 0.08, seed: int = 0) -> KSpace:
    """One of ``acceleration`` lines of k-space along a spatial axis: the ``centre`` share in full, others by chance.

    Raises ConfigError unless the acceleration is above 1.
    """
    if not acceleration > 1:
        raise ConfigError(f"kspace: expected an acceleration above 1, found {acceleration}")

    def sampled(shape: tuple[int, ...]) -> Tensor:
        if not -len(shape) <= axis < len(shape):
            raise ConfigError(f"kspace: expected a spatial axis below {len(shape)}, found {axis}")
        lines = shape[axis]
        wanted = max(1, round(lines / acceleration))
        full = min(wanted, max(1, round(centre * lines)))
        nearest = np.argsort(np.abs(np.fft.fftfreq(lines)), kind="stable")
        others = np.random.default_rng([seed, lines]).permutation(nearest[full:])[: wanted - full]
        kept = torch.zeros(lines, dtype=torch.bool)
        kept[torch.from_numpy(np.concatenate([nearest[:full], others]))] = True
        view = [1] * len(shape)
        view[axis] = -1
        return kept.reshape(view)

    return KSpace(sampled)
