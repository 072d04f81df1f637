"""Every task on colour images, from the command line and from Python: own grid and type, slider, nothing done twice."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.pipelines import calibrate
from anodiff.restoration import Mask, Restorer, cartesian_lines
from anodiff.restoration.parse import parse_operator
from anodiff.restoration.style import stylize

Run = Callable[..., int]
QUICK = ("--device", "cpu", "--steps", "2")
SIDE = 16
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preset": "one-step",
    "preprocess": {"size": [SIDE, SIDE], "channels": 3},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "engine": {"network_batch": 2},
}


def colour(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """A smooth picture (height, width, 3), uint8, whose channels differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [120 + 60 * np.sin(x / 4 + rng.uniform(0, 6)) + 40 * np.cos(y / (3 + n)) for n in range(3)]
    return (np.stack(planes, 2) + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)


def save_model(path: Path, **changes: Any) -> Path:
    """A small model of colour images whose weights are not zero."""
    torch.manual_seed(0)
    config = parse_config({**RECIPE, **changes})
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    DiffusionModel(config, denoiser).save(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of colour images, plain (calibrated) and of two classes; images in/ larger than their grid, same/ not."""
    root = tmp_path_factory.mktemp("colour")
    for name, count, side in (("normals", 24, (20, 24)), ("in", 2, (20, 24)), ("same", 2, (SIDE, SIDE))):
        (root / name).mkdir()
        for n in range(count):
            Image.fromarray(colour(100 * len(name) + n, *side)).save(root / name / f"i{n}.png")
        hole = np.zeros(side, dtype=np.uint8)
        hole[5:11, 6:12] = 255
        Image.fromarray(hole).save(root / f"{name}.png")
    raw = save_model(root / "raw.safetensors")
    calibrate.run(raw, root / "normals", root / "model.safetensors", device="cpu", quiet=True)
    save_model(root / "classes.safetensors", conditioning={"classes": ["healthy", "diseased"]})
    return root


TASKS = (
    "denoise in --sigma 0.2 --sample --uncertainty",
    "denoise in --noise rician",
    "inpaint in --box 5,6,6,6",
    "inpaint in --mask {root}/in.png --solver proximal",
    "inpaint in --where-anomalous --solver proximal",
    "restore same --operator superres:2",
    "restore same --operator blur:gaussian:1.5",
    "restore same --operator blur:motion:5:30 --solver guided",
    "restore same --operator slices:every:2 --solver proximal",
    "restore same --operator slices:missing:3:1 --solver projected",
    "restore same --operator kspace:4x --sigma-y 0.02",
    "restore same --operator mask:{root}/same.png --solver resampled",
    "restore same --operator jpeg:30",
    "edit in --sigma 0.5 --mask {root}/in.png",
    "edit in --strength 0.3 --box 5,6,6,6",
    "edit in --class healthy --from-class diseased --sigma 1",
    "stylize in --style {root}/same/i1.png --anchor 3",
    "stylize in --target-model {root}/model.safetensors",
)


@pytest.mark.parametrize("task", TASKS)
def test_colour_files_come_back_as_colour_files(
    anodiff: Run, root: Path, tmp_path: Path, task: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job, inputs, *rest = task.format(root=root).split()
    model = root / ("classes.safetensors" if "--class" in rest else "model.safetensors")
    words = (job, model, root / inputs, *rest, "--output", tmp_path / "out", *QUICK)
    assert anodiff(*words) == 0
    factor = 2 if "superres:2" in rest else 1
    found = {}
    for path in sorted((root / inputs).glob("*.png")):
        before, after = np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "out" / "images" / path.name))
        assert after.shape == (before.shape[0] * factor, before.shape[1] * factor, 3)
        assert after.dtype == np.uint8
        assert len({after[..., n].tobytes() for n in range(3)}) == 3
        found[path.name] = after
        if any(word in rest for word in ("--box", "--mask")):
            outside = np.ones(before.shape[:2], dtype=bool)
            outside[5:11, 6:12] = False
            np.testing.assert_array_equal(after[outside], before[outside])
            assert (after[~outside] != before[~outside]).any()
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('type="range"') == 2
    capfd.readouterr()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
    assert anodiff(*words) == 0
    assert "2 of them from an earlier run; nothing was computed" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()} == stamps


def test_generated_images_and_bits_are_of_colour(anodiff: Run, root: Path, tmp_path: Path) -> None:
    model = root / "model.safetensors"
    words = ("-n", 2, "--real", root / "normals", "--animation", "--output", tmp_path / "new")
    assert anodiff("generate", model, *words, *QUICK) == 0
    assert np.asarray(Image.open(tmp_path / "new" / "images" / "000001.png")).shape == (SIDE, SIDE, 3)
    assert (tmp_path / "new" / "quality.json").exists()
    with Image.open(tmp_path / "new" / "animations" / "000001.gif") as animation:
        assert (animation.size, animation.n_frames) == ((SIDE, SIDE), 2)  # type: ignore[attr-defined]
    assert (tmp_path / "new" / "report.html").read_text().count("data:image/gif;base64,") == 2
    grid = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    for n in range(2):
        image = np.asarray(Image.open(tmp_path / "new" / "images" / f"{n:06d}.png"))
        np.testing.assert_array_equal(grid[2:82:5, 2 + 82 * n : 82 + 82 * n : 5], image)
    for estimate in ("continuous", "discrete", "flow"):
        out = tmp_path / estimate
        words = ("--estimate", estimate, "--levels", 3, "--output", out, "--device", "cpu")
        assert anodiff("likelihood", model, root / "in", *words) == 0
        with (out / "results.csv").open(newline="", encoding="utf-8") as stream:
            assert all(np.isfinite(float(row["bits_per_dim"])) for row in csv.DictReader(stream))


def test_the_same_tasks_in_python(root: Path) -> None:
    restorer = Restorer(load(root / "model.safetensors"), device="cpu", steps=2)
    x = torch.from_numpy(np.stack([colour(n, SIDE, SIDE) for n in range(2)])).permute(0, 3, 1, 2) / 127.5 - 1
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[5:11, 6:12] = True
    results = {
        "generate": restorer.generate(2),
        "denoise": restorer.denoise(x, samples=2),
        "inpaint": restorer.inpaint(x, hole),
        "edit": restorer.edit(x, 0.5, hole),
        "style": stylize(restorer, x, style=x[:1]),
        "bridge": stylize(restorer, x, target=restorer),
        "counterfactual": Restorer(load(root / "classes.safetensors"), device="cpu", steps=2).counterfactual(
            x, "healthy", 1.0, source="diseased"
        ),
    }
    forms = ("superres:2", "blur:gaussian:1", "blur:motion:5:30", "slices:every:2", "kspace:4x")
    for operator in (*map(parse_operator, forms), Mask(hole), cartesian_lines(2)):
        results[repr(operator)] = restorer.restore(x, operator)
    results["jpeg"] = restorer.restore(x, parse_operator("jpeg:30"), solver="projected")
    for name, found in results.items():
        assert found.images.shape == x.shape, name
        assert found.images.isfinite().all(), name
