"""anodiff edit: images re-imagined from a noise level down (SDEdit) or in another class, whole or inside a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import COMMON, Common, Model, Output, with_common
from anodiff.pipelines.restoring_options import Box, Inputs, MaskFile, Npy, Sampler, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.engine.loop import Summary
    from anodiff.restoration import Restored
    from anodiff.restoration.batches import Batch


@with_common
def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    common: Common,
    sigma: Annotated[
        float | None, typer.Option(help="Noise level in units of [-1, 1]: 0.5 to 1 keeps the layout, 2 little of it.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="The same as a share of the schedule's steps, 0 to 1.")] = None,
    mask: MaskFile = None,
    box: Box = None,
    class_: Annotated[str | None, typer.Option("--class", help="The class that the images shall be of.")] = None,
    from_class: Annotated[str | None, typer.Option(help="The class that they are of, where known.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Weight of the class: 1 as it is, more beyond it; 3 by default.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="With --class: inversion (deterministic, the default) or noise.")
    ] = None,
    steps: Steps = 32,
    sampler: Sampler = None,
    npy: Npy = False,
) -> None:
    """Edit images or volumes: OUTPUT/images/ on their own grid and in their own values, results.csv and report.html.

    Noise is put on and taken off again by the model: what the level drowns becomes what the model has learnt. With a
    mask only the white part changes, and pixels outside are written as they were read. Volumes (NIfTI, MGH, folders of
    DICOM) become NIfTI on their own grid; a model of slices edits them one by one, along the first of its axes.

    With --class, of a model trained with classes: what would the images look like in that one? The difference is in
    maps/ in the file's values (input minus result), in heatmaps/ on one scale, and in results.csv.

    \b
    Examples:
      anodiff edit model.safetensors sketches/ --sigma 0.5 --output out/edited
      anodiff edit model.safetensors scan.png --sigma 1 --mask lesion.png --output out/edited
      anodiff edit model.safetensors scan.png --strength 0.3 --box 40,52,24,24 --output out/edited
      anodiff edit model3d.safetensors scan.nii.gz --sigma 1 --mask lesion.nii.gz --output out/edited
      anodiff edit model.safetensors scans/ --class healthy --from-class diseased --sigma 1 --output out/healthy
    """
    summary = run(
        model,
        inputs,
        output,
        sigma=sigma,
        strength=strength,
        mask=mask,
        box=box,
        class_=class_,
        from_class=from_class,
        guidance=guidance,
        start=start,
        steps=steps,
        sampler=sampler,
        npy=npy,
        common=common,
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
    class_: str | None = None,
    from_class: str | None = None,
    guidance: float | None = None,
    start: str | None = None,
    steps: int = 32,
    sampler: str | None = None,
    npy: bool = False,
    common: Common = COMMON,
) -> Summary:
    """Edit `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from anodiff.data.volumes.inputs import first_volume
    from anodiff.pipelines import counterfactual
    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_masks import mask_settings, mask_source
    from anodiff.pipelines.restoring_run import computing
    from anodiff.pipelines.volume_masks import volume_mask_settings, volume_mask_source
    from anodiff.pipelines.volume_restoring import open_restoring, run_volumes
    from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
    from anodiff.restoration import Restorer

    if (sigma is None) == (strength is None):
        raise ConfigError("edit: expected exactly one of --sigma and --strength")
    target = counterfactual.Target(class_ or "", guidance, from_class, start)
    if class_ is not None:
        if (found := first_volume(inputs)) is not None:
            raise ConfigError(f"--class: expected images, found the volume {found}")
        return counterfactual.run(
            model_path, inputs, output, target,
            sigma=sigma, strength=strength, mask=mask, box=box, steps=steps, sampler=sampler, npy=npy, common=common,
        )  # fmt: skip
    counterfactual.refuse_alone(target)
    model, volumes = open_restoring(model_path, inputs, common)
    restorer = Restorer(model, steps=steps, sampler=sampler, **computing(model, common))
    restorer.edit_level(sigma, strength)

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        return restorer.edit(batch.images, sigma, batch.masks, strength=strength), None

    settings: dict[str, Any] = {"sigma": sigma, "strength": strength}
    given = (model_path, model, restorer, inputs, settings)
    if volumes:
        volume_job = VolumeRestoringJob(
            model, task, output, mask_of=volume_mask_source(mask, box), average=False, blind=False,
            at_once=common.images_at_once,
        )  # fmt: skip
        settings |= volume_mask_settings(mask, box)
        return run_volumes(volume_job, *given, name="edit", common=common, npy=npy)
    source = mask_source(mask, box, model.config.preprocess.max_pixels)
    settings |= mask_settings(mask, box)
    return run_restoring(RestoringJob(model, task, output, mask_of=source, npy=npy), *given, name="edit", common=common)
