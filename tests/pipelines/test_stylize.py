"""anodiff stylize: images on their own grid, scores in the table, what cannot be styled refused before anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser, load

Run = Callable[..., int]
LOST = ["grid", "model_grid", "shrink", "clipped", "remark"]
COLUMNS = ["content_ssim", "style_distance", "style_distance_before", "cycle_rmse"]
QUICK = ("--device", "cpu", "--steps", "2")


@pytest.fixture
def inputs(world: Any, tmp_path: Path) -> Path:
    world.write_images(tmp_path / "in", 2, 400)
    return tmp_path / "in"


def test_from_one_model_to_another(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    (inputs / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert anodiff("stylize", world.raw, inputs, "--target-model", world.model, "--output", out, *QUICK) == 1
    rows = {row["id"]: row for row in world.read_table(out / "results.csv")}
    assert list(rows["i000"]) == ["id", "path", "nfe", *COLUMNS, *LOST, "status", "error", "seconds"]
    assert rows["broken"]["status"] == "failed"
    assert rows["i000"]["nfe"] == "16"
    # both models are the same weights, so the bridge is a way there and back: what is left is the solver's error
    assert float(rows["i000"]["content_ssim"]) > 0.5
    assert 0 <= float(rows["i000"]["cycle_rmse"]) < 1
    with Image.open(out / "images" / "i000.png") as picture:
        assert np.asarray(picture).shape == (20, 24)
    assert 'type="range"' in (out / "report.html").read_text()
    before = (out / "images" / "i000.png").read_bytes()
    assert anodiff("stylize", world.raw, inputs, "--target-model", world.model, "--output", out, *QUICK) == 1
    assert (out / "images" / "i000.png").read_bytes() == before


def test_the_style_of_an_image(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    stripes = (128 + 100 * np.sin(np.arange(24) * 1.5)).astype(np.uint8)
    Image.fromarray(np.tile(stripes, (20, 1))).save(tmp_path / "style.png")
    arguments = ("--style", tmp_path / "style.png", "--no-cycle", "--output", tmp_path / "out", *QUICK)
    assert anodiff("stylize", world.raw, inputs, *arguments) == 0
    for row in world.read_table(tmp_path / "out" / "results.csv"):
        assert row["nfe"] == "8"
        assert row["cycle_rmse"] == ""
        assert float(row["style_distance"]) < float(row["style_distance_before"])


def test_what_cannot_be_styled(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load(world.raw).config.model_dump(mode="json")
    config["preprocess"]["size"] = [8, 16]
    other = parse_config(config)
    torch.manual_seed(0)
    DiffusionModel(other, build_denoiser(other)).save(tmp_path / "other.safetensors")
    for arguments, words in (
        ((), "exactly one of --style and --target-model"),
        (
            ("--target-model", tmp_path / "other.safetensors"),
            "1 channels and 16x16 pixels like MODEL, found 1 and 8x16",
        ),
        (("--style", inputs / "i000.png", "--sigma", 500), "which both models know"),
        (("--style", tmp_path / "none.png"), "none.png"),
    ):
        assert anodiff("stylize", world.raw, inputs, *arguments, "--output", tmp_path / "out", *QUICK) == 2
        assert words in capfd.readouterr().err
        assert not (tmp_path / "out").exists()
