"""Synthetic anomalies in normal images: what a detector is tuned on where there are no labels.

Five kinds, each a change x -> x' inside a random region of the foreground:

- ``foreign``: the same place of another image, blended in by a share of 0.5 to 1 (foreign patch interpolation, Tan et
  al. 2020);
- ``blob``: everything brighter or darker by 0.2 to 3 spreads (log-uniform), by the declared polarity;
- ``texture``: the fine detail replaced by that of another place, at a standard deviation of 0.1 to 1 spread;
- ``deform``: the contents moved by 0.3 to 0.6 of the shortest radius (1 px at least, if that tears nothing), smoothly;
- ``cutpaste``: a box from another place of the same image, unchanged (CutPaste, Li et al. 2021).

A spread is the standard deviation of the image's foreground intensities. Regions are ellipsoids (``cutpaste``: boxes),
turned at random. Nobody knows how large and how long the anomalies will be that are to come, from a speck to a missing
half and from a spot to a crack, so every octave of size is as likely: the radius (that of a ball as large) is
log-uniform between 2 px and that of half the foreground, the longest over the shortest side log-uniform between 1 and
4. The edge is 1 px to half the radius wide. A size is given up for another only where the foreground has no room for it
or nothing of the change can be seen.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.anomaly.residuals import Polarity
from anodiff.diffusion import image_keys
from anodiff.errors import ConfigError

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

SMALLEST_RADIUS = 2.0
LARGEST_SHARE = 0.5
ASPECT = 4.0
BLEND = (0.5, 1.0)
# down to what is hardly seen: if all are easy, all settings show them and nothing is chosen by them
BLOB_SPREADS = (0.2, 3.0)
TEXTURE_SPREADS = (0.1, 1.0)
#: fine detail is what a Gaussian of so many px (log-uniform) takes away
DETAIL_PX = (0.7, 1.5)
MOVE_RADII = (0.3, 0.6)
#: a longer move, in shortest radii, would fold the image
LONGEST_MOVE = 0.65
#: a pixel counts as anomalous where the change, averaged over about 1 px, is above this share of the spread
VISIBLE = 0.1
#: least spread, in units of the [-1, 1] data: a flat image still gets blobs that can be seen
LEAST_SPREAD = 0.02
#: the least share of a region's volume that must lie in the foreground; what lies outside is left alone
LEAST_INSIDE = 0.6
#: fewest anomalous pixels of an anomaly, how many random sizes are tried for it, and how many places for each
LEAST_PIXELS = 4
TRIES = 12
PLACES = 8


@dataclass(frozen=True)
class _Scene:
    """One image (C, *S), its foreground (*S), spread, another normal image (C, *S) and the image's random numbers."""

    image: Array
    inside: Mask
    spread: float
    donor: Array
    rng: np.random.Generator
    polarity: Polarity


@dataclass(frozen=True)
class _Region:
    """Centre and shortest radius in px; distance (*S) from the centre, 1 at the border; weight (*S) in [0, 1]."""

    centre: NDArray[np.int64]
    shortest: float
    distance: Array
    weight: Array


def kinds_for(polarity: Polarity) -> tuple[str, ...]:
    """The kinds that fit a polarity: another texture is as often brighter as darker, so a declared sign excludes it."""
    return KINDS if polarity == "both" else tuple(kind for kind in KINDS if kind != "texture")


def plant(
    images: Tensor,
    foreground: Tensor | None,
    kind: str,
    seed: int = 0,
    polarity: Polarity = "both",
    donors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One anomaly of a kind in each image; -> planted images (N, C, *S) float32 and masks (N, *S) bool, on the CPU.

    A mask holds the foreground pixels that changed visibly and, with a declared polarity, in its direction. What one
    image gets depends on its pixels, the seed, the kind and the donors alone. An image in which nothing visible can
    be planted (it has no foreground, say) comes back as it was, with an empty mask.

    Args:
        images: (N, C, *S) in [-1, 1] or beyond, of rank 2 or 3; planted values stay within [-1, 1] and the image's
            own range.
        foreground: (N, *S) bool, where anomalies may lie; None is everywhere.
        kind: one of KINDS.
        seed: of all choices.
        polarity: the sign of blobs, and of the changes that count.
        donors: (M, C, *S) other normals of which ``foreign`` takes one an image; None takes the image itself, turned
            about its centre.

    Raises:
        ConfigError: unknown kind.
    """
    if kind not in KINDS:
        nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown kind of anomaly {kind!r}; did you mean {nearest!r}? (known: {', '.join(KINDS)})")
    stream = KINDS.index(kind)
    planted = images.detach().to("cpu", torch.float32).clone()
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    others = None if donors is None else donors.detach().to("cpu", torch.float32)
    for n, key in enumerate(image_keys(images, seed).tolist()):
        rng = np.random.Generator(np.random.Philox(key=np.array([key, stream], dtype=np.uint64)))
        inside = np.ones(images.shape[2:], dtype=bool) if foreground is None else foreground[n].cpu().numpy()
        scene = _scene(planted[n].numpy(), inside, others, polarity, rng)
        found = _planted(scene, kind)
        if found is not None:
            planted[n], masks[n] = (torch.from_numpy(part) for part in found)
    return planted, masks


def _scene(image: Array, inside: Mask, donors: Tensor | None, polarity: Polarity, rng: np.random.Generator) -> _Scene:
    if donors is None or not len(donors):
        donor = np.flip(image, tuple(range(1, image.ndim)))
    else:
        donor = donors[int(rng.integers(len(donors)))].numpy()
    spread = max(float(image[:, inside].std()), LEAST_SPREAD) if inside.any() else LEAST_SPREAD
    return _Scene(image, inside, spread, donor, rng, polarity)


def _planted(scene: _Scene, kind: str) -> tuple[Array, Mask] | None:
    """The first of a few random regions in which the change can be seen; None where there is none."""
    if not scene.inside.any():
        return None
    change, box = CHANGES[kind]
    low = min(-1.0, float(scene.image.min()))
    high = max(1.0, float(scene.image.max()))
    for _ in range(TRIES):
        region = _region(scene, box)
        if region is None:
            continue
        image = change(scene, region).clip(low, high).astype(np.float32)
        mask = _visible(scene, image, region)
        if mask.sum() >= LEAST_PIXELS:
            return image, mask
    return None


def _region(scene: _Scene, box: bool) -> _Region | None:
    """A region of random size and shape, at the first of a few random places with room for it; None without one."""
    rank = scene.inside.ndim
    ball = math.pi if rank == 2 else 4.0 / 3.0 * math.pi
    largest = max(SMALLEST_RADIUS, (LARGEST_SHARE * int(scene.inside.sum()) / ball) ** (1 / rank))
    radius = _log_uniform(scene.rng, (SMALLEST_RADIUS, largest))
    # of the volume of that ball, whichever of both it is
    stretch = _stretch(scene.rng, rank) * ((ball / 2.0**rank) ** (1 / rank) if box else 1.0)
    for _ in range(PLACES):
        region = _placed(scene, radius, stretch, box)
        if ((region.distance < 1) & scene.inside).sum() >= LEAST_INSIDE * ball * radius**rank:
            return region
    return None


def _stretch(rng: np.random.Generator, rank: int) -> NDArray[np.float64]:
    """Half-axes of a unit volume: the longest over the shortest log-uniform up to ASPECT, others between."""
    between = rng.uniform(-0.5, 0.5, rank - 2)
    found = np.exp(np.array([-0.5, *between, 0.5]) * rng.uniform(0, math.log(ASPECT)))
    return found / found.prod() ** (1 / rank)


def _placed(scene: _Scene, radius: float, stretch: NDArray[np.float64], box: bool) -> _Region:
    """The region about a random foreground pixel, turned at random."""
    rng, size = scene.rng, scene.inside.shape
    rank = len(size)
    turned, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
    centre = _foreground_pixel(scene)
    offsets = np.stack(np.meshgrid(*(np.arange(n) - c for n, c in zip(size, centre, strict=True)), indexing="ij"))
    along = np.tensordot(turned / (radius * stretch[:, None]), offsets, axes=1)
    distance = np.abs(along).max(0) if box else np.sqrt((along * along).sum(0))
    edge = 1.0 if box else rng.uniform(1.0, max(1.0, radius / 2))
    weight = ((1.0 - distance) * (radius / edge) + 0.5).clip(0.0, 1.0) * scene.inside
    return _Region(centre, radius * stretch.min(), distance.astype(np.float32), weight.astype(np.float32))


def _visible(scene: _Scene, image: Array, region: _Region) -> Mask:
    """The pixels of the region whose change, in the polarity's direction, is above a share of the spread."""
    from scipy import ndimage

    change = image - scene.image
    counted = {"both": np.abs(change), "brighter": change, "darker": -change}[scene.polarity]
    average = ndimage.gaussian_filter(counted.mean(0), 1.0)
    return np.asarray((average > VISIBLE * scene.spread) & (region.weight > 0))


def _foreign(scene: _Scene, region: _Region) -> Array:
    share = scene.rng.uniform(*BLEND)
    return scene.image + share * region.weight * (scene.donor - scene.image)


def _blob(scene: _Scene, region: _Region) -> Array:
    height = _log_uniform(scene.rng, BLOB_SPREADS) * scene.spread
    brighter = scene.rng.random() < 0.5 if scene.polarity == "both" else scene.polarity == "brighter"
    return scene.image + (height if brighter else -height) * region.weight


def _texture(scene: _Scene, region: _Region) -> Array:
    from scipy import ndimage

    width = _log_uniform(scene.rng, DETAIL_PX)
    detail = scene.image - ndimage.gaussian_filter(scene.image, (0.0, *[width] * region.weight.ndim))
    there = _moved_here(detail, _foreground_pixel(scene), region)
    core = region.weight > 0.5
    there = there - there[:, core].mean()
    deviation = float(there[:, core].std())
    if deviation == 0:
        return scene.image
    wanted = _log_uniform(scene.rng, TEXTURE_SPREADS) * scene.spread
    return scene.image + region.weight * (there * (wanted / deviation) - detail)


def _deform(scene: _Scene, region: _Region) -> Array:
    from scipy import ndimage

    length = min(max(1.0, scene.rng.uniform(*MOVE_RADII) * region.shortest), LONGEST_MOVE * region.shortest)
    direction = scene.rng.normal(size=region.distance.ndim)
    direction *= length / np.sqrt((direction * direction).sum())
    # 1 in the middle, 0 from the border on, its slope at most 1.54 / shortest radius: no fold up to 0.65 of that
    profile = (1.0 - region.distance**2).clip(min=0) ** 2
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in region.distance.shape), indexing="ij"))
    source = grid - direction.reshape(-1, *[1] * profile.ndim) * profile
    moved = np.stack([ndimage.map_coordinates(c, source, order=1, mode="nearest") for c in scene.image])
    return np.where(scene.inside & (profile > 0), moved, scene.image)


def _cutpaste(scene: _Scene, region: _Region) -> Array:
    source = _foreground_pixel(scene)
    # Only what is foreground at its own place is pasted: no piece of the background becomes an anomaly.
    weight = region.weight * _moved_here(scene.inside[None].astype(np.float32), source, region)[0]
    return scene.image + weight * (_moved_here(scene.image, source, region) - scene.image)


def _moved_here(values: Array, source: NDArray[np.int64], region: _Region) -> Array:
    """Values (C, *S) shifted so that those at ``source`` lie at the region's centre; what leaves comes in opposite."""
    return np.roll(values, tuple(region.centre - source), tuple(range(1, values.ndim)))


def _foreground_pixel(scene: _Scene) -> NDArray[np.int64]:
    places = np.flatnonzero(scene.inside)
    return np.array(np.unravel_index(places[scene.rng.integers(len(places))], scene.inside.shape))


def _log_uniform(rng: np.random.Generator, ends: Sequence[float]) -> float:
    return math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1])))


#: kind -> (the change, whether its regions are boxes)
CHANGES: dict[str, tuple[Callable[[_Scene, _Region], Any], bool]] = {
    "foreign": (_foreign, False),
    "blob": (_blob, False),
    "texture": (_texture, False),
    "deform": (_deform, False),
    "cutpaste": (_cutpaste, True),
}
KINDS = tuple(CHANGES)
