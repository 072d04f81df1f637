"""Simplex noise: octaves of OpenSimplex-type gradient noise, as AnoDDPM corrupts its images (Wyatt et al. 2022).

A field is ``sum_k p^k S(x / f_k)`` with K = 6 octaves, persistence p = 0.8 and feature sizes f_k = 64, 32, ... 2 px. S
is gradient noise on the three-dimensional OpenSimplex lattice (Spencer 2014): every lattice point carries one of 24
gradients g, and adds ``(2 - |d|^2)^4 g.d`` at a displacement d within its reach. A volume fills the three dimensions;
an image is a slice, kept as far from the lattice points as it can be.

S is linear in the gradients. The lattice geometry is therefore worked out once for a tile of voxels, as a table of
weights shared by all images, and a batch of fields is one weighted gather from hashed gradients. Two things are added
to the published recipe. Weights are divided by the standard deviation that they give at their voxel, so the variance is
1 everywhere and no pixel near a lattice point is quieter than others. And weights are whole multiples of 2^-20: the
gradients are small integers, so all sums are exact in float32 and do not depend on the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from anodiff.diffusion.philox import Words

FEATURE_SIZES = (64, 32, 16, 8, 4, 2)  # px
PERSISTENCE = 0.8
PUBLISHED_STD = 0.508  # pooled standard deviation of the published generator, whose amplitudes are not normalised

QUANTUM = 2.0**-20  # every weight is a multiple; sums stay below 2^24 of them, where float32 counts exactly
TILE_VOXELS = 1 << 14
CACHED_TILES = 32  # about 14 MB each
CPU_HASHES = 1 << 15  # counters hashed together by a thread: what its cache holds
OTHER_HASHES = 1 << 22  # elsewhere: few launches

_SQUISH = 1 / 3  # lattice point (i, j, l) lies at (i, j, l) + (i + j + l) / 3
_STRETCH = -1 / 6  # the inverse map
_REACH = 2.0  # squared radius of a lattice point's kernel
_SLICE = 1 / 6  # lattice points lie at heights that are multiples of 1/3: an image is cut half way between two
_GRADIENTS = [
    [sign * (11 if axis == major else 4) for axis, sign in enumerate(signs)]
    for major in range(3)
    for signs in product((1, -1), repeat=3)
]
_GRADIENT_POWER = (11**2 + 4**2 + 4**2) / 3  # mean square of a gradient component


@dataclass(frozen=True, eq=False)
class Tile:
    """Geometry of one tile: ``field[v] = sum of weights[n] * coefficients[gather[n]]`` for n from offsets[v] on.

    gather, weights: (nnz,) int32 and float32; offsets: (V,) int32.
    position, plane, octave: (B,) int64, lattice coordinates and octave of each hashed block of four lattice points.
    The coefficients are the first components of the gradients of all blocks' first points, then of their second, third
    and fourth points, then all second components, then all third.
    """

    gather: Tensor
    weights: Tensor
    offsets: Tensor
    position: Tensor
    plane: Tensor
    octave: Tensor


def tiles(spatial: tuple[int, ...], start: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(first voxel, size) of tiles of at most 2^14 voxels (of whole rows where a row fits) that cover a window."""
    size = list(spatial)
    for axis in range(len(size)):
        below = 1
        for n in size[axis + 1 :]:
            below *= n
        size[axis] = min(size[axis], max(1, TILE_VOXELS // below))
    corners = product(*(range(s, s + n, step) for s, n, step in zip(start, spatial, size, strict=True)))
    ends = [s + n for s, n in zip(start, spatial, strict=True)]
    return [
        (corner, tuple(min(step, end - c) for c, step, end in zip(corner, size, ends, strict=True)))
        for corner in corners
    ]


@lru_cache(maxsize=CACHED_TILES)
def tile_geometry(start: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Tile:
    """Geometry of the tile whose first voxel is ``start`` (rank 2: y, x; rank 3: z, y, x), worked out on the CPU."""
    with torch.inference_mode(False):
        octaves = [_octave(k, start, size) for k in range(len(FEATURE_SIZES))]
        voxels = torch.cat([octave[0] for octave in octaves])
        order = torch.argsort(voxels, stable=True)
        points_before = torch.tensor([0] + [octave[3].shape[0] for octave in octaves]).cumsum(0)
        points = torch.cat([octave[1] + before for octave, before in zip(octaves, points_before[:-1], strict=True)])
        weights = torch.cat([octave[2] for octave in octaves])
        lattice = torch.cat([octave[3] for octave in octaves])
        octave_of = torch.cat([torch.full((o[3].shape[0],), k) for k, o in enumerate(octaves)])

        blocks, lane = _blocks(lattice, octave_of)
        component = torch.arange(3) * 4 * blocks[0].shape[0]
        gather = (lane[points[order], None] + component).flatten()
        count = torch.bincount(voxels, minlength=_volume(size)) * 3
        return Tile(
            gather.int().to(device),
            weights[order].flatten().float().to(device),
            (count.cumsum(0) - count).int().to(device),
            *(part.to(device) for part in blocks),
        )


@lru_cache(maxsize=8)
def _gradients(device: torch.device) -> Tensor:
    """(3, G) float32 on a device, copied there once."""
    with torch.inference_mode(False):
        return torch.tensor(_GRADIENTS, dtype=torch.float32, device=device).t().contiguous()


def coefficients(tile: Tile, words: Callable[[slice], Words], count: int) -> Tensor:
    """(12 B, R) float32 gradient components of R = ``count`` fields, hashed a few blocks at a time.

    words: the four words, each int64 of 32 bits (b, ...) with R values a block, of a slice of the tile's blocks.
    """
    device, blocks = tile.position.device, tile.position.shape[0]
    table = _gradients(device)
    components = torch.empty(3, 4, blocks, count, device=device)
    at_once = CPU_HASHES * torch.get_num_threads() if device.type == "cpu" else OTHER_HASHES
    step = max(1, at_once // max(1, count))
    for first in range(0, blocks, step):
        part = slice(first, min(first + step, blocks))
        for lane, word in enumerate(words(part)):
            choice = ((word * len(_GRADIENTS)) >> 32).view(-1)
            for axis in range(3):
                torch.index_select(table[axis], 0, choice, out=components[axis, lane, part].view(-1))
    return components.view(-1, count)


def fields(tile: Tile, gradients: Tensor) -> Tensor:
    """(R, V) float32 fields of unit variance from gradient components (12 B, R)."""
    bags = embedding_bag(tile.gather, gradients, tile.offsets, mode="sum", per_sample_weights=tile.weights)
    return bags.t().contiguous()  # turned while it is in the cache; copying it turned would stride through memory


def _octave(k: int, start: tuple[int, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Octave k: voxel and lattice point of each contribution (n,), its weights (n, 3) float64, the points (L, 3)."""
    x = _coordinates(k, start, size)
    base = (x + _STRETCH * _sum3(x)).floor()
    variance = torch.zeros(len(x), 1, dtype=torch.float64)
    voxels, points, weights = [], [], []
    for neighbour in product(range(-1, 3), repeat=3):
        point = base + torch.tensor(neighbour, dtype=torch.float64)
        d = x - (point + _SQUISH * _sum3(point))
        square = _sum3(d * d)
        voxel = (square < _REACH).flatten().nonzero().flatten()
        if len(voxel) == 0:
            continue
        d, square = d[voxel], square[voxel]
        kernel = (_REACH - square) ** 2 * (_REACH - square) ** 2
        variance[voxel] += kernel * kernel * square * _GRADIENT_POWER
        voxels.append(voxel)
        points.append(point[voxel])
        weights.append(kernel * d)
    voxel = torch.cat(voxels)
    amplitude = PERSISTENCE**k / sum(PERSISTENCE ** (2 * i) for i in range(len(FEATURE_SIZES))) ** 0.5
    scaled = torch.cat(weights) * (amplitude / variance.sqrt())[voxel]
    lattice, point_of = _unique(torch.cat(points).long())
    return voxel, point_of, (scaled / QUANTUM).round() * QUANTUM, lattice


def _coordinates(k: int, start: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """(V, 3) float64 positions of voxels in units of the octave's feature size, each octave with its own shift."""
    axes = [torch.arange(s, s + n, dtype=torch.float64) / FEATURE_SIZES[k] for s, n in zip(start, size, strict=True)]
    if len(axes) == 3:
        z, y, x = torch.meshgrid(*axes, indexing="ij")
    else:
        y, x = torch.meshgrid(*axes, indexing="ij")
        z = torch.full_like(y, _SLICE)
    shift = 0.6180339887498949 * (k + 1)
    return torch.stack([x + shift, y + 2 * shift, z], dim=-1).view(-1, 3)


def _sum3(x: Tensor) -> Tensor:
    return x[..., 0:1] + x[..., 1:2] + x[..., 2:3]


def _unique(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of (n, 3) small integers, sorted, and where each row is among them."""
    low = rows.amin(0)
    span = (rows.amax(0) - low + 1).tolist()
    i, j, m = (rows - low).unbind(1)
    codes, inverse = torch.unique((i * span[1] + j) * span[2] + m, return_inverse=True)
    parts = (codes // (span[1] * span[2]), codes // span[2] % span[1], codes % span[2])
    return torch.stack(parts, dim=1) + low, inverse


def _blocks(lattice: Tensor, octave: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Groups of four lattice points along (1, -1, 0), a direction within images, whose words come from one hash.

    Also where the word of each point is among the first words of all groups, then the second, and so on.
    """
    i, j, m = lattice.unbind(1)
    position = (i >> 2 & 0xFFFF) | (i + j & 0xFFFF) << 16
    plane = m & 0xFFFF
    blocks, inverse = _unique(torch.stack([position, plane, octave], dim=1))
    return (blocks[:, 0], blocks[:, 1], blocks[:, 2]), (i & 3) * blocks.shape[0] + inverse


def _volume(size: tuple[int, ...]) -> int:
    volume = 1
    for n in size:
        volume *= n
    return volume
