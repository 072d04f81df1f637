"""The models of the gallery's figures, each trained where its file is not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.data.phantoms import make_phantom, write_phantoms
from anodiff.pipelines import train
from anodiff.pipelines.demo import COUNTS, RECIPE, SIZE

#: phantoms that no training has seen: those of training are numbered from 0
UNSEEN = 90_000
#: patients of open_ms: to learn from, and to look at
LEARNT, HELD = "patient26", "patient19"


def phantom_model(work: Path, device: str) -> Path:
    """The model of the work folder, trained on phantoms where it is not there."""
    if not (work / "run" / "model.safetensors").exists() and not (work / "data").exists():
        write_phantoms(work / "data", **COUNTS, size=SIZE, seed=0)
    return trained(RECIPE, work / "data", work / "run", device)


def volume_model(work: Path, volumes: Path, device: str) -> Path:
    """The 3-D model of the recipe open_ms_3d, of the healthy tissue of one patient."""
    return trained("open_ms_3d", volumes / LEARNT, work / "volume_run", device)


def trained(recipe: str, data: Path, run: Path, device: str) -> Path:
    """The model file of a run, trained or trained on where it is not there."""
    path = run / "model.safetensors"
    if not path.exists():
        resume = (run / "checkpoint.pt").exists()
        train.run(recipe, data, run, overrides=[], device=device, resume=resume)
    return path


def phantom(number: int, lesion: Any = None) -> tuple[Tensor, Tensor]:
    """An unseen phantom (1, 1, h, w) in [-1, 1], and where its lesion is (h, w)."""
    image, mask = make_phantom(UNSEEN + number, SIZE, lesion)
    return torch.from_numpy(image.astype(np.float32))[None, None] / 127.5 - 1, torch.from_numpy(mask)
