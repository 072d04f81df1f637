"""Metrics on any folder of maps and scores, without diffusion: numpy arrays in, plain numbers out."""

from __future__ import annotations

from anodiff.metrics.bootstrap import Interval, bootstrap_intervals, paired_bootstrap
from anodiff.metrics.evaluate import Pools, curves_of, evaluate_maps, evaluate_pools, pool_maps
from anodiff.metrics.overlap import dice_at_threshold, max_dice, oracle_max_dice
from anodiff.metrics.pools import ImagePool, PixelPool
from anodiff.metrics.ranking import (
    RankCounts,
    auroc,
    average_precision,
    precision_recall_curve,
    rank_counts,
    roc_curve,
    why_undefined,
)

__all__ = [
    "ImagePool",
    "Interval",
    "PixelPool",
    "Pools",
    "RankCounts",
    "auroc",
    "average_precision",
    "bootstrap_intervals",
    "curves_of",
    "dice_at_threshold",
    "evaluate_maps",
    "evaluate_pools",
    "max_dice",
    "oracle_max_dice",
    "paired_bootstrap",
    "pool_maps",
    "precision_recall_curve",
    "rank_counts",
    "roc_curve",
    "why_undefined",
]
