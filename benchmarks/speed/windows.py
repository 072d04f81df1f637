"""What windows change: the same model on the same images, whole and through overlapping windows, where both fit.

    python -m benchmarks.speed.windows
    python -m benchmarks.speed.windows --model runs/brain/model.safetensors --data ../shared/data/brain_lgg --split dev

A window's normalisation layers and its attention see less of the image, so that its estimate is another one. For some
windows and overlaps: the relative L2 distance of the reconstructions and of the anomaly maps from those of the whole
image, and the pixel AUROC and AP of both, by the calibration on whole images. Without a model that of the phantoms
under the work folder is taken, trained where it is not there. Prints a table, writes windows.json beside this file.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly import AnomalyDetector
from anodiff.files import load_map, write_json
from anodiff.model import load
from anodiff.pipelines import evaluate
from anodiff.pipelines.common import open_model
from anodiff.pipelines.score import OPEN_KEYS
from benchmarks.speed.folder import our_model
from benchmarks.speed.networks import phantoms
from benchmarks.speed.side_by_side import device_of, distance, machine, options

#: sides of a window as a share of the image's, and their overlap (at least: windows are spread evenly)
WINDOWS = ((0.75, 0.5), (0.75, 0.75), (0.5, 0.0), (0.5, 0.5), (0.5, 0.75), (0.25, 0.5))
#: images whose reconstructions are compared
RECONSTRUCTED = 8
METRICS = ("pixel_auroc", "pixel_ap")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    parser = options(__doc__, "windows")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where models and results are kept")
    parser.add_argument("--model", type=Path, help="of images of one size; by default that of the phantoms")
    parser.add_argument("--data", type=Path, help="labelled images for the model; by default the phantoms")
    parser.add_argument("--split", default=None, help="by default as anodiff evaluate takes it")
    parser.add_argument("--images", type=int, default=60, help="how many are measured")
    chosen = parser.parse_args(arguments)
    device = device_of(chosen)
    data = chosen.data or phantoms(chosen.work)
    model = chosen.model or our_model(chosen.work, data, 12_000, chosen.device)
    opened = load(model)
    sides = opened.config.preprocess.size
    whole = measured(model, data, None, 0.0, chosen)
    rows = []
    for share, overlap in WINDOWS:
        window = [max(8, round(side * share)) for side in sides]
        found = measured(model, data, window, overlap, chosen)
        rows.append(
            {
                "window": window,
                "overlap": overlap,
                "windows": found["windows"],
                "reconstructions": distance(found["reconstructions"], whole["reconstructions"]),
                "maps": distance(found["maps"], whole["maps"]),
                **{key: found[key] for key in METRICS},
            }
        )
    found = {
        "title": "whole images and windows",
        "work": f"{data.stem}, {chosen.images} images of {sides[1]}x{sides[0]}",
        "training_images": opened.provenance.get("images_seen"),
        "whole": {key: whole[key] for key in METRICS},
        "rows": rows,
        "machine": machine(device),
    }
    write_json(chosen.output, found)
    print(table(found))
    return rows


def measured(model: Path, data: Path, window: list[int] | None, overlap: float, chosen: Any) -> dict[str, Any]:
    """Metrics, maps and reconstructions of the chosen images, by windows or whole (None)."""
    overrides = [f"engine.window={'null' if window is None else window}", f"engine.overlap={overlap}"]
    output = chosen.work / "windows"
    shutil.rmtree(output, ignore_errors=True)
    _, metrics = evaluate.run(
        model, data, output,
        split=chosen.split, subset=chosen.images, overrides=overrides, device=chosen.device, seed=chosen.seed,
        precision="fp32", heatmaps=False, quiet=True,
    )  # fmt: skip
    maps = np.concatenate([load_map(path).ravel() for path in sorted((output / "maps").rglob("*.npy"))])
    opened = open_model(model, overrides, OPEN_KEYS)
    detector = AnomalyDetector(opened, opened.config.preset, device=chosen.device, precision="fp32", seed=chosen.seed)
    images, _ = opened.prepare(inputs(output)[:RECONSTRUCTED])
    count = getattr(detector.denoiser, "count", None)
    return {
        "maps": torch.from_numpy(maps),
        "reconstructions": reconstructions(detector, images),
        "windows": 1 if count is None else count(images.shape[2:]),
        **{key: metrics[key] for key in METRICS},
    }


def inputs(output: Path) -> list[str]:
    """The files that a run has scored, in its order."""
    import pandas as pd

    return [str(path) for path in pd.read_csv(output / "scores.csv")["path"]]


def reconstructions(detector: AnomalyDetector, images: Tensor) -> Tensor:
    """Of every level, on the CPU."""
    found = [detector.reconstruct(part).cpu() for part, _ in detector.chunks(images, None)]
    return torch.cat(found, dim=1)


def table(found: dict[str, Any]) -> str:
    """The windows as Markdown; the metrics of the whole images on the first line."""
    names = {"pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP"}
    lines = [
        f"{found['work']}{trained_on(found)}; distances from the whole image, relative L2, fp32.",
        "",
        f"| window | overlap | windows an image | reconstructions | maps | {' | '.join(names.values())} |",
        "|---|---|---|---|---|---|---|",
        "| whole | - | 1 | 0 | 0 | " + " | ".join(shown(found["whole"][key]) for key in names) + " |",
    ]
    for row in found["rows"]:
        metrics = " | ".join(f"{shown(row[key])} ({change(row[key], found['whole'][key])})" for key in names)
        lines.append(
            f"| {row['window'][1]}x{row['window'][0]} | {row['overlap']:.0%} | {row['windows']} "
            f"| {row['reconstructions']:.3f} | {row['maps']:.3f} | {metrics} |"
        )
    return "\n".join(lines)


def trained_on(found: dict[str, Any]) -> str:
    """How long the model was trained, where that is known."""
    count = found.get("training_images")
    return f"; a model that was trained on {count:,} images" if count else ""


def shown(value: float | None) -> str:
    """A metric, a dash where it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def change(value: float | None, whole: float | None) -> str:
    """How much a metric changes."""
    return "-" if value is None or whole is None else f"{value - whole:+.4f}"


if __name__ == "__main__":
    main()
