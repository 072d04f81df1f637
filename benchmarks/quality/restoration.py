"""What one model restores: denoising, inpainting and few-step sampling, measured beside others.

    python -m benchmarks.quality.restoration --data ../shared/data --work runs/restoration

Trains `denoise_grey`, and `brain_flair` and `bottle` on white noise, unless their model files are there or named by
--denoiser, --brain and --bottle; measures; writes RESTORATION.md and its section of results.json beside this file.
About three hours on 2 CPU cores, most of it training; resumable: what is finished is not done again. The page is
written from what is finished after every part.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anodiff.files import atomic_write, make_folder, write_json
from benchmarks.quality import denoising, inpainting, sampling
from benchmarks.quality.models import VARIANTS, facts, trained
from benchmarks.quality.restoration_page import markdown
from benchmarks.quality.results import HERE, stored

PARTS = ("denoising", "inpainting", "sampling")
#: recipe and data folder of each model, and what of the recipe is set otherwise
MODELS = {
    "denoiser": ("denoise_grey", "denoise/Train400", ()),
    "brain": ("brain_flair", "brain_lgg", VARIANTS["restoring"]),
    # as they stand before the camera: turned in training, the light comes from everywhere
    "bottle": ("bottle", "mvtec/bottle", (*VARIANTS["restoring"], "augment={shift_px: 2, gain: 0.03}")),
}


def main(words: list[str] | None = None) -> None:
    """Train where needed, measure the chosen parts, write the page."""
    chosen = parsed(words)
    common: dict[str, Any] = {"device": chosen.device, "precision": chosen.precision, "seed": chosen.seed}
    makers = {"denoising": denoised, "inpainting": inpainted, "sampling": sampled}
    for part in chosen.parts:
        publish(part, makers[part](chosen, common), chosen.output)
        print(f"{part}: written to {chosen.output / 'RESTORATION.md'}", flush=True)


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder of all data sets")
    add("--work", type=Path, default=Path("runs/restoration"), help="models and results")
    add("--output", type=Path, default=HERE, help="where RESTORATION.md and results.json are")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    for name, (recipe, _, changes) in MODELS.items():
        add(f"--{name}", type=Path, help=f"model file instead of training {' '.join((recipe, *changes))}")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--seed", type=int, default=0, help="of noise, holes and subsets")
    add("--subset", type=int, help="images of each denoising test set; all by default")
    add("--tune-images", type=int, default=8, help="of Train400, on which the baselines' options are chosen")
    add("--no-posterior", action="store_true", help="no row of posterior samples")
    add("--holes", type=int, default=8, help="images to inpaint, of each data set and mask")
    add("--repaint", type=int, nargs=3, default=(250, 10, 10), metavar=("STEPS", "JUMP", "REPEATS"))
    add("--samples", type=int, default=48, help="images of each chain")
    return parser.parse_args(words)


def model_of(name: str, chosen: argparse.Namespace) -> Path:
    """The model file: the one named, or that of the recipe, trained where it is missing."""
    named: Path | None = getattr(chosen, name)
    if named is not None:
        return named
    recipe, data, changes = MODELS[name]
    folder = chosen.work / "_".join((recipe, *(["restoring"] if changes else [])))
    return trained(recipe, chosen.data / data, folder, chosen.device, changes)


def denoised(chosen: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """The section of denoising."""
    model = model_of("denoiser", chosen)
    found = denoising.evidence(
        model, chosen.data / "denoise", chosen.work / "cells",
        subset=chosen.subset, tune_images=chosen.tune_images, samples=not chosen.no_posterior, **common,
    )  # fmt: skip
    return {**common, **found, "model": facts(model)}


def inpainted(chosen: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """The section of inpainting."""
    models = {name: model_of(name, chosen) for name in ("brain", "bottle")}
    found = inpainting.evidence(
        models, {name: chosen.data / MODELS[name][1] for name in models}, chosen.work / "cells",
        images=chosen.holes, schedule=tuple(chosen.repaint), **common,
    )  # fmt: skip
    models_facts = {name: facts(path) for name, path in models.items()}
    return {"sets": found, **common, "repaint": list(chosen.repaint), "models": models_facts}


def sampled(chosen: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """The section of sampling."""
    model = model_of("brain", chosen)
    data = chosen.data / MODELS["brain"][1]
    found = sampling.evidence(model, data, chosen.work / "cells", images=chosen.samples, **common)
    return {**found, **common, "model": facts(model)}


def publish(part: str, found: dict[str, Any], folder: Path) -> None:
    """Stores a part in the section of results.json, and writes the page of all parts."""
    make_folder(folder)
    sections = stored(folder)
    restoration = {**sections.get("restoration", {}), part: found}
    write_json(folder / "results.json", {**sections, "restoration": restoration})
    atomic_write(folder / "RESTORATION.md", markdown(restoration))


if __name__ == "__main__":
    main()
