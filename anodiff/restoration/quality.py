"""How near a model's images are to real ones, and whether they are copies: no downloaded network decides.

The statistics of `anodiff.metrics.generation` between generated images and real ones that were held out of training,
beside the same between two sets of held-out images; and the nearest training image of each generated one, by pixels
and by the features of the model's own encoder, beside how near held-out images lie to the training images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.errors import DataError
from anodiff.metrics.generation import Described, Rows, bootstrap_distances, described, distances, nearest, standardised

if TYPE_CHECKING:
    from anodiff.restoration.restorer import Restorer

Array = NDArray[np.float64]

#: noise level at which the network's encoder looks at an image
FEATURE_SIGMA = 0.2
RESAMPLES = 200
#: images looked at, or compared with, at a time
CHUNK = 128
#: two sets of held-out images, and two images in each for a kernel distance
FEWEST = 4
#: held-out images that distances are taken from; what they describe takes 32 kB an image
MOST_REAL = 1000
#: an image is near where fewer of the held-out ones are nearer to a training image
NEAR = 0.05


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each generated one: its number, how far, and the same distance of held-out ones.

    index, distance: (n,); held_out: (m,), ascending.
    """

    index: Rows
    distance: Array
    held_out: Array

    @property
    def nearer(self) -> Array:
        """(n,) share of the held-out images that lie nearer to a training image than each generated one."""
        return np.searchsorted(self.held_out, self.distance, side="left") / len(self.held_out)

    @property
    def near(self) -> int:
        """How many generated images lie nearer to a training image than all but NEAR of the held-out ones."""
        return int((self.nearer < NEAR).sum())


@dataclass(frozen=True)
class Quality:
    """See `compare_with_real`.

    Attributes:
        images: of each of the two sets whose distances from the real set are given.
        real_images, training_images: in the real set, and among which the nearest were searched.
        statistics: name -> ``generated`` and ``real``, each with ``value`` and ``ci95``.
        neighbours: by ``pixels`` (root mean square difference in [-1, 1]) and, of a network with an encoder, by
            ``features`` (root mean square, in deviations of the held-out ones); empty without training images.
    """

    images: int
    real_images: int
    training_images: int
    statistics: dict[str, dict[str, dict[str, Any]]]
    neighbours: dict[str, Neighbours]


def compare_with_real(
    restorer: Restorer,
    generated: Tensor,
    held_out: Tensor,
    training: Tensor | None = None,
    *,
    flips: tuple[int, ...] = (),
    transposed: bool = False,
    seed: int = 0,
    n_boot: int = RESAMPLES,
) -> Quality:
    """How near generated images (n, C, H, W) are to held-out ones, and to those that the model was trained on.

    The held-out images are parted at random by ``seed``: so many as are compared with it, at most half, are the
    yardstick, the rest the real set. No more generated images than the yardstick has are compared, since distances of
    small sets are larger. ``flips``: axes of (N, C, H, W) along which training images were mirrored in training, each
    by itself and all together; ``transposed``: each of these also with rows and columns exchanged, of square images.
    Raises DataError for fewer than two generated or four held-out images.
    """
    if len(generated) < FEWEST // 2 or len(held_out) < FEWEST:
        raise DataError(
            f"quality: expected at least {FEWEST // 2} generated images and {FEWEST} real ones that were held out, "
            f"found {len(generated)} and {len(held_out)}"
        )
    order = np.random.default_rng(seed).permutation(len(held_out))[:MOST_REAL]
    count = min(len(generated), len(order) // 2)
    features = {"generated": encoded(restorer, generated), "held_out": encoded(restorer, held_out)}
    made = looked_at(generated, features["generated"], np.arange(count))
    real = looked_at(held_out, features["held_out"], order)
    yardstick, wanted = real.take(np.arange(count)), real.take(np.arange(count, len(order)))
    statistics: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in (("generated", made), ("real", yardstick)):
        resampled = bootstrap_distances(found, wanted, n_boot, seed)
        for statistic, value in distances(found, wanted).items():
            ends = {"value": value, "ci95": interval(resampled[statistic])}
            statistics.setdefault(statistic, {})[name] = ends
    neighbours: dict[str, Neighbours] = {}
    if training is not None and len(training):
        views = [training.flip(axes) for count in range(len(flips) + 1) for axes in combinations(flips, count)]
        square = training.shape[2] == training.shape[3]
        views += [view.mT for view in views] if transposed and square else []
        neighbours["pixels"] = between(generated.numpy(), held_out.numpy(), [view.numpy() for view in views])
        if features["generated"] is not None and features["held_out"] is not None:
            scale = features["held_out"]
            known = [standardised(each, scale) for view in views if (each := encoded(restorer, view)) is not None]
            mine, theirs = (standardised(each, scale) for each in (features["generated"], scale))
            neighbours["features"] = between(mine, theirs, known)
    trained = 0 if training is None else len(training)
    return Quality(count, len(order) - count, trained, statistics, neighbours)


def looked_at(images: Tensor, features: Array | None, rows: Rows) -> Described:
    """What the statistics see of some of images (N, C, H, W) and their features (N, F)."""
    return described(images[rows].numpy(), None if features is None else features[rows])


def encoded(restorer: Restorer, images: Tensor) -> Array | None:
    """(N, F): means and deviations of the encoder's channels at each resolution; None of a network without one."""
    network = getattr(restorer.denoiser.denoiser, "network", None)
    if not hasattr(network, "features"):
        return None
    found = []
    for chunk in images.split(CHUNK):
        levels = restorer.denoiser.features(chunk, FEATURE_SIGMA)
        parts = [part for level in levels for part in (level.mean((2, 3)), level.std((2, 3)))]
        found.append(torch.cat(parts, dim=1).double().cpu().numpy())
    return np.concatenate(found)


def between(generated: NDArray[Any], held_out: NDArray[Any], views: list[NDArray[Any]]) -> Neighbours:
    """Nearest among the views (each (M, ...)) of the training images, of generated and of held-out ones (N, ...)."""
    index, distance = nearest_of(generated, views)
    return Neighbours(index, distance, np.sort(nearest_of(held_out, views)[1]))


def nearest_of(images: NDArray[Any], views: list[NDArray[Any]]) -> tuple[Rows, Array]:
    """`nearest` among several views of the same images, a chunk at a time."""
    index, distance = np.zeros(len(images), dtype=np.int64), np.full(len(images), np.inf)
    for view in views:
        for first, part in chunks(view):
            here, gap = nearest(images, part)
            better = gap < distance
            index[better], distance[better] = here[better] + first, gap[better]
    return index, distance


def chunks(images: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Number of the first image, and the images, of each chunk."""
    for first in range(0, len(images), CHUNK):
        yield first, images[first : first + CHUNK]


def interval(values: Array) -> list[float]:
    """The 2.5 and 97.5 percentiles."""
    return [float(end) for end in np.percentile(values, (2.5, 97.5))]
