"""anodiff demo: the whole way on synthetic brain slices, in a few minutes on two CPU cores."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import StorageError
from anodiff.pipelines.common import BatchSize, Device, Overwrite, Precision, Seed, Set, say

if TYPE_CHECKING:
    from anodiff.engine.loop import Summary

RECIPE = "phantoms"
#: training, held-out, normal test and lesion test slices
COUNTS = {"n_train": 2000, "n_val": 200, "n_test_good": 80, "n_test_lesion": 80}
SIZE = 64
PARTS = ("data", "run", "results")
MARK = ".anodiff-demo"


def main(
    output: Annotated[Path, typer.Option(help="Folder for the data, the model and the results.")] = Path("out/demo"),
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Make phantoms, train on the healthy ones, score the others, measure, and write a report to look at.

    The lesions are hard: a lesion has the intensity of some healthy tissue and is wrong only where it lies; some are
    darker, some of the right intensity with the wrong texture. The trivial baselines are printed beside.

    \b
    Examples:
      anodiff demo
      anodiff demo --output /tmp/demo --device cuda --overwrite
    """
    summary, _ = run(
        output,
        overwrite=overwrite,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        overrides=list(set_ or []),
    )
    raise typer.Exit(summary.exit_code)


def run(
    output: Path,
    *,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    overrides: list[str] | None = None,
    counts: dict[str, int] | None = None,
    quiet: bool = False,
) -> tuple[Summary, dict[str, Any]]:
    """The demo; returns what the evaluation did and its metrics."""
    from anodiff.data.phantoms import write_phantoms
    from anodiff.engine.progress import duration
    from anodiff.pipelines import evaluate, train

    began = time.monotonic()
    prepare(output, overwrite)
    data, trained, results = (output / part for part in PARTS)
    say("1/3 synthetic brain slices: healthy ones to learn from, others with lesions to find", quiet)
    write_phantoms(data, **(counts or COUNTS), size=SIZE, seed=seed)
    say(f"2/3 anodiff train {RECIPE} --data {data} --output {trained}", quiet)
    model, _ = train.run(
        RECIPE,
        data,
        trained,
        overrides=[*(overrides or []), f"training.seed={seed}"],
        device=device,
        precision=precision,
        quiet=quiet,
    )
    say(f"3/3 anodiff evaluate {model} {data} --output {results} --baselines", quiet)
    summary, metrics = evaluate.run(
        model,
        data,
        results,
        baselines=True,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        quiet=quiet,
    )
    say(f"demo done in {duration(time.monotonic() - began)}; open {(results / 'report.html').resolve()}", quiet)
    return summary, metrics


def prepare(output: Path, overwrite: bool) -> None:
    """An empty folder with the demo's mark. Raises StorageError rather than touch anything that is not a demo's."""
    from anodiff.files import atomic_write, make_folder

    if output.exists() and any(output.iterdir()):
        if not (output / MARK).exists():
            raise StorageError(f"{output}: expected a new or empty folder, found files that are not of a demo")
        if not overwrite:
            raise StorageError(f"{output}: expected a new or empty folder, found a demo; --overwrite starts anew")
        for part in PARTS:
            shutil.rmtree(output / part, ignore_errors=True)
    make_folder(output)
    atomic_write(output / MARK, b"")
