"""What windows change, measured: small, and where nothing may change."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.config import parse_config
from anodiff.data.phantoms import write_phantoms
from anodiff.model import DiffusionModel, build_denoiser
from benchmarks.speed import windows
from benchmarks.speed.__main__ import results


@pytest.fixture
def case(tmp_path: Path, tiny_recipe: dict[str, Any]) -> tuple[Path, Path]:
    """A model without calibration, whose network looks beyond a pixel, and phantoms of its size."""
    data = tmp_path / "data"
    write_phantoms(data, n_train=2, n_val=2, n_test_good=2, n_test_lesion=3, size=32, seed=0)
    recipe = tiny_recipe | {"preprocess": {"size": [32, 32]}, "preset": "one-step"}
    denoiser = build_denoiser(parse_config(recipe))
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    DiffusionModel(parse_config(recipe), denoiser).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", data


def test_windows_are_measured_and_stand_in_the_page(
    case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WINDOWS", ((1.0, 0.5), (0.5, 0.5)))
    output = tmp_path / "windows.json"
    words = ["--model", *map(str, (case[0], "--data", case[1], "--work", tmp_path, "--output", output))]
    one, half = windows.main([*words, "--images", "4", "--device", "cpu"])
    whole = json.loads(output.read_text())["whole"]
    assert (one["windows"], half["windows"]) == (1, 9)
    assert one["reconstructions"] == one["maps"] == 0  # a window as large as the image is the image
    assert one["pixel_auroc"] == whole["pixel_auroc"]
    assert 0 < half["reconstructions"] < 1
    text = results(tmp_path)
    assert "## Whole images and windows" in text
    assert "| 16x16 | 50% | 9 |" in text
    assert "(+0.0000)" in text
    assert "trained on" not in text
    found = json.loads(output.read_text())
    assert "4 images of 32x32; a model that was trained on 3,200 images; dist" in windows.table(
        found | {"training_images": 3200}
    )
