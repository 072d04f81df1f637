"""A tiny calibrated model with random weights, and a small labelled data set of PNGs larger than its grid."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.pipelines import calibrate, cli

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "polarity": "brighter",
    "preset": "one-step",
    "preprocess": {"size": [16, 16], "foreground": "threshold"},
    "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
    "engine": {"network_batch": 4},
}


def picture(seed: int, lesion: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A smooth disc of 20x24 pixels with noise, uint8, on request with a bright spot; and the spot's mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:20, :24]
    disc = np.hypot(y - 9.5, x - 11.5) < 9
    values = disc * (90 + 20 * np.sin(x / 4 + rng.uniform(0, 1))) + rng.normal(0, 4, disc.shape)
    spot = np.hypot(y - rng.integers(6, 14), x - rng.integers(8, 16)) < 3
    if lesion:
        values = values + 90 * spot
    return values.clip(0, 255).astype(np.uint8), spot if lesion else np.zeros_like(spot)


def write_images(folder: Path, count: int, start: int = 0, lesion: bool = False, masks: Path | None = None) -> None:
    """PNG files i000.png ... in `folder`, and their masks in `masks`."""
    for place in (folder, masks):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        image, mask = picture(start + n, lesion)
        Image.fromarray(image).save(folder / f"i{n:03d}.png")
        if masks is not None:
            Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"i{n:03d}_mask.png")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@dataclass(frozen=True)
class World:
    """raw: model file without calibration; model: calibrated for one-step; data: labelled, in the MVTec layout.

    The helpers come along, since test modules cannot import this file.
    """

    raw: Path
    model: Path
    data: Path

    picture = staticmethod(picture)
    write_images = staticmethod(write_images)
    read_table = staticmethod(read_table)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    data = root / "data"
    write_images(data / "train" / "good", 30, 0)
    write_images(data / "val" / "good", 24, 100)
    write_images(data / "test" / "good", 8, 200)
    write_images(data / "test" / "spot", 6, 300, lesion=True, masks=data / "ground_truth" / "spot")
    torch.manual_seed(0)
    config = parse_config(RECIPE)
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():  # layers that start at zero would hide the network
            torch.nn.init.normal_(parameter, std=0.05)
    DiffusionModel(config, denoiser).save(root / "raw.safetensors")
    calibrate.run(root / "raw.safetensors", data, root / "model.safetensors", device="cpu", quiet=True)
    return World(root / "raw.safetensors", root / "model.safetensors", data)


@pytest.fixture
def anodiff() -> Callable[..., int]:
    """Runs the command line in this process, on the CPU where that is an option; returns the exit code."""

    def run(*arguments: object) -> int:
        words = [str(argument) for argument in arguments]
        if words[0] in ("score", "evaluate", "calibrate") and "--device" not in words:
            words += ["--device", "cpu"]
        return cli.main(words)

    return run


@pytest.fixture
def inputs(world: Any, tmp_path: Path) -> Path:
    world.write_images(tmp_path / "in", 5, 400)
    world.write_images(tmp_path / "in" / "deep", 4, 500, lesion=True)
    return tmp_path / "in"
