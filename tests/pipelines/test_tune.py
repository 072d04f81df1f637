"""anodiff tune: a new calibrated preset from normals alone, with the evidence beside it; nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import anodiff as library
from anodiff.anomaly import AnomalyDetector, DetectorSettings, resolve
from anodiff.anomaly.tuning_grid import SCALE_FLOORS
from anodiff.anomaly.tuning_search import SLOTS
from anodiff.errors import ConfigError, StorageError
from anodiff.pipelines import tune

Run = Callable[..., int]
QUICK = ("--preset", "one-step", "--kinds", "blob", "--levels", "0.4", "--noises", "none", "--images", 8)


@pytest.fixture(scope="module")
def tuned(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tuning of the tiny model: path of the new file and what the run returned."""
    path = tmp_path_factory.mktemp("tune") / "new.safetensors"
    torch.set_num_threads(1)
    before = world.model.read_bytes()
    tuning, failed = tune.run(
        world.model, world.data, path, preset="one-step", nfe=4, levels=[0.4], kinds=["blob", "cutpaste"],
        noises=["simplex"], images=8, device="cpu", quiet=True,
    )  # fmt: skip
    assert failed == ()
    assert world.model.read_bytes() == before
    return SimpleNamespace(path=path, tuning=tuning)


def test_the_new_model_scores_by_the_tuned_preset(tuned: Any, world: Any, anodiff: Run, tmp_path: Path) -> None:
    model = library.load(tuned.path)
    assert model.config.preset == "tuned"
    assert set(model.calibrations) == {"one-step", "tuned"}
    assert resolve("tuned", model.config)[1] == tuned.tuning.settings
    calibration = AnomalyDetector(model, "tuned", device="cpu").calibration
    assert calibration is not None
    assert calibration.preset == "tuned"
    counts = model.calibrations["tuned"].counts
    assert (counts["standardise_images"], counts["threshold_images"]) == (30, 24)
    out = tmp_path / "out"
    assert anodiff("score", tuned.path, world.data / "test" / "good", "--output", out, "--preset", "tuned") == 0
    rows = world.read_table(out / "scores.csv")
    assert all(row["p_value"] and row["threshold"] for row in rows)
    assert {row["nfe"] for row in rows} == {str(tuned.tuning.settings.nfe)}
    assert tuned.tuning.settings.nfe <= 4
    assert tuned.tuning.settings.polarity == "brighter"


def test_train_normals_fit_and_val_normals_are_planted_in(tuned: Any) -> None:
    counts = tuned.tuning.counts
    assert (counts["fit_images"], counts["normal_images"]) == (30, 8)
    # each of the two kinds in each of the eight, less where nothing visible could be planted
    assert 12 <= counts["planted_images"] <= 16


def test_the_evidence_lies_beside_it(tuned: Any) -> None:
    values = json.loads(tuned.path.with_suffix(".tune.json").read_text())
    assert values["preset"] == "tuned"
    assert values["from"] == "one-step"
    assert values["settings"] == tuned.tuning.settings.to_json()
    page = tuned.path.with_suffix(".tune.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    for sentence in tuned.tuning.sentences:
        assert sentence.split("'")[0] in page
    assert page.count('planted image"') == len(tuned.tuning.kinds)
    assert str(world_paths := tuned.path.parent) not in page, world_paths


def test_every_slot_that_is_searched_is_shown_with_what_else_it_could_be(tuned: Any) -> None:
    assert not set(SLOTS) & set(tune.FIXED)
    page = tuned.path.with_suffix(".tune.html").read_text()
    for slot in SLOTS:
        assert f"{slot}<" in page, slot
    named = {row.name.partition(" = ")[0] for row in tuned.tuning.candidates}
    floors = {row.settings.scale_floor for row in tuned.tuning.candidates}
    if tuned.tuning.settings.standardise != "none":
        assert "scale_floor" in named
        assert floors >= set(SCALE_FLOORS)


def test_mistakes_are_named(anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.safetensors"
    few = tmp_path / "few"
    world.write_images(few, 6, 400)
    taken = [tmp_path / f"{kind}.safetensors" for kind in ("json", "html")]
    for path in taken:
        path.with_suffix(f".tune.{path.stem}").write_text("of another run")
    for arguments, sentence in [
        ((world.model, world.data, "--output", world.model), "found the model itself"),
        ((world.model, world.data, "--output", taken[0]), "json.tune.json: expected a new file"),
        ((world.model, world.data, "--output", taken[1]), "html.tune.html: expected a new file"),
        ((world.model, few, "--output", new, *QUICK), "at least 8 normals of 4 groups"),
        ((world.model, world.data, "--output", new, "--preset-name", "default"), "not the name of a shipped preset"),
        ((world.model, world.data, "--output", new, "--preset-name", "a.b"), "letters, digits"),
        ((world.model, world.data, "--output", new, "--levels", "0.1,x"), "numbers between commas"),
        ((world.model, world.data, "--output", new, *QUICK, "--kinds", "blop"), "did you mean 'blob'"),
        ((world.model, world.data, "--output", new, *QUICK, "--nfe", 1), "at least 2 calls"),
        ((world.model, world.data, "--output", new, "--preset", "nosuch"), "unknown preset 'nosuch'"),
        ((world.model, world.data, "--output", new, *QUICK, "--noises", "pink"), "noise"),
    ]:
        assert anodiff("tune", *arguments, "--device", "cpu") == 2
        assert sentence in capfd.readouterr().err
    assert not new.exists()
    assert not any(path.exists() for path in taken)
    assert all(path.with_suffix(f".tune.{path.stem}").read_text() == "of another run" for path in taken)


def test_it_starts_from_the_models_own_preset_and_a_page_that_fails_costs_no_model(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new.safetensors"

    def fail(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(tune, "page_of", fail)
    with pytest.raises(StorageError, match="no space left"):
        tune.run(
            world.model, world.data, new, levels=[0.4], kinds=["blob"], noises=[], images=8, device="cpu", quiet=True
        )
    assert library.load(world.model).config.preset == "one-step"
    assert "tuned" in library.load(new).calibrations
    values = json.loads(new.with_suffix(".tune.json").read_text())
    assert (values["from"], values["against"]) == ("one-step", "'one-step'")


def test_slots_start_from_the_preset_and_keep_what_the_recipe_says_of_it() -> None:
    config: Any = SimpleNamespace(
        presets={"one-step": {"smooth_px": 2.0}, "mine": {"base": "one-step", "fusion": "max"}},
        polarity="brighter",
        diffusion=SimpleNamespace(noise="simplex", noise_scale="published"),
    )
    for start in ("one-step", "mine"):
        before = resolve(start, config)[1]
        for change in ({"levels": (0.5, 1.0)}, {"noise": "gaussian", "noise_scale": "unit"}, {}):
            chosen: DetectorSettings = before.model_copy(update=change)
            slots = tune.slots(config, start, chosen)
            assert slots["base"] == "one-step"
            again = SimpleNamespace(**{**vars(config), "presets": {**config.presets, "tuned": slots}})
            assert resolve("tuned", again)[1] == chosen
    with pytest.raises(ConfigError):
        tune.check_name("one-step")
