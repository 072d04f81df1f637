"""The same metrics by defect class and by lesion size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.lesions import size_classes
from anodiff.metrics.ranking import RankCounts, rank_counts, why_undefined

if TYPE_CHECKING:
    from anodiff.metrics.collect import Classes, Pools

Breakdown = dict[str, dict[str, Any]]


def per_class(pools: Pools, classes: Classes) -> tuple[Breakdown, dict[str, str]]:
    """({class: {image_auroc, image_ap, pixel_auroc, pixel_ap, n}}, {"per_class.<class>.<metric>": reason}).

    A class is the anomalous images of that name, `n` of them, against *all* normal images: image metrics over those
    images, pixel metrics over all their pixels. Classes of normal images only are not listed.
    """
    maps, images = np.array(classes.maps), np.array(classes.images)
    anomalous_maps = ~pools.regions.normal
    out: Breakdown = {}
    reasons: dict[str, str] = {}
    for name in sorted({*maps[anomalous_maps], *images[classes.labels]} - {""}):
        chosen = classes.labels & (images == name)
        mapped = anomalous_maps & (maps == name)
        counts = {
            "image": rank_counts(classes.scores[chosen], classes.scores[~classes.labels]),
            "pixel": _counts_of_images(pools, np.flatnonzero(mapped), np.flatnonzero(~anomalous_maps)),
        }
        row, missing = _row(counts)
        out[str(name)] = row | {"n": max(int(chosen.sum()), int(mapped.sum()))}
        reasons |= {f"per_class.{name}.{metric}": reason for metric, reason in missing.items()}
    return out, reasons


def per_lesion_size(
    pools: Pools, edges: Sequence[float], threshold: float | None = None
) -> tuple[Breakdown, dict[str, str]]:
    """({size class: {pixel_auroc, pixel_ap, sensitivity, n}}, {"per_lesion_size.<class>.<metric>": reason}).

    Lesions of the class, `n` of them, against all normal pixels; lesions of other classes are left out. `sensitivity`
    is the share of them with a pixel above the threshold, None without one.

    Args:
        pools: the test set.
        edges: sizes in pixels that separate the classes, ascending; names as `size_classes`.
        threshold: fixed on normals.
    """
    names = size_classes(edges)
    of_region = np.searchsorted(edges, pools.regions.sizes, side="right")
    found = None if threshold is None else pools.regions.found(threshold)
    normal = np.concatenate([np.array([], dtype=np.float32), *pools.pixels.negatives])
    out: Breakdown = {}
    reasons: dict[str, str] = {}
    for number, name in enumerate(names):
        chosen = of_region == number
        row, missing = _row({"pixel": rank_counts(pools.regions.scores_of(chosen), normal)})
        row["sensitivity"] = float(found[chosen].mean()) if found is not None and chosen.any() else None
        if row["sensitivity"] is None:
            missing["sensitivity"] = "no lesion of this size" if found is not None else "no pixel threshold"
        out[name] = row | {"n": int(chosen.sum())}
        reasons |= {f"per_lesion_size.{name}.{metric}": reason for metric, reason in missing.items()}
    return out, reasons


def _counts_of_images(pools: Pools, anomalous: NDArray[np.intp], normal: NDArray[np.intp]) -> RankCounts:
    """Pixels of some anomalous images against theirs and those of the normal images."""
    none = np.array([], dtype=np.float32)
    positive = np.concatenate([none, *(pools.pixels.positives[i] for i in anomalous)])
    return rank_counts(positive, np.concatenate([none, *(pools.pixels.negatives[i] for i in (*anomalous, *normal))]))


def _row(counts: dict[str, RankCounts]) -> tuple[dict[str, Any], dict[str, str]]:
    """({<level>_auroc, <level>_ap}, {metric: reason}) for the counts of each level."""
    row: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for level, found in counts.items():
        for metric, value in (("auroc", found.auroc), ("ap", found.average_precision)):
            reason = why_undefined(metric, found.positives, found.negatives, level)
            row[f"{level}_{metric}"] = value if reason is None else None
            if reason is not None:
                missing[f"{level}_{metric}"] = reason
    return row, missing
