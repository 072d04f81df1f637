"""Noise families: Gaussian, simplex, pyramid, coarse and mixed, a pure function of (key, level, draw, channel, voxel).

The key of an image is a hash of its pixels and the user's seed, so its noise depends on nothing else: not on its file
name, its batch mates, their order, the shard, or the window in which a large image is worked through. All arithmetic
is exact or rounded operation by operation (see :mod:`anodiff.diffusion.philox`), which makes the values bit-equal
whatever is computed beside them.
"""

from __future__ import annotations

import difflib
import hashlib
from itertools import product

import torch
from torch import Tensor

from anodiff.diffusion import simplex
from anodiff.diffusion.philox import Words, normals, philox, split_key
from anodiff.errors import ConfigError

FAMILIES = ("gaussian", "simplex", "pyramid", "coarse")
#: half of the images gaussian, half pyramid noise: to train one model on that restores with the one and detects with
#: either
MIXED = "mixed"

PYRAMID_CELLS = (1, 2, 4, 8, 16, 32, 64)  # px between the random numbers of each level
PYRAMID_PERSISTENCE = 0.8  # amplitude of a level relative to the next finer one
COARSE_CELL = 8  # px between the random numbers of coarse noise: 16 of them across 128 px, as published
COARSE_VARIANCE = 43 / 64  # what linear interpolation leaves of variance 1, an axis, averaged over the 8 shifts

_STREAM_GAUSSIAN = 0
_STREAM_PYRAMID = 32  # + level
_STREAM_SIMPLEX = 64  # + octave
_STREAM_COARSE = 128
_STREAM_SHIFT = 129
_BLOCKS_AT_ONCE = {"cpu": 1 << 14, "other": 1 << 22}  # counters hashed together: what the cache holds; few launches
_FIELDS_AT_ONCE = 64


def image_keys(images: Tensor, seed: int = 0) -> Tensor:
    """(N,) int64 keys in [0, 2^63), on the CPU: a hash of each image's decoded pixels, its shape and the seed.

    images: (N, C, *spatial), hashed as float32 (with -0 equal to 0), so equal pixels give equal noise.
    """
    pixels = images.detach().to(device="cpu", dtype=torch.float32).contiguous() + 0.0
    header = repr((tuple(pixels.shape[1:]), int(seed))).encode()
    digests = (hashlib.blake2b(header + image.numpy().tobytes(), digest_size=8).digest() for image in pixels)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)


def sample_noise(
    family: str,
    keys: Tensor,
    shape: tuple[int, ...],
    *,
    level: int | Tensor = 0,
    draw: int | Tensor = 0,
    scale: str = "unit",
    origin: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Noise (N, C, *spatial) on the device of ``keys``, for spatial of rank 2 or 3.

    family: "gaussian"; "simplex" (OpenSimplex-type octaves, see :mod:`anodiff.diffusion.simplex`); "pyramid" (Gaussian
            noise at cells of 1, 2, 4, ... 64 px, each level 0.8 of the next finer one); "coarse" (Gaussian numbers 8 px
            apart, interpolated linearly and shifted at random: what denoising auto-encoders for anomaly detection are
            trained on, Kascenas et al. 2022); "mixed" (an image's key decides between "gaussian" and "pyramid").
    keys:   (N,) int64, one an image, see :func:`image_keys`.
    shape:  (C, *spatial) of the result.
    level:  index of the noise level, and draw: index of the draw at that level; a number or one an image (N,).
            Other numbers give independent noise. 0 <= level < 2^24, 0 <= draw < 2^32.
    scale:  "unit": variance 1 at every voxel. "published": simplex noise keeps the amplitude that AnoDDPM trains with
            (standard deviation about 0.51), coarse noise that of interpolated numbers of variance 1 (0.67 in 2-D); no
            difference for the other families.
    origin: global index of the first voxel, for a window of a larger image; None is the image's own corner.

    Raises ConfigError for an unknown family or scale, a wrong rank, or an origin below 0.
    """
    channels, spatial = shape[0], tuple(shape[1:])
    start = (0,) * len(spatial) if origin is None else tuple(origin)
    _check(family, scale, spatial, start)
    rows = _Rows(keys, level, draw)
    if family == "gaussian":
        return _gaussian(rows, channels, spatial, start, _STREAM_GAUSSIAN).to(dtype)
    if family == "pyramid":
        return _pyramid(rows, channels, spatial, start).to(dtype)
    if family == MIXED:
        # both for all rows: to pick rows first, the host would have to wait for the device
        white = (rows.keys & 1).bool().view(-1, *(1,) * (len(spatial) + 1))
        gaussian = _gaussian(rows, channels, spatial, start, _STREAM_GAUSSIAN)
        return torch.where(white, gaussian, _pyramid(rows, channels, spatial, start)).to(dtype)
    if family == "coarse":
        field = _coarse(rows, channels, spatial, start)
        return (field if scale == "published" else field / COARSE_VARIANCE ** (len(spatial) / 2)).to(dtype)
    amplitude = simplex.PUBLISHED_STD if scale == "published" else 1.0
    return _simplex(rows, channels, spatial, start, amplitude).to(dtype)


class _Rows:
    """Key words and the (level, draw) counter words of each image, (N,) int64 on one device."""

    def __init__(self, keys: Tensor, level: int | Tensor, draw: int | Tensor) -> None:
        self.keys = keys.to(torch.int64)
        self.level, self.draw = (_counters(each, self.keys) for each in (level, draw))

    def __len__(self) -> int:
        return self.keys.shape[0]

    def words(self, rows: slice, rank: int, position: Tensor, plane: Tensor, stream: int | Tensor) -> Words:
        """Four random words of each (row, position): counter = (position, plane, draw, level and stream)."""
        shape = (-1,) + (1,) * rank
        counter = (position, plane, self.draw[rows].view(shape), self.level[rows].view(shape) | stream << 24)
        low, high = split_key(self.keys[rows])
        return philox(counter, (low.view(shape), high.view(shape)))


def _counters(value: int | Tensor, keys: Tensor) -> Tensor:
    """(N,) int64 on the keys' device; a number is filled in there, since the host would wait while it is copied."""
    there = value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.int64, device=keys.device)
    return there.to(keys.device, torch.int64).expand(keys.shape[0])


def _gaussian(rows: _Rows, channels: int, spatial: tuple[int, ...], start: tuple[int, ...], stream: int) -> Tensor:
    """Standard normals (N, C, *spatial); the counter holds x // 4, y, z and the channel, the four words are x % 4."""
    device = rows.keys.device
    depth, height, width = (1,) * (3 - len(spatial)) + spatial
    z0, y0, x0 = (0,) * (3 - len(start)) + start
    first, last = x0 // 4, (x0 + width - 1) // 4
    x = torch.arange(first, last + 1, device=device)
    y = torch.arange(y0, y0 + height, device=device).view(-1, 1)
    position = (x | y << 16).view(1, 1, 1, height, -1)
    z = torch.arange(z0, z0 + depth, device=device).view(1, 1, -1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1, 1)
    noise = torch.empty(len(rows), channels, depth, height, width, device=device)
    crop = slice(x0 - 4 * first, x0 - 4 * first + width)
    at_once = _BLOCKS_AT_ONCE["cpu" if device.type == "cpu" else "other"]
    slices = max(1, at_once // (channels * position.numel()))
    images = max(1, slices // depth)
    for n, k in product(range(0, len(rows), images), range(0, depth, slices)):
        part = slice(n, n + images), slice(None), slice(k, k + slices)
        words = rows.words(part[0], 4, position, z[:, :, part[2]] | channel << 16, stream)
        values = torch.stack(normals(words[0], words[1]) + normals(words[2], words[3]), dim=-1)
        noise[part] = values.flatten(-2)[..., crop]
    return noise.view(len(rows), channels, *spatial)


def _pyramid(rows: _Rows, channels: int, spatial: tuple[int, ...], start: tuple[int, ...]) -> Tensor:
    """Sum of linearly interpolated Gaussian lattices, variance 1 at every voxel."""
    total = sum(PYRAMID_PERSISTENCE ** (2 * i) for i in range(len(PYRAMID_CELLS)))
    noise = torch.zeros(len(rows), channels, *spatial, device=rows.keys.device)
    for i, cell in enumerate(PYRAMID_CELLS):
        low = tuple(s // cell for s in start)
        size = tuple((s + n - 1) // cell + 2 - first for s, n, first in zip(start, spatial, low, strict=True))
        field = _gaussian(rows, channels, size, low, _STREAM_PYRAMID + i)
        for axis in reversed(range(len(spatial))):  # the innermost axis first, while the others are short: it is slow
            position = torch.arange(start[axis], start[axis] + spatial[axis], device=field.device)
            field = _interpolate(field, axis + 2, position, cell, low[axis])
        noise += field * (PYRAMID_PERSISTENCE**i / total**0.5)
    return noise


def _interpolate(field: Tensor, axis: int, position: Tensor, cell: int, first: int) -> Tensor:
    """Linear interpolation along one axis, with weights of unit length: independent unit normals stay unit normals."""
    index = position // cell - first
    if cell == 1:
        return field.index_select(axis, index)
    share = (position % cell).double() / cell
    norm = ((1 - share) ** 2 + share**2).sqrt()
    shape = (-1,) + (1,) * (field.ndim - 1 - axis)
    left, right = ((w / norm).float().view(shape) for w in (1 - share, share))
    return field.index_select(axis, index) * left + field.index_select(axis, index + 1) * right


def _coarse(rows: _Rows, channels: int, spatial: tuple[int, ...], start: tuple[int, ...]) -> Tensor:
    """A linearly interpolated lattice of standard normals, shifted by 0 to 7 px an axis, alike for all channels."""
    device, rank = rows.keys.device, len(spatial)
    origin = torch.zeros((), dtype=torch.int64, device=device)
    shift = torch.stack(rows.words(slice(None), 0, origin, origin, _STREAM_SHIFT)[:rank], dim=1) % COARSE_CELL
    low = tuple(s // COARSE_CELL for s in start)
    size = tuple(
        (s + n + COARSE_CELL - 2) // COARSE_CELL + 2 - first for s, n, first in zip(start, spatial, low, strict=True)
    )
    field = _gaussian(rows, channels, size, low, _STREAM_COARSE)
    for axis in reversed(range(rank)):  # the innermost axis first, as in pyramid noise
        position = torch.arange(start[axis], start[axis] + spatial[axis], device=device) + shift[:, axis, None]
        sides = (1,) * (axis + 1), (1,) * (rank - 1 - axis)
        index = (position // COARSE_CELL - low[axis]).view(len(rows), *sides[0], -1, *sides[1])
        share = ((position % COARSE_CELL).float() / COARSE_CELL).view(index.shape)
        index = index.expand(-1, *field.shape[1 : axis + 2], -1, *field.shape[axis + 3 :])
        left, right = field.gather(axis + 2, index), field.gather(axis + 2, index + 1)
        field = left * (1 - share) + right * share
    return field


def _simplex(rows: _Rows, channels: int, spatial: tuple[int, ...], start: tuple[int, ...], amplitude: float) -> Tensor:
    """Simplex fields of standard deviation ``amplitude``, tile by tile; fields are innermost while they are made."""
    device = rows.keys.device
    noise = torch.empty(len(rows), channels, *spatial, device=device)
    channel = torch.arange(channels, device=device)
    for corner, size in simplex.tiles(spatial, start):
        tile = simplex.tile_geometry(corner, size, device)
        window = tuple(slice(c - s, c - s + n) for c, s, n in zip(corner, start, size, strict=True))
        for n in range(0, len(rows), _FIELDS_AT_ONCE):
            part = slice(n, n + _FIELDS_AT_ONCE)
            counts = min(_FIELDS_AT_ONCE, len(rows) - n), channels

            def words(blocks: slice, tile: simplex.Tile = tile, part: slice = part) -> Words:
                position, plane, octave = (x[blocks, None, None] for x in (tile.position, tile.plane, tile.octave))
                return rows.words(part, 1, position, plane | channel << 16, octave + _STREAM_SIMPLEX)

            values = simplex.fields(tile, simplex.coefficients(tile, words, counts[0] * channels))
            torch.mul(values.view(*counts, *size), amplitude, out=noise[(part, slice(None), *window)])
    return noise


def family_of(trained: str) -> str:
    """The noise that a model of this training is asked with where nothing else is said."""
    return "gaussian" if trained == MIXED else trained


def _check(family: str, scale: str, spatial: tuple[int, ...], start: tuple[int, ...]) -> None:
    known = (*FAMILIES, MIXED)
    if family not in known:
        nearest = difflib.get_close_matches(family, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown noise family {family!r}; did you mean {nearest!r}? (known: {', '.join(known)})")
    if scale not in ("unit", "published"):
        raise ConfigError(f"noise scale must be 'unit' or 'published', found {scale!r}")
    if len(spatial) not in (2, 3) or len(start) != len(spatial):
        raise ConfigError(f"noise needs 2 or 3 spatial sizes and an origin alike, found {spatial} and {start}")
    if min(start) < 0 or max(s + n for s, n in zip(start, spatial, strict=True)) > 1 << 16:
        raise ConfigError(f"noise is defined for voxel indices 0 to 65535, found origin {start} and size {spatial}")
