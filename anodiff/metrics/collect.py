"""A test set read once, map by map, into pools that every metric is taken from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import DataError
from anodiff.metrics.arrays import FloatArray, IntArray, as_array, map_and_mask
from anodiff.metrics.lesions import Froc, FrocCounter
from anodiff.metrics.pools import ImagePool, PixelPool
from anodiff.metrics.regionpool import RegionPool
from anodiff.metrics.regions import regions_of_pixels

MapItem = (
    tuple[str, NDArray[Any] | None, NDArray[Any] | None]
    | tuple[str, NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]
)


@dataclass(frozen=True)
class Classes:
    """Class names beside what is measured by class; "" where unknown.

    Attributes:
        images: class of each image of the image pool.
        labels, scores: (n,) whether that image is anomalous, and its score.
        maps: class of each image of the pixel pool.
    """

    images: tuple[str, ...]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]
    maps: tuple[str, ...]


@dataclass(frozen=True)
class Pools:
    """A test set ready to be measured: images, pixels, regions, and how many of its images could not be used."""

    images: ImagePool
    pixels: PixelPool
    regions: RegionPool
    n_unlabelled: int
    n_without_score: int
    n_pixel_images: int
    classes: Classes | None = None
    froc: Froc | None = None


@dataclass(frozen=True)
class _Pixels:
    """One image's pixels: anomalous, normal, and the region of each anomalous one."""

    id: str
    group: str
    class_: str
    is_normal: bool
    positive: FloatArray
    negative: FloatArray
    regions: IntArray


def pool_maps(
    maps: Iterable[MapItem],
    labels: Sequence[Any],
    scores: Sequence[Any],
    groups: Sequence[Any] | None = None,
    classes: Sequence[Any] | None = None,
    *,
    candidate_threshold: float | None = None,
) -> Pools:
    """Read a test set once, map by map.

    Args:
        maps: (id, map, mask) for each image: map float of any shape, higher = more anomalous, or None (no map: the
            image counts at the image level only); mask bool or 0/1 of the map's shape, True = anomalous, or None. A
            normal image without a mask is normal everywhere; pixels of an anomalous or unlabelled image without a mask
            are left out. A fourth entry is the foreground, bool of the map's shape, or None: normal pixels outside of
            it are left out, anomalous ones count wherever they are.
        labels: for each map, in the same order: 0 normal, 1 anomalous, None/NaN/pandas.NA unknown (then taken from the
            mask).
        scores: for each map, in the same order: the image score, or None/NaN where the image failed.
        groups: for each map its patient, clip or part; None or empty where unknown (the image is then a group of its
            own).
        classes: for each map its defect class; None or empty where unknown. Gives a breakdown by class.
        candidate_threshold: map value above which a pixel may belong to a detection, set on normals. Gives FROC.

    Raises:
        DataError: lengths differ, an id is given twice, a map holds NaN, a mask has another shape, or marks a normal
            image.
    """
    ids: list[str] = []
    image_labels: list[int | None] = []
    names: list[str] = []
    parts: list[_Pixels] = []
    detections = None if candidate_threshold is None else FrocCounter(candidate_threshold)
    n_expected = _common_length(labels, scores, groups, classes)
    for i, (name, values, mask, *rest) in enumerate(maps):
        if i >= n_expected:
            raise DataError(f"There must be as many maps as labels, {n_expected}, found more: {name} has no label.")
        label = _label(labels[i], name)
        truth = None if mask is None else as_array(mask).astype(bool)
        if truth is not None and truth.any() and label == 0:
            raise DataError(f"{name} is labelled normal, but its mask marks {int(truth.sum())} anomalous pixels.")
        if label is None and truth is not None:
            label = int(truth.any())
        known_group = groups is not None and _name(groups[i])
        ids.append(name)
        image_labels.append(label)
        names.append(f"group {known_group}" if known_group else f"image {name}")
        if values is not None and (truth is not None or label == 0):
            class_ = "" if classes is None else _name(classes[i])
            pixels, truth = map_and_mask(values, truth, name)
            foreground = rest[0] if rest else None
            parts.append(_split(name, names[-1], class_, label == 0, pixels, truth, foreground))
            if detections is not None:
                detections.update(pixels, truth)
    if len(ids) < n_expected:
        raise DataError(f"There must be as many maps as labels, {n_expected}, found {len(ids)}.")
    if len(set(ids)) < len(ids):
        raise DataError(f"Every map needs an id of its own; {Counter(ids).most_common(1)[0][0]} is given twice.")
    numbers = np.array([math.nan if (number := _number(score)) is None else number for score in scores])
    used = [i for i, label in enumerate(image_labels) if label is not None and np.isfinite(numbers[i])]
    anomalous = np.array([image_labels[i] == 1 for i in used], dtype=bool)
    pixel_pool, region_pool = pools_of(parts)
    return Pools(
        images=ImagePool(anomalous, numbers[used], [names[i] for i in used]),
        pixels=pixel_pool,
        regions=region_pool,
        n_unlabelled=sum(label is None for label in image_labels),
        n_without_score=int(np.count_nonzero(np.isnan(numbers))),
        n_pixel_images=len(parts),
        classes=None if classes is None else Classes(
            tuple(_name(classes[i]) for i in used), anomalous, numbers[used], tuple(part.class_ for part in parts)
        ),
        froc=None if detections is None else detections.result(),
    )  # fmt: skip


def pools_of(parts: Sequence[_Pixels]) -> tuple[PixelPool, RegionPool]:
    """The pixels and the regions of a set of images."""
    positives = [part.positive for part in parts]
    pixels = PixelPool(positives, [part.negative for part in parts], [part.group for part in parts])
    regions = [part.regions for part in parts]
    return pixels, RegionPool(
        pixels, positives, regions, [part.is_normal for part in parts], [part.id for part in parts]
    )


def _split(
    name: str,
    group: str,
    class_: str,
    is_normal: bool,
    pixels: FloatArray,
    truth: NDArray[np.bool_] | None,
    foreground: NDArray[np.bool_] | None = None,
) -> _Pixels:
    marked = np.zeros(pixels.shape, dtype=bool) if truth is None else truth
    normal = ~marked if foreground is None else ~marked & foreground
    regions, _ = regions_of_pixels(marked) if marked.any() else (np.array([], dtype=np.int64), None)
    return _Pixels(name, group, class_, is_normal, pixels[marked], pixels[normal], regions)


def _common_length(
    labels: Sequence[Any], scores: Sequence[Any], groups: Sequence[Any] | None, classes: Sequence[Any] | None
) -> int:
    given = {"labels": labels, "scores": scores, "groups": groups, "classes": classes}
    lengths = {what: len(values) for what, values in given.items() if values is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} {what}" for what, length in lengths.items())
        raise DataError(f"Labels, scores, groups and classes must be as many as the maps, found {found}.")
    return len(labels)


def _number(value: Any) -> float | None:
    """A finite float, or None for None, NaN, infinities and pandas.NA."""
    try:
        number = float(value)
    except TypeError:
        return None
    return number if math.isfinite(number) else None


def _label(value: Any, name: str) -> int | None:
    number = _number(value)
    if number is None:
        return None
    if number not in (0, 1):
        raise DataError(f"The label of {name} must be 0 (normal), 1 (anomalous) or unknown, found {value!r}.")
    return int(number)


def _name(value: Any) -> str:
    """The name of a group or class, or an empty string for None, NaN and pandas.NA."""
    if value is None or (not isinstance(value, str) and _number(value) is None):
        return ""
    return str(value)
