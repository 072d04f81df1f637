"""One self-contained HTML file for a run over volumes: three planes with a slider each, and the map over the image.

The page follows the rules of `anodiff.visualize.report`: everything from outside is escaped, only this file's own
script and style run, and it opens offline. A viewer takes some megabytes, so only the highest scores get one.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.errors import AnodiffError
from anodiff.files import atomic_write
from anodiff.visualize import pictures, report, sheets
from anodiff.visualize.heatmap import HeatScale, Pixels, as_rgb, colour_table, format_value, opacity_table, overlay

MAX_VIEWERS = 10
MOST_MB = 20.0
STILL_PX = 150
#: display window of the image, percentiles of the whole volume
WINDOW = (0.5, 99.5)
#: parts of a viewer's bytes; what is not there leaves its part to the image
SHARES = {"image": 0.35, "reconstruction": 0.35, "map": 0.24, "mask": 0.06}
#: across and down the screen, and through it, as axes of the volume
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
#: text becomes this much longer as base64
BASE64 = 4 / 3


@dataclass(frozen=True)
class Lesion:
    """A candidate: its volume, the largest map value in it, its centre in world mm (RAS+), and a p-value if known.

    peak_voxel: of the largest value, in the file; None where it is not known: then the page goes to the centre.
    """

    volume_mm3: float
    peak: float
    centre_mm: tuple[float, float, float]
    p_value: float | None = None
    peak_voxel: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class VolumeViews:
    """What a viewer shows, all on one grid.

    Attributes:
        image: (I, J, K), any number type.
        map: (I, J, K), the float map or uint8 positions that `HeatScale.index` gave.
        mask: (I, J, K), the truth, True = anomalous.
        reconstruction: (I, J, K), in the values of the image.
        affine: (4, 4), voxel to RAS+ mm. None where the place in a body is not known: then planes are named by their
            axes and `spacing_mm` says how large a voxel is.
        spacing_mm: along i, j and k; read from the affine where there is one.
        window: image values shown as black and white; None: percentiles 0.5 and 99.5 of the volume.
    """

    image: ArrayLike = field(repr=False)
    map: ArrayLike | None = field(default=None, repr=False)
    mask: ArrayLike | None = field(default=None, repr=False)
    reconstruction: ArrayLike | None = field(default=None, repr=False)
    affine: ArrayLike | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class VolumeRow(report.ReportRow):
    """One volume of the run: as `report.ReportRow`, with its candidates, and its voxels or a function that reads them
    when they are needed. `images` is not used.

    lesions: those that the page lists; candidates: how many there are, None where these are all. peak_voxel: of the
    map's largest value that counts, in the file, None for that of the whole map. remarks: sentences below the name of
    the volume.
    """

    lesions: Sequence[Lesion] = ()
    candidates: int | None = None
    peak_voxel: tuple[int, int, int] | None = None
    remarks: Sequence[str] = ()
    views: VolumeViews | Callable[[], VolumeViews] | None = field(default=None, repr=False)


def write_volume_report(
    path: str | os.PathLike[str], title: str, facts: Mapping[str, Any], rows: Sequence[VolumeRow], **options: Any
) -> None:
    """Writes the page, under a temporary name first; see `render_volume_report` for the arguments.

    Raises:
        StorageError: it cannot be written.
        ValueError: the map, mask or reconstruction of a row is not on the grid of its image.
    """
    atomic_write(path, render_volume_report(title, facts, rows, **options))


def render_volume_report(
    title: str,
    facts: Mapping[str, Any],
    rows: Sequence[VolumeRow],
    *,
    scale: HeatScale | None = None,
    threshold: float | None = None,
    metrics: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    max_viewers: int = MAX_VIEWERS,
    most_mb: float = MOST_MB,
) -> str:
    """The HTML text of the page.

    Args:
        title: of the page.
        facts: of the run, as `report.Report.summary`.
        rows: one a volume; the voxels of one row at a time are held in memory.
        scale: the run's colour scale; without it no map is shown.
        threshold: of the volume score; None when the run is not calibrated.
        metrics: as `metrics.evaluate_maps` returns them.
        settings: nested or flat, shown as dotted names.
        notes: sentences shown under the summary.
        max_viewers: so many of the highest scores get a viewer, the others a row; the page says so.
        most_mb: the page's viewers together take at most about so many megabytes, by showing larger voxels.
    """
    whole = report.Report(
        title, settings or {}, facts, metrics, [report._clean(row) for row in rows], {}, scale, threshold, notes
    )
    views = _row_views(whole, max_viewers, most_mb)
    shown = sum(view["sheets"] is not None for view in views)
    return _page(whole, views, _left_out_sentence(len(rows), shown, sum(_has_views(row) for row in rows)))


def volume_html(
    views: VolumeViews,
    scale: HeatScale | None = None,
    *,
    title: str = "",
    score: float | None = None,
    lesions: Sequence[Lesion] = (),
    most_mb: float = 4.0,
) -> str:
    """A page that is the viewer of one volume, without a table: for a notebook's frame, see `notebook_html`."""
    row = VolumeRow(title or "volume", "", score=score, lesions=lesions, views=views)
    whole = report.Report(title or "volume", {}, {}, None, [report._clean(row)], {}, scale)
    return _page(whole, _row_views(whole, 1, most_mb), None, alone=True)


def notebook_html(views: VolumeViews, scale: HeatScale | None = None, *, height_px: int = 620, **options: Any) -> str:
    """`volume_html` as a frame that a notebook can show: ``IPython.display.HTML(notebook_html(...))``."""
    page = html.escape(volume_html(views, scale, **options), quote=True)
    return f'<iframe title="volume viewer" width="100%" height="{int(height_px)}" srcdoc="{page}"></iframe>'


def _page(whole: report.Report, views: list[dict[str, Any]], left_out: str | None, alone: bool = False) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def asset(name: str) -> str:
        return files("anodiff.visualize").joinpath("templates", name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = report.printable
    script = asset("common.js") + asset("volume.js")
    style = asset("report.css") + asset("volume.css")
    return environment.get_template("volume.html.j2").render(
        report=whole,
        alone=alone,
        script=Markup(script),
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; script-src {report._hash(script)}; "
        f"style-src {report._hash(style)}; base-uri 'none'; form-action 'none'",
        rows=views,
        counts=report._counts(whole.rows),
        decisions=report._decisions(whole),
        left_out=left_out,
        absent=report._absent_columns(views),
        kinds={kind for view in views if view["sheets"] for kind in view["sheets"]},
        has_lesions=any(view["row"].lesions for view in views),
        run=[(key.replace("_", " "), report._number(value)) for key, value in whole.summary.items()],
        settings=[(key, report._number(value)) for key, value in report._flat(whole.settings)],
        metrics=report._metric_views(whole.metrics),
        scale_image=pictures.scale_uri() if whole.scale is not None else None,
        colours=colour_table().tobytes().hex(),
        opacities=np.round(opacity_table() * 255).astype(np.uint8).tobytes().hex(),
        fmt=format_value,
    )


def _has_views(row: report.ReportRow) -> bool:
    return isinstance(row, VolumeRow) and row.views is not None


def _left_out_sentence(count: int, shown: int, there: int) -> str | None:
    if shown >= there:
        return None
    return (
        f"The {shown:,} highest scores can be opened in the viewer, which keeps this file small; "
        f"all {count:,} volumes are listed."
    )


def _row_views(whole: report.Report, max_viewers: int, most_mb: float) -> list[dict[str, Any]]:
    order = report._ranked(whole.rows)
    scores = [row.score for row in whole.rows if row.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    wanted = max(1, min(max_viewers, sum(_has_views(row) for row in whole.rows)))
    budget = int(most_mb * 1e6 / BASE64 / wanted)
    found, shown = [], 0
    for row in (whole.rows[i] for i in order):
        assert isinstance(row, VolumeRow)
        encoded = _encode(row, whole.scale, budget) if _has_views(row) and shown < max_viewers else {}
        shown += bool(encoded)
        found.append(
            {
                "row": row,
                "fill": None if row.score is None else (row.score - low) / ((high - low) or 1.0),
                "verdict": report._verdict(row),
                "error": report._agreement(row),
                "sheets": encoded.get("sheets"),
                "meta": encoded.get("meta"),
                "still": encoded.get("still"),
                "candidates": _candidates(row),
                "largest": max((lesion.volume_mm3 for lesion in row.lesions), default=None),
            }
        )
    return found


def _candidates(row: VolumeRow) -> int:
    return len(row.lesions) if row.candidates is None else row.candidates


def _encode(row: VolumeRow, scale: HeatScale | None, budget: int) -> dict[str, Any]:
    """The row's sheets, what the script has to know of them, and a still picture; empty when they cannot be read."""
    try:
        views = row.views() if callable(row.views) else row.views
    except (AnodiffError, OSError):
        return {}
    assert views is not None
    grid, volumes = _upright(views, scale, row.id)
    parts = {name: SHARES[name] for name in volumes}
    parts["image"] += 1.0 - sum(parts.values())
    encoders = {"map": sheets.map_sheet, "mask": sheets.mask_sheet}
    encoded = {
        name: encoders.get(name, sheets.image_sheet)(volume, int(parts[name] * budget), grid.spacing)
        for name, volume in volumes.items()
    }
    start = _start(views, volumes, row, grid)
    meta = {
        "shape": volumes["image"].shape,
        "spacing": grid.spacing,
        "affine": grid.affine.round(6).tolist(),
        "stored": grid.stored.round(6).tolist(),
        "oriented": grid.oriented,
        "start": start,
        "lesions": [
            {"at": _place(volumes, grid, lesion), "text": _lesion_text(lesion, grid)}
            for lesion in sorted(row.lesions, key=lambda lesion: lesion.peak, reverse=True)
        ],
        "unlisted": _candidates(row) - len(row.lesions),
        "sheets": {
            name: {"shape": sheet.shape, "factors": sheet.factors, "columns": sheet.columns}
            for name, sheet in encoded.items()
        },
    }
    return {
        "sheets": {name: sheet.uri for name, sheet in encoded.items()},
        "meta": json.dumps(meta, separators=(",", ":")),
        "still": _still(volumes, start, grid, scale),
    }


@dataclass(frozen=True)
class _Grid:
    """The grid of the page: affine to world, matrix to the voxel of the file, spacing; oriented: whether it is RAS+."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    stored: NDArray[np.float64]
    spacing: tuple[float, float, float]
    oriented: bool

    def voxel(self, world: Sequence[float]) -> list[int]:
        """The voxel nearest to a world coordinate, inside the volume."""
        return self._nearest(np.linalg.inv(self.affine), world)

    def turned(self, voxel: Sequence[int]) -> list[int]:
        """The voxel of the page that is this one of the file."""
        return self._nearest(np.linalg.inv(self.stored), voxel)

    def world(self, voxel: Sequence[int]) -> tuple[float, float, float]:
        """The world coordinate of a voxel of the page."""
        x, y, z = (self.affine @ np.array([*voxel, 1.0]))[:3]
        return float(x), float(y), float(z)

    def _nearest(self, matrix: NDArray[Any], place: Sequence[float]) -> list[int]:
        at = np.rint((matrix @ np.array([*place, 1.0]))[:3])
        return [int(value) for value in np.clip(at, 0, np.array(self.shape) - 1)]


def _upright(views: VolumeViews, scale: HeatScale | None, name: str) -> tuple[_Grid, dict[str, Any]]:
    """The volumes as uint8 with RAS+ axes where the affine is known, and their grid. Raises ValueError, see above."""
    image = np.asarray(views.image)
    if image.ndim != 3:
        raise ValueError(f"{name}: an image must be (I, J, K), found {image.shape}")
    low, high = views.window or _window(image)
    volumes: dict[str, Any] = {"image": _grey(image, low, high)}
    if views.reconstruction is not None:
        volumes["reconstruction"] = _grey(np.asarray(views.reconstruction), low, high)
    if views.map is not None and scale is not None:
        values = np.asarray(views.map)
        volumes["map"] = values if values.dtype == np.uint8 else scale.index(values)
    if views.mask is not None:
        volumes["mask"] = np.asarray(views.mask) != 0
    for kind, volume in volumes.items():
        if volume.shape != image.shape:
            raise ValueError(
                f"{name}: the {kind} must be on the grid of the image, {image.shape}, found {volume.shape}"
            )
    native = np.diag([*views.spacing_mm, 1.0]) if views.affine is None else np.asarray(views.affine, dtype=np.float64)
    affine = native
    if views.affine is not None:
        turned = {kind: sheets.to_ras(volume, native) for kind, volume in volumes.items()}
        affine = turned["image"][1]
        volumes = {kind: np.ascontiguousarray(volume) for kind, (volume, _) in turned.items()}
    i, j, k = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    stored = np.linalg.inv(native) @ affine
    spacing = (float(i), float(j), float(k))
    return _Grid(volumes["image"].shape, affine, stored, spacing, views.affine is not None), volumes


def _window(image: NDArray[Any]) -> tuple[float, float]:
    finite = image[np.isfinite(image)] if image.dtype.kind == "f" else image
    low, high = np.percentile(finite, WINDOW) if finite.size else (0.0, 1.0)
    return float(low), float(high)


def _grey(values: NDArray[Any], low: float, high: float) -> Pixels:
    shown = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.round(shown.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def _start(views: VolumeViews, volumes: Mapping[str, Any], row: VolumeRow, grid: _Grid) -> list[int]:
    """Where the viewer opens: at the strongest candidate, else where the map is largest, else in the middle."""
    if row.lesions:
        return _place(volumes, grid, max(row.lesions, key=lambda lesion: lesion.peak))
    if "map" in volumes and volumes["map"].any():
        # Of the values themselves: several may be beyond the end of the colour scale.
        values = np.asarray(views.map)
        return grid.turned(row.peak_voxel or [int(at) for at in np.unravel_index(int(values.argmax()), values.shape)])
    return [side // 2 for side in grid.shape]


def _place(volumes: Mapping[str, Any], grid: _Grid, lesion: Lesion) -> list[int]:
    """Where the page goes for a candidate: its peak, else its centre."""
    return _inside(volumes, grid, lesion) if lesion.peak_voxel is None else grid.turned(lesion.peak_voxel)


def _inside(volumes: Mapping[str, Any], grid: _Grid, lesion: Lesion) -> list[int]:
    """The centre of a candidate; where that is not in it, as of a bent one, the nearest voxel above the threshold."""
    at = grid.voxel(lesion.centre_mm)
    if "map" not in volumes or volumes["map"][tuple(at)] > 127:
        return at
    marked = np.argwhere(volumes["map"] > 127)
    if not len(marked):
        return at
    away = (((marked - at) * np.array(grid.spacing)) ** 2).sum(axis=1)
    # Not another candidate's: none lies farther from its centre than some radii of a ball of its volume.
    radius = (3 * lesion.volume_mm3 / (4 * np.pi)) ** (1 / 3)
    return [int(place) for place in marked[int(away.argmin())]] if away.min() <= (3 * radius) ** 2 else at


def _lesion_text(lesion: Lesion, grid: _Grid) -> str:
    """Peak and its place, volume and centre, which may lie in another part of it or outside of it."""
    place = "" if lesion.peak_voxel is None else f" at {_millimetres(grid.world(grid.turned(lesion.peak_voxel)))}"
    p_value = "" if lesion.p_value is None else f", p {format_value(lesion.p_value)}"
    volume = f"{lesion.volume_mm3:,.0f} mm³, centre at {_millimetres(lesion.centre_mm)}"
    return f"peak {format_value(lesion.peak)}{place}, {volume}{p_value}"


def _millimetres(place: Sequence[float]) -> str:
    return f"({', '.join(str(round(along)) for along in place)}) mm"


def _still(volumes: Mapping[str, Any], at: Sequence[int], grid: _Grid, scale: HeatScale | None) -> str:
    """The three planes through a place side by side, in the proportions of the body, the map over them."""
    from PIL import Image

    pieces = []
    for across, down, through in PLANES.values():
        cut = [np.take(volume, at[through], axis=through).T for volume in (volumes["image"], volumes.get("map"))
               if volume is not None]  # fmt: skip
        if grid.oriented:
            cut = [plane[::-1, ::-1] for plane in cut]
        rgb = as_rgb(np.ascontiguousarray(cut[0]))
        if len(cut) == 2 and scale is not None:
            rgb = overlay(rgb, _map_values(cut[1], scale), scale)
        size = (cut[0].shape[1] * grid.spacing[across], cut[0].shape[0] * grid.spacing[down])
        zoom = STILL_PX / max(size)
        target = (max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom)))
        plane = Image.new("RGB", (STILL_PX, STILL_PX))
        shrunk = Image.fromarray(np.ascontiguousarray(rgb)).resize(target, Image.Resampling.BILINEAR)
        plane.paste(shrunk, ((STILL_PX - target[0]) // 2, (STILL_PX - target[1]) // 2))
        pieces.append(np.asarray(plane))
    return pictures.image_uri(np.concatenate(pieces, axis=1), 3 * STILL_PX)


def _map_values(index: Pixels, scale: HeatScale) -> NDArray[np.float64]:
    """Values that `HeatScale.index` sends to these positions."""
    at = (index.astype(np.float64) + 0.5) / 256.0
    return np.interp(at, (0.0, 0.5, 1.0), (scale.low, scale.centre, scale.high))
