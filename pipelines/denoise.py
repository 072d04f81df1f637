"""anodiff denoise: noise of known or estimated level taken off images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import BatchSize, Device, Model, Output, Overwrite, Precision, Seed, Set, open_model, say
from anodiff.pipelines.restoring_options import OPEN_KEYS, Inputs, Npy, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.engine.loop import Summary
    from anodiff.pipelines.restoring import Batch
    from anodiff.restoration import Restored

#: what --noise rician says where sigma_from is "foreground"
FALLBACK = (
    "rows with sigma_from = foreground: the background is small, blank or cut off by the intensity normalisation, so "
    "that their level was estimated inside the foreground, as of Gaussian noise"
)


def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    sigma: Annotated[
        str, typer.Option(metavar="auto|LEVEL", help="Noise level in units of the model's [-1, 1]; auto estimates it.")
    ] = "auto",
    noise: Annotated[Literal["gaussian", "rician"], typer.Option(help="rician: magnitude MRI.")] = "gaussian",
    sample: Annotated[
        bool, typer.Option("--sample", help="Write a sample of the posterior, sharper and 3 dB worse, instead.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write the deviation of each pixel, OUTPUT/uncertainty/<id>.npy.")
    ] = False,
    steps: Steps = 32,
    npy: Npy = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Denoise images: OUTPUT/images/ on their own grid and in their own values, results.csv and report.html.

    The estimate of least squared error is one call of the network. The level (column sigma of results.csv) is that of
    the image as the model sees it, on its grid and in its range; sigma_from says whether it was given or estimated in
    the foreground or the background (rician), estimates being rounded to 8 levels a doubling.

    \b
    Examples:
      anodiff denoise model.safetensors scans/ --output out/clean
      anodiff denoise model.safetensors scans/ --sigma 0.1 --uncertainty --output out/clean
      anodiff denoise model.safetensors magnitude/ --noise rician --output out/clean
    """
    summary = run(
        model,
        inputs,
        output,
        sigma=sigma,
        noise=noise,
        sample=sample,
        uncertainty=uncertainty,
        steps=steps,
        npy=npy,
        overwrite=overwrite,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        overrides=set_,
    )
    raise typer.Exit(summary.exit_code)


def run(
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    sigma: str = "auto",
    noise: str = "gaussian",
    sample: bool = False,
    uncertainty: bool = False,
    steps: int = 32,
    npy: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Summary:
    """Denoise `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from dataclasses import replace

    import torch

    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.restoration import Restorer

    level = _level(sigma)
    if noise != "gaussian" and (sample or uncertainty):
        raise ConfigError("--sample and --uncertainty: expected --noise gaussian, of which the posterior is known")
    model = open_model(model_path, overrides, OPEN_KEYS)
    restorer = Restorer(model, device=device, precision=precision, steps=steps, seed=seed)
    if sample and level is not None:
        restorer.check_level(level)
    fell_back = False

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        nonlocal fell_back
        black = torch.tensor([float((-each.offset / each.scale).mean()) for each in batch.intensities])
        found = restorer.denoise(
            batch.images,
            level,
            noise=noise,
            samples=int(sample),
            uncertainty=uncertainty,
            foreground=batch.foreground,
            background=batch.background() if noise == "rician" and level is None else None,
            zero=black,
        )
        fell_back |= noise == "rician" and "foreground" in (found.sigma_from or ())
        if not sample:
            return found, None
        assert found.samples is not None
        return replace(found, images=found.samples[:, 0], samples=None), None

    summary = run_restoring(
        RestoringJob(model, task, output, npy=npy),
        model_path,
        model,
        restorer,
        inputs,
        {"sigma": sigma, "noise": noise, "sample": sample, "uncertainty": uncertainty},
        name="denoise",
        overwrite=overwrite,
        batch_size=batch_size,
        quiet=quiet,
        columns=("sigma", "sigma_from"),
    )
    if fell_back:
        say(f"note: {FALLBACK}", quiet)
    return summary


def _level(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ConfigError(f"--sigma: expected auto or a positive noise level, found {text!r}")
    return value
