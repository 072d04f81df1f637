"""Given foregrounds of 2-D images, from a table or a pattern: scored with, calibrated with, resumed by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.files import load_map
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.pipelines import calibrate, cli, evaluate, score
from anodiff.pipelines.scoring import ESTIMATED_COUNT, GIVEN_COUNT

QUIET: dict[str, Any] = {"device": "cpu", "quiet": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """D = 0 whatever it is shown, so that a map is the prepared image itself."""
    config = parse_config({
        "name": "mirror",
        "polarity": "brighter",
        "preset": "one-step",
        "presets": {"one-step": {"smooth_px": 0.0, "standardise": "none", "foreground": False, "antithetic": False}},
        "preprocess": {"size": [16, 16], "intensity": {"kind": "percentile", "low": 5, "high": 95}},
        "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
        "diffusion": {"prediction": "x0"},
        "engine": {"network_batch": 4},
    })  # fmt: skip
    torch.set_num_threads(1)
    DiffusionModel(config, build_denoiser(config)).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def lump(top: int = 3) -> np.ndarray:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[top : top + 6, 5:12] = 255
    return mask


def picture(path: Path, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(1, 250, (16, 16), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def expected(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values[mask > 0].astype(np.float64), (5, 95))
    return np.clip((values - low) / (high - low) * 2 - 1, -1, 1)


def test_score_by_a_pattern_and_by_a_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = picture(tmp_path / "in" / "x.png", 0)
    Image.fromarray(lump()).save(tmp_path / "in" / "x_in.png")
    out = tmp_path / "out"
    arguments = ["score", model, tmp_path / "in", "--output", out, "--device", "cpu", "--foreground", "{stem}_in.png"]
    assert cli.main([str(each) for each in arguments]) == 0
    assert "the foreground of 1 of 1 inputs is given" in capsys.readouterr().err
    np.testing.assert_allclose(load_map(out / "maps" / "x.npy"), expected(values, lump()), atol=1e-4)
    (tmp_path / "t.csv").write_text("path,foreground\nin/x.png,in/x_in.png\n")
    score.run(model, [str(tmp_path / "t.csv")], tmp_path / "listed", **QUIET)
    np.testing.assert_array_equal(load_map(tmp_path / "listed" / "maps" / "x.npy"), load_map(out / "maps" / "x.npy"))
    # and a row that names one that is not there
    (tmp_path / "t.csv").write_text("path,foreground\nin/x.png,in/no.png\n")
    assert score.run(model, [str(tmp_path / "t.csv")], tmp_path / "no", **QUIET).failed == 1


def test_a_changed_mask_is_a_changed_image(model: Path, tmp_path: Path) -> None:
    lines = ["path,label,foreground"]
    values = []
    for n in (0, 1):
        values.append(picture(tmp_path / f"x{n}.png", n))
        Image.fromarray(lump()).save(tmp_path / f"m{n}.png")
        lines.append(f"x{n}.png,{n},m{n}.png")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    evaluate.run(model, tmp_path / "t.csv", tmp_path / "out", **QUIET)
    summary, _ = evaluate.run(model, tmp_path / "t.csv", tmp_path / "out", **QUIET)
    assert summary.resumed == 2
    Image.fromarray(lump(8)).save(tmp_path / "m1.png")
    summary, _ = evaluate.run(model, tmp_path / "t.csv", tmp_path / "out", **QUIET)
    assert summary.resumed == 1
    for n, mask in ((0, lump()), (1, lump(8))):
        np.testing.assert_allclose(
            load_map(tmp_path / "out" / "maps" / f"x{n}.npy"), expected(values[n], mask), atol=1e-4
        )


def test_a_calibration_knows_whether_they_were_given(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(6):
        picture(tmp_path / "normals" / f"n{n}.png", n)
        Image.fromarray(lump()).save(tmp_path / "normals" / f"n{n}_in.png")
    path, _ = calibrate.run(
        model, tmp_path / "normals", tmp_path / "g.safetensors", foreground="{stem}_in.png", **QUIET
    )
    counts = load(path).calibrations["one-step"].counts
    assert counts[GIVEN_COUNT] == 6
    assert counts[ESTIMATED_COUNT] == 0
    one = str(tmp_path / "normals" / "n0.png")
    score.run(path, [one], tmp_path / "plain", device="cpu")
    said = capsys.readouterr().err
    assert "the foreground of 1 of 1 inputs is estimated" in said
    assert "where those of the calibration's normals were given" in said
    score.run(path, [one], tmp_path / "given", foreground=str(tmp_path / "normals" / "n0_in.png"), device="cpu")
    assert "where those of the calibration's normals" not in capsys.readouterr().err


def test_a_split_keeps_them(tmp_path: Path) -> None:
    from anodiff.data.layouts import load_table
    from anodiff.pipelines import split

    lines = ["path,label,group,foreground"]
    for n in range(6):
        picture(tmp_path / f"x{n}.png", n)
        lines.append(f"x{n}.png,0,p{n},m{n}.png")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    arguments = ["split", tmp_path / "t.csv", "--output", tmp_path / "s.csv", "--fractions", "train=0.5,test=0.5"]
    assert cli.main([str(each) for each in arguments]) == 0
    assert split.COLUMNS == ("path", "label", "mask", "group", "split")
    table = load_table(tmp_path / "s.csv").table
    for path, mask in zip(table["path"], table["foreground"], strict=True):
        assert Path(mask).name == Path(path).name.replace("x", "m")
