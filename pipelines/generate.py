"""anodiff generate: new images of what a model has learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.pipelines.common import BatchSize, Device, Model, Output, Overwrite, Precision, Seed, Set, open_model
from anodiff.pipelines.restoring_options import OPEN_KEYS, Npy, Sampler, Steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from anodiff.engine.loop import Summary
    from anodiff.engine.store import Item
    from anodiff.restoration import Restorer


class GenerateJob:
    """An item is the number of an image: read -> its number, compute -> float32 (h, w, C) in [-1, 1] and the cost."""

    def __init__(self, restorer: Restorer, folder: Path, npy: bool) -> None:
        self.restorer, self.folder, self.npy = restorer, folder, npy

    def read(self, item: Item) -> int:
        """Nothing is read."""
        return int(item.extra)

    def compute(self, batch: list[int]) -> Sequence[tuple[NDArray[np.float32], int, float]]:
        """The images of these numbers."""
        import time

        began = time.monotonic()
        made = self.restorer.generate(batch)
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
        return {"nfe": nfe, "seconds": seconds, "files": list(files.values()), **files}

    def pictures(self, item: Item, row: Mapping[str, Any]) -> Callable[[], tuple[None, NDArray[np.uint8]]]:
        """The picture of a row, read when it is shown."""
        from anodiff.restoration.output import read_values
        from anodiff.visualize.heatmap import display_image

        return lambda: (None, display_image(read_values(self.folder / row["image"]), 0.0, 255.0))


def main(
    model: Model,
    output: Output,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")] = 16,
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
    """Generate images: OUTPUT/images/, results.csv and report.html.

    Image k of a seed is always the same, however many are made; more can be added by a larger -n. The PNGs show the
    model's range [-1, 1] as black to white.

    \b
    Examples:
      anodiff generate model.safetensors -n 16 --seed 0 --output out/new
      anodiff generate model.safetensors -n 64 --steps 100 --sampler ancestral --npy --output out/more
    """
    summary = run(
        model,
        output,
        count,
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
    output: Path,
    count: int = 16,
    *,
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
    """Generate ``count`` images of a model file; returns what was done. Errors of the run are AnodiffErrors."""
    from anodiff.engine.store import Item
    from anodiff.pipelines.restoring import chain_settings, run_items
    from anodiff.restoration import Restorer

    model = open_model(model_path, overrides, OPEN_KEYS)
    restorer = Restorer(model, device=device, precision=precision, steps=steps, sampler=sampler, seed=seed)
    job = GenerateJob(restorer, output, npy)
    items = [Item(f"{number:06d}", f"seed {seed}, number {number}", number) for number in range(count)]
    settings = {**chain_settings(model_path, model, restorer), "npy": npy}
    return run_items(
        job,
        items,
        restorer,
        output,
        settings,
        name="generate",
        overwrite=overwrite,
        batch_size=batch_size,
        workers=model.config.engine.workers,
        quiet=quiet,
        pictures=job.pictures,
    )
