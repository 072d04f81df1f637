"""From maps, masks, scores and labels to the flat dictionary that becomes metrics.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import DataError
from anodiff.metrics.bootstrap import bootstrap_intervals, group_weights, interval_of
from anodiff.metrics.pools import ImagePool, PixelPool
from anodiff.metrics.ranking import FloatArray, precision_recall_curve, roc_curve, why_undefined

MapItem = tuple[str, NDArray[Any] | None, NDArray[Any] | None]
CurvePoints = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Pools:
    """A test set ready to be measured: its images, its pixels, and how many of its images could not be used."""

    images: ImagePool
    pixels: PixelPool
    n_unlabelled: int
    n_without_score: int
    n_pixel_images: int


def pool_maps(
    maps: Iterable[MapItem],
    labels: Sequence[Any],
    scores: Sequence[Any],
    groups: Sequence[Any] | None = None,
) -> Pools:
    """Read a test set once, map by map.

    Args:
        maps: (id, map, mask) for each image: map float of any shape, higher = more anomalous, or None (no map: the
            image counts at the image level only); mask bool or 0/1 of the map's shape, True = anomalous, or None. A
            normal image without a mask is normal everywhere; pixels of an anomalous or unlabelled image without a mask
            are left out.
        labels: for each map, in the same order: 0 normal, 1 anomalous, None/NaN/pandas.NA unknown (then taken from the
            mask).
        scores: for each map, in the same order: the image score, or None/NaN where the image failed.
        groups: for each map its patient, clip or part; None or empty where unknown (the image is then a group of its
            own).

    Raises:
        DataError: lengths differ, an id is given twice, a map holds NaN, a mask has another shape, or marks a normal
            image.
    """
    ids: list[str] = []
    image_labels: list[int | None] = []
    positives: list[FloatArray] = []
    negatives: list[FloatArray] = []
    pixel_groups: list[str] = []
    names: list[str] = []
    n_expected = _common_length(labels, scores, groups)
    for i, (name, values, mask) in enumerate(maps):
        if i >= n_expected:
            raise DataError(f"There must be as many maps as labels, {n_expected}, found more: {name} has no label.")
        label = _label(labels[i], name)
        truth = None if mask is None else np.asarray(mask).astype(bool)
        if truth is not None and truth.any() and label == 0:
            raise DataError(f"{name} is labelled normal, but its mask marks {int(truth.sum())} anomalous pixels.")
        if label is None and truth is not None:
            label = int(truth.any())
        known_group = groups is not None and _group(groups[i])
        group = f"group {known_group}" if known_group else f"image {name}"
        ids.append(name)
        image_labels.append(label)
        names.append(group)
        if values is not None and (truth is not None or label == 0):
            positive, negative = _split(name, values, truth)
            positives.append(positive)
            negatives.append(negative)
            pixel_groups.append(group)
    if len(ids) < n_expected:
        raise DataError(f"There must be as many maps as labels, {n_expected}, found {len(ids)}.")
    if len(set(ids)) < len(ids):
        raise DataError(f"Every map needs an id of its own; {Counter(ids).most_common(1)[0][0]} is given twice.")
    numbers = np.array([math.nan if (number := _number(score)) is None else number for score in scores])
    used = [i for i, label in enumerate(image_labels) if label is not None and np.isfinite(numbers[i])]
    return Pools(
        images=ImagePool([image_labels[i] == 1 for i in used], numbers[used], [names[i] for i in used]),
        pixels=PixelPool(positives, negatives, pixel_groups),
        n_unlabelled=sum(label is None for label in image_labels),
        n_without_score=int(np.count_nonzero(np.isnan(numbers))),
        n_pixel_images=len(positives),
    )


def evaluate_pools(
    pools: Pools, *, pixel_threshold_fpr5: float | None, n_boot: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All metrics of a pooled test set, flat; arguments and keys as `evaluate_maps`."""
    out: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for level, pool in (("image", pools.images), ("pixel", pools.pixels)):
        wanted = ("auroc", "ap") if level == "image" else ("auroc", "ap", "max_dice")
        intervals = bootstrap_intervals(pool, wanted, n_boot, seed)
        for metric in wanted:
            key = "oracle_max_dice" if metric == "max_dice" else f"{level}_{metric}"
            out[key] = pool.value(metric)
            reason = why_undefined(metric, pool.counts.positives, pool.counts.negatives, level)
            if reason is not None:
                out[f"{key}_ci95"] = None
                reasons[key] = reasons[f"{key}_ci95"] = reason
                continue
            out[f"{key}_ci95"] = intervals[metric].as_list()
            if (missing := intervals[metric].reason) is not None:
                reasons[f"{key}_ci95"] = missing
    out |= _dice_at_fpr5(pools.pixels, pixel_threshold_fpr5, n_boot, seed, reasons)
    n_images = pools.images.counts.positives + pools.images.counts.negatives
    return out | {
        "n_images": n_images,
        "n_anomalous": pools.images.counts.positives,
        "n_unlabelled": pools.n_unlabelled,
        "n_without_score": pools.n_without_score,
        "n_pixel_images": pools.n_pixel_images,
        "n_groups": len(pools.images.groups),
        "n_boot": n_boot,
        "reasons": reasons,
    }


def evaluate_maps(
    maps: Iterable[MapItem],
    labels: Sequence[Any],
    scores: Sequence[Any],
    groups: Sequence[Any] | None = None,
    *,
    pixel_threshold_fpr5: float | None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a set of maps: exact values, 95 % intervals over groups, a reason for everything that is undefined.

    Args:
        maps, labels, scores, groups: the test set, see `pool_maps`.
        pixel_threshold_fpr5: the stored threshold that 5 % of the foreground pixels of the calibration normals exceed,
            or None.
        n_boot: resamples of the groups.
        seed: of the resamples.

    Returns:
        Plain numbers, ready for JSON: image_auroc, image_ap, pixel_auroc, pixel_ap (AP is over all pixels of all images
        pooled), dice_at_fpr5 (pooled Dice of map > threshold), oracle_max_dice, each with `<name>_ci95` [low, high];
        n_images (labelled and scored), n_anomalous, n_unlabelled, n_without_score, n_pixel_images, n_groups, n_boot;
        reasons {key: sentence} for every key that is None.

    Raises:
        DataError: see `pool_maps`.
    """
    pools = pool_maps(maps, labels, scores, groups)
    return evaluate_pools(pools, pixel_threshold_fpr5=pixel_threshold_fpr5, n_boot=n_boot, seed=seed)


def curves_of(pools: Pools, max_points: int = 400) -> dict[str, CurvePoints]:
    """Curves for the report: image_roc, image_pr, pixel_roc, pixel_pr -> (x, y), thinned; undefined ones are absent."""
    curves: dict[str, CurvePoints] = {}
    for level, counts in (("image", pools.images.counts), ("pixel", pools.pixels.counts)):
        roc, pr = roc_curve(counts, max_points), precision_recall_curve(counts, max_points)
        if roc is not None:
            curves[f"{level}_roc"] = roc
        if pr is not None and counts.negatives:
            curves[f"{level}_pr"] = pr
    return curves


def _dice_at_fpr5(
    pixels: PixelPool, threshold: float | None, n_boot: int, seed: int, reasons: dict[str, str]
) -> dict[str, Any]:
    reason = why_undefined("dice", pixels.counts.positives, pixels.counts.negatives, "pixel")
    if reason is None and threshold is None:
        reason = "no pixel threshold: the model is not calibrated for this preset"
    if reason is not None or threshold is None:
        reasons["dice_at_fpr5"] = reasons["dice_at_fpr5_ci95"] = str(reason)
        return {"dice_at_fpr5": None, "dice_at_fpr5_ci95": None}
    hits, predicted = pixels.above(threshold)
    weights = group_weights(len(pixels.groups), n_boot, seed)
    positives = weights @ pixels.group_positives
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(positives > 0, 2 * (weights @ hits) / (weights @ predicted + positives), np.nan)
    interval = interval_of(values, len(pixels.groups))
    if interval.reason is not None:
        reasons["dice_at_fpr5_ci95"] = interval.reason
    return {"dice_at_fpr5": pixels.dice_at(threshold), "dice_at_fpr5_ci95": interval.as_list()}


def _split(name: str, values: NDArray[Any], truth: NDArray[np.bool_] | None) -> tuple[FloatArray, FloatArray]:
    pixels = np.asarray(values)
    if pixels.dtype not in (np.float32, np.float64):
        pixels = pixels.astype(np.float32 if pixels.dtype == np.float16 else np.float64)
    if truth is not None and truth.shape != pixels.shape:
        raise DataError(f"The mask of {name} must have the shape of its map, {pixels.shape}, found {truth.shape}.")
    if np.isnan(pixels).any():
        raise DataError(f"The map of {name} holds {int(np.isnan(pixels).sum())} NaN pixels; a map must be finite.")
    if truth is None:
        return pixels.ravel()[:0], pixels.ravel()
    return pixels[truth], pixels[~truth]


def _common_length(labels: Sequence[Any], scores: Sequence[Any], groups: Sequence[Any] | None) -> int:
    lengths = {"labels": len(labels), "scores": len(scores)} | ({} if groups is None else {"groups": len(groups)})
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} {what}" for what, length in lengths.items())
        raise DataError(f"Labels, scores and groups must be as many as the maps, found {found}.")
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


def _group(value: Any) -> str:
    """The group's name, or an empty string for None, NaN and pandas.NA."""
    if value is None or (not isinstance(value, str) and _number(value) is None):
        return ""
    return str(value)
