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

CLIP_RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [16, 24]},
    "video": {"past": 1, "step": 1, "fps": 10, "window_px": 4, "bands": False, "false_alarms_per_hour": 3600},
    "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
    "diffusion": {"sigma_data": 0.25, "sigma": {"mean": -1.5, "std": 0.8}},
    "training": {"images": 32, "batch_size": 8, "validate_every_images": 32, "validation_images": 8, "holdout": 0.4},
    "engine": {"network_batch": 4},
    "presets": {"default": {"levels": [0.1], "residual": "squared", "standardise": "none", "smooth_px": 1.0}},
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


def footage(count: int, seed: int, fast: range = range(0)) -> np.ndarray:
    """Frames (count, 32, 48) of a square over a noisy scene; it leaps where it is fast."""
    rng = np.random.default_rng(seed)
    scene = np.random.default_rng(0).integers(80, 120, (32, 48))
    left, found = int(rng.integers(40)), np.zeros((count, 32, 48), dtype=np.uint8)
    for n in range(count):
        left += 9 if n in fast else 1
        found[n] = scene + rng.integers(-1, 2, scene.shape)
        found[n, 12:18][:, (left + np.arange(5)) % 48] = 220
    return found


def write_clip(folder: Path, pictures: np.ndarray) -> None:
    """A folder of frames 001.tif ..."""
    folder.mkdir(parents=True)
    for n, one in enumerate(pictures, 1):
        Image.fromarray(one).save(folder / f"{n:03d}.tif")


@dataclass(frozen=True)
class ClipWorld:
    """raw: a model of clips that says: nothing changes; model: calibrated; data: in the layout of UCSD.

    In clip Test001 the square leaps in frames 10 to 17 of 24; Test002 is normal.
    """

    raw: Path
    model: Path
    data: Path

    recipe = CLIP_RECIPE
    footage = staticmethod(footage)
    write_clip = staticmethod(write_clip)
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


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipWorld:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("clips")
    world = ClipWorld(root / "raw.safetensors", root / "model.safetensors", root / "data")
    for number in range(1, 6):
        write_clip(world.data / "Train" / f"Train{number:03d}", footage(16, number))
    write_clip(world.data / "Test" / "Test001", footage(24, 11, fast=range(10, 18)))
    write_clip(world.data / "Test" / "Test002", footage(20, 12))
    listed = "TestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [11:18];\nTestVideoFile{end+1}.gt_frame = [];\n"
    (world.data / "Test" / "UCSDped2.m").write_text(listed)
    torch.manual_seed(0)
    config = parse_config(CLIP_RECIPE)
    model = DiffusionModel(config, build_denoiser(config), constants={"background": torch.zeros(1, 16, 24)})
    model.save(world.raw)
    calibrate.run(world.raw, world.data, world.model, device="cpu", quiet=True)
    return world


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
