"""Checkpoints of a training run: one file, replaced atomically, read back without running code from it."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anodiff.config import parse_config
from anodiff.errors import TrainingError
from anodiff.files import atomic_write
from anodiff.training.trainer import LogRow, State, Trainer


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write weights, average, optimiser state, progress and recipe.

    Raises TrainingError where a weight is not finite (an earlier checkpoint is kept), and StorageError.
    """
    trainer.require_finite()
    buffer = io.BytesIO()
    content: dict[str, Any] = {
        "config": trainer.config.model_dump(mode="json"),
        "tensors": trainer.tensors(),
        "images_seen": trainer.state.images_seen,
        "seconds": trainer.state.seconds,
        "log": [asdict(row) for row in trainer.state.log],
        "precision": trainer.precision,
        "processes": trainer.processes.world,
    }
    torch.save(content, buffer)
    atomic_write(path, buffer.getvalue())


def load_checkpoint(trainer: Trainer, path: Path) -> tuple[str, ...]:
    """Continue ``trainer`` from ``path``; returns what the user should know of the continuation, in sentences.

    Raises TrainingError where the file is damaged, of another recipe, of another precision, or where an update would
    see another number of images.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, log = content["config"], [LogRow(**row) for row in content["log"]]
    except Exception as error:  # torch raises many kinds for a damaged file
        detail = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: expected a training checkpoint, found a damaged file ({detail})") from None
    # keys that are newer than the checkpoint have their defaults, under which it was made
    saved = parse_config(saved, str(path)).model_dump(mode="json")
    changed = differences(saved, trainer.config.model_dump(mode="json"))
    if changed:
        raise TrainingError(
            f"{path}: expected a checkpoint of this recipe, found one with other settings ({'; '.join(changed[:5])})"
        )
    notes = check_machine(content, saved, trainer, path)
    trainer.restore(content["tensors"], State(content["images_seen"], content["seconds"], log))
    return notes


def check_machine(content: dict[str, Any], saved: dict[str, Any], trainer: Trainer, path: Path) -> tuple[str, ...]:
    """Whether precision and processes let the run go on as if it had never stopped; what changed, in sentences.

    Checkpoints that do not record them are taken as made with today's. Raises TrainingError.
    """
    precision = content.get("precision", trainer.precision)
    if precision != trainer.precision:
        raise TrainingError(
            f"{path}: expected to go on in {precision}, found {trainer.precision}; add --precision {precision}, "
            "or start anew in another --output"
        )
    world, training = trainer.processes.world, saved["training"]
    before = content.get("processes", world)
    images = training["batch_size"] * training["accumulate"] * before
    if images != trainer.images_per_update:
        raise TrainingError(
            f"{path}: expected updates of {images} images ({before} process{'es' * (before > 1)}), found "
            f"{trainer.images_per_update} ({world}); choose --batch-size and training.accumulate so that "
            "batch size x accumulate x processes stays the same"
        )
    now = trainer.config.training
    if (before, training["batch_size"], training["accumulate"]) == (world, now.batch_size, now.accumulate):
        return ()
    if trainer.config.network.dropout:
        raise TrainingError(
            f"{path}: expected {before} process{'es' * (before > 1)} and batches of {training['batch_size']}, found "
            f"{world} and {now.batch_size}: what dropout leaves out would be another draw"
        )
    return (
        f"goes on with {world} process{'es' * (world > 1)} (before: {before}) and the same {images} images an update, "
        "so results are the same up to rounding",
    )


#: what may differ between a run and its continuation without changing a weight but by rounding
FREE = (
    "description",
    "polarity",
    "preset",
    "presets",
    "calibration",
    "engine",
    "preprocess.foreground_erode_px",
    "training.checkpoint_minutes",
    # the same weights up to rounding
    "training.compiled",
    # these two together with the number of processes: see check_machine
    "training.batch_size",
    "training.accumulate",
)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """What changed between two recipes, as 'key: old -> new'."""
    if key in FREE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for name in sorted({*old, *new}):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key}: {old} -> {new}"]
