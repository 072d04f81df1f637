"""generate, denoise, inpaint, restore, edit: files on the inputs' own grid, rows for broken ones, resumed runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anodiff.pipelines.restoring_options import SOLVER_NAMES
from anodiff.restoration import SOLVERS

Run = Callable[..., int]
COLUMNS = ["id", "path", "nfe", "status", "error", "seconds"]
QUICK = ("--device", "cpu", "--steps", "2")


@pytest.fixture
def inputs(world: Any, tmp_path: Path) -> Path:
    world.write_images(tmp_path / "in", 2, 400)
    return tmp_path / "in"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_options_name_the_solvers() -> None:
    assert tuple(SOLVERS) == SOLVER_NAMES


def test_generate_writes_and_extends_a_run(anodiff: Run, world: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert anodiff("generate", world.raw, "-n", 2, "--npy", "--output", out, *QUICK) == 0
    rows = world.read_table(out / "results.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["id"] for row in rows] == ["000000", "000001"]
    assert {row["nfe"] for row in rows} == {"2"}
    first = pixels(out / "images" / "000000.png")
    assert first.shape == (16, 16)
    assert first.dtype == np.uint8
    values = np.load(out / "arrays" / "000000.npy")
    np.testing.assert_array_equal(first, np.round((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    assert anodiff("generate", world.raw, "-n", 3, "--npy", "--output", out, *QUICK) == 0
    np.testing.assert_array_equal(pixels(out / "images" / "000000.png"), first)
    assert (out / "images" / "000002.png").exists()
    page = (out / "report.html").read_text()
    assert page.count("data:image/") == 3
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert anodiff("generate", world.raw, "-n", 3, "--seed", 1, "--npy", "--output", out, *QUICK) == 2


def test_denoise_keeps_grid_and_values_and_lists_broken_files(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path
) -> None:
    (inputs / "broken.png").write_bytes(b"no picture")
    values = pixels(inputs / "i000.png").astype(np.uint16) * 200
    Image.fromarray(values).save(inputs / "deep.png")
    out = tmp_path / "out"
    assert anodiff("denoise", world.raw, inputs, "--uncertainty", "--npy", "--output", out, *QUICK) == 1
    rows = {row["id"]: row for row in world.read_table(out / "results.csv")}
    assert list(rows["i000"]) == ["id", "path", "nfe", "sigma", "status", "error", "seconds"]
    assert rows["broken"]["status"] == "failed"
    assert "broken.png" in rows["broken"]["error"]
    assert float(rows["i000"]["sigma"]) > 0
    assert rows["i000"]["nfe"] == "1"
    assert pixels(out / "images" / "i000.png").shape == (20, 24)
    assert pixels(out / "images" / "deep.png").dtype == np.uint16
    assert np.load(out / "arrays" / "i000.npy").shape == (20, 24)
    assert np.load(out / "uncertainty" / "i000.npy").shape == (20, 24)
    page = (out / "report.html").read_text()
    assert 'type="range"' in page
    assert "broken.png" in page


def test_denoise_estimates_or_samples(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    one = inputs / "i000.png"
    assert anodiff("denoise", world.raw, one, "--sigma", 0.3, "--output", tmp_path / "a", *QUICK) == 0
    assert anodiff("denoise", world.raw, one, "--sigma", 0.3, "--sample", "--output", tmp_path / "b", *QUICK) == 0
    assert anodiff("denoise", world.raw, one, "--noise", "rician", "--output", tmp_path / "c", *QUICK) == 0
    assert world.read_table(tmp_path / "b" / "results.csv")[0]["nfe"] == "3"
    found = [pixels(next((tmp_path / name / "images").iterdir())) for name in "abc"]
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("mask", ["box", "file", "folder"])
def test_inpainting_changes_the_hole_alone(anodiff: Run, world: Any, inputs: Path, tmp_path: Path, mask: str) -> None:
    hole = np.zeros((20, 24), dtype=bool)
    hole[6:14, 8:18] = True
    (tmp_path / "masks").mkdir()
    for name in ("i000.png", "i001_mask.png"):
        Image.fromarray(hole.astype(np.uint8) * 255).save(tmp_path / "masks" / name)
    where = {
        "box": ("--box", "6,8,8,10"),
        "file": ("--mask", tmp_path / "masks" / "i000.png"),
        "folder": ("--mask", tmp_path / "masks"),
    }[mask]
    out = tmp_path / "out"
    assert anodiff("inpaint", world.raw, inputs, *where, "--output", out, *QUICK) == 0
    for name in ("i000.png", "i001.png"):
        before, after = pixels(inputs / name), pixels(out / "images" / name)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert not np.array_equal(after[hole], before[hole])


def test_inpainting_where_anomalous_needs_and_uses_the_calibration(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world.write_images(tmp_path / "in", 2, 300, lesion=True)
    out = tmp_path / "out"
    assert anodiff("inpaint", world.raw, tmp_path / "in", "--where-anomalous", "--output", out, *QUICK) == 2
    assert "not calibrated" in capfd.readouterr().err
    assert anodiff("inpaint", world.model, tmp_path / "in", "--where-anomalous", "--output", out, *QUICK) == 0
    for name in ("i000.png", "i001.png"):
        mask = pixels(out / "masks" / name) > 0
        before, after = pixels(tmp_path / "in" / name), pixels(out / "images" / name)
        np.testing.assert_array_equal(after[~mask], before[~mask])
    assert any((pixels(out / "masks" / name) > 0).any() for name in ("i000.png", "i001.png"))


@pytest.mark.parametrize("solver", ["matched", "proximal"])
def test_super_resolution_is_so_much_larger(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, solver: str
) -> None:
    out = tmp_path / "out"
    arguments = ("--operator", "superres:2", "--solver", solver, "--output", out, *QUICK)
    assert anodiff("restore", world.raw, inputs, *arguments) == 0
    assert pixels(out / "images" / "i000.png").shape == (40, 48)


def test_super_resolution_agrees_with_what_was_measured(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    """An 8x8 file for a 16x16 model: the averages of the result are the file, to rounding."""
    small = np.random.default_rng(0).integers(60, 200, (8, 8)).astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    arguments = ("--operator", "superres:2", "--solver", "projected", "--npy", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", world.raw, tmp_path / "small.png", *arguments) == 0
    large = np.load(tmp_path / "out" / "arrays" / "small.npy")
    np.testing.assert_allclose(large.reshape(8, 2, 8, 2).mean((1, 3)), small, atol=0.01)


@pytest.mark.parametrize("operator", ["blur:gaussian:0.8", "slices:every:2", "kspace:2x", "mask"])
def test_restore(anodiff: Run, world: Any, inputs: Path, tmp_path: Path, operator: str) -> None:
    fitting = tmp_path / "fitting"
    fitting.mkdir()
    Image.fromarray(pixels(inputs / "i000.png")[:16, 4:20]).save(fitting / "a.png")
    if operator == "mask":
        hole = np.zeros((16, 16), dtype=np.uint8)
        hole[4:8, 4:8] = 255
        Image.fromarray(hole).save(tmp_path / "hole.png")
        operator = f"mask:{tmp_path / 'hole.png'}"
    out = tmp_path / "out"
    assert anodiff("restore", world.raw, fitting, "--operator", operator, "--output", out, *QUICK) == 0
    assert pixels(out / "images" / "a.png").shape == (16, 16)
    if operator.startswith("slices"):  # another size has other slices
        assert anodiff("restore", world.raw, inputs, "--operator", operator, "--output", tmp_path / "b", *QUICK) == 1
        assert "expected 16x16" in world.read_table(tmp_path / "b" / "results.csv")[0]["error"]


def test_an_edit_stays_inside_its_box(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    arguments = ("--sigma", 0.8, "--box", "5,5,8,8", "--output", tmp_path / "out", *QUICK)
    assert anodiff("edit", world.raw, inputs, *arguments) == 0
    before, after = pixels(inputs / "i000.png"), pixels(tmp_path / "out" / "images" / "i000.png")
    outside = np.ones(before.shape, dtype=bool)
    outside[5:13, 5:13] = False
    np.testing.assert_array_equal(after[outside], before[outside])
    assert not np.array_equal(after, before)
    assert anodiff("edit", world.raw, inputs, "--strength", 0.2, "--output", tmp_path / "b", *QUICK) == 0


def test_a_result_does_not_depend_on_its_batch_mates(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    for name, paths in (("all", [inputs]), ("one", [inputs / "i001.png"])):
        arguments = ("--box", "6,8,8,10", "--output", tmp_path / name, *QUICK)
        assert anodiff("inpaint", world.raw, *paths, *arguments) == 0
    np.testing.assert_array_equal(
        pixels(tmp_path / "all" / "images" / "i001.png"), pixels(tmp_path / "one" / "images" / "i001.png")
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("denoise", "--sigma", "loud"), "--sigma: expected auto"),
        (("denoise", "--noise", "rician", "--sample"), "--noise gaussian"),
        (("inpaint",), "exactly one"),
        (("inpaint", "--box", "1,2,3"), "Y,X,H,W"),
        (("inpaint", "--mask", "nowhere.png"), "no such path"),
        (("inpaint", "--box", "1,1,4,4", "--solver", "best"), "solver"),
        (("restore", "--operator", "superres:3"), "factor that divides"),
        (("restore", "--operator", "magic:3"), "--operator: expected"),
        (("restore", "--operator", "mask:"), "mask:FILE"),
        (("edit",), "exactly one"),
        (("edit", "--sigma", "-1"), "positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unusable_arguments_are_one_sentence(
    anodiff: Run,
    world: Any,
    inputs: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = (words[0], world.raw, inputs, *words[1:], "--output", tmp_path / "out", *QUICK)
    assert anodiff(*arguments) == 2
    error = capfd.readouterr().err
    assert says in error
    assert "Traceback" not in error
