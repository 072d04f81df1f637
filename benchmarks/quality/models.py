"""The models of the quality pages: trained where they are missing, refused where they are of another recipe."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anodiff.config import load_config
from anodiff.model import load
from anodiff.pipelines import train
from anodiff.training.checkpoint import differences

#: keys of a recipe that change no weight, besides those that a resumed training may change
WEIGHTLESS = ("name", "preprocess.max_pixels", "training.validate_every_images", "training.validation_images")
#: what makes of a recipe the same one trained on other noise, or for another method: its own noise, a peer's due
VARIANTS: dict[str, tuple[str, ...]] = {
    "coarse": (),
    # the same noise, images and updates, a transformer of as many weights (2.7 million) instead of the U-Net; it is
    # told where its patches are as it is
    "dit": (
        "network.kind=dit",
        "network.patch=4",
        "network.width=128",
        "network.depth=9",
        "network.position=false",
    ),
    "white": ("diffusion.noise=gaussian", "presets.default={}"),
    # half white, for all that is restored or drawn, half the recipe's own pyramid noise, to detect with
    "mixed": ("diffusion.noise=mixed",),
    # white, and levels down to where a restored image may still be noisy: about half a grey level of 256
    "restoring": (
        "diffusion.noise=gaussian",
        "diffusion.sigma={kind: lognormal, mean: -1.6, std: 1.5}",
        "presets.default={}",
    ),
    # Wyatt et al. 2022, as in brain_flair_anoddpm: T = 1000 linear steps, simplex noise, noise prediction
    "simplex": (
        "diffusion.prediction=eps",
        "diffusion.schedule=vp-linear",
        "diffusion.noise_input=timestep",
        "diffusion.noise=simplex",
        "diffusion.noise_scale=published",
        "diffusion.sigma={kind: uniform-t}",
        "diffusion.weight=eps",
        "diffusion.clip=1.0",
        "preset=anoddpm",
        "presets={}",
        "calibration.threshold_images=20",
    ),
    # Kascenas et al. 2022, as in brain_flair_dae: one level of coarse noise, the clean image as the answer
    "auto-encoder": (
        "diffusion.prediction=x0",
        "diffusion.noise=coarse",
        "diffusion.noise_scale=published",
        "diffusion.sigma={kind: fixed, value: 0.4}",
        "diffusion.weight=x0",
        "preset=dae",
        "presets={}",
    ),
}


def trained(
    name: str, data: Path, folder: Path, device: str, overrides: tuple[str, ...] = (), deadline: float | None = None
) -> Path:
    """The model file of a recipe: the one that is there, or a new one (resumed where a checkpoint is).

    At ``deadline`` (of ``time.monotonic``) a training stops with a checkpoint and raises typer.Exit. Ends the program
    where the weights that are there come of another recipe than the library's of today. Both recipes are compared as
    they were validated, so that a key newer than the model has its default in both; what changes no weight (presets,
    calibration, polarity, how often is validated) may differ, and is the business of whoever scores with the model.
    """
    model = folder / "model.safetensors"
    if not model.exists():
        resume = (folder / "checkpoint.pt").exists()
        with stopped_at(deadline):
            train.run(name, data, folder, overrides=list(overrides), device=device, resume=resume)
        return model
    wanted = load_config(name, overrides).model_dump(mode="json")
    changed = differences(load(model).config.model_dump(mode="json"), wanted)
    changed = [text for text in changed if text.partition(":")[0] not in WEIGHTLESS]
    if changed:
        raise SystemExit(f"{model}: expected a model of the recipe {name}, found other settings ({'; '.join(changed)})")
    return model


@contextmanager
def stopped_at(deadline: float | None) -> Iterator[None]:
    """At the deadline this process is asked to stop, as by a user; the training answers with a checkpoint."""
    if deadline is None:
        yield
        return

    def ask() -> None:
        # only the training loop answers; what follows it is short and must not be killed
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), ask)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def facts(path: Path) -> dict[str, Any]:
    """What a page says of a model."""
    model = load(path)
    intensity = model.config.preprocess.intensity.kind
    return {"parameters": model.parameters, "intensity": intensity, **model.provenance}
