"""A denoiser whose answer is known: it expects every square to go on by one pixel a frame."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anodiff.anomaly.clip_fit import NormalClip
from anodiff.anomaly.clips import ClipDetector
from anodiff.config import parse_config
from anodiff.data.video.clip import Frame

SIZE = 16
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [SIZE, SIZE]},
    "video": {"past": 1, "step": 1, "background": "none", "gain": 1.0, "smooth_s": 0.2},
    "engine": {"network_batch": 4},
    "presets": {
        "default": {"levels": [0.1], "antithetic": True, "residual": "squared", "standardise": "none", "smooth_px": 0}
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class GoesOn(nn.Module):
    """Sure that everything goes one pixel to the right a frame: the change that the given frame announces."""

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            return torch.zeros_like(x)
        newest = context[:, :1]
        return newest.roll(1, dims=-1) - newest + 0.01 * sigma.reshape(-1, 1, 1, 1) * x


def model(**video: Any) -> SimpleNamespace:
    config = parse_config({**RECIPE, "video": {**RECIPE["video"], **video}})
    return SimpleNamespace(config=config, denoiser=GoesOn(), calibrations={}, constants={}, schedule=None)


def detector(**video: Any) -> ClipDetector:
    return ClipDetector(model(**video), device="cpu")


def moving(count: int, seed: int = 0, fast: range = range(0)) -> np.ndarray:
    """A square that goes right by one pixel a frame, by three where it is fast; uint8 (count, SIZE, SIZE, 1)."""
    rng = np.random.default_rng(seed)
    top, left = (int(value) for value in rng.integers(1, SIZE - 5, 2))
    frames = rng.integers(40, 80, (1, SIZE, 1, 1)).repeat(SIZE, axis=2).repeat(count, axis=0).astype(np.uint8)
    for n in range(count):
        left += 3 if n in fast else 1
        frames[n, top : top + 4][:, (left + np.arange(4)) % SIZE] = 200
    return frames


def as_clip(frames: np.ndarray, fps: float = 10.0) -> list[Frame]:
    return [Frame(n, n / fps, pixels) for n, pixels in enumerate(frames)]


def normals(count: int, length: int = 64) -> list[NormalClip]:
    times = torch.arange(length, dtype=torch.float64) / 10
    clips = []
    for seed in range(count):
        noise = np.random.default_rng(seed + 100).integers(-3, 4, (length, SIZE, SIZE, 1))
        frames = (moving(length, seed).astype(int) + noise).clip(0, 255).astype(np.uint8)
        clips.append(NormalClip(torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()), times, f"clip {seed}"))
    return clips


@pytest.fixture
def world() -> SimpleNamespace:
    """The helpers, since test modules cannot import this file."""
    return SimpleNamespace(
        SIZE=SIZE,
        RECIPE=RECIPE,
        GoesOn=GoesOn,
        model=model,
        detector=detector,
        moving=moving,
        as_clip=as_clip,
        normals=normals,
    )
