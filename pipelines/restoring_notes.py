"""What a row of restored images says of itself, and what a run says of all: what the model did not see, levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from anodiff.restoration import SOLVERS, Restorer
from anodiff.restoration.counterfactual import INVERTIBLE
from anodiff.restoration.lost import Lost
from anodiff.restoration.solvers import Projected

#: of results.csv, of every image or volume
LOST_COLUMNS = ("grid", "model_grid", "shrink", "clipped", "remark")
EMPTY_GIVEN = "the mask is empty: the result is the input"
EMPTY_FOUND = "nothing anomalous was found: the result is the input"
#: a share of the foreground below this is not worth a note
FEW_CLIPPED = 5e-4


def lost_columns(lost: Lost) -> dict[str, Any]:
    """The cells of a row: the file's grid, what it fills of the model's, and what is lost on the way there."""
    sides = [lost.native, lost.model]
    if len(lost.native) == 2:  # pictures are named width first
        sides = [each[::-1] for each in sides]
    grid, model_grid = ("x".join(map(str, each)) for each in sides)
    return {"grid": grid, "model_grid": model_grid, "shrink": round(lost.shrink, 4), "clipped": lost.clipped}


def run_notes(rows: Sequence[Mapping[str, Any]], unit: str, masked: bool) -> tuple[str, ...]:
    """What a run says of its rows, one sentence each: what was lost, empty masks, noise levels in the file's values.

    masked: pixels outside a mask were written as they were read.
    """
    done = [row for row in rows if row["status"] == "ok"]
    tail = "; what lies outside the masks is as it was read" if masked else ""
    # those of volumes are said with their other remarks
    unchanged = _unchanged(done) if unit == "images" else ""
    notes = (_resized(done, unit, tail), _clipped(done, unit, tail), unchanged, _levels(done))
    return tuple(note for note in notes if note)


def _resized(rows: Sequence[Mapping[str, Any]], unit: str, tail: str) -> str:
    smaller = [row for row in rows if row.get("shrink", 1) > 1 and row.get("nfe") != 0]
    if not smaller:
        return ""
    (grids, count), *others = Counter((row["grid"], row["model_grid"]) for row in smaller).most_common()
    by = sorted({f"{row['shrink']:.3g}" for row in smaller}, key=float)
    finest = by[0] if len(by) == 1 else f"{by[0]} to {by[-1]}"
    pixels = "px" if unit == "images" else "voxels"
    were = "was" if len(smaller) == 1 else "were"
    sizes = f"from {grids[0]} to {grids[1]}" + (f" ({count} of them; others in column model_grid)" if others else "")
    return (
        f"{len(smaller)} of {len(rows)} {unit} {were} resized {sizes}: detail finer than {finest} {pixels} is lost "
        f"(column shrink of results.csv){tail}"
    )


def _clipped(rows: Sequence[Mapping[str, Any]], unit: str, tail: str) -> str:
    shares = [row["clipped"] for row in rows if row.get("clipped", 0) >= FEW_CLIPPED and row.get("nfe") != 0]
    if not shares:
        return ""
    most = f", at most {max(shares):.1%}" if len(shares) > 1 else ""
    return (
        f"{sum(shares) / len(shares):.1%} of the foreground of {len(shares)} of {len(rows)} {unit}{most} lay outside "
        f"the range of intensities that the model knows and was clipped (column clipped of results.csv){tail}"
    )


def _unchanged(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"{count} of {len(rows)} images: {remark}"
        for remark in (EMPTY_GIVEN, EMPTY_FOUND)
        if (count := sum(remark in (row.get("remark") or "") for row in rows))
    ]
    return "; ".join(parts) and f"{'; '.join(parts)} (column remark of results.csv)"


def _levels(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row for row in rows if row.get("sigma_file") is not None]
    if not known:
        return ""
    sigma, of_file = (_span([row[name] for row in known]) for name in ("sigma", "sigma_file"))
    return (
        f"sigma is in units of the model's [-1, 1]: {sigma} is a deviation of {of_file} in the files' values (column "
        "sigma_file of results.csv)"
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def told_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands below a row's picture in the report, a line each."""
    if row["status"] != "ok":
        return ()
    lines = []
    if row.get("sigma") is not None:
        of_file = row.get("sigma_file")
        stored = "" if of_file is None else f", {of_file:.4g} in the file's values"
        lines.append(f"sigma {row['sigma']:.4g}{stored} ({row['sigma_from']})")
    if row.get("shrink", 1) > 1:
        lines.append(f"resized from {row['grid']} to {row['model_grid']}")
    if row.get("clipped", 0) >= FEW_CLIPPED:
        lines.append(f"{row['clipped']:.1%} of the foreground clipped")
    return (*lines, row["remark"]) if row.get("remark") else tuple(lines)


def chain_facts(settings: Mapping[str, Any], restorer: Restorer) -> dict[str, Any]:
    """Sampler and steps of the chains that a job with these settings runs; None where there is no chain."""
    if settings.get("sample") is False:  # an estimate is one call
        return {"sampler": None, "steps": None, "grid": None}
    if settings.get("sample"):
        return {"sampler": "ancestral"}
    if "style" in settings:
        return {"sampler": "heun"}
    first = "dpmpp"
    if "solver" in settings:
        noisy = settings["solver"] == Projected.name and settings.get("sigma_y", 0) > 0
        first = "ancestral" if noisy else SOLVERS[settings["solver"]].samplers[0]
    elif settings.get("start") == "inversion":
        first = INVERTIBLE[0]
    return {"sampler": restorer.sampler or first}
