"""anodiff generate: new images of what a model has learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.pipelines.common import COMMON, Common, Model, Output, open_model, say, with_common
from anodiff.pipelines.restoring_options import OPEN_KEYS, Npy, Sampler, Steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from anodiff.engine.loop import Summary
    from anodiff.engine.store import Item
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.restoring_run import Closing, ReportMore
    from anodiff.restoration import Restorer


#: pictures of the contact sheet
MOST_TILES = 144


class GenerateJob:
    """An item is the number of an image: read -> its number, compute -> float32 (h, w, C) in [-1, 1] and the cost.

    of: the class and its guidance, as `Restorer.generate` takes them. animation: also write the way of each image.
    """

    def __init__(
        self, restorer: Restorer, folder: Path, npy: bool, of: Mapping[str, Any], animation: bool = False
    ) -> None:
        self.restorer, self.folder, self.npy, self.of = restorer, folder, npy, of
        self.animation = animation
        #: by number of an image that is computed and not yet written: what it was after each step
        self.frames: dict[int, list[NDArray[np.uint8]]] = {}

    #: what the user should know, one sentence each
    notes: tuple[str, ...] = ()

    def read(self, item: Item) -> int:
        """Nothing is read."""
        return int(item.extra)

    def compute(self, batch: list[int]) -> Sequence[tuple[NDArray[np.float32], int, float]]:
        """The images of these numbers."""
        import time

        from anodiff.restoration.animation import Frames

        began = time.monotonic()
        frames = Frames(len(batch)) if self.animation else None
        made = self.restorer.generate(batch, **self.of, on_state=frames)
        if frames is not None:
            self.frames |= zip(batch, frames.shown, strict=True)
        seconds = (time.monotonic() - began) / len(batch)
        return [(image.permute(1, 2, 0).numpy(), made.nfe, seconds) for image in made.images]

    def write(self, item: Item, computed: tuple[NDArray[np.float32], int, float]) -> dict[str, Any]:
        """Writes an 8-bit PNG, -1 as black and 1 as white, and the floats on request."""
        from anodiff.restoration.output import write_array, write_png
        from anodiff.visualize.heatmap import display_image

        values, nfe, seconds = computed
        files = {"image": f"images/{item.id}.png"}
        write_png(self.folder / files["image"], display_image(values, -1.0, 1.0))
        if self.npy:
            files["array"] = write_array(self.folder, f"arrays/{item.id}.npy", values)
        if self.animation:
            from anodiff.restoration.animation import write_animation

            files["animation"] = f"animations/{item.id}.gif"
            write_animation(self.folder / files["animation"], self.frames.pop(int(item.extra)))
        return {"nfe": nfe, "seconds": seconds, "files": list(files.values()), **files}

    def pictures(self, item: Item, row: Mapping[str, Any]) -> Callable[[], tuple[None, NDArray[np.uint8]]]:
        """The picture of a row, read when it is shown."""
        from anodiff.restoration.output import read_values
        from anodiff.visualize.heatmap import display_image

        return lambda: (None, display_image(read_values(self.folder / row["image"]), 0.0, 255.0))


@with_common
def main(
    model: Model,
    output: Output,
    common: Common,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many images, or volumes.")] = 16,
    class_: Annotated[str | None, typer.Option("--class", help="The class that they are of.")] = None,
    guidance: Annotated[
        float, typer.Option(min=0, help="Weight of the class: 1 draws it as it is, more what is surest of it.")
    ] = 1.0,
    steps: Steps = 32,
    sampler: Sampler = None,
    npy: Npy = False,
    animation: Annotated[
        bool, typer.Option("--animation", help="Also write the way from noise to image: OUTPUT/animations/<id>.gif.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(metavar="H,W|I,J,K", help="Of the images, or of the volumes; else that of the training."),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Real images, best the data of the training: how near the new ones are."),
    ] = None,
) -> None:
    """Generate images or volumes: OUTPUT/images/, grid.png with all of them, results.csv and report.html.

    Image k of a seed is always the same, however many are made; more can be added by a larger -n. The PNGs show the
    model's range [-1, 1] as black to white. A model of 3-D patches makes volumes, one that sees neighbouring slices
    makes slabs: float32 NIfTI in [-1, 1], with the orientation and the spacing of the recipe. --size makes larger or
    smaller ones; a volume larger than the patch (volume.patch, the same order) is made through overlapping windows.

    --animation writes the way of each image from noise as a GIF, one frame a step; the report shows it.

    With --real (a folder, a known layout or a CSV; images) also quality.json and quality.png: how far the new images
    are from real ones that the model was not trained on, beside how far real ones are from each other, and in the
    report the nearest training images of each, which shows whether it is a copy.

    \b
    Examples:
      anodiff generate model.safetensors -n 16 --seed 0 --output out/new
      anodiff generate model.safetensors -n 64 --real data/ --output out/judged
      anodiff generate model3d.safetensors -n 2 --size 96,96,64 --output out/volumes
      anodiff generate model.safetensors --class diseased --guidance 2 --output out/diseased
      anodiff generate model.safetensors -n 64 --steps 100 --sampler ancestral --npy --output out/more
    """
    summary = run(
        model,
        output,
        count,
        class_=class_,
        guidance=guidance,
        steps=steps,
        sampler=sampler,
        npy=npy,
        animation=animation,
        size=size,
        real=real,
        common=common,
    )
    raise typer.Exit(summary.exit_code)


def run(
    model_path: Path,
    output: Path,
    count: int = 16,
    *,
    class_: str | None = None,
    guidance: float = 1.0,
    steps: int = 32,
    sampler: str | None = None,
    npy: bool = False,
    animation: bool = False,
    size: str | None = None,
    real: Path | None = None,
    common: Common = COMMON,
) -> Summary:
    """Generate ``count`` images of a model file; returns what was done. Errors of the run are AnodiffErrors.

    size: numbers of pixels or voxels between commas, None as in training. real: data set that they are compared with
    once all are made; it does not change them.
    """
    from functools import partial

    from anodiff.engine.store import Item
    from anodiff.errors import ConfigError
    from anodiff.pipelines.restoring_run import chain_settings, computing, run_items
    from anodiff.pipelines.volume_generating import VolumeGenerateJob, makes_volumes
    from anodiff.restoration import Restorer
    from anodiff.restoration.counterfactual import check_class

    model = open_model(model_path, common.overrides, OPEN_KEYS)
    restorer = Restorer(model, steps=steps, sampler=sampler, **computing(model, common))
    check_class(restorer, class_, guidance)
    volumes = makes_volumes(model, npy)
    if volumes and animation:
        raise ConfigError("--animation: expected a model of images, found one of volumes")
    shape = None if size is None else sized(restorer.shape, size, volumes)
    if shape is not None and real is not None:
        raise ConfigError("--size: expected none with --real, whose images are compared at the size of the training")
    judged = None if real is None else judging(restorer, model, real, class_, count, npy, output, common.quiet)
    of = {"label": class_, "guidance": guidance, "shape": shape}
    job = (
        VolumeGenerateJob(model, restorer, output, of) if volumes else GenerateJob(restorer, output, npy, of, animation)
    )
    for note in job.notes:
        say(f"note: {note}", common.quiet)
    items = [Item(f"{number:06d}", f"seed {common.seed}, number {number}", number) for number in range(count)]
    closing = partial(finishing, job, items, output, judged, common.quiet)
    settings = {"class": class_, "guidance": guidance, **chain_settings(model_path, model, restorer), "npy": npy}
    settings |= {"animation": True} if animation else {}
    settings |= {} if shape is None else {"size": list(shape[1:])}
    return run_items(
        job,
        items,
        restorer,
        output,
        settings,
        name="generate",
        common=common,
        workers=model.config.engine.workers,
        pictures=job.pictures,
        unit="volumes" if volumes else "images",
        closing=closing,
    )


def sized(usual: tuple[int, ...] | None, text: str, volumes: bool) -> tuple[int, ...]:
    """(C, *S) of what is made, from S as text; ``usual`` as in training. Raises ConfigError."""
    from anodiff.errors import ConfigError

    assert usual is not None
    axes = len(usual) - 1
    if volumes and axes == 2:
        raise ConfigError("--size: expected none for a model of slices with neighbours, whose slabs are as in training")
    try:
        size = tuple(int(word) for word in text.split(","))
    except ValueError:
        size = ()
    if len(size) != axes or min(size) < 1:
        raise ConfigError(f"--size: expected {axes} numbers from 1 between commas, found {text!r}")
    return (usual[0], *size)


def finishing(
    job: GenerateJob,
    items: Sequence[Item],
    folder: Path,
    judged: Closing | None,
    quiet: bool,
    rows: Sequence[Mapping[str, Any]],
) -> ReportMore:
    """What follows a complete run: grid.png, and what is judged. Raises StorageError."""
    from anodiff.files import atomic_write
    from anodiff.pipelines.restoring_run import ReportMore
    from anodiff.visualize.contact import contact_sheet

    by_id = {item.id: item for item in items}
    made = [row for row in rows if row["status"] == "ok"]
    if made:
        shown = [job.pictures(by_id[row["id"]], row)()[1] for row in made[:MOST_TILES]]
        atomic_write(folder / "grid.png", contact_sheet(shown))
        first = f", the first {MOST_TILES}" if len(made) > MOST_TILES else ""
        say(f"wrote {folder / 'grid.png'}{first}", quiet)
    return ReportMore() if judged is None else judged(rows)


def judging(
    restorer: Restorer,
    model: DiffusionModel,
    data: Path,
    class_: str | None,
    count: int,
    npy: bool,
    output: Path,
    quiet: bool,
) -> Closing:
    """What compares the finished images with real ones, which are read first: errors come before any work."""
    from functools import partial

    from anodiff.pipelines import generate_quality

    generate_quality.check_real(model, count, npy)
    real = generate_quality.read_real(model, data, class_, quiet)
    return partial(generate_quality.closing, restorer, model, real, output, quiet)
