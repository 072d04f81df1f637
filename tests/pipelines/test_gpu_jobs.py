"""Every job that computes, on a GPU: it ends well there, and what it writes is what the CPU writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import anodiff as library

pytestmark = pytest.mark.gpu

Run = Callable[..., int]
DEVICE = "cuda"
EXACT = ("--precision", "fp32")
FEW = ("--steps", "2")


@pytest.fixture
def inputs(world: Any, tmp_path: Path) -> Path:
    world.write_images(tmp_path / "in", 3, 400)
    return tmp_path / "in"


def pictures(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((folder / "images").glob("*.png")):
        with Image.open(path) as picture:
            found[path.name] = np.asarray(picture).astype(float)
    return found


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("denoise", ("--sigma", 0.3)),
        ("denoise", ("--sigma", 0.3, "--uncertainty")),
        ("inpaint", ("--box", "6,8,8,10")),
        ("inpaint", ("--box", "6,8,8,10", "--solver", "proximal")),
        ("restore", ("--operator", "superres:2", "--solver", "matched")),
        ("restore", ("--operator", "superres:2", "--solver", "proximal")),
        ("edit", ("--sigma", 0.5)),
    ],
)
def test_a_restoration_is_that_of_the_cpu(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, job: str, options: tuple[object, ...]
) -> None:
    steps = () if job == "denoise" and "--uncertainty" not in options else FEW
    for device in (DEVICE, "cpu"):
        words = (
            job,
            world.raw,
            inputs,
            *options,
            *steps,
            *EXACT,
            "--device",
            device,
            "--set",
            "engine.network_batch=2",
        )
        assert anodiff(*words, "--output", tmp_path / device) == 0
    there, here = pictures(tmp_path / DEVICE), pictures(tmp_path / "cpu")
    assert list(there) == list(here) != []
    for name, picture in there.items():
        assert np.abs(picture - here[name]).mean() <= 1, name
    assert {row["status"] for row in world.read_table(tmp_path / DEVICE / "results.csv")} == {"ok"}


def test_generated_images_are_those_of_the_cpu(anodiff: Run, world: Any, tmp_path: Path) -> None:
    for device in (DEVICE, "cpu"):
        words = ("generate", world.raw, "-n", 3, *FEW, *EXACT, "--device", device, "--output", tmp_path / device)
        assert anodiff(*words) == 0
    there, here = pictures(tmp_path / DEVICE), pictures(tmp_path / "cpu")
    assert len(there) == 3
    assert all(np.abs(there[name] - here[name]).mean() <= 1 for name in here)


def test_a_style_is_taken_over(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    words = ("stylize", world.raw, inputs, "--target-model", world.model, *FEW, *EXACT, "--device", DEVICE)
    assert anodiff(*words, "--output", tmp_path / "out") == 0
    rows = world.read_table(tmp_path / "out" / "results.csv")
    assert all(float(row["content_ssim"]) > 0.5 for row in rows)


@pytest.mark.parametrize("estimate", ["continuous", "flow"])
def test_bits_are_those_of_the_cpu(anodiff: Run, world: Any, inputs: Path, tmp_path: Path, estimate: str) -> None:
    found = []
    for device in (DEVICE, "cpu"):
        words = ("likelihood", world.raw, inputs, "--estimate", estimate, "--levels", 4, *EXACT, "--device", device)
        assert anodiff(*words, "--output", tmp_path / device) == 0
        found.append([float(row["bits_per_dim"]) for row in world.read_table(tmp_path / device / "results.csv")])
    assert len(found[0]) == 3
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_evaluating_and_calibrating_agree_with_the_cpu(anodiff: Run, world: Any, tmp_path: Path) -> None:
    scores = []
    for device in (DEVICE, "cpu"):
        model = tmp_path / f"{device}.safetensors"
        assert anodiff("calibrate", world.raw, world.data, "--device", device, *EXACT, "--output", model) == 0
        out = tmp_path / device
        words = ("evaluate", model, world.data, "--baselines", "--device", device, *EXACT, "--output", out)
        assert anodiff(*words) == 0
        scores.append([float(row["score"]) for row in world.read_table(out / "scores.csv")])
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-3)


def test_tuning_chooses_and_the_new_model_scores(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    model = tmp_path / "tuned.safetensors"
    words = ("tune", world.raw, world.data, "--images", 8, "--noises", "none", "--levels", "1.0", "--device", DEVICE)
    assert anodiff(*words, "--output", model) == 0
    assert anodiff("score", model, inputs, "--device", DEVICE, "--output", tmp_path / "out") == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_goes_on_and_its_model_scores_on_a_cpu(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, precision: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    values = library.load(world.raw).config.model_dump(mode="json")
    training = {"images": 32, "batch_size": 8, "warmup_images": 8, "validate_every_images": 16, "validation_images": 4}
    recipe.write_text(yaml.safe_dump(values | {"training": training}))
    words = ("train", recipe, "--data", world.data, "--device", DEVICE, "--precision", precision)
    assert anodiff(*words, "--output", tmp_path / "run") == 0
    model = tmp_path / "run" / "model.safetensors"
    assert library.load(model).provenance["images_seen"] == 32
    assert anodiff("score", model, inputs, "--device", "cpu", "--output", tmp_path / "out") == 0


def test_clips_are_scored_and_watched_as_on_the_cpu(anodiff: Run, clips: Any, tmp_path: Path) -> None:
    night, found = clips.data / "Test" / "Test001", []
    for device in (DEVICE, "cpu"):
        out = tmp_path / device
        assert anodiff("score", clips.model, night, "--device", device, *EXACT, "--output", out) == 0
        found.append([float(row["score"]) for row in clips.read_table(out / "frames.csv") if row["score"]])
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)
    assert anodiff("watch", clips.model, night, "--device", DEVICE, "--output", tmp_path / "watched") == 0
