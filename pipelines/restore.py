"""anodiff restore: images back from what a known operator left of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError, InputError
from anodiff.pipelines.common import COMMON, Common, Model, Output, with_common
from anodiff.pipelines.restoring_options import SOLVER_NAMES, Average, Grid, Inputs, Npy, Sampler, Steps, drawing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anodiff.data.readers import RawImage
    from anodiff.engine.loop import Summary
    from anodiff.engine.store import Item
    from anodiff.pipelines.restoring_masks import MaskSource
    from anodiff.restoration import Operator, Restored, Slices
    from anodiff.restoration.batches import Batch


@with_common
def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    common: Common,
    operator: Annotated[
        str,
        typer.Option(
            metavar="OPERATOR",
            help="superres:2, blur:gaussian:1.5, blur:motion:9:30, slices:every:2, slices:missing:3, kspace:4x, "
            "jpeg:30, mask:FILE.",
        ),
    ],
    solver: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(SOLVER_NAMES)}.", show_default="matched; of jpeg projected"),
    ] = None,
    sigma_y: Annotated[float, typer.Option(min=0, help="Noise of the measurement, in units of [-1, 1].")] = 0.0,
    steps: Steps = 32,
    sampler: Sampler = None,
    grid: Grid = "karras",
    average: Average = 1,
    npy: Npy = False,
) -> None:
    """Undo a known loss: OUTPUT/images/ in the inputs' own values, results.csv and report.html.

    INPUT is what the operator left: the small image (superres; the result is so much larger), the blurred one (blur;
    widths in pixels of the model's grid), the one with rows missing (slices) or holes (mask), the zero-filled
    reconstruction (kspace; the sampled lines are taken back from it), the decoded picture (jpeg, of that quality; in
    colour without subsampling of the chrominance). Files for slices, kspace and jpeg have the model's own size.

    Missing rows and holes may hold anything (black, white, noise): they are not looked at. Without --sigma-y the rows
    and pixels that were measured are written as they were read, and the averages of a larger image are the small one
    (where its size is the model's over the factor, so that nothing is resized).

    Volumes (NIfTI, MGH, DICOM) become NIfTI on their own grid: mask:FILE and slices, without --sigma-y, and blur. The
    axis of slices counts z, y, x from 0, and the model's grid has as many of them. A model of slices restores them one
    by one, along the first of its axes.

    \b
    Examples:
      anodiff restore model.safetensors small/ --operator superres:2 --output out/large
      anodiff restore model.safetensors blurred/ --operator blur:gaussian:1.5 --sigma-y 0.02 --output out/sharp
      anodiff restore model.safetensors scans/ --operator kspace:4x --solver proximal --output out/full
      anodiff restore model3d.safetensors scan.nii.gz --operator slices:missing:4 --output out/filled
      anodiff restore model.safetensors photos/ --operator jpeg:30 --output out/unblocked
    """
    summary = run(
        model,
        inputs,
        output,
        operator,
        solver=solver,
        sigma_y=sigma_y,
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
    operator: str,
    *,
    solver: str | None = None,
    sigma_y: float = 0.0,
    steps: int = 32,
    sampler: str | None = None,
    grid: str = "karras",
    average: int = 1,
    npy: bool = False,
    common: Common = COMMON,
) -> Summary:
    """Restore `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from functools import partial

    import torch

    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_masks import mask_settings, mask_source
    from anodiff.pipelines.restoring_run import computing
    from anodiff.pipelines.volume_restoring import open_restoring
    from anodiff.restoration import Blur, Jpeg, KSpace, Mask, Restorer, Slices, SuperResolution
    from anodiff.restoration.arguments import shape_of, solver_name
    from anodiff.restoration.parse import parse_operator

    name, _, file = operator.partition(":")
    if name == "mask" and not file:
        raise ConfigError(f"--operator: expected mask:FILE, found {operator!r}")
    mask = Path(file) if name == "mask" else None
    known = None if mask is not None else parse_operator(operator)
    model, volumes = open_restoring(model_path, inputs, common)
    config, shape = model.config.preprocess, shape_of(model.config)
    assert shape is not None
    missing = Mask(torch.zeros(shape[1:], dtype=torch.bool))
    solver = solver_name(solver, known or missing)
    restorer = Restorer(model, steps=steps, sampler=sampler, grid=grid, **computing(model, common))
    options: dict[str, Any] = {"solver": solver, "sigma_y": sigma_y, **drawing(average)}
    settings = {"operator": operator, "solver": solver, "sigma_y": sigma_y, "average": average}
    if volumes:
        from anodiff.pipelines import volume_restore

        # the axis of slices is one of the volume, whatever the model sees of it
        restorer.check(known if isinstance(known, Blur) else missing, shape, solver=solver, sigma_y=sigma_y)
        return volume_restore.run(
            model_path, model, restorer, inputs, output, known,
            mask=mask, options=options, settings=settings, npy=npy, common=common,
        )  # fmt: skip
    if isinstance(known, Jpeg) and config.channels not in (1, 3):
        raise ConfigError(
            f"--operator jpeg: expected a model of grey or colour images, found one of {config.channels} channels"
        )
    if isinstance(known, Jpeg) and config.intensity.kind != "unit_range":
        raise ConfigError(
            f"--operator jpeg: expected a model whose intensities are those of the file (unit_range), found "
            f"{config.intensity.kind}"
        )
    source = _missing(known) if isinstance(known, Slices) else mask_source(mask, None, config.max_pixels)

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        if known is None:
            assert batch.masks is not None
            return restorer.inpaint(batch.images, batch.masks, **options).averaged(), None
        return restorer.restore(None, known, _measured(known, batch.images), **options).averaged(), None

    job = RestoringJob(
        model,
        task,
        output,
        mask_of=source,
        keep_outside=sigma_y == 0,
        npy=npy,
        factor=known.factor if isinstance(known, SuperResolution) else 1,
        same_size=isinstance(known, Slices | KSpace | Jpeg),
        refuse=partial(_refuse_no_jpeg, config.channels) if isinstance(known, Jpeg) else None,
        blind=True,
    )
    restorer.check(known or missing, shape, solver=solver, sigma_y=sigma_y)
    return run_restoring(
        job,
        model_path,
        model,
        restorer,
        inputs,
        {**settings, **mask_settings(mask, None)},
        name="restore",
        common=common,
    )


def _missing(slices: Slices) -> MaskSource:
    """What of a file nobody measured: whatever it holds there is no part of its statistics."""
    import torch

    def missing(_: Item, shape: tuple[int, int]) -> NDArray[np.bool_]:
        return (slices.measured(torch.empty(1, 1, *shape)) == 0).expand(shape).numpy()

    return missing


def _measured(operator: Operator, images: Tensor) -> Tensor:
    """y of what the command line is given: the measurement itself (superres, blur, jpeg), a picture with slices
    missing, or a zero-filled reconstruction z = A'A x."""
    from anodiff.restoration import Blur, Jpeg, KSpace, SuperResolution
    from anodiff.restoration.operators import reciprocal

    if isinstance(operator, SuperResolution | Blur | Jpeg):
        return images
    if isinstance(operator, KSpace):
        # A line whose conjugate partner is missing lost half of itself when the real part was taken.
        return operator(operator.spectral(images, reciprocal))
    return operator(images)


def _refuse_no_jpeg(expected: int, raw: RawImage) -> None:
    """Raises InputError for a picture whose blocks were not quantised as the operator does, 8 bits a channel."""
    from anodiff.restoration.quantisation import BLOCK

    height, width, channels = raw.pixels.shape
    if height % BLOCK or width % BLOCK:
        raise InputError(f"{raw.path}: expected sides of whole blocks of {BLOCK} pixels, found {width}x{height}")
    if channels != expected:
        kinds = {1: "grey picture", 3: "colour picture"}
        raise InputError(
            f"{raw.path}: expected a {kinds[expected]}, as the model's are, found {channels} "
            f"channel{'s' if channels > 1 else ''}"
        )
    if (raw.dtype, raw.low, raw.high) != ("uint8", 0, 255):
        raise InputError(
            f"{raw.path}: expected levels of 8 bit, as a JPEG has them, found {raw.dtype} from {raw.low:g} to "
            f"{raw.high:g}"
        )
    if channels > 1 and (found := _subsampling(raw.path)) is not None:
        raise InputError(
            f"{raw.path}: expected a JPEG whose chrominance is as fine as its luminance (4:4:4), found {found}"
        )


def _subsampling(path: str) -> str | None:
    """How coarse a file of colour has its chrominance; None where as fine as its luminance, or where it is no JPEG."""
    from PIL import Image, JpegImagePlugin

    try:
        with Image.open(path) as picture:
            layers = getattr(picture, "layer", None) if picture.format == "JPEG" else None
            if not layers:
                return None
            known = JpegImagePlugin.get_sampling(picture)
    except OSError:  # read by another reader: no JPEG
        return None
    if len({(across, down) for _, across, down, *_ in layers}) == 1:
        return None
    return {1: "4:2:2", 2: "4:2:0"}.get(known, "subsampled chrominance")
