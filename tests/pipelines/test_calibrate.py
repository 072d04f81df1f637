"""anodiff calibrate: a new file with the preset's calibration, from normals only, never from test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anodiff as library

Run = Callable[..., int]


def test_it_writes_a_new_file_and_leaves_the_model_alone(anodiff: Run, world: Any, tmp_path: Path) -> None:
    before = world.model.read_bytes()
    new = tmp_path / "new.safetensors"
    assert anodiff("calibrate", world.model, world.data, "--preset", "multilevel", "--rate", 0.2, "--output", new) == 0
    assert world.model.read_bytes() == before
    model = library.load(new)
    assert set(model.calibrations) == {"one-step", "multilevel"}
    assert model.calibrations["multilevel"].rate == 0.2
    assert model.calibrations["one-step"].threshold == library.load(world.model).calibrations["one-step"].threshold


def test_with_splits_train_standardises_and_val_sets_the_threshold(world: Any) -> None:
    counts = library.load(world.model).calibrations["one-step"].counts
    assert counts["standardise_images"] == 30
    assert counts["threshold_images"] == 24


def test_a_plain_folder_is_cut_in_two(anodiff: Run, world: Any, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    assert anodiff("calibrate", world.raw, world.data / "train" / "good", "--output", new) == 0
    counts = library.load(new).calibrations["one-step"].counts
    assert counts["standardise_images"] + counts["threshold_images"] == 30


def test_test_images_and_anomalous_ones_play_no_part(anodiff: Run, world: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world.data, data)
    shutil.rmtree(data / "test")
    shutil.rmtree(data / "ground_truth")
    new = tmp_path / "new.safetensors"
    assert anodiff("calibrate", world.raw, data, "--output", new) == 0
    ours, theirs = (library.load(path).calibrations["one-step"] for path in (new, world.model))
    assert ours.scores.tolist() == theirs.scores.tolist()


def test_too_few_normals_give_a_sentence_and_no_threshold(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.safetensors"
    assert anodiff("calibrate", world.raw, world.data, "--rate", 0.01, "--output", new) == 0
    assert "needs at least 99 normal images" in capfd.readouterr().err
    assert library.load(new).calibrations["one-step"].threshold is None


def test_mistakes_are_named(anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "bad.csv"
    listed.write_text(f"path,label\n{world.data}/test/spot/i000.png,1\n")
    only_test = tmp_path / "test.csv"
    only_test.write_text(f"path,label,split\n{world.data}/test/good/i000.png,0,test\n")
    new = tmp_path / "new.safetensors"
    for arguments, words in [
        ((world.raw, only_test, "--output", new), "found test"),
        ((world.raw, world.data, "--output", world.model), "there already"),
        ((world.raw, listed, "--output", new), "none normal"),
        ((world.raw, world.data, "--rate", 2, "--output", new), "calibration.rate"),
        ((world.raw, tmp_path / "nowhere", "--output", new), "nowhere"),
    ]:
        assert anodiff("calibrate", *arguments) == 2
        assert words in capfd.readouterr().err
    assert not new.exists()
