"""anodiff score: the contracts of scores.csv, maps, heatmaps and report; resume; the same bits always."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anodiff as library
from anodiff import files
from anodiff.config import parse_config
from anodiff.data.readers import read_image
from anodiff.files import load_map
from anodiff.model import build_denoiser

Run = Callable[..., int]
COLUMNS = ["id", "path", "score", "p_value", "is_anomalous", "threshold", "nfe", "status", "error"]


def scores(world: Any, out: Path) -> dict[str, str]:
    return {row["path"]: row["score"] for row in world.read_table(out / "scores.csv")}


def test_the_outputs_are_as_the_contract_says(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert anodiff("score", world.model, inputs, "--output", out) == 0
    rows = world.read_table(out / "scores.csv")
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 9
    for row in rows:
        assert row["status"] == "ok"
        assert row["error"] == ""
        assert row["nfe"] == "2"
        assert 0 < float(row["p_value"]) <= 1
        anomalous = float(row["score"]) > float(row["threshold"])
        assert row["is_anomalous"] == ("true" if anomalous else "false")
        assert anomalous == (float(row["p_value"]) <= 0.05)
        stored = np.load(out / "maps" / f"{row['id']}.npy")
        assert stored.dtype == np.float32
        assert stored.shape == (20, 24)
        with Image.open(out / "heatmaps" / f"{row['id']}.png") as heatmap:
            heatmap.load()
    assert "deep__i000" in {row["id"] for row in rows}
    page = (out / "report.html").read_text()
    assert all(row["id"] in page for row in rows)


def test_scores_and_maps_are_those_of_the_library(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    anodiff("score", world.model, inputs, "--output", out, "--precision", "fp32", "--map-format", "tiff")
    model = library.load(world.model)
    detector = library.AnomalyDetector(model, "one-step", device="cpu", precision="fp32")
    for row in world.read_table(out / "scores.csv"):
        prepared = model.preprocessor(read_image(row["path"]))
        result = detector(prepared.image[None], prepared.foreground[None])
        assert np.float32(row["score"]) == result.scores[0].numpy()
        expected = model.preprocessor.back(result.maps[0], prepared.geometry)
        assert np.array_equal(load_map(out / "maps" / f"{row['id']}.tiff"), expected)


def test_batch_order_names_and_mates_do_not_change_a_bit(anodiff: Run, world: Any, tmp_path: Path) -> None:
    seeds = list(range(600, 633))
    found = []
    for number, batch in enumerate((1, 7, 32)):
        random.Random(number).shuffle(seeds)
        folder, out = tmp_path / f"in{number}", tmp_path / f"out{number}"
        folder.mkdir()
        for place, seed in enumerate(seeds):
            Image.fromarray(world.picture(seed)[0]).save(folder / f"{number}-{place:02d}.png")
        assert anodiff("score", world.model, folder, "--output", out, "--batch-size", batch) == 0
        rows = world.read_table(out / "scores.csv")
        maps = [np.load(out / "maps" / f"{row['id']}.npy").tobytes() for row in rows]
        found.append({seed: (row["score"], row["p_value"], m) for seed, row, m in zip(seeds, rows, maps, strict=True)})
    assert found[0] == found[1] == found[2]
    assert len({score for score, _, _ in found[0].values()}) == 33


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model calibrated for `default` whose tensors are large enough for torch to share them among threads."""
    torch.manual_seed(1)
    network = {"channels": [16, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8}
    config = parse_config(
        {"name": "wide", "preprocess": {"size": [32, 32]}, "network": network, "engine": {"network_batch": 16}}
    )
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    model = library.DiffusionModel(config, denoiser)
    detector = library.AnomalyDetector(model, "default", device="cpu", precision="fp32")
    detector.fit(torch.rand(12, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1, rate=0.2)
    assert detector.calibration is not None
    model.calibrations = {"default": detector.calibration}
    model.save(tmp_path / "wide.safetensors")
    return tmp_path / "wide.safetensors"


def test_default_preset_on_several_threads_keeps_every_bit(
    anodiff: Run, world: Any, wide: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(3)  # an odd number, which is made even; the fixture of conftest.py puts it back
    found: list[dict[int, Any]] = []
    for number, (batch, count) in enumerate(((32, 33), (7, 15), (1, 6))):
        seeds = list(range(800, 800 + count))
        random.Random(number).shuffle(seeds)
        folder, out = tmp_path / f"in{number}", tmp_path / f"out{number}"
        folder.mkdir()
        for place, seed in enumerate(seeds):
            Image.fromarray(world.picture(seed)[0]).save(folder / f"{number}-{place:02d}.png")
        options = ("--batch-size", batch, "--precision", "fp32", "--no-heatmaps")
        assert anodiff("score", wide, folder, "--output", out, *options) == 0
        rows = world.read_table(out / "scores.csv")
        maps = [np.load(out / "maps" / f"{row['id']}.npy").tobytes() for row in rows]
        found.append({seed: (row["score"], row["p_value"], m) for seed, row, m in zip(seeds, rows, maps, strict=True)})
    assert all(result == found[0][seed] for other in found[1:] for seed, result in other.items())
    assert len({score for score, _, _ in found[0].values()}) == 33
    assert torch.get_num_threads() == 2


def test_another_internal_batch_agrees_to_rounding(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    for batch in (4, 16):
        options = ("--precision", "fp32", "--set", f"engine.network_batch={batch}")
        anodiff("score", world.model, inputs, "--output", tmp_path / f"out{batch}", *options)
    one, other = (scores(world, tmp_path / f"out{batch}") for batch in (4, 16))
    for path in one:
        assert float(one[path]) == pytest.approx(float(other[path]), rel=1e-4)


def test_a_preset_without_calibration_scores_raw_and_says_so(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("score", world.raw, inputs, "--output", out) == 0
    assert "not calibrated" in capfd.readouterr().err
    for row in world.read_table(out / "scores.csv"):
        assert float(row["score"]) == float(row["score"])
        assert row["p_value"] == row["threshold"] == row["is_anomalous"] == ""
        assert (out / "heatmaps" / f"{row['id']}.png").is_file()


def test_another_precision_than_the_calibrations_is_said_aloud(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = library.load(world.model)
    calibration = model.calibrations["one-step"]
    assert calibration.precision is not None
    model.calibrations = {"one-step": replace(calibration, precision="bf16")}
    model.save(tmp_path / "other.safetensors")
    out = tmp_path / "out"
    assert anodiff("score", tmp_path / "other.safetensors", inputs, "--output", out, "--precision", "fp32") == 0
    assert capfd.readouterr().err.count("calibrated in bf16 and scored in fp32") == 1
    page = (out / "report.html").read_text()
    assert "calibrated in bf16 and scored in fp32" in page
    assert "precision.calibrated" in page
    assert all(row["p_value"] for row in world.read_table(out / "scores.csv"))
    same = ("--precision", calibration.precision)
    assert anodiff("score", world.model, inputs, "--output", tmp_path / "same", *same) == 0
    assert "calibrated in" not in capfd.readouterr().err


def test_wall_time_and_computing_time_are_told_apart(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("score", world.model, inputs, "--output", tmp_path / "out") == 0
    assert "images/s end to end" in capfd.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "images a second, end to end" in page
    assert "seconds of computing an image" in page


def test_maps_and_heatmaps_can_be_left_out(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    options = ("--output", tmp_path / "out", "--no-maps", "--no-heatmaps")
    assert anodiff("score", world.model, inputs, *options) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {".anodiff", "scores.csv", "report.html"}


def test_another_run_in_the_same_folder_is_refused_until_overwrite(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    anodiff("score", world.model, inputs, "--output", out)
    capfd.readouterr()
    assert anodiff("score", world.model, inputs, "--output", out, "--seed", 5) == 2
    assert "seed was 0, is 5" in capfd.readouterr().err
    assert anodiff("score", world.model, inputs / "deep", "--output", out, "--seed", 5, "--overwrite") == 0
    assert len(list((out / "maps").iterdir())) == len(world.read_table(out / "scores.csv")) == 4


def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_later(
    anodiff: Run,
    world: Any,
    inputs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm, out = tmp_path / "calm", tmp_path / "out"
    anodiff("score", world.model, inputs, "--output", calm)
    left = [12]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        capfd.readouterr()
        assert anodiff("score", world.model, inputs, "--output", out, "--batch-size", 1) == 2
        assert "no space left on the device" in capfd.readouterr().err
    assert anodiff("score", world.model, inputs, "--output", out) == 0
    assert (out / "scores.csv").read_bytes() == (calm / "scores.csv").read_bytes()


def start(world: Any, inputs: Path, out: Path) -> subprocess.Popen[str]:
    arguments = ["score", world.model, inputs, "--output", out, "--batch-size", "2", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "anodiff.pipelines.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_maps(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and len(list((out / "maps").glob("*.npy"))) < count:
        time.sleep(0.002)


def test_killed_or_interrupted_it_ends_with_the_same_scores(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path
) -> None:
    world.write_images(inputs / "more", 70, 700)
    (inputs / "more" / "broken.png").write_bytes(b"broken")
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert anodiff("score", world.model, inputs, "--output", calm) == 1
    moment = random.Random(3)
    process = start(world, inputs, out)
    wait_for_maps(out, 1, process)
    time.sleep(moment.uniform(0, 0.1))
    process.kill()
    process.wait()
    assert not (out / "scores.csv").exists()
    done = len(list((out / "maps").glob("*.npy")))
    assert 0 < done < 70
    process = start(world, inputs, out)
    wait_for_maps(out, done + 10, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr is not None
    assert "goes on from there" in process.stderr.read()
    partial = world.read_table(out / "scores.csv")
    assert done - 4 <= len(partial) < 80
    assert anodiff("score", world.model, inputs, "--output", out) == 1
    assert (out / "scores.csv").read_bytes() == (calm / "scores.csv").read_bytes()
    for path in (calm / "maps").iterdir():
        assert path.read_bytes() == (out / "maps" / path.name).read_bytes()
    assert not list(out.rglob("*.anodiff-part"))


def test_python_and_command_line_agree_from_the_file_on(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    import anodiff as library

    paths = sorted(str(path) for path in (world.data / "test" / "good").glob("*.png"))
    assert anodiff("score", world.model, *paths, "--output", tmp_path / "out") == 0
    rows = world.read_table(tmp_path / "out" / "scores.csv")
    model = library.load(world.model)
    detector = library.AnomalyDetector(model, "one-step", device="cpu")
    result = detector(*model.prepare([row["path"] for row in rows]))
    assert [float(row["score"]) for row in rows] == pytest.approx(result.scores.tolist(), rel=1e-6)


def test_memory_is_bounded_and_what_that_changed_is_said(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free, bounded = tmp_path / "free", tmp_path / "bounded"
    assert anodiff("score", world.model, inputs, "--output", free) == 0
    capsys.readouterr()
    assert anodiff("score", world.model, inputs, "--output", bounded, "--max-memory", "0.0002") == 0
    assert "engine.max_memory of 0.0002 GiB: engine.network_batch=" in capsys.readouterr().err
    for one, other in zip(world.read_table(free / "scores.csv"), world.read_table(bounded / "scores.csv"), strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-3)
    assert anodiff("score", world.model, inputs, "--output", tmp_path / "none", "--max-memory", "1e-9") == 2
