"""anodiff train from the command line: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import anodiff as library
from anodiff.data.readers import read_image
from anodiff.data.seen import pixel_hash

Run = Callable[..., int]


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    values = {**tiny_recipe, "preset": "one-step", "preprocess": {"size": [16, 16], "foreground": "threshold"}}
    path.write_text(yaml.safe_dump(values))
    return path


def train(anodiff: Run, recipe: Path, data: Path, output: Path, *options: object) -> int:
    return anodiff("train", recipe, "--data", data, "--output", output, "--device", "cpu", *options)


def test_it_writes_a_calibrated_model_and_its_record(anodiff: Run, world: Any, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(anodiff, recipe, world.data, run) == 0
    model = library.load(run / "model.safetensors")
    assert model.calibrations["one-step"].threshold is not None
    assert model.provenance["images_seen"] == 64
    assert {path.name for path in run.iterdir()} == {
        "model.safetensors", "checkpoint.pt", "config.yaml", "log.csv", "preview.png", "split.csv",
    }  # fmt: skip
    log = world.read_table(run / "log.csv")
    assert int(log[-1]["images"]) == 64
    assert float(log[-1]["validation_loss"]) == pytest.approx(model.provenance["held_out_loss"], rel=1e-4)
    parts = {row["part"] for row in world.read_table(run / "split.csv")}
    assert parts == {"train", "held out"}
    assert not any("test" in Path(row["path"]).parts for row in world.read_table(run / "split.csv"))
    assert train(anodiff, recipe, world.data, run) == 2  # a finished run is not replaced


def test_images_of_other_splits_are_never_learnt_from(anodiff: Run, world: Any, recipe: Path, tmp_path: Path) -> None:
    rows = ["path,label,mask,group,split"]
    for n, path in enumerate(sorted((world.data / "train" / "good").glob("*.png"))):
        rows.append(f"{path},0,,p{n},{'test' if n % 2 else ''}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    assert train(anodiff, recipe, table, tmp_path / "run") == 0
    used = {row["group"] for row in world.read_table(tmp_path / "run" / "split.csv")}
    assert used == {f"p{n}" for n in range(0, 30, 2)}
    only_test = tmp_path / "only_test.csv"
    only_test.write_text("\n".join([rows[0], *[row for row in rows if row.endswith("test")]]))
    assert train(anodiff, recipe, only_test, tmp_path / "none") == 2


def test_a_group_in_train_and_val_is_refused_before_training(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((world.data / "train" / "good").glob("*.png"))[:4]
    rows = [f"{path},0,,{group},{split}" for path, group, split in zip(
        files, ("a", "b", "b", "c"), ("train", "train", "val", "val"), strict=True)]  # fmt: skip
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,mask,group,split", *rows]))
    assert train(anodiff, recipe, table, tmp_path / "run") == 2
    assert "expected groups in one split only, found 1 in both train and val, 'b' first" in capsys.readouterr().err


def test_anomalous_rows_of_train_and_val_are_never_learnt_from(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path
) -> None:
    rows = ["path,label,split"]
    for split in ("train", "val"):
        normals = sorted((world.data / split / "good").glob("*.png"))
        spots = sorted((world.data / "test" / "spot").glob("*.png"))
        rows += [f"{path},0,{split}" for path in normals]
        rows += [f"{path},1,{split}" for path in (spots[:3] if split == "train" else spots[3:])]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    assert train(anodiff, recipe, table, tmp_path / "run") == 0
    used = world.read_table(tmp_path / "run" / "split.csv")
    assert len(used) == 54
    assert not any("spot" in row["path"] for row in used)
    assert library.load(tmp_path / "run" / "model.safetensors").calibrations["one-step"].counts == {
        "standardise_images": 30, "standardise_groups": 30, "threshold_images": 24, "threshold_groups": 24,
    }  # fmt: skip


def test_unreadable_images_are_named_and_the_model_is_written(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(world.data, data)
    (data / "train" / "good" / "i004.png").write_bytes(b"")
    (data / "val" / "good" / "i001.png").write_text("no picture")
    assert train(anodiff, recipe, data, run) == 1
    sentence = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("left out 2 images"))
    assert "i004.png" in sentence
    assert "i001.png" in sentence
    model = library.load(run / "model.safetensors")
    assert model.provenance["training_images"] == 29


def test_the_model_knows_its_training_images_again(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(anodiff, recipe, world.data, run) == 0
    model = run / "model.safetensors"
    seen = library.load(model).seen
    assert seen is not None
    learnt, held = (
        [pixel_hash(read_image(path)) for path in (world.data / part / "good").glob("*.png")]
        for part in ("train", "val")
    )
    assert seen.count(learnt) == (30, 30)
    assert seen.count(held) == (0, 24)
    calibration = library.load(model).calibrations["one-step"]
    assert calibration.precision in ("fp32", "bf16")
    assert calibration.preprocess == library.load(model).config.preprocess.model_dump(mode="json")
    table = tmp_path / "table.csv"
    rows = [f"{path},0" for path in sorted((world.data / "train" / "good").glob("*.png"))[:4]]
    rows += [f"{path},{int(kind == 'spot')}" for kind in ("good", "spot")
             for path in sorted((world.data / "test" / kind).glob("*.png"))]  # fmt: skip
    table.write_text("\n".join(["path,label", *rows]))
    capfd.readouterr()
    assert anodiff("evaluate", model, table, "--output", tmp_path / "out") == 0
    assert "the model has learnt from 4 of these 18 images" in capfd.readouterr().err
    assert "has learnt from 4 of these 18" in (tmp_path / "out" / "report.html").read_text()
    assert anodiff("evaluate", model, world.data, "--output", tmp_path / "clean") == 0
    assert "learnt from" not in capfd.readouterr().err


@pytest.mark.parametrize("wrong", ["preset=defualt", "presets.default.smoth_px=1", "presets.default.levels=[-1]"])
def test_a_wrong_preset_is_found_before_training(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path, wrong: str
) -> None:
    assert train(anodiff, recipe, world.data, tmp_path / "run", "--set", wrong) == 2
    assert not (tmp_path / "run").exists()


def test_interrupted_it_exits_130_and_goes_on(world: Any, recipe: Path, tmp_path: Path, anodiff: Run) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-m", "anodiff.pipelines.cli", "train", recipe, "--data", world.data, "--output", run]
    options = ["--device", "cpu", "--set", "training.images=2400", "--set", "training.validate_every_images=800"]
    process = subprocess.Popen(
        [str(word) for word in [*words, *options]], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (run / "split.csv").exists():  # written when training begins
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    time.sleep(0.5)
    for number in (signal.SIGTERM, signal.SIGINT):  # as one: GNU timeout sends two, to the process and to its group
        process.send_signal(number)
        time.sleep(0.05)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130, errors
    assert "continue it with --resume" in errors
    assert (run / "checkpoint.pt").exists()
    assert not (run / "model.safetensors").exists()
    assert train(anodiff, recipe, world.data, run, *options[2:], "--resume") == 0
    assert library.load(run / "model.safetensors").provenance["images_seen"] == 2400


def test_the_count_ends_with_the_last_whole_update(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = ("--set", "training.images=20", "--set", "training.batch_size=8")
    assert train(anodiff, recipe, world.data, tmp_path / "run", *short) == 0
    assert "training: 24/24 images 100%" in capfd.readouterr().err
