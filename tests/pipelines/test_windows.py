"""Images of any size through windows: score, evaluate, calibrate and denoise; what is refused; what it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.any_size import fit_any_size
from anodiff.config import parse_config
from anodiff.data.layouts import load_table
from anodiff.engine.inference import InferenceDenoiser
from anodiff.engine.memory import peak_bytes
from anodiff.engine.windows import WindowDenoiser
from anodiff.errors import ConfigError, InputError
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.pipelines import calibrate, score
from anodiff.pipelines.common import open_model
from anodiff.restoration import Restorer
from anodiff.training.image_files import ImageFiles, look_through

RECIPE: dict[str, Any] = {
    "name": "fabric",
    "preset": "one-step",
    "preprocess": {"size": [16, 16], "resize": "none"},
    "network": {"channels": [8, 16], "blocks": 1, "attention": [False, False], "stem": 1, "head_channels": 8},
    "engine": {"network_batch": 4, "window": [16, 16], "overlap": 0.5},
}
#: of the normals; the last two hold a spot
SIZES = ((16, 16), (20, 28), (40, 24), (33, 16), (24, 24), (30, 30))


def texture(size: tuple[int, int], seed: int, spot: bool = False) -> np.ndarray:
    """uint8 stripes with noise; on request with a bright square of 6x6."""
    rng = np.random.default_rng(seed)
    values = 100 + 20 * np.sin(np.arange(size[1]) / 2)[None] + rng.normal(0, 4, size)
    if spot:
        values[4:10, 5:11] += 100
    return values.clip(0, 255).astype(np.uint8)


def write(folder: Path, start: int, count: int, spot: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.fromarray(texture(SIZES[n % len(SIZES)], start + n, spot)).save(folder / f"i{n:03d}.png")
    return folder


def new_model(path: Path, recipe: dict[str, Any] = RECIPE) -> Path:
    torch.manual_seed(0)
    config = parse_config(recipe)
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    DiffusionModel(config, denoiser).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated on 24 + 24 normals of six sizes."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("any")
    raw, normals = new_model(root / "raw.safetensors"), write(root / "normals", 0, 48)
    calibrate.run(raw, normals, root / "model.safetensors", device="cpu", quiet=True)
    return root / "model.safetensors"


def test_calibration_on_normals_of_many_sizes(model: Path) -> None:
    calibration = load(model).calibrations["one-step"]
    assert calibration.standardisation is not None
    assert calibration.standardisation.granularity.kind == "scalar"
    assert calibration.standardisation.location.shape[1:] == (1, 1)
    assert len(calibration.scores) == calibration.counts["threshold_images"] == 24
    assert calibration.windows == {"window": [16, 16], "overlap": 0.5}
    assert calibration.threshold is not None


def test_normal_error_is_that_of_all_pixels_of_all_images(model: Path, tmp_path: Path) -> None:
    """Against a brute force over all errors at once, in float64."""
    detector = AnomalyDetector(load(model), "one-step", device="cpu")
    first, second = (files(load(model), write(tmp_path / name, start, 6)) for name, start in (("a", 800), ("b", 900)))
    found = fit_any_size(detector, second, 0.2, standardise_on=first).standardisation
    assert found is not None
    images = [first.read(row)[0][None] for row in range(len(first))]
    every = torch.cat([detector.errors(x, detector.reconstruct(x)).double().flatten(1) for x in images], dim=1)
    scale = every.std(1, correction=0) * (1 + detector.settings.scale_floor**2) ** 0.5
    torch.testing.assert_close(found.location.flatten().double(), every.mean(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.scale.flatten().double(), scale, rtol=1e-5, atol=1e-7)


def test_normals_of_one_size_calibrate_as_a_tensor_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anodiff.anomaly.normals.PIXELS_KEPT", 1000)  # every third pixel
    folder = tmp_path / "n"
    folder.mkdir()
    for n in range(10):
        Image.fromarray(texture((20, 28), n)).save(folder / f"{n}.png")
    known = files(load(model), folder)
    detectors = [AnomalyDetector(load(model), "one-step", device="cpu") for _ in range(2)]
    with pytest.raises(ConfigError, match="unit: expected 'image', 'slice' or 'group', found 'volume'"):
        fit_any_size(detectors[0], known, 0.3, "volume")  # type: ignore[arg-type]
    one = fit_any_size(detectors[0], known, 0.3)
    images = torch.stack([known.read(row)[0] for row in range(len(known))])
    other = detectors[1].fit(images, known.groups, rate=0.3).calibration
    assert other is not None
    assert other.standardisation is not None
    assert one.standardisation is not None
    assert other.standardisation.granularity.kind == "scalar"
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    assert one.counts == other.counts
    assert one.settings == other.settings
    assert one.windows == other.windows
    assert one.threshold == pytest.approx(other.threshold, rel=1e-5)
    assert one.pixel_quantiles == pytest.approx(other.pixel_quantiles, rel=1e-4)


def files(model: DiffusionModel, folder: Path) -> ImageFiles:
    return look_through(load_table(folder), model.scorable, 10**6, quiet=True)


def test_images_of_any_size_are_scored_alike_alone_and_together(
    model: Path, tmp_path: Path, anodiff: Callable[..., int], world: Any
) -> None:
    inputs = write(tmp_path / "in", 200, 6)
    assert anodiff("score", model, inputs, "--output", tmp_path / "all", "--batch-size", 6) == 0
    rows = {row["id"]: row for row in world.read_table(tmp_path / "all" / "scores.csv")}
    for n, size in enumerate(SIZES):
        assert np.load(tmp_path / "all" / "maps" / f"i{n:03d}.npy").shape == size
        assert 0 < float(rows[f"i{n:03d}"]["p_value"]) <= 1
        assert (tmp_path / "all" / "heatmaps" / f"i{n:03d}.png").exists()
    for n in (1, 5):
        alone = tmp_path / f"alone{n}"
        assert anodiff("score", model, inputs / f"i{n:03d}.png", "--output", alone) == 0
        (row,) = world.read_table(alone / "scores.csv")
        assert row["score"] == rows[f"i{n:03d}"]["score"]
        same = np.load(alone / "maps" / f"i{n:03d}.npy")
        assert np.array_equal(same, np.load(tmp_path / "all" / "maps" / f"i{n:03d}.npy"))


def test_an_image_within_the_window_has_the_bits_of_the_whole(model: Path, tmp_path: Path) -> None:
    picture = write(tmp_path / "in", 300, 1) / "i000.png"  # 16 x 16
    for name, sides in (("windows", "[16, 16]"), ("larger", "[64, 48]"), ("whole", "null")):
        score.run(
            model, [str(picture)], tmp_path / name, device="cpu", quiet=True, overrides=[f"engine.window={sides}"]
        )
    maps = [np.load(tmp_path / name / "maps" / "i000.npy") for name in ("windows", "larger", "whole")]
    assert np.array_equal(maps[0], maps[1])
    assert np.array_equal(maps[0], maps[2])


def test_evaluate_measures_on_native_grids(model: Path, tmp_path: Path, anodiff: Callable[..., int]) -> None:
    data = tmp_path / "data"
    write(data / "train" / "good", 500, 2)
    write(data / "test" / "good", 600, 6)
    write(data / "test" / "spot", 700, 6, spot=True)
    masks = data / "ground_truth" / "spot"
    masks.mkdir(parents=True)
    for n, size in enumerate(SIZES):
        mask = np.zeros(size, np.uint8)
        mask[4:10, 5:11] = 255
        Image.fromarray(mask).save(masks / f"i{n:03d}_mask.png")
    assert anodiff("evaluate", model, data, "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["n_images"] == 12
    assert found["n_failed"] == 0
    assert 0 <= found["pixel_auroc"] <= 1
    assert found["dice_at_fpr5"] is not None
    assert anodiff("evaluate", model, data, "--output", tmp_path / "b", "--baselines") == 2


def test_other_windows_than_those_of_the_calibration_are_said(model: Path, tmp_path: Path) -> None:
    assert not any("windows" in note for note in AnomalyDetector(load(model), "one-step", device="cpu").notes)
    other = open_model(model, ["engine.window=[24, 16]"], score.OPEN_KEYS)
    (note,) = [note for note in AnomalyDetector(other, "one-step", device="cpu").notes if "windows" in note]
    assert "16x16" in note
    assert "24x16" in note
    whole = open_model(model, ["engine.window=null"], score.OPEN_KEYS)
    assert any("whole images" in note for note in AnomalyDetector(whole, "one-step", device="cpu").notes)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ({"standardise": "map"}, "standardise"),
        ({"standardise": "rows"}, "standardise"),
        ({"residual": "features"}, "residual"),
        ({"where": "boxes"}, "boxes"),
    ],
)
def test_presets_that_need_one_grid_or_the_whole_image_are_refused(
    model: Path, tmp_path: Path, slots: dict[str, str], said: str
) -> None:
    settings = ", ".join(f"{key}: {value}" for key, value in slots.items())
    with pytest.raises(ConfigError, match=said):
        score.run(
            model, [str(write(tmp_path / "in", 0, 1))], tmp_path / "out", preset="other", device="cpu", quiet=True,
            overrides=[f"presets.other={{base: one-step, {settings}}}"],
        )  # fmt: skip


def test_maps_of_one_size_are_refused_for_another(tmp_path: Path) -> None:
    """A model calibrated place by place, and then given a window, says so of each image of another size."""
    recipe = RECIPE | {"engine": {"network_batch": 4}, "presets": {"one-step": {"standardise": "map"}}}
    raw = new_model(tmp_path / "raw.safetensors", recipe)
    normals = tmp_path / "n"
    normals.mkdir()
    for n in range(8):
        Image.fromarray(texture((16, 16), n)).save(normals / f"{n}.png")
    calibrate.run(raw, normals, tmp_path / "m.safetensors", device="cpu", quiet=True)
    with pytest.raises(ConfigError, match="standardise 'map'"):
        score.run(
            tmp_path / "m.safetensors", [str(normals)], tmp_path / "out", device="cpu", quiet=True,
            overrides=["engine.window=[16, 16]"],
        )  # fmt: skip


def test_without_a_window_other_sizes_are_refused_and_the_way_out_is_named(model: Path, tmp_path: Path) -> None:
    summary = score.run(
        model, [str(write(tmp_path / "in", 0, 2))], tmp_path / "out", device="cpu", quiet=True,
        overrides=["engine.window=null"],
    )  # fmt: skip
    assert summary.ok == 1
    assert summary.failed == 1
    assert "engine.window" in summary.failures[0]


def test_what_needs_images_of_one_size_says_so(model: Path, tmp_path: Path, anodiff: Callable[..., int]) -> None:
    inputs = write(tmp_path / "in", 0, 3)
    with pytest.raises(InputError, match="one size"):
        load(model).prepare(sorted(inputs.iterdir()))
    images, foreground = load(model).prepare([inputs / "i002.png"])
    assert images.shape == (1, 1, 40, 24)
    assert foreground.shape == (1, 40, 24)
    assert anodiff("tune", model, inputs, "--output", tmp_path / "t.safetensors") == 2
    assert anodiff("calibrate", model, inputs, "--output", tmp_path / "c.safetensors", "--early-exit", 0.1) == 2


def test_a_window_is_of_models_of_images() -> None:
    with pytest.raises(ConfigError, match=r"engine\.window"):
        parse_config({"name": "v", "volume": {}, "engine": {"window": [16, 16]}})


def test_denoise_sees_windows_too(model: Path, tmp_path: Path, anodiff: Callable[..., int]) -> None:
    """Restoring shows the network no more than a window; an image that fits in one is not changed by that."""
    opened = load(model)
    seen: list[tuple[int, ...]] = []
    restorer = Restorer(opened, device="cpu", network_batch=2)
    restorer.denoiser.denoiser.denoiser.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    large = torch.randn(1, 1, 40, 24)
    restorer.denoise(large, sigma=0.2)
    assert set(seen) == {(2, 1, 16, 16)}
    assert anodiff("denoise", model, write(tmp_path / "in", 0, 3), "--sigma", 0.1, "--output", tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


def test_what_the_network_holds_does_not_grow_with_the_image(model: Path) -> None:
    """Beyond tensors of the image's own size, of which one is the estimate, windows hold the same at 4 times the size.

    Without windows what is held grows with the image.
    """
    inner = InferenceDenoiser(load(model).denoiser, "cpu", "fp32", 4)
    windows = WindowDenoiser(inner, (32, 32), 0.25)
    beyond, whole = [], []
    for side in (96, 192):
        x = torch.randn(1, 1, side, side)
        beyond.append(peak_bytes(lambda x=x: windows(x, 0.5)) - x.nbytes)  # type: ignore[misc]
        whole.append(peak_bytes(lambda x=x: InferenceDenoiser(inner.denoiser, "cpu", "fp32", 1)(x, 0.5)))  # type: ignore[misc]
    assert beyond[1] <= 1.02 * beyond[0]
    assert whole[1] > 3 * whole[0]


@pytest.mark.slow
def test_a_png_of_4096_by_4096_is_scored(tmp_path: Path) -> None:
    """In a process of its own, whose largest resident memory is told and bounded: the image's own few copies."""
    recipe = RECIPE | {
        "preprocess": {"size": [512, 512], "resize": "none"},
        "network": {**RECIPE["network"], "stem": 4},
        "engine": {"network_batch": 1, "window": [512, 512], "overlap": 0.125, "workers": 1},
        "preset": "large",
        "presets": {"large": {"base": "one-step", "levels": [0.3], "pairs": 1, "antithetic": False}},
    }
    path = new_model(tmp_path / "m.safetensors", recipe)
    Image.fromarray(texture((4096, 4096), 0, spot=True)).save(tmp_path / "large.png")
    code = (
        "import resource, sys\nfrom anodiff.pipelines import cli\n"
        f"code = cli.main(['score', {str(path)!r}, {str(tmp_path / 'large.png')!r}, '--device', 'cpu', '--output', "
        f"{str(tmp_path / 'out')!r}])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    gib = int(done.stdout.split()[-1]) / 2**20
    print(f"\n4096x4096 through windows of 512x512: {gib:.2f} GiB at most")
    assert np.load(tmp_path / "out" / "maps" / "large.npy", mmap_mode="r").shape == (4096, 4096)
    assert gib < 3
