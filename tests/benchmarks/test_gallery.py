"""The gallery: its figures show their pictures, hatch holes only, and come from the model alone."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.config import parse_config
from anodiff.errors import ConfigError
from anodiff.model import DiffusionModel, build_denoiser
from benchmarks.quality import gallery


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def red(picture: np.ndarray) -> int:
    return int((picture[..., 0] - picture[..., 2] > 80).sum())


def test_holes_are_hatched_and_pictures_are_not_hidden() -> None:
    whole = torch.zeros(8, 8)
    holed = whole.clone()
    holed[2:6, 2:6] = torch.nan
    shown = pixels(gallery.drawn([[gallery.Panel("a", whole)]]))
    assert red(shown) == 0
    assert ((shown > 110) & (shown < 145)).all(axis=2).mean() > 0.3, "the grey picture fills the panel"
    assert red(pixels(gallery.drawn([[gallery.Panel("a", holed)]]))) > 50


def test_the_command_draws_what_it_is_asked_for(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gallery.restorer_of
    monkeypatch.setattr(gallery, "restorer_of", lambda *given, **_: whole(*given, steps=2))
    config = parse_config({**tiny_recipe, "preprocess": {"size": [64, 64]}})
    DiffusionModel(config, build_denoiser(config)).save(tmp_path / "model.safetensors")
    words = ["--model", str(tmp_path / "model.safetensors"), "--output", str(tmp_path), "--device", "cpu"]
    gallery.main([*words, "--figures", "generate", "inpaint"])
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["gallery_generate.png", "gallery_inpaint.png"]
    assert pixels((tmp_path / "gallery_generate.png").read_bytes()).std() > 10


def test_every_figure_stands_in_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gallery.md").read_text()
    for name in gallery.FIGURES:
        assert f"images/gallery_{name}.png" in page
        path = Path(__file__).parents[2] / "docs" / "images" / f"gallery_{name}.png"
        assert path.stat().st_size < 300_000


@pytest.mark.parametrize("name", ["kspace:4x", "blur"])
def test_measurements_are_shown_as_pictures(name: str) -> None:
    y = torch.randn(1, 2, 8, 8)
    shown = gallery.measured_view(name, y)
    assert shown.shape == (8, 8)
    if name == "blur":
        assert torch.equal(shown, y[0, 0])
    else:
        assert (float(shown.min()), float(shown.max())) == (-1, 1)


def test_figures_say_what_they_lack(
    tiny_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config({**tiny_recipe, "preprocess": {"size": [64, 64]}})
    DiffusionModel(config, build_denoiser(config)).save(tmp_path / "model.safetensors")
    words = ["--model", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    gallery.main([*words, "--figures", "volume", "--volumes", str(tmp_path / "none")])
    assert "left out volume: expected a folder of the patients of open_ms" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="expected a calibrated model"):
        gallery.main([*words, "--figures", "counterfactual"])
    assert not list((tmp_path / "out").iterdir())


def test_planes_of_a_volume_go_through_its_hole() -> None:
    volume = torch.arange(32**3).reshape(32, 32, 32)
    i, j, k = gallery.MIDDLE
    for axis in range(3):
        plane = gallery.across(volume, axis)
        assert plane.shape == (32, 32)
        assert (plane == volume[i, j, k]).any()
    assert gallery.across(volume, 2)[0, 3] == volume[3, -1, k]  # j upwards, i to the right
