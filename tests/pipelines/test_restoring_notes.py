"""What restoring says of its results: what the model did not see, levels in the file's values, empty masks, reports."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.pipelines.restoring_notes import chain_facts, run_notes
from anodiff.restoration import Restorer

Run = Callable[..., int]
QUICK = ("--device", "cpu", "--steps", "2")
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [8, 8], "foreground": "none"},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "diffusion": {"sigma_data": 0.5},
    "engine": {"network_batch": 2},
}
ROBUST = {"kind": "robust", "clip": 2.0}


def saved(path: Path, noise: str = "gaussian", volume: dict[str, Any] | None = None, **preprocess: Any) -> Path:
    """A model whose network is 0: with the prediction "edm" it is the exact denoiser of N(0, 0.5^2)."""
    changes = {} if volume is None else {"volume": volume}
    given = {**RECIPE, **changes, "preprocess": {**RECIPE["preprocess"], **preprocess}}
    config = parse_config({**given, "diffusion": {"sigma_data": 0.5, "noise": noise}})
    DiffusionModel(config, build_denoiser(config)).save(path)
    return path


def pictures(folder: Path) -> Path:
    """Two of 16x16, twice the model's, and one of 8x8: uint8 with outliers in a sixteenth of the pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, side in (("a", 16), ("b", 16), ("c", 8)):
        values = rng.normal(100, 10, (side, side))
        values[: side // 4, : side // 4] = 250
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def text_of(folder: Path) -> str:
    return html.unescape((folder / "report.html").read_text())


def test_a_run_says_what_the_model_did_not_see_and_levels_in_the_file_s_values(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, out = saved(tmp_path / "m.safetensors", intensity=ROBUST), tmp_path / "out"
    data = pictures(tmp_path / "in")
    assert anodiff("denoise", model, data, "--sigma", 0.1, "--output", out, *QUICK) == 0
    rows = {row["id"]: row for row in world.read_table(out / "results.csv")}
    assert [(row["grid"], row["model_grid"], float(row["shrink"])) for row in rows.values()] == [
        ("16x16", "8x8", 2.0), ("16x16", "8x8", 2.0), ("8x8", "8x8", 1.0),
    ]  # fmt: skip
    with Image.open(data / "c.png") as picture:
        values = np.asarray(picture).astype(float)
    low, middle, high = np.percentile(values, [25, 50, 75])
    scale = 2 * (high - low) / 2 / 0.6744897501960817
    assert float(rows["c"]["sigma_file"]) == pytest.approx(0.1 * scale, rel=1e-6)
    assert float(rows["c"]["clipped"]) == pytest.approx((np.abs(values - middle) > scale).mean())
    said, page = capfd.readouterr().err, text_of(out)
    levels = [float(row["sigma_file"]) for row in rows.values()]
    for note in (
        "2 of 3 images were resized from 16x16 to 8x8: detail finer than 2 px is lost (column shrink of results.csv)",
        "of the foreground of 3 of 3 images",
        f"0.1 is a deviation of {min(levels):.4g} to {max(levels):.4g} in the files' values",
    ):
        assert said.count(note) == 1
        assert page.count(note) == 1
    assert f"sigma 0.1, {float(rows['c']['sigma_file']):.4g} in the file's values (given)" in page
    assert "None" not in page
    assert "<dt>sampler" not in page


def test_an_empty_mask_costs_no_call_and_keeps_every_bit(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, out = saved(tmp_path / "m.safetensors"), tmp_path / "out"
    data, masks = pictures(tmp_path / "in"), tmp_path / "masks"
    masks.mkdir()
    for name, side, white in (("a", 16, False), ("b", 16, True), ("c", 8, False)):
        mask = np.zeros((side, side), dtype=np.uint8)
        mask[4:8, 4:8] = 255 * white
        Image.fromarray(mask).save(masks / f"{name}.png")
    words = ("--mask", masks, "--solver", "projected", "--output", out)
    assert anodiff("inpaint", model, data, *words, *QUICK) == 0
    rows = {row["id"]: row for row in world.read_table(out / "results.csv")}
    assert [(rows[name]["nfe"], bool(rows[name]["remark"])) for name in "abc"] == [
        ("0", True), ("2", False), ("0", True),
    ]  # fmt: skip
    for name in "ac":
        with Image.open(data / f"{name}.png") as before, Image.open(out / "images" / f"{name}.png") as after:
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    page = text_of(out)
    said = capfd.readouterr().err
    assert "2 of 3 images: the mask is empty: the result is the input" in said
    assert "1 of 3 images was resized" in said
    assert page.count('<svg class="hole"') == 1
    assert 'viewBox="0 0 16 16"' in page
    assert "M4 4h4" in page
    assert "<dt>sampler</dt><dd>dpmpp</dd>" in page
    assert "None" not in page


def test_volumes_say_it_too(anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slices = {"axes": [2], "spacing": [2.0, 2.0, 0.0], "orientation": None, "statistics": "slice"}
    model = saved(tmp_path / "m.safetensors", volume=slices, intensity=ROBUST)
    values = np.random.default_rng(0).normal(100, 10, (16, 16, 3)).astype(np.float32)
    scan, mask = tmp_path / "x.nii.gz", tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), scan)
    nibabel.save(nibabel.Nifti1Image(np.zeros(values.shape, dtype=np.uint8), np.eye(4)), mask)
    assert anodiff("denoise", model, scan, "--sigma", 0.1, "--output", tmp_path / "d", *QUICK) == 0
    note = "1 of 1 volumes was resized from 16x16x3 to 8x8x3: detail finer than 2 voxels is lost"
    assert note in capfd.readouterr().err
    row = world.read_table(tmp_path / "d" / "results.csv")[0]
    levels = [float(each["sigma_file"]) for each in world.read_table(tmp_path / "d" / "slices.csv")]
    assert len(levels) == 3
    assert float(row["sigma_file"]) == pytest.approx(np.median(levels))
    assert 0 < float(row["clipped"]) < 0.3
    assert anodiff("inpaint", model, scan, "--mask", mask, "--output", tmp_path / "i", *QUICK) == 0
    row = world.read_table(tmp_path / "i" / "results.csv")[0]
    assert row["nfe"] == "0"
    assert row["remark"].endswith("the mask is empty: the result is the input")
    said = capfd.readouterr().err
    assert said.count("the mask is empty: the result is the input") == 1
    assert "resized" not in said
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "i" / "images" / "x.nii.gz").dataobj), values)


def test_sizes_that_differ_are_one_note() -> None:
    done = {"status": "ok", "clipped": 0.0}
    rows = [
        {**done, "grid": "16x16", "model_grid": "8x8", "shrink": 2.0},
        {**done, "grid": "16x16", "model_grid": "8x8", "shrink": 2.0},
        {**done, "grid": "24x24", "model_grid": "8x8", "shrink": 3.0},
        {**done, "grid": "4x4", "model_grid": "8x8", "shrink": 0.5},
        {"status": "failed"},
    ]
    (note,) = run_notes(rows, "images", masked=True)
    assert note.startswith("3 of 4 images were resized from 16x16 to 8x8 (2 of them; others in column model_grid)")
    assert "detail finer than 2 to 3 px is lost" in note
    assert note.endswith("what lies outside the masks is as it was read")
    assert run_notes(rows[3:], "images", masked=False) == ()


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"solver": "matched"}, None, "dpmpp"),
        ({"solver": "matched"}, "heun", "heun"),
        ({"solver": "resampled"}, None, "ancestral"),
        ({"solver": "projected", "sigma_y": 0.1}, None, "ancestral"),
        ({"start": "inversion"}, None, "heun"),
        ({"start": "noise"}, None, "dpmpp"),
        ({"sample": True}, None, "ancestral"),
        ({"sample": False}, None, None),
        ({}, None, "dpmpp"),
    ],
    ids=str,
)
def test_the_report_names_the_sampler_that_runs(settings: dict[str, Any], given: str | None, expected: str) -> None:
    assert chain_facts(settings, SimpleNamespace(sampler=given))["sampler"] == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("noise", "says"), [("gaussian", ""), ("mixed", "visibly worse"), ("pyramid", "Bayes")])
def test_a_model_of_other_noise_says_what_it_is_worse_at(tmp_path: Path, noise: str, says: str) -> None:
    from anodiff.model import load

    notes = Restorer(load(saved(tmp_path / "m.safetensors", noise)), device="cpu").notes
    assert len(notes) == (noise != "gaussian")
    assert says in " ".join(notes)
