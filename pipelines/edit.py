"""anodiff edit: images re-imagined from a noise level down (SDEdit), as a whole or inside a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import BatchSize, Device, Model, Output, Overwrite, Precision, Seed, Set, open_model
from anodiff.pipelines.restoring_options import OPEN_KEYS, Box, Inputs, MaskFile, Npy, Sampler, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.engine.loop import Summary
    from anodiff.pipelines.restoring import Batch
    from anodiff.restoration import Restored


def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    sigma: Annotated[
        float | None, typer.Option(help="Noise level in units of [-1, 1]: 0.5 to 1 keeps the layout, 2 little of it.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="The same as a share of the schedule's steps, 0 to 1.")] = None,
    mask: MaskFile = None,
    box: Box = None,
    steps: Steps = 32,
    sampler: Sampler = None,
    npy: Npy = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Edit images: OUTPUT/images/ on their own grid and in their own values, results.csv and report.html.

    Noise is put on and taken off again by the model: what the level drowns becomes what the model has learnt. With a
    mask only the white part changes, and pixels outside are written as they were read.

    \b
    Examples:
      anodiff edit model.safetensors sketches/ --sigma 0.5 --output out/edited
      anodiff edit model.safetensors scan.png --sigma 1 --mask lesion.png --output out/edited
      anodiff edit model.safetensors scan.png --strength 0.3 --box 40,52,24,24 --output out/edited
    """
    summary = run(
        model,
        inputs,
        output,
        sigma=sigma,
        strength=strength,
        mask=mask,
        box=box,
        steps=steps,
        sampler=sampler,
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
    sigma: float | None = None,
    strength: float | None = None,
    mask: Path | None = None,
    box: str | None = None,
    steps: int = 32,
    sampler: str | None = None,
    npy: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Summary:
    """Edit `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_masks import mask_settings, mask_source
    from anodiff.restoration import Restorer

    if (sigma is None) == (strength is None):
        raise ConfigError("edit: expected exactly one of --sigma and --strength")
    model = open_model(model_path, overrides, OPEN_KEYS)
    source = mask_source(mask, box, model.config.preprocess.max_pixels)
    restorer = Restorer(model, device=device, precision=precision, steps=steps, sampler=sampler, seed=seed)
    restorer.edit_level(sigma, strength)

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        return restorer.edit(batch.images, sigma, batch.masks, strength=strength), None

    return run_restoring(
        RestoringJob(model, task, output, mask_of=source, npy=npy),
        model_path,
        model,
        restorer,
        inputs,
        {"sigma": sigma, "strength": strength, **mask_settings(mask, box)},
        name="edit",
        overwrite=overwrite,
        batch_size=batch_size,
        quiet=quiet,
    )
