"""Metrics on any folder of maps and scores, without diffusion: numpy arrays or tensors in, plain numbers out."""

from __future__ import annotations

from anodiff.metrics.alarms import evaluate_alarms, events_at
from anodiff.metrics.aupimo import Aupimo, aupimo
from anodiff.metrics.aupro import aupro
from anodiff.metrics.bootstrap import Interval, bootstrap_intervals, paired_bootstrap
from anodiff.metrics.collect import Pools, pool_maps
from anodiff.metrics.evaluate import curves_of, evaluate_maps, evaluate_pools
from anodiff.metrics.frames import clip_scores, evaluate_frames, per_clip_table
from anodiff.metrics.lesions import Froc, FrocCounter, froc, lesion_sensitivity, sensitivity_by_size
from anodiff.metrics.overlap import dice_at_threshold, iou_at_threshold, max_dice, oracle_f1, oracle_max_dice
from anodiff.metrics.pools import CutPool, ImagePool, PixelPool
from anodiff.metrics.ranking import (
    RankCounts,
    auroc,
    average_precision,
    precision_recall_curve,
    rank_counts,
    roc_curve,
    why_undefined,
)
from anodiff.metrics.regionpool import RegionPool
from anodiff.metrics.regions import label_regions
from anodiff.metrics.streaming import ExactMetrics, StreamingMetrics
from anodiff.metrics.thresholds import threshold_at_fpr, thresholds_on_normals
from anodiff.metrics.tracks import track_curves

__all__ = [
    "Aupimo",
    "CutPool",
    "ExactMetrics",
    "Froc",
    "FrocCounter",
    "ImagePool",
    "Interval",
    "PixelPool",
    "Pools",
    "RankCounts",
    "RegionPool",
    "StreamingMetrics",
    "aupimo",
    "aupro",
    "auroc",
    "average_precision",
    "bootstrap_intervals",
    "clip_scores",
    "curves_of",
    "dice_at_threshold",
    "evaluate_alarms",
    "evaluate_frames",
    "evaluate_maps",
    "evaluate_pools",
    "events_at",
    "froc",
    "iou_at_threshold",
    "label_regions",
    "lesion_sensitivity",
    "max_dice",
    "oracle_f1",
    "oracle_max_dice",
    "paired_bootstrap",
    "per_clip_table",
    "pool_maps",
    "precision_recall_curve",
    "rank_counts",
    "roc_curve",
    "sensitivity_by_size",
    "threshold_at_fpr",
    "thresholds_on_normals",
    "track_curves",
    "why_undefined",
]
