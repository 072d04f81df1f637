"""anodiff denoise: noise of known or estimated level taken off images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import COMMON, Common, Model, Output, say, with_common
from anodiff.pipelines.restoring_options import Inputs, Npy, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.engine.loop import Summary
    from anodiff.model import DiffusionModel
    from anodiff.restoration import Restored
    from anodiff.restoration.batches import Batch

#: what --noise rician says where sigma_from is "foreground"
FALLBACK = (
    "rows with sigma_from = foreground: the background is small, blank or cut off by the intensity normalisation, so "
    "that their level was estimated inside the foreground, as of Gaussian noise"
)


@with_common
def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    common: Common,
    sigma: Annotated[
        str, typer.Option(metavar="auto|LEVEL", help="Noise level in units of the model's [-1, 1]; auto estimates it.")
    ] = "auto",
    noise: Annotated[
        str,
        typer.Option(
            metavar="gaussian|rician|poisson[:SCALE]",
            help="rician: magnitude MRI. poisson: counts, SCALE of them to one value of the file (1 without).",
        ),
    ] = "gaussian",
    sample: Annotated[
        bool, typer.Option("--sample", help="Write a sample of the posterior, sharper and 3 dB worse, instead.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="Also write the deviation of each pixel, OUTPUT/uncertainty/<id>.npy (.nii.gz)."
        ),
    ] = False,
    steps: Steps = 32,
    npy: Npy = False,
) -> None:
    """Denoise images or volumes: OUTPUT/images/ on their own grid and in their own values, results.csv, report.html.

    The estimate of least squared error is one call of the network. The level (column sigma of results.csv) is that of
    the image as the model sees it, on its grid and in its range; sigma_from says whether it was given or estimated in
    the foreground or the background (rician), estimates being rounded to 8 levels a doubling. With poisson it follows
    from the counts, made of constant deviation (Anscombe): --sigma has no say.

    Volumes (NIfTI, MGH, folders of DICOM) become NIfTI on their own grid; a model of 3-D patches has a level a volume,
    one of slices a level a slice (slices.csv).

    \b
    Examples:
      anodiff denoise model.safetensors scans/ --output out/clean
      anodiff denoise model.safetensors scans/ --sigma 0.1 --uncertainty --output out/clean
      anodiff denoise model.safetensors magnitude/ --noise rician --output out/clean
      anodiff denoise model3d.safetensors scan.nii.gz --noise rician --output out/clean
      anodiff denoise model.safetensors photons/ --noise poisson:0.25 --output out/clean
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
        common=common,
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
    common: Common = COMMON,
) -> Summary:
    """Denoise `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from dataclasses import replace

    import torch

    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_run import computing
    from anodiff.pipelines.volume_restoring import open_restoring, run_volumes
    from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
    from anodiff.restoration import Restorer

    level = _level(sigma)
    kind, photons = _noise(noise)
    if kind != "gaussian" and (sample or uncertainty):
        raise ConfigError("--sample and --uncertainty: expected --noise gaussian, of which the posterior is known")
    if kind == "poisson" and level is not None:
        raise ConfigError(
            f"--sigma: expected none with --noise poisson, whose level is that of its counts, found {sigma}"
        )
    model, volumes = open_restoring(model_path, inputs, common, average=not sample)
    if kind == "poisson":
        _check_counts(model)
    restorer = Restorer(model, steps=steps, **computing(model, common))
    if sample and level is not None:
        restorer.check_level(level)
    fell_back = False

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        nonlocal fell_back
        black = torch.tensor([float(each.zero.mean()) for each in batch.intensities])
        found = restorer.denoise(
            batch.images,
            level,
            noise=kind,
            samples=int(sample),
            uncertainty=uncertainty,
            foreground=batch.foreground,
            background=batch.background() if kind == "rician" and level is None else None,
            zero=black,
            gain=_gain(batch, photons) if kind == "poisson" else None,
        )
        fell_back |= kind == "rician" and "foreground" in (found.sigma_from or ())
        if not sample:
            return found, None
        assert found.samples is not None
        return replace(found, images=found.samples[:, 0], samples=None), None

    settings = {"sigma": sigma, "noise": noise, "sample": sample, "uncertainty": uncertainty}
    given = (model_path, model, restorer, inputs, settings)
    columns = ("sigma", "sigma_file", "sigma_from")
    if volumes:
        # Estimates of several axes may be averaged; an average of samples is no sample.
        volume_job = VolumeRestoringJob(model, task, output, average=not sample, at_once=common.images_at_once)
        summary = run_volumes(volume_job, *given, name="denoise", common=common, npy=npy, columns=columns)
    else:
        job = RestoringJob(model, task, output, npy=npy)
        summary = run_restoring(job, *given, name="denoise", common=common, columns=columns)
    if fell_back:
        say(f"note: {FALLBACK}", common.quiet)
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


def _noise(text: str) -> tuple[str, float]:
    """Kind of noise, and counts to one value of the file."""
    kind, colon, scale = text.partition(":")
    try:
        counts = float(scale) if colon else 1.0
    except ValueError:
        counts = float("nan")
    if kind not in ("gaussian", "rician", "poisson") or (colon and kind != "poisson") or not 0 < counts < float("inf"):
        raise ConfigError(
            f"--noise: expected gaussian, rician or poisson[:SCALE] with a positive number of counts, found {text!r}"
        )
    return kind, counts


def _check_counts(model: DiffusionModel) -> None:
    """Raises ConfigError where counts of an image have no one scale in the model's range."""
    config = model.config.preprocess
    if config.intensity.kind == "nyul" or (config.channels > 1 and config.intensity.kind != "unit_range"):
        raise ConfigError(
            "--noise poisson: expected a model whose intensities are one line of the file's values (not nyul; of "
            f"several channels unit_range), found {config.intensity.kind} of {config.channels} channels"
        )


def _gain(batch: Batch, photons: float) -> Tensor:
    """(N,) counts to one unit of the model's range; an average of pixels is as exact as the counts of all of them."""
    import torch

    scale = torch.tensor([float(each.scale.mean()) for each in batch.intensities], dtype=torch.float64)
    return photons * scale / batch.noise_left()
