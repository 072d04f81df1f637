"""One self-contained HTML file for the reader of results: it opens offline, in light or dark, by mouse or keyboard.

Everything from outside (ids, paths, errors, settings, notes) is HTML-escaped, and a content security policy that names
this file's only script and style by their hashes keeps anything else from running or loading.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import numpy as np

from anodiff.errors import AnodiffError
from anodiff.files import atomic_write
from anodiff.visualize import pictures
from anodiff.visualize.charts import curve_plots, score_histogram
from anodiff.visualize.heatmap import HeatScale, format_value

Images = Mapping[str, np.ndarray]

VIEWS = ("input", "reconstruction", "map", "overlay", "truth")
METRIC_NAMES = {
    "image_auroc": ("Image AUROC", ""),
    "image_ap": ("Image AP", ""),
    "pixel_auroc": ("Pixel AUROC", ""),
    "pixel_ap": ("Pixel AP", ""),
    "dice_at_fpr5": ("Dice", "threshold that 5 % of normal pixels exceed"),
    "oracle_max_dice": ("Best Dice", "oracle: threshold chosen on this test set"),
}
TILES = {
    "nfe": "network calls an image",
    "images_per_second": "images a second, end to end",
    "seconds_per_image": "seconds of computing an image",
}


@dataclass(frozen=True)
class ReportRow:
    """One input of the run.

    Attributes:
        id, path: as in scores.csv.
        label: 0 normal, 1 anomalous, None unknown.
        score: None where the input failed or was skipped.
        p_value, is_anomalous: None where the run is not calibrated.
        status: "ok", "failed" or "skipped".
        error: the sentence of a failed row.
        images: pictures by name, or a function without arguments that reads them when they are needed: "input" and
            "reconstruction" uint8 (H, W) or (H, W, 3), see `heatmap.display_image`; "map" (H, W), either the float map
            itself or uint8 positions on the scale from `HeatScale.index`; "mask" bool (H, W). All optional, all on one
            grid.
    """

    id: str
    path: str
    label: int | None = None
    score: float | None = None
    p_value: float | None = None
    is_anomalous: bool | None = None
    status: str = "ok"
    error: str = ""
    images: Images | Callable[[], Images] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        title: of the page.
        settings: nested or flat, shown as dotted names.
        summary: facts of the run; nfe, images_per_second and seconds_per_image become figures at the top,
            false_alarm_rate (0..1) and unit ("image", "slice", ...) say what the threshold means, all others are
            listed.
        metrics: as `metrics.evaluate_maps` returns them, or None.
        rows: one an input.
        curves: as `metrics.curves_of` returns them.
        scale: the run's colour scale; without it no map is shown.
        threshold: of the image score; None when the run is not calibrated.
        notes: sentences shown under the summary.
    """

    title: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    rows: Sequence[ReportRow]
    curves: Mapping[str, Any] = field(default_factory=dict)
    scale: HeatScale | None = None
    threshold: float | None = None
    notes: Sequence[str] = ()


def write_report(
    path: str | os.PathLike[str], report: Report, *, max_pictures: int = 400, picture_px: int = 256
) -> None:
    """Writes the page, under a temporary name first.

    Args:
        path: of the HTML file.
        report: what to show.
        max_pictures: pictures are embedded for so many rows, those with the highest scores; the page says so when it
            leaves some out, and lists all rows in any case.
        picture_px: the longer side of a picture is at most this; maps are shrunk by block maxima.

    Raises:
        StorageError: it cannot be written.
    """
    atomic_write(path, render_report(report, max_pictures=max_pictures, picture_px=picture_px))


def render_report(report: Report, *, max_pictures: int = 400, picture_px: int = 256) -> str:
    """The HTML text of `write_report`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def asset(name: str) -> str:
        return files("anodiff.visualize").joinpath("templates", name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    script, style = asset("common.js") + asset("report.js"), asset("report.css")
    report = replace(report, rows=[_clean(row) for row in report.rows])
    rows = _row_views(report, max_pictures, picture_px)
    plots = curve_plots(report.curves, report.metrics)
    scores = [row.score for row in report.rows if row.score is not None]
    labels = [row.label for row in report.rows if row.score is not None]
    return environment.get_template("report.html.j2").render(
        report=report,
        script=Markup(script),
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        rows=rows,
        counts=_counts(report.rows),
        decisions=_decisions(report),
        left_out=_left_out_sentence(report.rows, max_pictures),
        absent=_absent_columns(rows),
        columns=[view for view in VIEWS if any(view in row["views"] for row in rows)],
        tiles=[(TILES[key], _number(report.summary[key])) for key in TILES if report.summary.get(key) is not None],
        run=[(key.replace("_", " "), _number(value)) for key, value in report.summary.items() if key not in TILES],
        settings=[(key, _number(value)) for key, value in _flat(report.settings)],
        metrics=_metric_views(report.metrics),
        histogram=score_histogram(scores, labels, report.threshold, *((620, 316) if plots else (1260, 190))),
        plots=plots,
        scale_image=pictures.scale_uri() if report.scale is not None else None,
        fmt=format_value,
    )


def printable(text: object) -> str:
    """Text with control characters, line ends and undecodable bytes written as escapes, so that a name cannot hide."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in str(text))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _clean(row: ReportRow) -> ReportRow:
    """The row with plain numbers: NaN, infinities and pandas.NA become None."""
    label, score, p_value = (_finite(value) for value in (row.label, row.score, row.p_value))
    verdict = _finite(row.is_anomalous)
    return replace(
        row,
        label=None if label is None else int(label),
        score=score,
        p_value=p_value,
        is_anomalous=None if verdict is None else bool(verdict),
    )


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except TypeError:
        return None
    return number if math.isfinite(number) else None


def _absent_columns(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Columns that would hold nothing but dashes."""
    there = {
        "p": any(view["row"].p_value is not None for view in rows),
        "verdict": any(view["verdict"] for view in rows),
        "label": any(view["row"].label is not None for view in rows),
    }
    return {name for name, found in there.items() if not found}


def _ranked(rows: Sequence[ReportRow]) -> list[int]:
    """Positions of the rows by falling score; rows without a score last, in their order."""
    return sorted(range(len(rows)), key=lambda i: -math.inf if (s := rows[i].score) is None else s, reverse=True)


def _row_views(report: Report, max_pictures: int, picture_px: int) -> list[dict[str, Any]]:
    order = _ranked(report.rows)
    scores = [row.score for row in report.rows if row.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    views, shown = [], 0
    for i in order:
        row = report.rows[i]
        encoded: dict[str, Any] = {}
        if row.images and shown < max_pictures:
            encoded = _encode(row, report.scale, picture_px)
            shown += bool(encoded)
        fill = None if row.score is None else (row.score - low) / ((high - low) or 1.0)
        views.append({"row": row, "views": encoded, "fill": fill, "verdict": _verdict(row), "error": _agreement(row)})
    return views


def _encode(row: ReportRow, scale: HeatScale | None, picture_px: int) -> dict[str, Any]:
    """The row's pictures as data URIs by view; empty when they can no longer be read."""
    try:
        images = row.images() if callable(row.images) else row.images
    except (AnodiffError, OSError):
        return {}
    out: dict[str, Any] = {}
    for name in ("input", "reconstruction"):
        if name in images:
            out[name] = pictures.image_uri(images[name], picture_px)
    if "map" in images and scale is not None:
        out["map"], layer = pictures.map_uris(images["map"], scale, picture_px)
        if "input" in out:
            out["overlay"] = layer
    if "mask" in images:
        out["truth"] = pictures.mask_uri(images["mask"], picture_px)
        out["outline"] = pictures.outline_path(images["mask"], picture_px)
    return out


def _verdict(row: ReportRow) -> str:
    if row.status != "ok":
        return row.status
    if row.is_anomalous is None:
        return ""
    return "anomalous" if row.is_anomalous else "normal"


def _agreement(row: ReportRow) -> str:
    """ "missed", "false alarm" or an empty string."""
    if row.label is None or row.is_anomalous is None or row.status != "ok" or bool(row.label) == row.is_anomalous:
        return ""
    return "missed" if row.label else "false alarm"


def _counts(rows: Sequence[ReportRow]) -> dict[str, int]:
    verdicts = [_verdict(row) for row in rows]
    errors = [_agreement(row) for row in rows]
    return {
        "all": len(rows),
        "scored": sum(row.score is not None for row in rows),
        "anomalous": verdicts.count("anomalous"),
        "normal": verdicts.count("normal"),
        "failed": verdicts.count("failed"),
        "skipped": verdicts.count("skipped"),
        "missed": errors.count("missed"),
        "false_alarms": errors.count("false alarm"),
    }


def _decisions(report: Report) -> str | None:
    """What the threshold did on labelled rows, in one sentence; None without labels or threshold."""
    judged = [row for row in report.rows if row.label is not None and row.is_anomalous is not None]
    if report.threshold is None or not judged:
        return None
    parts = []
    sentences = {1: "{} of {} labelled anomalous inputs are found", 0: "{} of {} normal ones raise an alarm"}
    for label, sentence in sentences.items():
        verdicts = [bool(row.is_anomalous) for row in judged if row.label == label]
        if verdicts:
            parts.append(
                sentence.format(sum(verdicts), len(verdicts)) + f" ({100 * sum(verdicts) / len(verdicts):.3g} %)"
            )
    return "At this threshold " + " and ".join(parts) + "."


def _left_out_sentence(rows: Sequence[ReportRow], max_pictures: int) -> str | None:
    pictured = sum(bool(row.images) for row in rows)
    if pictured <= max_pictures:
        return None
    return (
        f"Pictures are embedded for the {max_pictures:,} highest scores only, to keep this file small; "
        f"all {len(rows):,} inputs are listed."
    )


def _metric_views(metrics: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if metrics is None:
        return []
    views = []
    for key, (name, note) in METRIC_NAMES.items():
        if key in metrics:
            reasons = metrics.get("reasons", {})
            interval = metrics.get(f"{key}_ci95")
            views.append({"name": name, "note": note, "value": metrics[key], "ci": interval, "why": reasons.get(key)})
    return views


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out


def _number(value: Any) -> str:
    """Numbers short, everything else as it prints."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_number(item) for item in value) or "none"
    return "none" if value is None else str(value)
