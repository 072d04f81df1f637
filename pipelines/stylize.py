"""anodiff stylize: the content of images in the style of another model, or of one exemplar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import COMMON, Common, Model, Output, open_model, with_common
from anodiff.pipelines.restoring_options import OPEN_KEYS, Inputs, Npy, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.engine.loop import Summary
    from anodiff.model import DiffusionModel
    from anodiff.restoration import Restored, Restorer
    from anodiff.restoration.batches import Batch

COLUMNS = ("content_ssim", "style_distance", "style_distance_before", "cycle_rmse")
#: images of the target model that its style is measured by
STYLE_IMAGES = 16


@with_common
def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    common: Common,
    style: Annotated[Path | None, typer.Option(help="An image whose style is taken.")] = None,
    target_model: Annotated[Path | None, typer.Option(help="A model whose style is taken.")] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="Level that the content is taken to: all the way for a model, 0.5 for an image."),
    ] = None,
    weight: Annotated[float, typer.Option(min=0, help="Of the exemplar's statistics, with --style.")] = 1.0,
    anchor: Annotated[
        float, typer.Option(min=0, help="Blur in px (model grid) whose low frequencies stay the content's; 0 is none.")
    ] = 0.0,
    cycle: Annotated[bool, typer.Option(help="Style back too, and measure what is lost; twice the time.")] = True,
    steps: Steps = 32,
    npy: Npy = False,
) -> None:
    """Stylize images: OUTPUT/images/ on their own grid, report.html, results.csv with content and style measured.

    MODEL knows the inputs. With --target-model the images go up to noise by MODEL and down again by the other one, of
    the same size and channels. With --style the patches of one image are imitated on the way down. Volumes (NIfTI,
    MGH, folders of DICOM) are styled slice by slice, along the first of the model's axes, and become NIfTI on their own
    grid.

    \b
    Examples:
      anodiff stylize scanner_a.safetensors scans/ --target-model scanner_b.safetensors --output out/harmonised
      anodiff stylize model.safetensors scans/ --style look.png --sigma 0.3 --output out/styled
      anodiff stylize scanner_a.safetensors scan.nii.gz --target-model scanner_b.safetensors --output out/harmonised
      anodiff stylize day.safetensors street/ --target-model night.safetensors --anchor 4 --output out/night
    """
    summary = run(
        model, inputs, output,
        style=style, target_model=target_model, sigma=sigma, weight=weight, anchor=anchor, cycle=cycle, steps=steps,
        npy=npy, common=common,
    )  # fmt: skip
    raise typer.Exit(summary.exit_code)


def run(
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    style: Path | None = None,
    target_model: Path | None = None,
    sigma: float | None = None,
    weight: float = 1.0,
    anchor: float = 0.0,
    cycle: bool = True,
    steps: int = 32,
    npy: bool = False,
    common: Common = COMMON,
) -> Summary:
    """Stylize `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from anodiff.pipelines.common import file_digest
    from anodiff.pipelines.restoring import RestoringJob, run_restoring
    from anodiff.pipelines.restoring_run import computing
    from anodiff.pipelines.volume_restoring import open_restoring, run_volumes
    from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
    from anodiff.restoration import Restored, Restorer
    from anodiff.restoration.style import bridge_grid, content_similarity, style_distance, stylize

    if (style is None) == (target_model is None):
        raise ConfigError("stylize: expected exactly one of --style and --target-model")
    model, volumes = open_restoring(model_path, inputs, common)
    settings: dict[str, Any] = {"steps": steps, **computing(model, common)}
    source = Restorer(model, **settings)
    settings["network_batch"] = source.denoiser.network_batch
    target, exemplar = None, None
    check_pair(model, model)
    if target_model is not None:
        # which slices are taken is the source's business
        own = [each for each in common.overrides or () if not each.strip().startswith("volume")]
        other = open_model(target_model, own, OPEN_KEYS)
        check_pair(model, other)
        target = Restorer(other, **settings)
    elif style is not None:
        exemplar, _ = model.prepare([style])
    bridge_grid(source, target or source, sigma)
    wanted = LazyStyle(target, exemplar)
    scores: list[dict[str, Any]] = []

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        if target is not None:  # it makes the images that its style is measured by
            target.on_step = source.on_step
        found = stylize(
            source,
            batch.images,
            target=target,
            style=exemplar,
            sigma=sigma,
            weight=weight,
            anchor_px=anchor,
            cycle=cycle,
        )
        before, after = (style_distance(images, wanted()).tolist() for images in (batch.images, found.images))
        similar = content_similarity(found.images, batch.images)
        lost = [None] * len(similar)
        if found.back is not None:
            lost = (found.back - batch.images).square().flatten(1).mean(1).sqrt().tolist()
        rows = zip(similar, after, before, lost, strict=True)
        scores.extend(dict(zip(COLUMNS, row, strict=True)) for row in rows)
        return Restored(found.images, found.nfe), None

    class Job(RestoringJob):
        """A restoring job whose rows have the scores of the batch in hand."""

        def compute(self, batch: list[Any]) -> Sequence[Any]:
            """(what became of the image, its scores) of each."""
            scores.clear()
            return list(zip(super().compute(batch), scores, strict=True))

        def write(self, item: Any, computed: Any) -> dict[str, Any]:
            """The row with its scores."""
            return {**super().write(item, computed[0]), **computed[1]}

    class OfVolumes(VolumeRestoringJob):
        """The same for volumes: means over the slices."""

        def compute(self, batch: list[Any]) -> Sequence[Any]:
            """(what became of the volume, its scores) of each."""
            found: list[Any] = []
            for loaded in batch:
                scores.clear()
                found.append((super().compute([loaded])[0], means(scores)))
            return found

        def write(self, item: Any, computed: Any) -> dict[str, Any]:
            """The row with its scores."""
            return {**super().write(item, computed[0]), **computed[1]}

    told = {
        "style": None if style is None else file_digest(style),
        "target_model": None if target_model is None else file_digest(target_model),
        "sigma": sigma,
        "weight": weight,
        "anchor": anchor,
        "cycle": cycle,
    }
    given = (model_path, model, source, inputs, told)
    if volumes:
        volume_job = OfVolumes(model, task, output, average=False, at_once=common.images_at_once)
        return run_volumes(volume_job, *given, name="stylize", common=common, npy=npy, columns=COLUMNS)
    job = Job(model, task, output, npy=npy, any_size=False)
    return run_restoring(job, *given, name="stylize", common=common, columns=COLUMNS)


def means(scores: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean of each column over the slices that have it."""
    columns = {name: [row[name] for row in scores if row[name] is not None] for name in COLUMNS}
    return {name: sum(found) / len(found) if found else None for name, found in columns.items()}


def check_pair(source: DiffusionModel, target: DiffusionModel) -> None:
    """Raises ConfigError where two models do not see images, or slices, of one shape."""
    for section in (source.config.volume, target.config.volume):
        if section is not None and (section.mode == "patches" or section.neighbours):
            raise ConfigError("stylize: expected models of images or single slices, found one that sees several slices")
    if target.config.video is not None:
        raise ConfigError("stylize: expected models of images, found one of clips")
    ours, theirs = ((each.config.preprocess.channels, *each.config.preprocess.size) for each in (source, target))
    if ours != theirs:
        raise ConfigError(
            f"--target-model: expected a model of {ours[0]} channels and {ours[1]}x{ours[2]} pixels like MODEL, found "
            f"{theirs[0]} and {theirs[1]}x{theirs[2]}"
        )


class LazyStyle:
    """What a style is measured by: the exemplar, or images of the target model, made when they are first needed."""

    def __init__(self, target: Restorer | None, exemplar: Tensor | None) -> None:
        self.target, self.images = target, exemplar

    def __call__(self) -> Tensor:
        """(M, C, h, w) on the CPU."""
        if self.images is None:
            assert self.target is not None
            self.images = self.target.generate(STYLE_IMAGES).images
        return self.images
