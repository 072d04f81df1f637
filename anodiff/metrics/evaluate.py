"""From maps, masks, scores and labels to the flat dictionary that becomes metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.bootstrap import bootstrap_intervals, group_weights, interval_of
from anodiff.metrics.breakdown import per_class, per_lesion_size
from anodiff.metrics.collect import MapItem, Pools, pool_maps
from anodiff.metrics.pools import CutPool, Pool
from anodiff.metrics.ranking import precision_recall_curve, roc_curve, why_undefined

__all__ = ["CurvePoints", "MapItem", "Pools", "curves_of", "evaluate_maps", "evaluate_pools", "pool_maps"]

CurvePoints = tuple[NDArray[np.float64], NDArray[np.float64]]
Reasons = dict[str, str]

IMAGE_KEYS = {"image_auroc": "auroc", "image_ap": "ap", "image_oracle_f1": "max_dice"}
#: the best F1 over pixels is the best Dice: one number, under the name that each field looks for
PIXEL_KEYS = {"pixel_auroc": "auroc", "pixel_ap": "ap", "oracle_max_dice": "max_dice", "oracle_f1": "max_dice"}
REGION_KEYS = {"aupro": "aupro", "aupro_005": "aupro_005", "aupimo": "aupimo"}
AUPIMO_PERCENTILES = {"aupimo_p25": 25, "aupimo_median": 50, "aupimo_p75": 75}
NO_THRESHOLD = "no pixel threshold: the model is not calibrated for this preset"


def evaluate_pools(
    pools: Pools,
    *,
    pixel_threshold_fpr5: float | None,
    pixel_thresholds: Mapping[str, float] | None = None,
    lesion_size_edges: Sequence[float] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of a pooled test set, flat; arguments and keys as `evaluate_maps`."""
    reasons: Reasons = {}
    images, pixels, regions = pools.images, pools.pixels, pools.regions
    image_reason = _ranking_reason(images.counts.positives, images.counts.negatives, "image")
    pixel_reason = _ranking_reason(pixels.counts.positives, pixels.counts.negatives, "pixel")
    out = _with_intervals(images, IMAGE_KEYS, image_reason, n_boot, seed, reasons)
    out |= _with_intervals(pixels, PIXEL_KEYS, pixel_reason, n_boot, seed, reasons)
    out |= _with_intervals(regions, REGION_KEYS, regions.why_undefined, n_boot, seed, reasons)
    for key, percent in AUPIMO_PERCENTILES.items():
        out[key] = regions.aupimo.percentile(percent)
        if out[key] is None:
            reasons[key] = reasons["aupimo"]
    for name, threshold in {"fpr5": pixel_threshold_fpr5, **(pixel_thresholds or {})}.items():
        out |= _at_threshold(pools, name, threshold, n_boot, seed, reasons)
    if pools.froc is not None:
        out["froc"] = pools.froc.score()
        if out["froc"] is None:
            reasons["froc"] = "no anomalous region"
    if pools.classes is not None:
        out["per_class"], missing = per_class(pools, pools.classes)
        reasons |= missing
    if lesion_size_edges is not None:
        out["per_lesion_size"], missing = per_lesion_size(pools, lesion_size_edges, pixel_threshold_fpr5)
        reasons |= missing
    return out | {
        "n_images": images.counts.positives + images.counts.negatives,
        "n_anomalous": images.counts.positives,
        "n_unlabelled": pools.n_unlabelled,
        "n_without_score": pools.n_without_score,
        "n_pixel_images": pools.n_pixel_images,
        "n_regions": len(regions.sizes),
        "n_groups": len(images.groups),
        "n_boot": n_boot,
        "reasons": reasons,
    }


def evaluate_maps(
    maps: Iterable[MapItem],
    labels: Sequence[Any],
    scores: Sequence[Any],
    groups: Sequence[Any] | None = None,
    classes: Sequence[Any] | None = None,
    *,
    pixel_threshold_fpr5: float | None,
    pixel_thresholds: Mapping[str, float] | None = None,
    candidate_threshold: float | None = None,
    lesion_size_edges: Sequence[float] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a set of maps: exact values, 95 % intervals over groups, a reason for everything that is undefined.

    Args:
        maps, labels, scores, groups, classes, candidate_threshold: the test set, see `pool_maps`.
        pixel_threshold_fpr5: the stored threshold that 5 % of the foreground pixels of the calibration normals exceed,
            or None.
        pixel_thresholds: more thresholds set on normals, by name, such as {"fpr1": ...} (`thresholds_on_normals`).
        lesion_size_edges: sizes in pixels that separate classes of lesions.
        n_boot: resamples of the groups.
        seed: of the resamples.

    Returns:
        Plain numbers, ready for JSON. With `<name>_ci95` [low, high]: image_auroc, image_ap, image_oracle_f1,
        pixel_auroc, pixel_ap (over all pixels of all images pooled), oracle_max_dice and oracle_f1 (the same number),
        aupro (limit 0.3), aupro_005 (0.05), aupimo (mean over the anomalous images), and at the threshold fpr5 and each
        of `pixel_thresholds` dice_at_<threshold>, iou_at_<threshold> (pooled, map > threshold) and
        lesion_sensitivity_at_<threshold> (share of the regions with a pixel above it). Without: aupimo_p25,
        aupimo_median, aupimo_p75 (of the images); n_images (labelled and scored), n_anomalous, n_unlabelled,
        n_without_score, n_pixel_images, n_regions, n_groups, n_boot; reasons {key: sentence} for every key that is
        None. If asked for: froc (mean sensitivity at 1/4 ... 8 false detections an image), per_class {class:
        {image_auroc, image_ap, pixel_auroc, pixel_ap, n}}, per_lesion_size {size: {pixel_auroc, pixel_ap, sensitivity,
        n}}.

    Raises:
        DataError: see `pool_maps`.
    """
    pools = pool_maps(maps, labels, scores, groups, classes, candidate_threshold=candidate_threshold)
    return evaluate_pools(
        pools,
        pixel_threshold_fpr5=pixel_threshold_fpr5,
        pixel_thresholds=pixel_thresholds,
        lesion_size_edges=lesion_size_edges,
        n_boot=n_boot,
        seed=seed,
    )


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


def _ranking_reason(positives: int, negatives: int, level: str) -> Callable[[str], str | None]:
    return lambda metric: why_undefined(metric, positives, negatives, level)


def _with_intervals(
    pool: Pool,
    keys: Mapping[str, str],
    reason_of: Callable[[str], str | None],
    n_boot: int,
    seed: int,
    reasons: Reasons,
) -> dict[str, Any]:
    """{key: value, key_ci95: interval} of the pool's metrics; what is None gets its entry in `reasons`."""
    out: dict[str, Any] = {}
    missing = {metric: reason_of(metric) for metric in dict.fromkeys(keys.values())}
    defined = tuple(metric for metric, reason in missing.items() if reason is None)
    intervals = bootstrap_intervals(pool, defined, n_boot, seed) if defined else {}
    for key, metric in keys.items():
        found = intervals.get(metric)
        out[key] = None if found is None else pool.value(metric)
        out[f"{key}_ci95"] = None if found is None else found.as_list()
        _note(key, missing[metric], None if found is None else found.reason, reasons)
    return out


def _at_threshold(
    pools: Pools, name: str, threshold: float | None, n_boot: int, seed: int, reasons: Reasons
) -> dict[str, Any]:
    """Pooled Dice and IoU, and the share of regions found, with map > threshold."""
    pixels, regions = pools.pixels, pools.regions
    reason = why_undefined("dice", pixels.counts.positives, pixels.counts.negatives, "pixel")
    reason = NO_THRESHOLD if reason is None and threshold is None else reason
    keys = (f"dice_at_{name}", f"iou_at_{name}", f"lesion_sensitivity_at_{name}")
    if reason is not None or threshold is None:
        for key in keys:
            _note(key, reason, None, reasons)
        return dict.fromkeys((each for key in keys for each in (key, f"{key}_ci95")), None)
    cut = CutPool(pixels, threshold)
    found = regions.found_by_group(threshold)
    exact = (cut.value("dice"), cut.value("iou"), int(found.sum()) / len(regions.sizes))
    drawn = group_weights(len(pixels.groups), n_boot, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivities = (drawn @ found) / (drawn @ regions.group_regions)
    resampled = (*cut.resampled(("dice", "iou"), drawn).values(), sensitivities)
    out: dict[str, Any] = {}
    for key, value, values in zip(keys, exact, resampled, strict=True):
        interval = interval_of(values, len(pixels.groups))
        out |= {key: value, f"{key}_ci95": interval.as_list()}
        _note(key, None, interval.reason, reasons)
    return out


def _note(key: str, reason: str | None, interval_reason: str | None, reasons: Reasons) -> None:
    """Enters why a key, and why its interval, is None."""
    if reason is not None:
        reasons[key] = reasons[f"{key}_ci95"] = reason
    elif interval_reason is not None:
        reasons[f"{key}_ci95"] = interval_reason
