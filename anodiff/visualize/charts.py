"""Geometry of the report's charts, in the units of their view boxes; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.visualize.heatmap import format_value

CLASSES = ("normal", "anomalous", "unlabelled")


@dataclass(frozen=True)
class Bar:
    """A piece of a histogram column: x, y, width, height in the view box, its class and what it says when pointed
    at."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True)
class Tick:
    """A position on an axis, in the view box, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Scores by class, stacked; `threshold` is the x of the threshold line, None without one."""

    width: float
    height: float
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    threshold: float | None
    kinds: tuple[tuple[str, int], ...]
    beyond: int


@dataclass(frozen=True)
class Line:
    """One curve: `kind` "image" or "pixel", SVG polyline points, label."""

    kind: str
    points: str
    label: str


@dataclass(frozen=True)
class CurvePlot:
    """Curves on the unit square drawn `side` wide and high."""

    title: str
    x_label: str
    y_label: str
    side: float
    lines: tuple[Line, ...]
    diagonal: bool


def score_histogram(
    scores: Sequence[float],
    labels: Sequence[int | None],
    threshold: float | None,
    width: float = 620,
    height: float = 216,
) -> Histogram | None:
    """Bins of equal width over the scores; None without a finite score.

    A few scores far above all others are drawn in the last bin, counted in `beyond`, so that the rest stays readable.
    The threshold is always inside. When there are several bins, the threshold lies on a bin's edge: no column mixes
    verdicts.
    """
    values = np.array([s for s in scores if math.isfinite(s)], dtype=np.float64)
    if not values.size:
        return None
    kinds = np.array([_kind(label) for s, label in zip(scores, labels, strict=True) if math.isfinite(s)])
    low, high = float(values.min()), _readable_end(values)
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if high <= low:
        low, high = low - 0.5 * max(abs(low), 1e-6), high + 0.5 * max(abs(high), 1e-6)
    edges = _edges(low, high, int(np.clip(2 * math.sqrt(values.size), 8, 40)), threshold)
    # Anomalous means strictly above the threshold, so bins are closed on the right.
    at = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
    counts = {kind: np.bincount(at[kinds == kind], minlength=len(edges) - 1) for kind in CLASSES}
    tallest = int(sum(counts.values()).max())  # type: ignore[union-attr]
    y_ticks = _ticks(0, tallest, 4, whole=True)
    top = max(tallest, y_ticks[-1])
    x_of = lambda value: (value - edges[0]) / (edges[-1] - edges[0]) * width  # noqa: E731
    bars: list[Bar] = []
    for i in range(len(edges) - 1):
        text = f"{format_value(edges[i])} to {format_value(edges[i + 1])}: " + ", ".join(
            f"{counts[kind][i]} {kind}" for kind in CLASSES if counts[kind][i]
        )
        base = 0
        for kind in CLASSES:
            n = int(counts[kind][i])
            if n:
                x, right = x_of(edges[i]) + 0.75, x_of(edges[i + 1]) - 0.75
                bars.append(Bar(x, height * (1 - (base + n) / top), right - x, height * n / top, kind, text))
                base += n
    return Histogram(
        width=width,
        height=height,
        bars=tuple(bars),
        x_ticks=tuple(Tick(x_of(value), format_value(value)) for value in _ticks(edges[0], edges[-1], 6)),
        y_ticks=tuple(Tick(height * (1 - value / top), f"{value:g}") for value in y_ticks),
        threshold=None if threshold is None else x_of(threshold),
        kinds=tuple((kind, int(n)) for kind in CLASSES if (n := counts[kind].sum())),
        beyond=int(np.count_nonzero(values > edges[-1])),
    )


def curve_plots(curves: Mapping[str, Any], metrics: Mapping[str, Any] | None, side: float = 220) -> list[CurvePlot]:
    """ROC and precision-recall plots of the curves that are there: image_roc, pixel_roc, image_pr, pixel_pr -> (x,
    y)."""
    plots = []
    for name, metric, short, title, x_label, y_label in (
        ("roc", "auroc", "AUROC", "ROC", "false-positive rate", "true-positive rate"),
        ("pr", "ap", "AP", "Precision and recall", "recall", "precision"),
    ):
        lines = []
        for level in ("image", "pixel"):
            if f"{level}_{name}" in curves:
                x, y = (np.asarray(axis, dtype=np.float64) for axis in curves[f"{level}_{name}"])
                if name == "pr":
                    x, y = np.repeat(np.append(0.0, x), 2)[1:-1], np.repeat(y, 2)
                value = (metrics or {}).get(f"{level}_{metric}")
                label = f"{level}, {short} {value:.3f}" if value is not None else level
                lines.append(Line(level, _points(x, y, side), label))
        if lines:
            plots.append(CurvePlot(title, x_label, y_label, side, tuple(lines), diagonal=name == "roc"))
    return plots


def _points(x: NDArray[np.float64], y: NDArray[np.float64], side: float) -> str:
    return " ".join(f"{a * side:.1f},{(1 - b) * side:.1f}" for a, b in zip(x, y, strict=True))


def _kind(label: int | None) -> str:
    return "unlabelled" if label is None else CLASSES[int(label)]


def _readable_end(values: NDArray[np.float64]) -> float:
    """The largest value, or where outliers would squeeze the rest into a third of the width, a value that does not."""
    low, bulk = np.percentile(values, (1, 97))
    limit = bulk + 1.5 * (bulk - low)
    return float(values.max()) if values.max() <= limit or bulk <= low else float(limit)


def _edges(low: float, high: float, bins: int, threshold: float | None) -> NDArray[np.float64]:
    if threshold is None:
        return np.linspace(low, high, bins + 1, dtype=np.float64)
    step = (high - low) / bins
    below = math.ceil((threshold - low) / step - 1e-9)
    above = max(1, math.ceil((high - threshold) / step - 1e-9))
    return threshold + step * np.arange(-below, above + 1, dtype=np.float64)


def _ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers inside [low, high], about `about` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if whole and last * step < high:
        last += 1
    return [round(i * step, 12) for i in range(first, last + 1)]
