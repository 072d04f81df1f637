"""What a denoiser is shown in training beside noise: an image with parts masked, and noise in one box of it alone.

Iqbal et al. 2023, "Unsupervised anomaly detection in medical images using masked diffusion model" (mDDPM, methods 5.4),
and Behrendt et al. 2023, "Patched diffusion models for unsupervised anomaly detection in brain MRI" (pDDPM, methods
5.2). All that is random is a function of keys, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anodiff.diffusion.objective import foreground_of
from anodiff.diffusion.philox import philox, split_key

Mask = Literal["none", "pixels", "frequency"]

#: rectangles an image has at most, any number down to none being as likely
MOST_RECTANGLES = 5
#: their sides, as shares of the rows of the foreground
SIDES = (0.09, 0.18)
#: half-widths of the square of the spectrum that is kept or removed, in cycles an image of PAPER_PX
HALF_WIDTHS = (2, 10)
PAPER_PX = 96
#: marks the random words of masks and boxes, which the noise of the same key does not use
MASK_WORDS, BOX_WORDS, PART_WORDS = 0x6D61736B, 0x626F7865, 0x70617274
#: random numbers along an axis that the outlines of parts follow: large bays, small inlets
PART_GRIDS = (3, 8)
#: of an image, in parts at most; small shares are likelier
MOST_PARTS = 0.5


def masked(clean: Tensor, kind: Mask, keys: Tensor) -> Tensor:
    """Images (N, C, *S) in [-1, 1] with up to five random rectangles of their foreground replaced.

    ``frequency``: by the image without its fine or without its coarse detail, as a coin decides; ``pixels``: by black
    (-1). keys: (N,) int64.
    """
    rank = clean.ndim - 2
    u = uniforms(keys, 3 + 2 * rank * MOST_RECTANGLES, MASK_WORDS)
    inside = foreground_of(clean)
    where = rectangles(inside[:, 0], u[:, 2], u[:, 3:].reshape(len(clean), MOST_RECTANGLES, 2, rank)).unsqueeze(1)
    if kind == "pixels":
        return torch.where(where & inside, -1.0, clean)
    return torch.where(where & inside, filtered(clean, u[:, 0] < 0.5, half_widths(u[:, 1])), clean)


def half_widths(u: Tensor) -> Tensor:
    """(N,) whole numbers from the first to the last of HALF_WIDTHS, each as likely, of u uniform in [0, 1)."""
    low, high = HALF_WIDTHS
    return (low + (u * (high - low + 1)).floor()).clamp(max=high)


def filtered(images: Tensor, low_pass: Tensor, half_width: Tensor) -> Tensor:
    """Images (N, C, *S) of which a centred square of the spectrum is kept (``low_pass`` (N,) bool), or removed.

    The square holds up to ``half_width`` (N,) cycles in PAPER_PX pixels along each axis. Intensities count from black
    (-1), to which an image without its coarse detail falls.
    """
    axes = tuple(range(2, images.ndim))
    shape = (-1, *[1] * (images.ndim - 1))
    kept = torch.ones_like(images, dtype=torch.bool)
    for axis in axes:
        cycles = torch.fft.fftfreq(images.shape[axis], device=images.device).abs() * PAPER_PX
        along = [images.shape[axis] if other == axis else 1 for other in range(images.ndim)]
        kept &= cycles.view(along) <= half_width.view(shape) + 1e-4
    kept = torch.where(low_pass.view(shape), kept, ~kept)
    spectrum = torch.fft.fftn(images.float() + 1, dim=axes)
    return torch.fft.ifftn(spectrum * kept, dim=axes).real - 1


def rectangles(inside: Tensor, u_count: Tensor, u: Tensor) -> Tensor:
    """Rectangles that lie within the bounding box of ``inside`` (N, *S) bool, united; -> bool (N, *S).

    u_count (N,): how many; u (N, MOST_RECTANGLES, 2, rank): sides and places, all uniform in [0, 1).
    """
    rank = inside.ndim - 1
    first, extent = bounding_box(inside)
    shortest, longest = SIDES
    sides = (shortest + (longest - shortest) * u[:, :, 0]) * extent[:, None, :1]
    starts = first[:, None] + u[:, :, 1] * (extent[:, None] - sides).clamp(min=0)
    drawn = torch.arange(MOST_RECTANGLES, device=inside.device) < (u_count * (MOST_RECTANGLES + 1)).floor()[:, None]
    found = drawn.view(*drawn.shape, *[1] * rank)
    for axis in range(rank):
        found = found & _between(starts[..., axis], sides[..., axis], inside.shape, axis)
    return found.any(dim=1)


def random_boxes(size: Sequence[int], keys: Tensor) -> Tensor:
    """One box an image, of half each side and wholly inside, every place as likely; -> bool (N, 1, *size)."""
    u = uniforms(keys, len(size), BOX_WORDS)
    found = torch.ones(len(keys), 1, *size, dtype=torch.bool, device=keys.device)
    for axis, side in enumerate(size):
        edge = -(-side // 2)
        start = (u[:, axis] * (side - edge + 1)).floor().clamp(max=side - edge)
        edges = torch.full_like(start, edge)
        found &= _between(start[:, None], edges[:, None], found.shape[:1] + found.shape[2:], axis)
    return found


def random_parts(size: Sequence[int], keys: Tensor) -> Tensor:
    """Parts of any outline, MOST_PARTS u^2 of an image, u uniform in [0, 1), at least one pixel; -> bool (N, 1, *size).

    They are where a smooth random field is highest, as Zavrtanik et al. 2021 (DRAEM) place what they plant.
    """
    rank, linear = len(size), {2: "bilinear", 3: "trilinear"}[len(size)]
    numbers = [grid**rank for grid in PART_GRIDS]
    share, *grids = uniforms(keys, 1 + sum(numbers), PART_WORDS).split([1, *numbers], dim=1)
    field = sum(
        F.interpolate(u.view(-1, 1, *[grid] * rank), tuple(size), mode=linear, align_corners=True)
        for u, grid in zip(grids, PART_GRIDS, strict=True)
    )
    assert isinstance(field, Tensor)
    heights = field.flatten(1).sort(dim=1, descending=True).values
    last = (MOST_PARTS * share.square() * heights.shape[1]).long()
    return field >= heights.gather(1, last).view(-1, *[1] * (rank + 1))


def bounding_box(inside: Tensor) -> tuple[Tensor, Tensor]:
    """First voxels and sides (N, rank) of the smallest box around what is True in ``inside`` (N, *S); 0 of nothing."""
    firsts, extents = [], []
    for axis in range(1, inside.ndim):
        others = tuple(other for other in range(1, inside.ndim) if other != axis)
        there = inside.any(dim=others) if others else inside
        place = torch.arange(there.shape[1], device=inside.device)
        first = torch.where(there, place, there.shape[1]).amin(dim=1)
        last = torch.where(there, place, -1).amax(dim=1)
        firsts.append(first)
        extents.append((last + 1 - first).clamp(min=0))
    return torch.stack(firsts, dim=1).float(), torch.stack(extents, dim=1).float()


def uniforms(keys: Tensor, count: int, stream: int) -> Tensor:
    """(N, count) float32 uniform in [0, 1), a function of the keys (N,) int64 and the stream."""
    place = torch.arange(count, dtype=torch.int64, device=keys.device)
    low, high = split_key(keys)
    zero = torch.zeros_like(place)
    word = philox((place, zero, zero, torch.full_like(place, stream)), (low[:, None], high[:, None]))[0]
    return (word >> 8).float() / (1 << 24)


def _between(start: Tensor, side: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """bool (N, R, ..., s_axis, ...): voxels whose number lies in [start, start + side), start and side (N, R)."""
    place = torch.arange(shape[1 + axis], device=start.device)
    begin, end = torch.ceil(start)[..., None], torch.ceil(start + side)[..., None]
    found = (place >= begin) & (place < end)
    along = [shape[1 + axis] if other == axis else 1 for other in range(len(shape) - 1)]
    return found.view(*start.shape, *along)
