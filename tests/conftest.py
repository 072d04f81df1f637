"""Shared fixtures: where the real data is, and a model small enough to train in a test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run, so that a test that fails fails again."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global one is what a test would use without saying so


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets; tests that need them are skipped where the folder is absent."""
    folder = Path(os.environ.get("ANODIFF_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder {folder} (set ANODIFF_DATA)")
    return folder


@pytest.fixture
def tiny_recipe() -> dict[str, Any]:
    """A recipe that trains in a second: 16x16 images, 20 thousand weights."""
    return {
        "name": "tiny",
        "preprocess": {"size": [16, 16]},
        "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
        "diffusion": {"sigma": {"kind": "lognormal", "mean": 0.0, "std": 1.2}},
        "augment": {"flip_lr": True, "shift_px": 1},
        "training": {
            "images": 64,
            "batch_size": 8,
            "lr": 1e-3,
            "warmup_images": 16,
            "ema_halflife_images": 32,
            "validate_every_images": 32,
            "validation_images": 8,
        },
        "engine": {"network_batch": 4},
    }
