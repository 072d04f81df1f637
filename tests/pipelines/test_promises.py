"""The promises of the library, each on the CPU and, under the gpu marker, on CUDA."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anodiff
from anodiff.data.readers import read_image
from anodiff.engine.inference import InferenceDenoiser
from anodiff.errors import DataError, ModelFileError
from anodiff.pipelines import cli

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
every_device = pytest.mark.parametrize("device", DEVICES)


def score(world: Any, output: Path, *inputs: object, device: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Rows of scores.csv by the last part of the path."""
    words = ["score", world.model, *inputs, "--output", output, "--device", device, *options]
    code = cli.main([str(word) for word in words])
    assert code in (0, 1)
    return {Path(row["path"]).name: row for row in world.read_table(output / "scores.csv")}


def tensors(world: Any, folder: str, model: anodiff.DiffusionModel) -> tuple[torch.Tensor, torch.Tensor]:
    prepared = [model.preprocessor(read_image(path)) for path in sorted((world.data / folder).glob("*.png"))]
    return torch.stack([p.image for p in prepared]), torch.stack([p.foreground for p in prepared])


@every_device
def test_1_a_score_is_a_function_of_model_settings_and_pixels(world: Any, tmp_path: Path, device: str) -> None:
    originals = sorted((world.data / "test").rglob("*.png"))
    names = {path: f"{n:03d}" for n, path in enumerate(originals)}
    results = []
    for run, batch in enumerate((1, 7, 32)):
        folder = tmp_path / f"in{run}"
        folder.mkdir()
        order = random.Random(run).sample(originals, len(originals))
        for place, path in enumerate(order):
            shutil.copy(path, folder / f"{place:03d}-{names[path]}.png")
        rows = score(world, tmp_path / f"out{run}", folder, device=device, options=("--batch-size", str(batch)))
        maps = {name[4:7]: np.load(tmp_path / f"out{run}" / "maps" / f"{row['id']}.npy") for name, row in rows.items()}
        results.append(({name[4:7]: row["score"] for name, row in rows.items()}, maps))
    for scores, maps in results[1:]:
        assert scores == results[0][0]
        assert all(np.array_equal(maps[name], results[0][1][name]) for name in maps)
    assert len(set(results[0][0].values())) > 1


@every_device
def test_1_other_internal_shapes_agree_to_rounding(world: Any, tmp_path: Path, device: str) -> None:
    runs = [
        score(
            world, tmp_path / str(batch), world.data / "test", device=device,
            options=("--precision", "fp32", "--set", f"engine.network_batch={batch}"),
        )
        for batch in (2, 5, 16)
    ]  # fmt: skip
    for other in runs[1:]:
        for name, row in other.items():
            assert float(row["score"]) == pytest.approx(float(runs[0][name]["score"]), rel=1e-4, abs=1e-4)


@every_device
def test_1_seed_and_pixels_do_change_the_noise(world: Any, tmp_path: Path, device: str) -> None:
    a = score(world, tmp_path / "a", world.data / "test", device=device)
    b = score(world, tmp_path / "b", world.data / "test", device=device, options=("--seed", "1"))
    assert all(a[name]["score"] != b[name]["score"] for name in a)


@every_device
def test_2_calibration_sees_normals_only_in_disjoint_parts(world: Any, device: str) -> None:
    model = anodiff.load(world.raw)
    images, foreground = tensors(world, "train/good", model)
    groups = [f"patient {n // 3}" for n in range(len(images))]
    detector = anodiff.AnomalyDetector(model, "one-step", device=device)
    detector.fit(images, groups, foreground, rate=0.25)
    counts = detector.calibration.counts  # type: ignore[union-attr]
    assert counts["standardise_images"] + counts["threshold_images"] == len(images)
    assert counts["standardise_groups"] + counts["threshold_groups"] == len(set(groups))
    result = detector(images, foreground)
    assert result.is_anomalous is not None
    assert torch.equal(result.is_anomalous.cpu(), (result.p_values <= 0.25).cpu())
    with pytest.raises(DataError, match="one part only"):
        detector.fit(images, groups, foreground, standardise_on=images, standardise_groups=groups)


@every_device
def test_2_too_few_normals_give_p_values_and_a_sentence(world: Any, device: str) -> None:
    model = anodiff.load(world.raw)
    images, foreground = tensors(world, "train/good", model)
    detector = anodiff.AnomalyDetector(model, "one-step", device=device).fit(
        images[:8], None, foreground[:8], rate=0.01
    )
    result = detector(images, foreground)
    assert result.threshold is None
    assert result.is_anomalous is None
    assert bool(result.p_values.isfinite().all())
    assert "needs at least 99 normal images" in detector.notes[0]


@every_device
def test_3_raw_maps_on_the_inputs_own_grid(world: Any, tmp_path: Path, device: str) -> None:
    rows = score(world, tmp_path, world.data / "test", device=device)
    for row in rows.values():
        values = np.load(tmp_path / "maps" / f"{row['id']}.npy")
        with Image.open(row["path"]) as image:
            assert values.shape == (image.height, image.width)
        assert values.dtype == np.float32
    every = np.concatenate([np.load(path).ravel() for path in (tmp_path / "maps").glob("*.npy")])
    assert every.min() < 0  # signed and unclamped: normal error is centred on 0
    assert len(np.unique(every)) > 0.5 * every.size


def test_4_a_model_is_one_file_that_runs_nothing(world: Any, tmp_path: Path, anodiff: Callable[..., int]) -> None:
    import anodiff as library

    before = world.model.read_bytes()
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(before)
    assert "one-step" in library.load(moved).calibrations
    score(world, tmp_path / "out", world.data / "test", device="cpu")
    assert anodiff("calibrate", world.model, world.data, "--output", tmp_path / "new.safetensors") == 0
    assert world.model.read_bytes() == before
    evil = tmp_path / "evil.safetensors"
    evil.write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ModelFileError, match="pickle"):
        library.load(evil)


@every_device
def test_5_one_broken_input_never_stops_a_batch(world: Any, tmp_path: Path, device: str) -> None:
    folder = tmp_path / "in"
    shutil.copytree(world.data / "test" / "good", folder)
    clean = score(world, tmp_path / "clean", folder, device=device)
    (folder / "a_broken.png").write_bytes((folder / "i000.png").read_bytes()[:60])
    (folder / "z_text.png").write_text("not a picture")
    mixed = score(world, tmp_path / "mixed", folder, device=device)
    assert {name: row["status"] for name, row in mixed.items() if row["status"] != "ok"} == {
        "a_broken.png": "failed",
        "z_text.png": "failed",
    }
    assert all(mixed[name]["error"] for name in ("a_broken.png", "z_text.png"))
    assert all(mixed[name]["score"] == row["score"] for name, row in clean.items())


@every_device
@pytest.mark.parametrize("preset", sorted(__import__("anodiff.anomaly.presets", fromlist=["x"]).PRESETS))
def test_6_the_reported_cost_is_the_cost(world: Any, preset: str, device: str) -> None:
    model = anodiff.load(world.raw)
    images, foreground = tensors(world, "test/good", model)
    detector = anodiff.AnomalyDetector(model, preset, device=device)
    assert isinstance(detector.denoiser, InferenceDenoiser)
    result = detector(images[:2], foreground[:2])
    assert detector.denoiser.calls == 2 * result.nfe


@every_device
def test_6_rows_and_metrics_state_cost_and_speed(world: Any, tmp_path: Path, device: str) -> None:
    words = ["evaluate", world.model, world.data, "--output", tmp_path, "--device", device]
    assert cli.main([str(word) for word in words]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["nfe"] == anodiff.AnomalyDetector(anodiff.load(world.model), "one-step").settings.nfe
    assert metrics["seconds_per_image"] > 0
    assert {row["nfe"] for row in world.read_table(tmp_path / "scores.csv")} == {str(metrics["nfe"])}


@every_device
def test_7_a_heatmap_means_the_same_on_every_image(world: Any, tmp_path: Path, device: str) -> None:
    """Alone or among wilder images, an image gets the same heatmap to the byte, and its scale is the calibration's."""
    calm = world.data / "test" / "good" / "i000.png"
    alone = score(world, tmp_path / "alone", calm, device=device)
    score(world, tmp_path / "among", world.data / "test", device=device)
    picture = (tmp_path / "alone" / "heatmaps" / f"{alone['i000.png']['id']}.png").read_bytes()
    rows = world.read_table(tmp_path / "among" / "scores.csv")
    id_ = next(row["id"] for row in rows if Path(row["path"]) == calm)
    assert (tmp_path / "among" / "heatmaps" / f"{id_}.png").read_bytes() == picture
