"""anodiff train from the command line: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("wrong", ["preset=defualt", "presets.default.smoth_px=1", "presets.default.levels=[-1]"])
def test_a_wrong_preset_is_found_before_training(
    anodiff: Run, world: Any, recipe: Path, tmp_path: Path, wrong: str
) -> None:
    assert train(anodiff, recipe, world.data, tmp_path / "run", "--set", wrong) == 2
    assert not (tmp_path / "run").exists()


def test_interrupted_it_exits_130_and_goes_on(world: Any, recipe: Path, tmp_path: Path, anodiff: Run) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-m", "anodiff.pipelines.cli", "train", recipe, "--data", world.data, "--output", run]
    options = ["--device", "cpu", "--set", "training.images=4000"]
    process = subprocess.Popen(
        [str(word) for word in [*words, *options]], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (run / "split.csv").exists():  # written when training begins
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130, errors
    assert "continue it with --resume" in errors
    assert (run / "checkpoint.pt").exists()
    assert not (run / "model.safetensors").exists()
    assert train(anodiff, recipe, world.data, run, *options[2:], "--resume") == 0
    assert library.load(run / "model.safetensors").provenance["images_seen"] == 4000
