"""anodiff train: learn what normal images look like, calibrate, and write one model file."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import TrainingError
from anodiff.pipelines.common import Device, Foreground, GroupBy, Layout, Normal, Precision, Set, left_out, say

if TYPE_CHECKING:
    from anodiff.config import AnodiffConfig
    from anodiff.data.table import SampleTable
    from anodiff.training import ImageSet, Trainer
    from anodiff.training.examples import Drawn, Examples
    from anodiff.training.processes import Processes

LOG_COLUMNS = ("images", "loss", "validation_loss", "lr", "images_per_second", "seconds")


def main(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (anodiff configs ls).")],
    data: Annotated[
        Path, typer.Option(help="Folder or CSV with normal images; others are left out, unless the recipe has classes.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for model.safetensors, log.csv, preview.png, checkpoint.pt.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUTPUT/checkpoint.pt.")] = False,
    layout: Layout = "auto",
    normal: Normal = "",
    group_by: GroupBy = "",
    foreground: Foreground = "",
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images an update and process.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random in training.")] = None,
    set_: Set = None,
) -> None:
    """Train a model on normal images and calibrate it on held-out normal ones.

    \b
    Examples:
      anodiff train brain_flair --data brain_lgg --output runs/brain
      anodiff train my.yaml --data normals/ --output runs/mine --set training.images=200000
      anodiff train my.yaml --data normals/ --output runs/mine --resume
      torchrun --nproc-per-node 4 -m anodiff.pipelines.cli train my.yaml --data normals/ --output runs/mine
    """
    with_overrides = list(set_ or [])
    if batch_size is not None:
        with_overrides.append(f"training.batch_size={batch_size}")
    if seed is not None:
        with_overrides.append(f"training.seed={seed}")
    _, failed = run(
        config, data, output,
        overrides=with_overrides, resume=resume, layout=layout, normal=normal, group_by=group_by,
        foreground=foreground, device=device, precision=precision,
    )  # fmt: skip
    raise typer.Exit(int(bool(failed)))


def run(
    config_name: str,
    data: Path,
    output: Path,
    *,
    overrides: list[str],
    resume: bool = False,
    layout: str = "auto",
    normal: str = "",
    group_by: str = "",
    foreground: str = "",
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Train, calibrate and save; returns the path of the model file, and a sentence for each image left out."""
    # What the end needs is imported before hours of training, not after: an upgrade meanwhile would mix two versions.
    import anodiff.model
    import anodiff.pipelines.calibrate  # noqa: F401
    from anodiff.config import load_config
    from anodiff.data.layouts import load_table
    from anodiff.data.layouts.foregrounds import given
    from anodiff.engine.device import resolve_device, resolve_precision
    from anodiff.files import make_folder
    from anodiff.pipelines import clip_scoring, clip_training, volume_training
    from anodiff.training import Trainer, load_checkpoint, split_normals
    from anodiff.training.processes import processes
    from anodiff.training.standard_scale import fit_images

    config = load_config(config_name, overrides)
    check_presets(config)
    if config.video is not None:
        clip_scoring.refuse_foreign({"--foreground": foreground})
        return clip_training.run(
            config, data, output, resume=resume, layout=layout, device=device, precision=precision, quiet=quiet
        )
    samples = given(load_table(data, layout, normal=normal, group_by=group_by), foreground)
    if config.volume is not None:
        return volume_training.run(
            config, data, output, samples, resume=resume, device=device, precision=precision, quiet=quiet
        )
    chosen = resolve_device(device)
    checkpoint = output / "checkpoint.pt"
    refuse_to_overwrite(output, checkpoint, resume)
    with processes(chosen.type == "cuda") as group:
        if group.world > 1 and chosen.type == "cuda":
            chosen = resolve_device(f"cuda:{group.local_rank}")
        kept, held = split_normals(samples, config.training.holdout, config.training.seed)
        silent = quiet or not group.first
        config = fit_images(config, list(kept.table["path"]), silent, list(kept.table["foreground"]))
        learnt, heldout = read_parts(config, samples, kept, held, silent)
        trainer = Trainer(
            config,
            *examples_of(config, learnt, heldout.sample(config.training.validation_images, config.training.seed)),
            device=chosen,
            precision=resolve_precision(precision, chosen),
            processes=group,
        )
        if resume:
            for note in load_checkpoint(trainer, checkpoint):
                say(f"note: {note}", silent)
        if group.first:
            make_folder(output)
            write_start(config, output, {"train": learnt, "held out": heldout})
            say(describe(trainer, learnt, heldout, data, samples.layout), quiet)
        finished = learn(trainer, output, group, quiet)
        if not group.first:
            return output / "model.safetensors", ()
    if not finished:
        seen, total = trainer.state.images_seen, config.training.images
        say(f"interrupted after {seen} of {total} images; continue it with --resume")
        raise typer.Exit(130)
    path = finish(trainer, learnt, heldout, data, output, quiet)
    failed = (*learnt.failed, *heldout.failed)
    if failed:
        say(left_out(failed), quiet)
    return path, failed


def read_parts(
    config: AnodiffConfig, samples: SampleTable, kept: SampleTable, held: SampleTable, quiet: bool
) -> tuple[ImageSet, ImageSet]:
    """The images to learn from and the normal ones held out; with ``conditioning`` the first are of all classes."""
    from functools import partial

    from anodiff.training import load_images
    from anodiff.training.labels import labelled

    prepared, workers = config.preprocess, config.engine.workers
    read = partial(load_images, max_pixels=prepared.max_pixels, workers=workers, quiet=quiet)
    preprocessor = preprocessor_of(config)
    if config.conditioning is None:
        return read(kept, preprocessor), read(held, preprocessor)
    parts = labelled(samples, kept, held, config.conditioning)
    return (
        read(parts.learnt, preprocessor, labels=parts.labels),
        read(parts.held, preprocessor, labels=parts.held_labels),
    )


def examples_of(config: AnodiffConfig, learnt: ImageSet, held: ImageSet) -> tuple[Examples, Drawn]:
    """What a trainer draws from and what it is validated on, with their classes where the recipe has some."""
    import torch

    from anodiff.training.examples import Drawn, ImageExamples

    labels = [torch.tensor(part.labels) if config.conditioning is not None else None for part in (learnt, held)]
    return ImageExamples(learnt.images, config.augment, labels[0]), Drawn(held.images, label=labels[1])


def unit_of(config: AnodiffConfig) -> str:
    """What a recipe is trained on, in the plural."""
    if config.volume is not None:
        return config.volume.mode
    return "images" if config.video is None else "frames"


def learn(trainer: Trainer, output: Path, group: Processes, quiet: bool) -> bool:
    """The training loop with its bar, log, preview and checkpoints; False when it was interrupted (Ctrl-C)."""
    from anodiff.engine.progress import Progress
    from anodiff.engine.stopping import Stop
    from anodiff.files import atomic_write, write_csv
    from anodiff.training import save_checkpoint
    from anodiff.training.preview import preview

    config = trainer.config.training
    stop = Stop("stopping at the next log line, with a checkpoint (Ctrl-C again stops at once)")
    saved = time.monotonic()
    # An update is never cut short: the last one may go past the recipe's number.
    seen, whole = trainer.state.images_seen, trainer.images_per_update
    total = seen + math.ceil(max(0, config.images - seen) / whole) * whole
    progress = Progress(total, unit_of(trainer.config), "training", start=seen, quiet=quiet or not group.first)

    def on_log(row: Any) -> None:
        shown = {"loss": row.loss}
        if row.validation_loss is not None:
            shown["held-out loss"] = row.validation_loss
        progress.update(row.images - progress.done, **shown)

    def on_validation(trainer: Trainer) -> None:
        atomic_write(output / "preview.png", preview(trainer))
        write_csv(output / "log.csv", LOG_COLUMNS, [vars(row) for row in trainer.state.log])

    def on_tick(trainer: Trainer) -> None:
        nonlocal saved
        if group.first and time.monotonic() - saved > 60 * config.checkpoint_minutes:
            save_checkpoint(trainer, output / "checkpoint.pt")
            saved = time.monotonic()

    for note in trainer.notes if group.first else ():
        say(f"note: {note}", quiet)
    with stop, progress:
        finished = trainer.run(
            on_log=on_log, on_validation=on_validation, on_tick=on_tick, should_stop=lambda: stop.asked
        )
    if group.first:
        save_checkpoint(trainer, output / "checkpoint.pt")
        write_csv(output / "log.csv", LOG_COLUMNS, [vars(row) for row in trainer.state.log])
    return finished


def finish(trainer: Trainer, learnt: ImageSet, heldout: ImageSet, data: Path, output: Path, quiet: bool) -> Path:
    """Calibrate the recipe's preset on held-out normals and write the model file."""
    from anodiff.anomaly import AnomalyDetector
    from anodiff.data.seen import SeenImages
    from anodiff.engine.device import describe as describe_device
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.calibrate import fit, store_calibration

    config = trainer.config
    model = DiffusionModel(
        config,
        trainer.averaged,
        provenance={
            **provenance(data, learnt, heldout),
            **classes_of(config, learnt),
            "images_seen": trainer.state.images_seen,
            "training_seconds": round(trainer.state.seconds, 1),
            "training_device": describe_device(trainer.device, trainer.precision),
            "processes": trainer.processes.world,
            "held_out_loss": trainer.state.log[-1].validation_loss if trainer.state.log else None,
        },
        seen=SeenImages.of(learnt.hashes),
    )
    path = output / "model.safetensors"
    normals = learnt if config.conditioning is None else of_class(learnt, config.conditioning.normal_index)
    detector = AnomalyDetector(model, config.preset, device=trainer.device, precision=trainer.precision)
    store_calibration(model, detector.name, fit(detector, heldout, normals, config.calibration, quiet=quiet))
    for note in detector.notes:
        say(f"note: {note}", quiet)
    model.save(path)
    say(f"wrote {path} ({model.parameters / 1e6:.1f} M weights, calibrated for {config.preset!r})", quiet)
    return path


def classes_of(config: AnodiffConfig, learnt: ImageSet) -> dict[str, Any]:
    """Training images of each class, for a model file; nothing without classes."""
    from anodiff.training.labels import count_classes

    return {} if config.conditioning is None else {"classes": count_classes(learnt.labels, config.conditioning)}


def of_class(images: ImageSet, number: int) -> ImageSet:
    """The images of one class."""
    return images.take([row for row, label in enumerate(images.labels) if label == number])


def provenance(data: Path, normals: ImageSet, heldout: ImageSet) -> dict[str, Any]:
    """What a model file says of its origin; no file names, which may hold patient names."""
    import torch

    import anodiff

    return {
        "anodiff": anodiff.__version__,
        "torch": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data.resolve().name,
        "training_images": len(normals),
        "training_groups": len(set(normals.groups)),
        "held_out_images": len(heldout),
        "held_out_groups": len(set(heldout.groups)),
    }


def describe(trainer: Trainer, learnt: ImageSet, heldout: ImageSet, data: Path, layout: str) -> str:
    """Two lines on what is about to happen."""
    counts = classes_of(trainer.config, learnt).get("classes", {"normal": len(learnt)})
    named = ", ".join(f"{count} {name}" for name, count in counts.items())
    weights = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    return (
        f"{data}: layout {layout}; {named} images of {len(set(learnt.groups))} groups to learn from, "
        f"{len(heldout)} normal ones of {len(set(heldout.groups))} held out\n"
        f"network of {weights:.1f} M weights on {trainer.device} in {trainer.precision}; "
        f"{trainer.config.training.images} images, {trainer.images_per_update} an update"
    )


def write_start(config: AnodiffConfig, output: Path, parts: dict[str, ImageSet]) -> None:
    """The resolved recipe and the split as files: what was trained on what."""
    import yaml

    from anodiff.files import atomic_write, write_csv

    atomic_write(output / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    rows = [
        {"path": path, "group": group, "part": part}
        for part, images in parts.items()
        for path, group in zip(images.paths, images.groups, strict=True)
    ]
    write_csv(output / "split.csv", ("path", "group", "part"), rows)


def check_presets(config: AnodiffConfig) -> None:
    """Raises ConfigError for an unknown preset or slot now, not after the training."""
    from anodiff.anomaly.presets import resolve

    for name in (config.preset, *config.presets):
        resolve(name, config)


def refuse_to_overwrite(output: Path, checkpoint: Path, resume: bool) -> None:
    """A run is continued or left alone, never silently replaced."""
    if resume and not checkpoint.is_file():
        raise TrainingError(f"{checkpoint}: expected a checkpoint to resume from, found none")
    if not resume and (checkpoint.exists() or (output / "model.safetensors").exists()):
        raise TrainingError(
            f"{output}: expected a new or empty folder, found the run of another training; "
            "continue it with --resume or choose another --output"
        )


def preprocessor_of(config: AnodiffConfig) -> Any:
    """The preprocessing of a recipe."""
    from anodiff.data.preprocess import Preprocessor

    return Preprocessor(config.preprocess)
