"""Exact AUPRO beside the usual implementation of its definition, one pass over all maps a threshold.

    python -m benchmarks.speed.aupro

The reference takes evenly spaced quantiles of the sorted normal pixels up to the limit as thresholds, binarises every
map at each of them, and averages the overlap of every region; with finitely many thresholds it is an approximation,
ours is exact at all of them. Regions are labelled inside both. Both run in turns in one process, on one thread, and are
timed by the processor seconds they take, so that other work on the machine counts for neither; the ratio is the median
over repeats of (reference seconds / our seconds). Prints a table and writes aupro.json beside this file.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from anodiff.files import write_json
from anodiff.metrics import aupro

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=500)
    parser.add_argument("--side", type=int, default=256, help="height and width of a map")
    parser.add_argument("--thresholds", type=int, default=200, help="of the reference")
    parser.add_argument("--limit", type=float, default=0.3, help="largest false-positive rate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "aupro.json")
    chosen = parser.parse_args(arguments)
    maps, masks = random_set(chosen.maps, chosen.side, chosen.seed)
    ours, theirs = alternated(
        lambda: aupro(maps, masks, chosen.limit),
        lambda: by_thresholds(maps, masks, chosen.limit, chosen.thresholds),
        chosen.repeats,
    )
    found = report(ours, theirs) | {
        "settings": {key: value for key, value in vars(chosen).items() if key != "output"},
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "numpy": np.__version__},
    }
    write_json(chosen.output, found)
    print(table(found))
    return found


def random_set(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(maps float32, masks bool), (count, side, side) each; every second image has three discs, brighter by 1."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:side, :side]
    masks = np.zeros((count, side, side), dtype=bool)
    for mask in masks[::2]:
        for row, column, radius in zip(*rng.uniform(0, side, (2, 3)), rng.uniform(0.02, 0.1, 3) * side, strict=True):
            mask |= (y - row) ** 2 + (x - column) ** 2 <= max(radius, 1.0) ** 2
    return rng.standard_normal(masks.shape, dtype=np.float32) + masks, masks


def by_thresholds(maps: np.ndarray, masks: np.ndarray, limit: float, count: int) -> float:
    """AUPRO by its definition at `count` thresholds, each a pass over all maps and regions."""
    labels = [ndimage.label(mask, structure=np.ones((3, 3)))[0] for mask in masks]
    sizes = [np.bincount(labelled.ravel()) for labelled in labels]
    normal = np.sort(maps[~masks])[::-1]
    thresholds = normal[np.linspace(0, limit * (normal.size - 1), count).round().astype(int)]
    rates, overlaps = [0.0], [0.0]
    for threshold in thresholds:
        false_positives, shares = 0, []
        for values, labelled, size in zip(maps, labels, sizes, strict=True):
            hits = np.bincount(labelled[values >= threshold], minlength=len(size))
            false_positives += hits[0]
            shares.append(hits[1:] / size[1:])
        rates.append(false_positives / normal.size)
        overlaps.append(float(np.mean(np.concatenate(shares))))
    return float(np.trapezoid(overlaps, rates) / limit)


def alternated(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int
) -> tuple[list[tuple[float, Any]], list[tuple[float, Any]]]:
    """(processor seconds, result) of each repeat of both, in turns."""
    found: tuple[list[tuple[float, Any]], list[tuple[float, Any]]] = ([], [])
    for _ in range(repeats):
        for runs, function in zip(found, (ours, theirs), strict=True):
            start = time.process_time()
            result = function()
            runs.append((time.process_time() - start, result))
    return found


def report(ours: list[tuple[float, Any]], theirs: list[tuple[float, Any]]) -> dict[str, Any]:
    """Median seconds of both, the median ratio with its spread, and both values."""
    ratios = sorted(slow / fast for (fast, _), (slow, _) in zip(ours, theirs, strict=True))
    return {
        "seconds": {
            "exact": float(np.median([seconds for seconds, _ in ours])),
            "by_thresholds": float(np.median([seconds for seconds, _ in theirs])),
        },
        "ratio": {"median": float(np.median(ratios)), "least": ratios[0], "most": ratios[-1]},
        "aupro": {"exact": ours[0][1], "by_thresholds": theirs[0][1]},
    }


def table(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    settings, ratio = found["settings"], found["ratio"]
    lines = [
        f"{settings['maps']} maps of {settings['side']}x{settings['side']}, {settings['repeats']} repeats in turns",
        "",
        "| AUPRO | median processor seconds | value |",
        "|---|---|---|",
        f"| exact | {found['seconds']['exact']:.3f} | {found['aupro']['exact']:.6f} |",
        f"| {settings['thresholds']} thresholds | {found['seconds']['by_thresholds']:.3f} "
        f"| {found['aupro']['by_thresholds']:.6f} |",
        "",
        f"exact is {ratio['median']:.1f} times faster (from {ratio['least']:.1f} to {ratio['most']:.1f})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
