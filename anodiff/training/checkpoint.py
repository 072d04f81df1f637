"""Checkpoints of a training run: one file, replaced atomically, read back without running code from it."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anodiff.engine.files import atomic_write
from anodiff.errors import TrainingError
from anodiff.training.trainer import LogRow, State, Trainer


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write weights, average, optimiser state, progress and recipe. Raises StorageError."""
    buffer = io.BytesIO()
    content: dict[str, Any] = {
        "config": trainer.config.model_dump(mode="json"),
        "tensors": trainer.tensors(),
        "images_seen": trainer.state.images_seen,
        "seconds": trainer.state.seconds,
        "log": [asdict(row) for row in trainer.state.log],
    }
    torch.save(content, buffer)
    atomic_write(path, buffer.getvalue())


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Continue ``trainer`` from ``path``. Raises TrainingError where the file is damaged or of another recipe."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, log = content["config"], [LogRow(**row) for row in content["log"]]
    except Exception as error:  # torch raises many kinds for a damaged file
        detail = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: expected a training checkpoint, found a damaged file ({detail})") from None
    changed = differences(saved, trainer.config.model_dump(mode="json"))
    if changed:
        raise TrainingError(
            f"{path}: expected a checkpoint of this recipe, found one with other settings ({'; '.join(changed[:5])})"
        )
    trainer.restore(content["tensors"], State(content["images_seen"], content["seconds"], log))


#: what may differ between a run and its continuation without changing a weight
FREE = (
    "description",
    "polarity",
    "preset",
    "presets",
    "calibration",
    "engine",
    "preprocess.foreground_erode_px",
    "training.checkpoint_minutes",
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
