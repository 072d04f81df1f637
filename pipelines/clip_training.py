"""anodiff train for a recipe with `video`: learn from normal clips, calibrate on others, write one model file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from anodiff.pipelines.common import say
from anodiff.pipelines.train import learn, provenance, refuse_to_overwrite, write_start

if TYPE_CHECKING:
    from anodiff.config import AnodiffConfig
    from anodiff.data.video.table import ClipRow, ClipTable
    from anodiff.training import Trainer
    from anodiff.training.clips import ClipExamples, ClipSet

#: groups of normal clips that a training needs: one is learnt from, two calibrate
LEAST_GROUPS = 3


def run(
    config: AnodiffConfig,
    data: Path,
    output: Path,
    *,
    resume: bool = False,
    layout: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Train, calibrate and save; returns the path of the model file, and a sentence for each clip left out."""
    # What the end needs is imported before hours of training, not after: an upgrade meanwhile would mix two versions.
    import anodiff.anomaly.clips
    import anodiff.model
    import anodiff.pipelines.clip_calibration  # noqa: F401
    from anodiff.data.clip_input import ClipInput
    from anodiff.engine.device import resolve_device, resolve_precision
    from anodiff.files import make_folder
    from anodiff.training import Trainer, load_checkpoint
    from anodiff.training.clips import ClipExamples, background_of
    from anodiff.training.processes import processes

    assert config.video is not None
    training = config.training
    chosen = resolve_device(device)
    checkpoint = output / "checkpoint.pt"
    refuse_to_overwrite(output, checkpoint, resume)
    with processes(chosen.type == "cuda") as group:
        if group.world > 1 and chosen.type == "cuda":
            chosen = resolve_device(f"cuda:{group.local_rank}")
        silent = quiet or not group.first
        kept, held = read_normals(config, data, layout, silent)
        shown = ClipInput(config.video, background_of(kept, config))
        examples = ClipExamples(kept, shown, config)
        validation = ClipExamples(held, shown, config).sample(training.validation_images, training.seed)
        trainer = Trainer(
            config, examples, validation, device=chosen, precision=resolve_precision(precision, chosen), processes=group
        )
        if resume:
            for note in load_checkpoint(trainer, checkpoint):
                say(f"note: {note}", silent)
        if group.first:
            make_folder(output)
            write_start(config, output, {"train": kept, "held out": held})
            say(describe(trainer, examples, held, data), quiet)
        finished = learn(trainer, output, group, quiet)
        if not group.first:
            return output / "model.safetensors", ()
    if not finished:
        say(f"interrupted after {trainer.state.images_seen} of {training.images} frames; continue it with --resume")
        raise typer.Exit(130)
    path = finish(trainer, examples, held, data, output, quiet)
    return path, (*kept.failed, *held.failed)


def read_normals(config: AnodiffConfig, data: Path, layout: str, quiet: bool) -> tuple[ClipSet, ClipSet]:
    """(clips to learn from, clips held out): normal ones of the data set, groups on one side only, read.

    Raises DataError where there are no three groups of normal clips: one to learn from, two to calibrate on.
    """
    from anodiff.data.video.layouts import load_clips
    from anodiff.engine.progress import Progress
    from anodiff.training.clips import read_clips

    table = load_clips(data, layout)
    say(f"{data}: layout {table.layout}", quiet)
    parts = []
    for part in split_clips(normal_clips(table), data, config.training.holdout, config.training.seed):
        with Progress(len(part), "clips", "reading", quiet=quiet) as progress:
            parts.append(read_clips(part, config, progress=progress))
    return parts[0], parts[1]


def normal_clips(table: ClipTable) -> list[ClipRow]:
    """The clips to learn from: of split train, or where there are no splits all, without those known as anomalous."""
    from anodiff.errors import DataError

    split = "train" if any(row.split == "train" for row in table.rows) else ""
    normal = [row for row in table.split(split).rows if not row.events and (row.truth is None or not row.truth.any())]
    if not normal:
        raise DataError(f"{table.root}: expected normal clips, found {len(table.split(split))} and all have anomalies")
    return normal


def split_clips(rows: Sequence[ClipRow], data: Path, share: float, seed: int) -> tuple[list[ClipRow], list[ClipRow]]:
    """(kept, held out): about ``share`` of the clips are held out, of two groups at least."""
    from anodiff.anomaly.groups import assign_parts
    from anodiff.errors import DataError

    groups = [row.group or row.path for row in rows]
    if len(set(groups)) < LEAST_GROUPS:
        raise DataError(
            f"{data}: expected normal clips of at least {LEAST_GROUPS} groups (one to learn from, two to calibrate "
            f"on), found {len(set(groups))}"
        )
    # Groups that stay the same wherever the data lies: a path is known by what is below the folder.
    known = [
        os.path.relpath(group, data) if group == row.path else group for group, row in zip(groups, rows, strict=True)
    ]
    parts = assign_parts(known, [1 - share, share / 2, share / 2], seed)
    kept = [row for row, part in zip(rows, parts, strict=True) if part == 0]
    return kept, [row for row, part in zip(rows, parts, strict=True) if part > 0]


def finish(trainer: Trainer, examples: ClipExamples, held: ClipSet, data: Path, output: Path, quiet: bool) -> Path:
    """Calibrate the recipe's preset on held-out clips and write the model file."""
    from anodiff.anomaly.clips import ClipDetector
    from anodiff.data.seen import SeenImages
    from anodiff.engine.device import describe as describe_device
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.calibrate import store_calibration
    from anodiff.pipelines.clip_calibration import fit, remove_kept

    config, kept = trainer.config, examples.clips
    background = examples.input.background
    model = DiffusionModel(
        config,
        trainer.averaged,
        provenance={
            **provenance(data, kept, held),
            "training_frames": len(kept.frames),
            "held_out_frames": len(held.frames),
            "images_seen": trainer.state.images_seen,
            "training_seconds": round(trainer.state.seconds, 1),
            "training_device": describe_device(trainer.device, trainer.precision),
            "processes": trainer.processes.world,
            "held_out_loss": trainer.state.log[-1].validation_loss if trainer.state.log else None,
        },
        seen=SeenImages.of(kept.hashes),
        constants={} if background is None else {"background": background},
    )
    path = output / "model.safetensors"
    model.save(output / "uncalibrated.safetensors")  # hours of training are safe before the calibration begins
    detector = ClipDetector(model, config.preset, device=trainer.device, precision=trainer.precision)
    keep = output / ".anodiff" / "calibration"
    store_calibration(model, detector.name, fit(detector, held, config.calibration, keep=keep, quiet=quiet))
    for note in detector.notes:
        say(f"note: {note}", quiet)
    model.save(path)
    (output / "uncalibrated.safetensors").unlink()
    remove_kept(keep)
    say(f"wrote {path} ({model.parameters / 1e6:.1f} M weights, calibrated for {config.preset!r})", quiet)
    return path


def describe(trainer: Trainer, examples: ClipExamples, held: ClipSet, data: Path) -> str:
    """Two lines on what is about to happen."""
    weights = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    return (
        f"{data}: {len(examples.clips.frames)} frames of {len(examples.clips)} normal clips to learn from, "
        f"{len(held.frames)} of {len(held)} held out\n"
        f"network of {weights:.1f} M weights on {trainer.device} in {trainer.precision}; "
        f"{trainer.config.training.images} frames, {trainer.images_per_update} an update"
    )
