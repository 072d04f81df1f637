"""What the speed benchmarks share: two functions timed in turns, and their ratio with its spread.

Other work on a machine slows whichever side is running, so the sides take turns, each turn gives one ratio, and the
median of the ratios is reported with its quartiles. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.engine.device import resolve_device
from anodiff.files import write_json

HERE = Path(__file__).parent
#: largest relative L2 distance between two sides that do the same work, by precision of ours
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class Comparison:
    """Seconds of each turn of both sides, and what is said of the work."""

    work: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    facts: dict[str, Any]

    @property
    def ratio(self) -> dict[str, float]:
        """How many times longer the peer takes: median over turns, and quartiles."""
        ratios = np.array(self.theirs) / np.array(self.ours)
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return {"median": float(middle), "low": float(low), "high": float(high)}

    def to_json(self) -> dict[str, Any]:
        """Flat, for a file."""
        return {
            "work": self.work,
            "seconds": {"ours": float(np.median(self.ours)), "peer": float(np.median(self.theirs))},
            "ratio": self.ratio,
            "turns": len(self.ours),
            **self.facts,
        }


def in_turns(
    work: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    turns: int,
    device: torch.device | None = None,
    **facts: Any,
) -> Comparison:
    """Runs both once to warm up, then in turns."""
    ours(), theirs()
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for seconds, function in zip(found, (ours, theirs), strict=True):
            seconds.append(timed(function, device))
    return Comparison(work, tuple(found[0]), tuple(found[1]), facts)


def timed(function: Callable[[], Any], device: torch.device | None = None) -> float:
    """Wall-clock seconds of one call, with what it left on the device."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device | None) -> None:
    """Until the device has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance of two results."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def require_equal(found: Tensor, expected: Tensor, precision: str, work: str) -> float:
    """The distance of two sides that should agree; ends the benchmark where they do not."""
    error = distance(found, expected)
    if error > TOLERANCE[precision]:
        raise SystemExit(f"{work}: expected results within {TOLERANCE[precision]} of each other, found {error:.2g}")
    return error


def options(text: str | None, name: str, turns: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark has; how often each side is timed only of one that is timed in ``turns``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    if turns is not None:
        parser.add_argument("--turns", type=int, default=turns, help="how often each side is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / f"{name}.json")
    return parser


def device_of(chosen: argparse.Namespace) -> torch.device:
    """The device asked for."""
    return resolve_device(chosen.device)


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Where the figures come from."""
    found: dict[str, Any] = {
        "processor": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def finish(comparisons: list[Comparison], output: Path, title: str, device: torch.device | None, **facts: Any) -> str:
    """Writes the JSON, prints and returns the table."""
    text = table(comparisons)
    rows = [each.to_json() for each in comparisons]
    write_json(output, {"title": title, "rows": rows, "machine": machine(device), **facts})
    print(text)
    return text


def table(comparisons: list[Comparison]) -> str:
    """The comparisons as Markdown."""
    lines = ["| work | ours, s | peer, s | times faster (quartiles) |", "|---|---|---|---|"]
    for each in comparisons:
        ratio = each.ratio
        lines.append(
            f"| {each.work} | {np.median(each.ours):.4g} | {np.median(each.theirs):.4g} "
            f"| {ratio['median']:.1f} ({ratio['low']:.1f}-{ratio['high']:.1f}) |"
        )
    return "\n".join(lines)
