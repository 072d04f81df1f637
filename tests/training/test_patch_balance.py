"""The share of training patches whose middle lies in the foreground, as a trainer draws them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from anodiff.config import parse_config
from anodiff.training import Trainer
from anodiff.training.patches import FOREGROUND_SHARE
from anodiff.training.volumes import NormalPart, read_normals

EDGE = 4
UPDATES, BATCH = 60, 256
#: of the standard error of a share; a right share is further off once in 16,000 runs
SIGMAS = 4.0


def organ(shape: tuple[int, int, int], start: tuple[int, int, int], side: int) -> np.ndarray:
    """1 in a cube, the foreground, and 0 around it."""
    values = np.zeros(shape, np.float32)
    values[tuple(slice(low, low + side) for low in start)] = 1
    return values


def by_chance(values: np.ndarray) -> float:
    """The share of all places a patch fits at that have their middle in the foreground."""
    middle = EDGE // 2
    inner = values[tuple(slice(middle, middle + side - EDGE + 1) for side in values.shape)]
    return float(inner.mean())


def test_nine_in_ten_patches_have_their_middle_in_the_foreground(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """The others lie anywhere, where the middle may be in the foreground by chance. Two volumes, of unlike organs."""
    config = parse_config(
        tiny_recipe
        | {
            "preprocess": {"size": [16, 16], "value_range": [0, 1], "foreground": "threshold",
                           "foreground_threshold": 0.5},
            "volume": {"mode": "patches", "patch": [EDGE] * 3, "orientation": None},
            "augment": {},
            "training": tiny_recipe["training"] | {"batch_size": BATCH},
        }
    )  # fmt: skip
    volumes = [organ((20, 16, 16), (5, 4, 4), 6), organ((16, 16, 16), (2, 3, 2), 11)]
    for number, values in enumerate(volumes):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{number}.nii")
    parts = [NormalPart(str(tmp_path / f"{number}.nii"), str(number)) for number in range(len(volumes))]
    examples = read_normals(parts, config).examples
    trainer = Trainer(config, examples, examples.sample(4, 0), device=torch.device("cpu"), precision="fp32")
    inside = []
    for update in range(UPDATES):
        rows, _, uniform = trainer._plan(update * BATCH)
        patches = trainer.examples.draw(trainer._pick(rows), uniform, torch.device("cpu")).clean
        inside.append(patches[:, 0, EDGE // 2, EDGE // 2, EDGE // 2] > 0)
    # as many of each volume as its foreground has room for patches
    room = [values.sum() / EDGE**3 for values in volumes]
    chance = sum(round(n) * by_chance(values) for n, values in zip(room, volumes, strict=True)) / len(examples)
    expected = FOREGROUND_SHARE + (1 - FOREGROUND_SHARE) * chance
    count = UPDATES * BATCH
    bound = SIGMAS * math.sqrt(expected * (1 - expected) / count)
    assert FOREGROUND_SHARE == 0.9
    assert bound < 0.01
    assert abs(float(torch.cat(inside).float().mean()) - expected) < bound
