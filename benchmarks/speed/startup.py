"""How long it takes to begin: `anodiff --help` and `import anodiff`, with torch's own import beside them.

    python -m benchmarks.speed.startup

Each is a fresh process, in turns, after one that fills the file cache. Prints a table, writes startup.json beside this
file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from anodiff.files import write_json
from benchmarks.speed.side_by_side import HERE, machine

COMMANDS = {
    "anodiff --help": [sys.executable, "-m", "anodiff.pipelines.cli", "--help"],
    "import anodiff": [sys.executable, "-c", "import anodiff"],
    "import anodiff, and its detector": [sys.executable, "-c", "import anodiff; anodiff.AnomalyDetector"],
    "import torch": [sys.executable, "-c", "import torch"],
    "python": [sys.executable, "-c", "pass"],
}


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, default=HERE / "startup.json")
    chosen = parser.parse_args(arguments)
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(chosen.turns + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                found[name].append(time.perf_counter() - start)
    quartiles = {name: np.percentile(seconds, [25, 50, 75]).tolist() for name, seconds in found.items()}
    write_json(chosen.output, {"seconds": quartiles, "turns": chosen.turns, "machine": machine()})
    print("| command | seconds (quartiles) |\n|---|---|")
    for name, (low, middle, high) in quartiles.items():
        print(f"| `{name}` | {middle:.2f} ({low:.2f}-{high:.2f}) |")
    return found


if __name__ == "__main__":
    main()
