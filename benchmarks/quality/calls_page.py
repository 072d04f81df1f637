"""CALLS.md and calls.png: quality against denoiser calls, from stored results."""

from __future__ import annotations

import io
import math
from typing import Any

from anodiff.pipelines.closing import few_groups_note
from benchmarks.quality.text import grid, with_interval, words

#: curves; the presets are single points beside them
CURVES = ("levels", "draws", "steps")
PRESETS = ("default", "tuned")
MARKS = {"levels": "o-", "draws": "s--", "steps": "^:", "default": "D", "tuned": "*"}
MEASURED_ON = {
    "dev": "the labelled dev split",
    "planted": "anomalies planted in held-out normals, and the same normals without",
}


def markdown(sets: dict[str, Any], sigma: float) -> str:
    """The page."""
    lines = [
        "# Quality against denoiser calls",
        "",
        "Made by `python -m benchmarks.quality.calls --data <data sets>`; do not edit by hand.",
        "",
        "An illustration, from which nothing is chosen; no test image is read. Measured on the labelled dev split "
        "where a data set stores one, elsewhere on anomalies planted in held-out normals (their difficulty is the "
        "planter's: such curves tell about calls, not about real defects; `tuned` was chosen on anomalies like them). "
        "Pixel AP within the foreground, or image AUROC where the data set has no masks; 95 % intervals, bootstrap "
        "over groups. Points of a panel share their images, so that differences are surer than the intervals look.",
        "",
        "`levels`: one call at each of n levels on the image as it is. `draws`: n one-step reconstructions from noise "
        f"at sigma {sigma:g}, averaged (pairs +noise, -noise from 2 on). `steps`: one DPM-Solver++ chain of n steps "
        f"from sigma {sigma:g}. `default` and `tuned`: the presets. All else is the default preset's, but for `tuned`.",
        "",
        "![Quality against denoiser calls](calls.png)",
        "",
    ]
    for name, part in sets.items():
        lines += [f"## {name}", "", described(part), "", table(part), ""]
    return "\n".join(lines)


def described(part: dict[str, Any]) -> str:
    """Metric, what it is measured on, and how far its intervals can be trusted."""
    first = next(iter(part["families"]["default"].values()))
    said = (
        f"{words(part['metric'])[0].upper()}{words(part['metric'])[1:]} on {MEASURED_ON[part['measured_on']]}: "
        f"{first['images']} images of {first['groups']} groups."
    )
    return " ".join([said, *(f"Note: {note}." for note in few_groups_note(first["groups"]))])


def table(part: dict[str, Any]) -> str:
    """Calls down, ways to spend them across."""
    found, metric = part["families"], part["metric"]
    names = [name for name in (*CURVES, *PRESETS) if name in found]
    budgets = sorted({int(calls) for name in names for calls in found[name]})
    rows = [
        [str(calls), *(with_interval(found[name].get(str(calls), {}), metric) for name in names)] for calls in budgets
    ]
    return grid(["NFE", *names], rows)


def picture(sets: dict[str, Any]) -> bytes:
    """One panel a data set: calls (log2) across, the metric up, intervals as bars."""
    from matplotlib.figure import Figure

    across = min(3, len(sets))
    down = math.ceil(len(sets) / across)
    figure = Figure(figsize=(3.4 * across, 2.8 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (name, part) in zip(panels, sets.items(), strict=False):
        panel(axes, name, part)
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    handles, labels = max(
        (axes.get_legend_handles_labels() for axes in panels[: len(sets)]), key=lambda both: len(both[1])
    )
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) if across > 1 else 3, frameon=False, fontsize=8
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def panel(axes: Any, name: str, part: dict[str, Any]) -> None:
    """The curves of a data set."""
    metric = part["metric"]
    for number, way in enumerate(MARKS):
        points = {int(calls): found for calls, found in part["families"].get(way, {}).items()}
        points = {calls: found for calls, found in sorted(points.items()) if found.get(metric) is not None}
        if not points:
            continue
        # side by side, so that bars of the same number of calls can be told apart
        places = [calls * 1.06 ** (number - 2) for calls in points]
        values = [found[metric] for found in points.values()]
        ends = [found[f"{metric}_ci95"] or [value, value] for found, value in zip(points.values(), values, strict=True)]
        bars = [
            [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
        ]
        size = 8 if way in PRESETS else 4
        axes.errorbar(places, values, bars, fmt=MARKS[way], label=way, ms=size, lw=1.2, elinewidth=0.6, capsize=1.5)
    axes.set_xscale("log", base=2)
    axes.set_title(f"{name} ({part['measured_on']})", fontsize=9)
    axes.set_xlabel("denoiser calls an image", fontsize=8)
    axes.set_ylabel(words(metric), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
