"""What size costs: time and peak memory of one denoiser call from 64x64 to 1024x1024, and from 1 to 64 images.

    python -m benchmarks.speed.scaling

Each point is a process of its own. Memory is the most that the tensors of a call hold at a time (on a GPU: what the
allocator gave out). The exponent is the slope of ln(time) over ln(pixels), without the smallest: 1 is linear. Our U-Net
of 32-64-96 channels, with the stem and the attention of the recipes. Prints a table, writes scaling.json and
scaling.png beside this file.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anodiff.engine.device import resolve_device
from anodiff.engine.inference import InferenceDenoiser
from anodiff.engine.memory import peak_bytes
from anodiff.files import atomic_write, write_json
from benchmarks.speed.side_by_side import HERE, machine, wait

SIDES = (64, 128, 256, 512, 1024)
BATCHES = (1, 4, 16, 64)
#: calls that are timed; their median is reported
CALLS = 3


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=HERE / "scaling.json")
    parser.add_argument("--point", type=int, nargs=2, metavar=("SIDE", "BATCH"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.point:
        side, batch = chosen.point
        print(json.dumps(measured(side, batch, chosen.device)))
        return {}
    sizes = [point(side, 1, chosen.device) for side in SIDES]
    batches = [point(64, batch, chosen.device) for batch in BATCHES]
    found = {
        "sizes": sizes,
        "batches": batches,
        "exponents": {
            "seconds over pixels": exponent([each["side"] ** 2 for each in sizes[1:]], sizes[1:], "seconds"),
            "seconds over images": exponent([each["batch"] for each in batches], batches, "seconds"),
            "memory over pixels": exponent([each["side"] ** 2 for each in sizes[1:]], sizes[1:], "mib"),
            "memory over images": exponent([each["batch"] for each in batches], batches, "mib"),
        },
        "machine": machine(resolve_device(chosen.device)),
    }
    write_json(chosen.output, found)
    atomic_write(chosen.output.with_suffix(".png"), picture(found))
    print(table(found))
    return found


def point(side: int, batch: int, device: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.scaling", "--device", device, "--point", str(side), str(batch)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(side: int, batch: int, device: str) -> dict[str, float]:
    """Median seconds of a call, and the most memory that it takes beside the weights."""
    from anodiff.networks import UNet

    torch.manual_seed(0)
    network = UNet(1, channels=(32, 64, 96), blocks=2, attention=(False, False, True), stem=2)
    where = resolve_device(device)
    denoiser = InferenceDenoiser(network, where, network_batch=batch)
    x = torch.randn(batch, 1, side, side, device=where)
    seconds = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        denoiser(x, 0.5)
        wait(where)
        seconds.append(time.perf_counter() - start)
    return {
        "side": side,
        "batch": batch,
        "seconds": float(np.median(seconds[1:])),
        "mib": memory(lambda: denoiser(x, 0.5), where) / 2**20,
    }


def memory(call: Callable[[], object], device: torch.device) -> float:
    """The most bytes that a call holds beyond what was there before."""
    if device.type != "cuda":
        return peak_bytes(call)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return float(torch.cuda.max_memory_allocated(device) - before)


def exponent(amounts: list[float], points: list[dict[str, float]], key: str) -> float:
    """Slope of ln(cost) over ln(amount), by least squares."""
    return float(np.polyfit(np.log(amounts), np.log([each[key] for each in points]), 1)[0])


def table(found: dict[str, Any]) -> str:
    """Both series as Markdown."""
    lines = ["| images | size | seconds a call | MiB |", "|---|---|---|---|"]
    for each in [*found["sizes"], *found["batches"]]:
        side = int(each["side"])
        lines.append(f"| {int(each['batch'])} | {side}x{side} | {each['seconds']:.3g} | {each['mib']:.0f} |")
    lines += ["", "; ".join(f"{name}: exponent {value:.2f}" for name, value in found["exponents"].items())]
    return "\n".join(lines)


def picture(found: dict[str, Any]) -> bytes:
    """Time and memory over pixels and over images, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name, amounts in zip(
        figure.subplots(1, 2),
        ("sizes", "batches"),
        ([each["side"] ** 2 for each in found["sizes"]], [each["batch"] for each in found["batches"]]),
        strict=True,
    ):
        axes.loglog(amounts, [each["seconds"] for each in found[name]], "o-", label="seconds")
        axes.loglog(amounts, [max(each["mib"], 1) / 1024 for each in found[name]], "s--", label="GiB")
        axes.set_xlabel("pixels" if name == "sizes" else "images of 64x64")
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
