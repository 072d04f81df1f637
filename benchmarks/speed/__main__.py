"""The speed benchmarks beside a peer, one after the other, and RESULTS.md of what they wrote.

What size costs, and what precision and windows change, have no peer and commands of their own, whose results stand in
the page too: python -m benchmarks.speed.NAME, NAME being scaling, precision or windows.

python -m benchmarks.speed                 # run them all (about an hour on 2 CPU cores, most of it training)
python -m benchmarks.speed network simplex # run some
python -m benchmarks.speed --table         # only write RESULTS.md anew from the files that are there
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from anodiff.files import atomic_write
from benchmarks.speed import precision, scaling, windows
from benchmarks.speed.side_by_side import HERE

NAMES = ("network", "training", "reconstruct", "folder", "simplex", "startup", "aupro")
#: what is to be reached, on 2 CPU cores and on a GPU of the H100's class, as ratios to the peer
GOALS = {
    "network": ("4", "3"),
    "training": ("2", "2.5"),
    "reconstruct": ("4", "4"),
    "folder": ("80", "100"),
    "simplex": ("10", "1000"),
    "aupro": ("20", "20"),
}


def main() -> None:
    """Run what is asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which; all by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    for name in () if chosen.table else chosen.names or NAMES:
        print(f"\n{name}")
        on_device = [] if name in ("startup", "aupro") else ["--device", chosen.device]
        import_module(f"benchmarks.speed.{name}").main(on_device)
    atomic_write(HERE / "RESULTS.md", results(HERE).encode())


def results(folder: Path) -> str:
    """RESULTS.md from the JSON files of a folder; a benchmark that has not run has no section."""
    parts = [
        "# Speed, side by side\n\nMade by `python -m benchmarks.speed`; do not edit by hand. Every row with a "
        "peer: both sides in turns, the median over turns and the quartiles of the turns' ratios; each module's "
        "docstring says what either side does."
    ]
    for name in (*NAMES, "precision", "windows", "scaling"):
        path = folder / f"{name}.json"
        if path.exists():
            parts.append(section(name, json.loads(path.read_text())))
    return "\n\n".join(parts) + "\n"


def section(name: str, found: dict[str, Any]) -> str:
    """One benchmark's table."""
    if name == "startup":
        rows = [f"| `{command}` | {q[1]:.2f} ({q[0]:.2f}-{q[2]:.2f}) |" for command, q in found["seconds"].items()]
        return "\n".join(["## Start-up", "", place(found), "", "| command | seconds (quartiles) |", "|---|---|", *rows])
    if name == "aupro":
        return aupro_section(found)
    if name == "scaling":
        lines = [
            "## What size costs",
            "",
            place(found),
            "",
            scaling.table(found),
            "",
            "![Cost against size](scaling.png)",
        ]
        return "\n".join(lines)
    if name == "windows":
        return "\n".join(["## Whole images and windows", "", place(found), "", windows.table(found)])
    if name == "precision":
        return "\n".join([f"## {found['title']}", "", place(found), "", precision.table(found["rows"])])
    lines = [f"## {found['title'][0].upper()}{found['title'][1:]}", "", place(found), ""]
    lines += ["| work | ours, s | peer, s | times faster (quartiles) |", "|---|---|---|---|"]
    for row in found["rows"]:
        ratio, seconds = row["ratio"], row["seconds"]
        lines.append(
            f"| {row['work']} | {seconds['ours']:.4g} | {seconds['peer']:.4g} "
            f"| {ratio['median']:.1f} ({ratio['low']:.1f}-{ratio['high']:.1f}) |"
        )
    lines += ["", goal(name), *accuracy(found["rows"][0]), *learnt(found)]
    return "\n".join(lines)


def accuracy(row: dict[str, Any]) -> list[str]:
    """What else the first row says: pixel AP of both sides where they were measured."""
    named = {key: value for key, value in row.items() if key.startswith("pixel_ap")}
    return [", ".join(f"{key.replace('_', ' ')}: {value:.3f}" for key, value in named.items()) + "."] if named else []


def learnt(found: dict[str, Any]) -> list[str]:
    """On how many images the networks were trained, where they were."""
    count = found.get("training_images")
    return [f"Each network was trained on {count:,} images."] if count else []


def aupro_section(found: dict[str, Any]) -> str:
    """Exact AUPRO beside the definition at many thresholds."""
    ratio, seconds, settings = found["ratio"], found["seconds"], found["settings"]
    return "\n".join(
        [
            "## Exact AUPRO",
            "",
            f"{settings['maps']} maps of {settings['side']}x{settings['side']}, processor seconds: "
            f"{seconds['exact']:.3g} against {seconds['by_thresholds']:.3g} of the definition at "
            f"{settings['thresholds']} thresholds, {ratio['median']:.1f} times faster "
            f"({ratio['least']:.1f}-{ratio['most']:.1f}). {goal('aupro')}",
        ]
    )


def goal(name: str) -> str:
    """What was to be reached."""
    cpu, gpu = GOALS[name]
    return f"Goal: {cpu} times on 2 CPU cores, {gpu} times on a GPU."


def place(found: dict[str, Any]) -> str:
    """Where the figures come from."""
    machine = found["machine"]
    where = machine.get(
        "gpu", f"{machine['processor']} CPU, {machine.get('cpu', '')}, {machine.get('threads')} threads"
    )
    return f"{where}; torch {machine['torch']}."


if __name__ == "__main__":
    main()
