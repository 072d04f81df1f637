"""Anomaly detection: noise, reconstruct, compare, standardise on normals, fuse, smooth, score."""

from __future__ import annotations

from anodiff.anomaly.calibration import Calibration, conformal_threshold, normals_needed, p_values
from anodiff.anomaly.detector import AnomalyDetector
from anodiff.anomaly.presets import PRESETS, preset, resolve
from anodiff.anomaly.result import DetectionResult
from anodiff.anomaly.settings import DetectorSettings

__all__ = [
    "PRESETS",
    "AnomalyDetector",
    "Calibration",
    "DetectionResult",
    "DetectorSettings",
    "conformal_threshold",
    "normals_needed",
    "p_values",
    "preset",
    "resolve",
]
