"""restore on files: what nobody measured, averages, JPEGs; denoise --noise poisson against Anscombe's transform."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.data.preprocess import Geometry, resize
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.restoration import Jpeg
from anodiff.restoration.intensity import noise_left

Run = Callable[..., int]
QUICK = ("--device", "cpu", "--steps", "2")
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [16, 16]},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "diffusion": {"sigma_data": 0.5},
    "engine": {"network_batch": 2},
}


def saved(path: Path, **preprocess: Any) -> Path:
    """A model whose network is 0: with the prediction "edm" it is the exact denoiser of N(0, 0.5^2)."""
    config = parse_config({**RECIPE, "preprocess": {**RECIPE["preprocess"], **preprocess}})
    DiffusionModel(config, build_denoiser(config)).save(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


ROBUST = {"kind": "robust", "clip": 4, "spread": "lower"}
PERCENTILES = {"kind": "percentile", "low": 5, "high": 95}


def jpeg_of(picture: np.ndarray, quality: int, subsampling: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def scene() -> np.ndarray:
    y, x = np.mgrid[:16, :16]
    return (128 + 50 * np.sin(x / 2) + 40 * np.cos(y / 3)).astype(np.uint8)


def test_a_restored_jpeg_is_compressed_to_the_same_file(anodiff: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg_of(scene(), 20))
    words = ("--operator", "jpeg:20", "--npy", "--output", tmp_path / "out")
    assert anodiff("restore", model, tmp_path / "photo.jpg", *words, *QUICK) == 0
    restored = np.load(tmp_path / "out" / "arrays" / "photo.npy")
    with Image.open(tmp_path / "photo.jpg") as before:
        decoded = np.asarray(before).astype(np.float64)
    assert np.abs(restored - decoded).mean() > 1
    # every coefficient lies in the cell that the file says
    again = [Jpeg(20)(torch.from_numpy(each / 127.5 - 1)[None, None].double()) for each in (restored, decoded)]
    torch.testing.assert_close(*again, atol=1e-6, rtol=0)
    assert float((again[1][0, 0] * 127.5 + 127.5 - torch.from_numpy(decoded)).abs().max()) < 1.5


def test_a_restored_jpeg_of_colour_has_its_coefficients(anodiff: Run, tmp_path: Path) -> None:
    """Of luminance and chrominance, each in the cell that the file says; what was smooth comes nearer to the truth."""
    model = saved(tmp_path / "colour.safetensors", channels=3)
    truth = np.stack([scene(), scene().T, scene()[::-1]], axis=2)
    (tmp_path / "photo.jpg").write_bytes(jpeg_of(truth, 20))
    words = ("--operator", "jpeg:20", "--npy", "--output", tmp_path / "out")
    assert anodiff("restore", model, tmp_path / "photo.jpg", *words, *QUICK) == 0
    restored = np.load(tmp_path / "out" / "arrays" / "photo.npy")
    with Image.open(tmp_path / "photo.jpg") as before:
        decoded = np.asarray(before).astype(np.float64)
    assert np.abs(restored - decoded).mean() > 1
    pictures = (torch.from_numpy(each / 127.5 - 1).permute(2, 0, 1)[None].double() for each in (restored, decoded))
    torch.testing.assert_close(*(Jpeg(20)(each) for each in pictures), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: jpeg_of(np.stack([scene()] * 3, axis=2), 30, subsampling=2), "expected a JPEG whose chrominance"),
        (lambda: jpeg_of(np.stack([scene()] * 3, axis=2), 30, subsampling=1), "found 4:2:2"),
        (lambda: jpeg_of(scene(), 30), "expected a colour picture, as the model's are, found 1 channel"),
    ],
)
def test_what_is_no_jpeg_of_whole_colour_fails(
    anodiff: Run, world: Any, tmp_path: Path, content: Callable[[], bytes], says: str
) -> None:
    model = saved(tmp_path / "colour.safetensors", channels=3)
    (tmp_path / "photo.jpg").write_bytes(content())
    words = ("--operator", "jpeg:30", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", model, tmp_path / "photo.jpg", *words) == 1
    assert says in world.read_table(tmp_path / "out" / "results.csv")[0]["error"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: np.zeros((16, 16, 3), dtype=np.uint8), "expected a grey picture"),
        (lambda: np.arange(256, dtype=np.uint16).reshape(16, 16) * 200, "expected levels of 8 bit"),
        (lambda: np.zeros((16, 12), dtype=np.uint8), "whole blocks of 8 pixels"),
        (lambda: np.zeros((24, 16), dtype=np.uint8), "expected 16x16 pixels"),
    ],
)
def test_what_no_jpeg_of_the_model_s_size_is_fails(
    anodiff: Run, model: Path, world: Any, tmp_path: Path, make: Callable[[], np.ndarray], says: str
) -> None:
    picture = make()
    picture[3, 3] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert anodiff("restore", model, tmp_path / "a.png", "--operator", "jpeg:30", "--output", out, *QUICK) == 1
    assert says in world.read_table(out / "results.csv")[0]["error"]


@pytest.mark.parametrize("intensity", [ROBUST, PERCENTILES, {}], ids=["robust", "percentile", "unit_range"])
@pytest.mark.parametrize("name", ["slices:every:2", "slices:missing:3:1", "mask"])
def test_what_nobody_measured_is_not_looked_at(
    anodiff: Run, tmp_path: Path, name: str, intensity: dict[str, Any]
) -> None:
    """Black, white or noise in the missing rows: the same result, and what was measured as it was read."""
    model = saved(tmp_path / "model.safetensors", intensity=intensity, foreground="threshold")
    missing = np.zeros((16, 16), dtype=bool)
    if name == "mask":
        missing[4:12, 2:9] = True
        Image.fromarray(missing).save(tmp_path / "hole.png")
    elif name == "slices:every:2":
        missing[1::2] = True
    else:
        missing[:, 2::3] = True
    operator = f"mask:{tmp_path / 'hole.png'}" if name == "mask" else name
    found = []
    for kind, fill in (("black", 0), ("white", 255), ("noise", np.random.default_rng(0).integers(0, 256, (16, 16)))):
        picture = np.where(missing, fill, scene()).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "a.png")
        words = ("--operator", operator, "--npy", "--output", tmp_path / kind, *QUICK)
        assert anodiff("restore", model, tmp_path / "a.png", *words) == 0
        found.append(np.load(tmp_path / kind / "arrays" / "a.npy"))
    for each in found:
        np.testing.assert_array_equal(each, found[0])
        np.testing.assert_array_equal(each[~missing], scene()[~missing])


@pytest.mark.parametrize("intensity", [ROBUST, PERCENTILES, {}], ids=["robust", "percentile", "unit_range"])
@pytest.mark.parametrize("solver", ["matched", "projected"])
def test_a_larger_picture_has_the_averages_of_the_small_one(
    anodiff: Run, tmp_path: Path, solver: str, intensity: dict[str, Any]
) -> None:
    """Where a PNG holds no negative numbers, and beyond what the model's range keeps, too: to rounding of whole
    numbers, half a level in the average of 4."""
    model = saved(tmp_path / "model.safetensors", intensity=intensity)
    small = np.random.default_rng(0).integers(0, 40, (8, 8)).astype(np.uint8)
    small[0, :4] = 0, 1, 255, 200
    Image.fromarray(small).save(tmp_path / "small.png")
    words = ("--operator", "superres:2", "--solver", solver, "--npy", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", model, tmp_path / "small.png", *words) == 0
    with Image.open(tmp_path / "out" / "images" / "small.png") as picture:
        large = np.asarray(picture).astype(np.float64)
    unrounded = np.load(tmp_path / "out" / "arrays" / "small.npy").astype(np.float64)
    assert unrounded.std() > small.std()
    np.testing.assert_array_equal(large, np.rint(unrounded))
    np.testing.assert_allclose(unrounded.reshape(8, 2, 8, 2).mean((1, 3)), small, atol=1e-3)


def test_counts_are_denoised_through_anscombe(anodiff: Run, model: Path, world: Any, tmp_path: Path) -> None:
    """The denoiser of N(0, 0.5^2) on 2 sqrt(k + 3/8), spread over [-1, 1], and the exact unbiased inverse."""
    counts = np.random.default_rng(0).poisson(40, (16, 16))
    np.save(tmp_path / "counts.npy", counts.astype(np.float32))
    wide = ("--set", "preprocess.value_range=[0,200]", "--npy")
    for name, noise, scale in (("a", "poisson", 1.0), ("b", "poisson:0.25", 0.25)):
        words = ("--noise", noise, *wide, "--output", tmp_path / name)
        assert anodiff("denoise", model, tmp_path / "counts.npy", *words, *QUICK) == 0
        row = world.read_table(tmp_path / name / "results.csv")[0]
        low, high = (2 * np.sqrt(scale * top + 3 / 8) for top in (0, 200))
        level = 2 / (high - low)
        assert float(row["sigma"]) == pytest.approx(level, rel=1e-6)
        assert row["sigma_from"] == "given"
        y = level * (2 * np.sqrt(scale * counts + 3 / 8) - low) - 1
        d = (0.25 / (0.25 + level**2) * y + 1) / level + low
        root = np.sqrt(1.5)
        exact = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8
        np.testing.assert_allclose(np.load(tmp_path / name / "arrays" / "counts.npy"), exact / scale, rtol=1e-4)


def test_an_average_of_pixels_counts_all_of_their_photons(
    anodiff: Run, model: Path, world: Any, tmp_path: Path
) -> None:
    geometry = Geometry((64, 48), (16, 16), (0, 2, 16, 12))
    rng = np.random.default_rng(0)
    spread = np.mean([resize(rng.normal(size=(64, 48)).astype(np.float32), (16, 12)).var() for _ in range(40)])
    assert noise_left(geometry) == pytest.approx(spread, rel=0.05)
    assert noise_left(Geometry((9, 7), (9, 7), (0, 0, 9, 7))) == 1
    np.save(tmp_path / "counts.npy", rng.poisson(40, (64, 48)).astype(np.float32))
    words = ("--noise", "poisson", "--set", "preprocess.value_range=[0,200]", "--output", tmp_path / "out")
    assert anodiff("denoise", model, tmp_path / "counts.npy", *words, *QUICK) == 0
    gain = 1 / noise_left(geometry)
    level = 1 / (np.sqrt(gain * 200 + 3 / 8) - np.sqrt(3 / 8))
    assert float(world.read_table(tmp_path / "out" / "results.csv")[0]["sigma"]) == pytest.approx(level, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("restore", "--operator", "jpeg:0"), "quality from 1 to 100"),
        (("restore", "--operator", "jpeg"), "expected jpeg:QUALITY"),
        (("restore", "--operator", "jpeg:30", "--solver", "matched"), "needs a linear operator"),
        (("restore", "--operator", "jpeg:30", "--sigma-y", "0.1"), "needs a linear operator"),
        (("denoise", "--noise", "poisson:0"), "positive number of counts"),
        (("denoise", "--noise", "rician:2"), "expected gaussian, rician or poisson[:SCALE]"),
        (("denoise", "--noise", "poisson", "--sigma", "0.1"), "--sigma: expected none with --noise poisson"),
        (("denoise", "--noise", "poisson", "--sample"), "--noise gaussian"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unusable_arguments_are_one_sentence(
    anodiff: Run,
    model: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    assert anodiff(words[0], model, tmp_path / "a.png", *words[1:], "--output", tmp_path / "out", *QUICK) == 2
    error = capfd.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_intensities_of_another_kind_have_no_grey_levels_or_counts(
    anodiff: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    robust = {"kind": "robust", "clip": 4}
    for words, changes, says in (
        (("restore", "--operator", "jpeg:30"), {}, "unit_range"),
        (("denoise", "--noise", "poisson"), {"channels": 3}, "one line of the file's values"),
    ):
        model = saved(tmp_path / f"{words[0]}.safetensors", intensity=robust, **changes)
        assert anodiff(words[0], model, tmp_path / "a.png", *words[1:], "--output", tmp_path / "out", *QUICK) == 2
        assert says in capfd.readouterr().err
