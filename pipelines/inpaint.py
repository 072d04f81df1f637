"""anodiff inpaint: what a model expects in a hole, or where an image is anomalous."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import COMMON, Common, Model, Output, Preset, say, with_common
from anodiff.pipelines.restoring_options import (
    Average,
    Box,
    Grid,
    Inputs,
    MaskFile,
    Npy,
    Sampler,
    Solver,
    Steps,
    drawing,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anodiff.anomaly import AnomalyDetector
    from anodiff.anomaly.volumes import VolumeDetector
    from anodiff.data.volumes.preprocess import PreparedVolume
    from anodiff.data.volumes.volume import Volume
    from anodiff.engine.loop import Summary
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.restoring_run import Closing
    from anodiff.restoration import Restored
    from anodiff.restoration.batches import Batch

#: share of normal pixels above the threshold beyond which a pixel is painted anew
NORMAL_SHARE = 0.99


@with_common
def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    common: Common,
    mask: MaskFile = None,
    box: Box = None,
    where_anomalous: Annotated[
        bool, typer.Option("--where-anomalous", help="Where the model's map exceeds what 1 % of normal pixels do.")
    ] = False,
    preset: Preset = None,
    solver: Solver = "matched",
    steps: Steps = 32,
    sampler: Sampler = None,
    grid: Grid = "karras",
    average: Average = 1,
    npy: Npy = False,
) -> None:
    """Fill holes of images or volumes: OUTPUT/images/ on their own grid and in their own values, and report.html.

    What a hole holds is not looked at, and pixels outside it are written as they were read. A folder of masks may have
    subfolders like those of the images. With --where-anomalous the (calibrated) detector looks at all of the image,
    finds the holes and writes them to OUTPUT/masks/.

    Volumes (NIfTI, MGH, folders of DICOM) become NIfTI on their own grid, and have masks of the same grid. A model of
    slices fills them one by one, along the first of its axes.

    \b
    Examples:
      anodiff inpaint model.safetensors scans/ --mask masks/ --output out/filled
      anodiff inpaint model.safetensors scan.png --box 40,52,24,24 --output out/filled
      anodiff inpaint model.safetensors x.png --box 40,52,48,48 --solver resampled --grid log --average 2 --output out
      anodiff inpaint model3d.safetensors scan.nii.gz --mask lesion.nii.gz --output out/filled
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
        grid=grid,
        average=average,
        npy=npy,
        common=common,
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
    grid: str = "karras",
    average: int = 1,
    npy: bool = False,
    common: Common = COMMON,
) -> Summary:
    """Inpaint `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    import torch

    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_masks import mask_settings, mask_source
    from anodiff.pipelines.restoring_run import computing
    from anodiff.pipelines.volume_masks import volume_mask_settings, volume_mask_source
    from anodiff.pipelines.volume_restoring import open_restoring, run_volumes
    from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
    from anodiff.restoration import Mask, Restorer
    from anodiff.restoration.arguments import shape_of

    if (mask is not None) + (box is not None) + where_anomalous != 1:
        raise ConfigError("inpaint: expected exactly one of --mask, --box and --where-anomalous")
    if preset is not None and not where_anomalous:
        raise ConfigError("--preset: expected --where-anomalous, of whose detector it is, found --mask or --box")
    model, volumes = open_restoring(model_path, inputs, common)
    shape = shape_of(model.config)
    assert shape is not None
    restorer = Restorer(model, steps=steps, sampler=sampler, grid=grid, **computing(model, common))
    restorer.check(Mask(torch.zeros(shape[1:], dtype=torch.bool)), shape, solver=solver)
    settings: dict[str, Any] = {"solver": solver, "average": average}

    def filled(images: Tensor, holes: Tensor) -> Restored:
        return restorer.inpaint(images, holes, solver=solver, **drawing(average)).averaged()

    given = (model_path, model, restorer, inputs, settings)
    if volumes:
        mask_of = volume_mask_source(mask, box)
        settings |= volume_mask_settings(mask, box)
        found, told = _volume_detector(model, preset, common, settings) if where_anomalous else (None, None)

        def fill(batch: Batch) -> tuple[Restored, Tensor | None]:
            assert batch.masks is not None
            return filled(batch.images, batch.masks), None

        volume_job = VolumeRestoringJob(
            model, fill, output, mask_of=mask_of, find=found, average=False,
            at_once=common.images_at_once,
        )  # fmt: skip
        return run_volumes(volume_job, *given, name="inpaint", common=common, npy=npy, closing=told)
    source = mask_source(mask, box, model.config.preprocess.max_pixels)
    settings |= mask_settings(mask, box)
    rows = restorer.denoiser.network_batch
    find, told = _detector(model, preset, rows, common, settings) if where_anomalous else (None, None)

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        masks = batch.masks if find is None else find(batch)
        assert masks is not None
        return filled(batch.images, masks), None if find is None else masks

    job = RestoringJob(model, task, output, mask_of=source, npy=npy, blind=True)
    return run_restoring(job, *given, name="inpaint", common=common, closing=told)


def _detector(
    model: DiffusionModel, preset: str | None, rows: int, common: Common, settings: dict[str, Any]
) -> tuple[Callable[[Batch], Tensor], Closing]:
    """What finds masks (N, h, w) of where a batch is anomalous, and what `_told` gives; ``settings`` learns what they
    depend on.

    rows: that its network sees at once: those of the chain, whose batches it is given.
    """
    from anodiff.anomaly import AnomalyDetector

    detector = AnomalyDetector(model, preset or model.config.preset, network_batch=rows, **common.computing)
    if detector.calibration is None:
        raise _not_calibrated(detector.notes[0])
    threshold = detector.calibration.pixel_quantiles[NORMAL_SHARE]
    settings |= {"where_anomalous": True, "preset": detector.name, "threshold": threshold}

    def find(batch: Batch) -> Tensor:
        return detector(batch.images, batch.foreground).maps > threshold

    return find, _told(detector, common)


def _volume_detector(
    model: DiffusionModel, preset: str | None, common: Common, settings: dict[str, Any]
) -> tuple[Callable[[PreparedVolume, Volume], NDArray[np.bool_]], Closing]:
    """What finds the mask (I, J, K) of where a volume is anomalous, on the model's grid, and more; see `_detector`."""
    from anodiff.anomaly.volumes import VolumeDetector

    detector = VolumeDetector(model, preset or model.config.preset, **common.computing)
    detector.check()
    quantiles = detector.voxel_quantiles
    if quantiles is None:
        raise _not_calibrated(detector.notes[0])
    settings |= {"where_anomalous": True, "preset": detector.name, "threshold": quantiles[NORMAL_SHARE]}

    def find(prepared: PreparedVolume, volume: Volume) -> NDArray[np.bool_]:
        result = detector(prepared, volume)
        return (result.map > quantiles[NORMAL_SHARE]) & result.inside

    return find, _told(detector, common)


def _told(detector: AnomalyDetector | VolumeDetector, common: Common) -> Closing:
    """Says the detector's notes, and after the run those that it has come to have; the report shows them all."""
    from anodiff.pipelines.restoring_run import ReportMore

    said: list[str] = []

    def tell() -> None:
        # whose they are: the restorer has notes of its own
        new = [note for note in (f"--where-anomalous: {each}" for each in detector.notes) if note not in said]
        for note in new:
            say(f"note: {note}", common.quiet)
        said.extend(new)

    def closing(_: Sequence[Mapping[str, Any]]) -> ReportMore:
        tell()
        return ReportMore(notes=said)

    tell()
    return closing


def _not_calibrated(note: str) -> ConfigError:
    return ConfigError(f"--where-anomalous: expected a calibrated model, found: {note}")
