"""anodiff calibrate: a new file with the preset's calibration, from normals only, never from test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import anodiff as library
from anodiff.data.readers import read_image
from anodiff.data.seen import SeenImages, pixel_hash

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


def test_unreadable_normals_are_named_and_the_exit_code_says_so(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, new = tmp_path / "data", tmp_path / "new.safetensors"
    shutil.copytree(world.data, data)
    (data / "train" / "good" / "i003.png").write_bytes(b"")
    for n in range(4):
        (data / "val" / "good" / f"i00{n}.png").write_text("no picture")
    assert anodiff("calibrate", world.raw, data, "--output", new) == 1
    error = capfd.readouterr().err
    assert "left out 5 images that could not be used: " in error
    assert error.count("i000.png") >= 1
    assert "; and 2 more" in error
    counts = library.load(new).calibrations["one-step"].counts
    assert (counts["standardise_images"], counts["threshold_images"]) == (29, 20)


def test_batches_do_not_change_a_bit(anodiff: Run, world: Any, tmp_path: Path) -> None:
    for batch in (1, 7, 32):
        new = tmp_path / f"{batch}.safetensors"
        assert anodiff("calibrate", world.raw, world.data, "--batch-size", batch, "--output", new) == 0
    assert len({(tmp_path / f"{batch}.safetensors").read_bytes() for batch in (1, 7, 32)}) == 1


def test_normals_that_the_model_has_learnt_from_are_refused_or_counted(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = world.data / "train" / "good"
    trained = library.load(world.raw)
    trained.seen = SeenImages.of(pixel_hash(read_image(path)) for path in folder.glob("*.png"))
    trained.save(tmp_path / "trained.safetensors")
    new = tmp_path / "new.safetensors"
    assert anodiff("calibrate", tmp_path / "trained.safetensors", folder, "--output", new) == 2
    assert "found 30 of 30 that it has" in capfd.readouterr().err
    assert not new.exists()
    assert anodiff("calibrate", tmp_path / "trained.safetensors", folder, "--allow-trained", "--output", new) == 0
    assert "the model has learnt from 30 of 30 of these normals" in capfd.readouterr().err
    assert library.load(new).seen is not None  # so that the next calibration is warned as well
    # Training images for the size of normal error, others for the threshold: as `train` itself does it.
    split = tmp_path / "split.safetensors"
    assert anodiff("calibrate", tmp_path / "trained.safetensors", world.data, "--output", split) == 0
    assert "learnt from" not in capfd.readouterr().err
    mixed = tmp_path / "mixed"
    shutil.copytree(world.data / "val" / "good", mixed)
    for n in range(6):
        shutil.copy(folder / f"i00{n}.png", mixed / f"renamed{n}.png")
    few = tmp_path / "few.safetensors"
    assert anodiff("calibrate", tmp_path / "trained.safetensors", mixed, "--output", few) == 0
    said = capfd.readouterr().err
    note = "the model has learnt from 6 of 30 of these normals"
    assert said.count(note) == 1
    assert said.index(note) < said.index("calibrating")  # before the work


def test_the_folder_it_was_trained_on_is_divided_as_training_did(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((world.data / "train" / "good").glob("*.png"))
    folder = tmp_path / "normals"
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    trained = library.load(world.raw)
    trained.seen = SeenImages.of(pixel_hash(read_image(path)) for path in paths[:19])
    trained.save(tmp_path / "trained.safetensors")
    # group "a" holds the last image learnt from and the first that was not: a group is on one side
    rows = [(path, "a" if 18 <= i < 21 else str(i), "train" if i < 21 else "val") for i, path in enumerate(paths)]
    (tmp_path / "plain.csv").write_text("path,group\n" + "".join(f"{path},{group}\n" for path, group, _ in rows))
    (tmp_path / "split.csv").write_text("path,group,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    files = {name: tmp_path / f"{name}.safetensors" for name in ("plain", "split", "short")}
    for name in ("plain", "split"):
        given = (tmp_path / "trained.safetensors", tmp_path / f"{name}.csv", "--output", files[name])
        assert anodiff("calibrate", *given) == 0
        said = capfd.readouterr().err
        assert ("the model has learnt from 21 of these 30 normals, or from others of their group" in said) == (
            name == "plain"
        )
    assert files["plain"].read_bytes() == files["split"].read_bytes()
    counts = library.load(files["plain"]).calibrations["one-step"].counts
    assert (counts["standardise_images"], counts["threshold_images"]) == (21, 9)
    # two fewer are no threshold's worth
    for path in paths[-2:]:
        (folder / path.name).unlink()
    assert anodiff("calibrate", tmp_path / "trained.safetensors", folder, "--output", files["short"]) == 0
    (folder / paths[-3].name).unlink()
    (folder / paths[-4].name).unlink()
    assert anodiff("calibrate", tmp_path / "trained.safetensors", folder, "--output", tmp_path / "no.safetensors") == 2
    assert "found 19 of 26 that it has" in capfd.readouterr().err


def test_another_channel_needs_a_calibration_of_its_own(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    colour = tmp_path / "colour"
    for path in sorted((world.data / "train" / "good").glob("*.png")):
        colour.mkdir(exist_ok=True)
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey // 2, grey, grey // 3], axis=-1)).save(colour / path.name)
    option = ("--set", "preprocess.channel=1")
    out, new = tmp_path / "out", tmp_path / "new.safetensors"
    assert anodiff("score", world.model, colour, "--output", out, *option) == 2
    error = capfd.readouterr().err
    assert "preprocess.channel was None, is 1" in error
    assert "calibrate anew" in error
    assert error.count("\n") == 1
    assert not (out / "scores.csv").exists()
    assert anodiff("evaluate", world.model, world.data, "--output", out, *option) == 2
    assert anodiff("calibrate", world.model, colour, "--output", new, *option) == 0
    assert anodiff("score", new, colour, "--output", out) == 0
    assert anodiff("score", new, colour, "--output", tmp_path / "other", "--set", "preprocess.channel=0") == 2


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
