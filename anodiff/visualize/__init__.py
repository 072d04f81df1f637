"""Heatmaps on one scale a run, and the offline HTML report."""

from __future__ import annotations

from anodiff.visualize.heatmap import HeatScale, colourise, display_image, overlay, render_heatmap, save_heatmap
from anodiff.visualize.report import Report, ReportRow, render_report, write_report

__all__ = [
    "HeatScale",
    "Report",
    "ReportRow",
    "colourise",
    "display_image",
    "overlay",
    "render_heatmap",
    "render_report",
    "save_heatmap",
    "write_report",
]
