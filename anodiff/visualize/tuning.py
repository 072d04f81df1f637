"""The evidence page of a tuning: one HTML file that opens offline and runs no script."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.files import atomic_write
from anodiff.visualize import pictures
from anodiff.visualize.charts import Tick
from anodiff.visualize.heatmap import HeatScale
from anodiff.visualize.report import printable

WIDTH, HEIGHT = 560.0, 240.0
STYLES = 6


@dataclass(frozen=True)
class TuneExample:
    """A planted image: its kind; input uint8 (H, W) or (H, W, 3), map float (H, W), mask bool (H, W)."""

    kind: str
    input: NDArray[np.uint8]
    map: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class TunePage:
    """Everything on the page.

    Attributes:
        title, sentences; tiles: (name, value) shown large.
        choice: (slot, present value, chosen value).
        candidates, reductions: rows with name, nfe, ap, error, by_kind, gain, gain_error and verdict.
        kinds: of planted anomalies, the keys of ``by_kind``.
        levels, level_curve: AP of each level alone, by name of the curve; the first is drawn boldest.
        chosen_levels: marked in it.
        nfe_curve: (calls, AP, standard error).
        examples: with their maps on ``scale``.
    """

    title: str
    sentences: Sequence[str]
    tiles: Sequence[tuple[str, str]]
    choice: Sequence[tuple[str, str, str]]
    candidates: Sequence[Any]
    reductions: Sequence[Any]
    kinds: Sequence[str]
    levels: Sequence[float]
    level_curve: Mapping[str, Sequence[float]]
    chosen_levels: Sequence[float]
    nfe_curve: Sequence[tuple[int, float, float]]
    examples: Sequence[TuneExample]
    scale: HeatScale


@dataclass(frozen=True)
class Dot:
    """A point in the view box, the ends of its whisker, and what it says when pointed at."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Series:
    """A curve: SVG polyline points, its dots, its style class and its label."""

    label: str
    style: str
    points: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Plot:
    """A chart of ``width`` x ``height``; marks are x positions of vertical lines."""

    title: str
    x_label: str
    width: float
    height: float
    lines: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[float, ...]


def write_tune_page(path: str | os.PathLike[str], page: TunePage) -> None:
    """Writes the page, under a temporary name first. Raises StorageError."""
    atomic_write(path, render_tune_page(page))


def render_tune_page(page: TunePage) -> str:
    """The HTML text."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def asset(name: str) -> str:
        return files("anodiff.visualize").joinpath("templates", name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    style = asset("report.css") + asset("tune.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    calls = [(float(nfe), ap, error) for nfe, ap, error in page.nfe_curve]
    curves = {
        name: [(level, ap, 0.0) for level, ap in zip(page.levels, aps, strict=True)]
        for name, aps in page.level_curve.items()
    }
    return environment.get_template("tune.html.j2").render(
        page=page,
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        level_plot=plot("Pixel AP of each level alone", "sigma", curves, page.chosen_levels, logarithmic=True),
        nfe_plot=plot("Pixel AP against network calls an image", "network calls an image", {"mean": calls}),
        examples=[_example(example, page.scale) for example in page.examples],
    )


def plot(
    title: str,
    x_label: str,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    marks: Sequence[float] = (),
    *,
    logarithmic: bool = False,
) -> Plot:
    """The geometry of curves of (x, value, error); values from 0 up to the highest whisker."""
    every = [point for points in curves.values() for point in points]
    xs = sorted({x for x, _, _ in every})
    low, high = xs[0], xs[-1]
    top = max(max((value + error for _, value, error in every), default=0.0), 1e-3)
    step = _step(top)
    top = step * math.ceil(top / step - 1e-9)

    def across(x: float) -> float:
        if high == low:
            return WIDTH / 2
        share = math.log(x / low) / math.log(high / low) if logarithmic else (x - low) / (high - low)
        return WIDTH * share

    def up(value: float) -> float:
        return HEIGHT * (1 - value / top)

    lines = []
    for number, (name, points) in enumerate(curves.items()):
        dots = tuple(
            Dot(across(x), up(value), up(max(0.0, value - error)), up(value + error), _text(x_label, x, value, error))
            for x, value, error in points
        )
        text = " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots)
        lines.append(Series(name, f"s{min(number, STYLES - 1)}", text, dots))
    return Plot(
        title=title,
        x_label=x_label,
        width=WIDTH,
        height=HEIGHT,
        lines=tuple(lines),
        x_ticks=_apart(tuple(Tick(across(x), f"{x:g}") for x in xs)),
        y_ticks=tuple(Tick(up(i * step), f"{i * step:g}") for i in range(round(top / step) + 1)),
        marks=tuple(across(x) for x in marks),
    )


def _text(x_label: str, x: float, value: float, error: float) -> str:
    return f"{x_label} {x:g}: {value:.3f}" + (f" ± {error:.3f}" if error else "")


def _step(top: float) -> float:
    """A round number of which about five reach ``top``."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    return next(round(power * m, 12) for m in (1, 2, 5, 10) if power * m * 5 >= top * (1 - 1e-9))


def _apart(ticks: tuple[Tick, ...], least: float = 30.0) -> tuple[Tick, ...]:
    """The ticks whose labels do not touch the one before."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= least:
            kept.append(tick)
    return tuple(kept)


def _example(example: TuneExample, scale: HeatScale) -> dict[str, Any]:
    opaque, _ = pictures.map_uris(example.map, scale)
    return {
        "kind": example.kind,
        "input": pictures.image_uri(example.input),
        "map": opaque,
        "outline": pictures.outline_path(example.mask),
    }
