"""anodiff inpaint: what a model expects in a hole, or where an image is anomalous."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import (
    BatchSize,
    Device,
    Model,
    Output,
    Overwrite,
    Precision,
    Preset,
    Seed,
    Set,
    open_model,
)
from anodiff.pipelines.restoring_options import OPEN_KEYS, Box, Inputs, MaskFile, Npy, Sampler, Solver, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.engine.loop import Summary
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.restoring import Batch
    from anodiff.restoration import Restored

#: share of normal pixels above the threshold beyond which a pixel is painted anew
NORMAL_SHARE = 0.99


def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    mask: MaskFile = None,
    box: Box = None,
    where_anomalous: Annotated[
        bool, typer.Option("--where-anomalous", help="Where the model's map exceeds what 1 % of normal pixels do.")
    ] = False,
    preset: Preset = None,
    solver: Solver = "matched",
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
    """Fill holes: OUTPUT/images/ on their own grid and in their own values, results.csv and report.html.

    What a hole holds is not looked at, and pixels outside it are written as they were read. A folder of masks may have
    subfolders like those of the images. With --where-anomalous the (calibrated) detector looks at all of the image,
    finds the holes and writes them to OUTPUT/masks/.

    \b
    Examples:
      anodiff inpaint model.safetensors scans/ --mask masks/ --output out/filled
      anodiff inpaint model.safetensors scan.png --box 40,52,24,24 --output out/filled
      anodiff inpaint model.safetensors scans/ --where-anomalous --output out/pseudo-healthy
    """
    summary = run(
        model,
        inputs,
        output,
        mask=mask,
        box=box,
        where_anomalous=where_anomalous,
        preset=preset,
        solver=solver,
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
    mask: Path | None = None,
    box: str | None = None,
    where_anomalous: bool = False,
    preset: str | None = None,
    solver: str = "matched",
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
    """Inpaint `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    import torch

    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_masks import mask_settings, mask_source
    from anodiff.restoration import Mask, Restorer

    if (mask is not None) + (box is not None) + where_anomalous != 1:
        raise ConfigError("inpaint: expected exactly one of --mask, --box and --where-anomalous")
    if preset is not None and not where_anomalous:
        raise ConfigError("--preset: expected --where-anomalous, of whose detector it is, found --mask or --box")
    model = open_model(model_path, overrides, OPEN_KEYS)
    config = model.config.preprocess
    source = mask_source(mask, box, config.max_pixels)
    restorer = Restorer(model, device=device, precision=precision, steps=steps, sampler=sampler, seed=seed)
    restorer.check(Mask(torch.zeros(config.size, dtype=torch.bool)), (config.channels, *config.size), solver=solver)
    settings: dict[str, Any] = {**mask_settings(mask, box), "solver": solver}
    find: Callable[[Batch], Tensor] | None = None
    if where_anomalous:
        find, found_by = _detector(model, preset, device, precision, seed)
        settings |= {"where_anomalous": True, **found_by}

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        masks = batch.masks if find is None else find(batch)
        assert masks is not None
        return restorer.inpaint(batch.images, masks, solver=solver), None if find is None else masks

    return run_restoring(
        RestoringJob(model, task, output, mask_of=source, npy=npy, blind=True),
        model_path,
        model,
        restorer,
        inputs,
        settings,
        name="inpaint",
        overwrite=overwrite,
        batch_size=batch_size,
        quiet=quiet,
    )


def _detector(
    model: DiffusionModel, preset: str | None, device: str, precision: str, seed: int
) -> tuple[Callable[[Batch], Tensor], dict[str, Any]]:
    """Masks (N, h, w) of where a batch is anomalous, and the settings that they depend on."""
    from anodiff.anomaly import AnomalyDetector

    detector = AnomalyDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    if detector.calibration is None:
        raise ConfigError(f"--where-anomalous: expected a calibrated model, found: {detector.notes[0]}")
    threshold = detector.calibration.pixel_quantiles[NORMAL_SHARE]

    def find(batch: Batch) -> Tensor:
        return detector(batch.images, batch.foreground).maps > threshold

    return find, {"preset": detector.name, "threshold": threshold}
