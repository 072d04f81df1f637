"""anodiff calibrate, score and evaluate with --early-exit: what is said of who left, and who stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anodiff as library
from anodiff.errors import ConfigError
from anodiff.pipelines.leaving import refuse_leaving

Run = Callable[..., int]


@pytest.fixture(scope="module")
def leaving(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose multilevel preset knows an early exit."""
    from anodiff.pipelines import calibrate

    new = tmp_path_factory.mktemp("leaving") / "new.safetensors"
    calibrate.run(
        world.raw, world.data, new,
        preset="multilevel", device="cpu", overrides=["calibration.rate=0.3"], early_exit=0.6, quiet=True,
    )  # fmt: skip
    return new


def test_the_rows_of_who_stays_are_the_same_and_the_calls_are_counted(
    anodiff: Run, world: Any, leaving: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = (leaving, world.data / "test", "--preset", "multilevel", "--no-heatmaps")
    assert anodiff("score", *common, "--output", tmp_path / "whole") == 0
    assert anodiff("score", *common, "--output", tmp_path / "early", "--early-exit") == 0
    whole, early = (world.read_table(tmp_path / name / "scores.csv") for name in ("whole", "early"))
    left = [row["nfe"] == "1" for row in early]
    assert {row["nfe"] for row in whole} == {"6"}
    assert {row["nfe"] for row in early} <= {"1", "6"}
    assert any(left)
    for before, after, gone in zip(whole, early, left, strict=True):
        if gone:
            assert after["is_anomalous"] == "false"
            assert float(after["score"]) <= float(after["threshold"])
            assert float(after["p_value"]) > 0.3
        else:
            assert after == before
    calls = (sum(left) + 6 * (len(left) - sum(left))) / len(left)
    said = f"{sum(left)} of {len(left)} images left early, 6 -> {calls:.3g} calls an image"
    assert said in capfd.readouterr().err
    page = (tmp_path / "early" / "report.html").read_text()
    assert f"{sum(left)} of {len(left)} images left early" in page
    # the same folder is not gone on with where it matters who leaves
    assert anodiff("score", *common, "--output", tmp_path / "early") == 2


def test_evaluate_measures_with_it_and_says_so(anodiff: Run, world: Any, leaving: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("evaluate", leaving, world.data, "--preset", "multilevel", "--output", out, "--no-heatmaps")
    assert anodiff(*words, "--early-exit") == 0
    found = json.loads((out / "metrics.json").read_text())
    left = found["n_left_early"]
    assert found["early_exit_error"] == 0.6
    assert found["nfe_whole"] == 6
    assert found["nfe"] == pytest.approx((left + 6 * (14 - left)) / 14)
    assert found["image_auroc"] is not None


def test_a_model_file_keeps_its_exit_and_one_without_asks_for_it(
    anodiff: Run, world: Any, leaving: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = library.load(leaving).calibrations["multilevel"].early_exit
    assert known is not None
    assert known.bound <= known.error == 0.6
    assert library.load(world.model).calibrations["one-step"].early_exit is None
    assert anodiff("score", world.model, world.data / "test", "--output", tmp_path / "out", "--early-exit") == 2
    assert "anodiff calibrate MODEL NORMALS --early-exit" in " ".join(capfd.readouterr().err.split())


def test_info_says_what_was_stated(anodiff: Run, leaving: Path, capfd: pytest.CaptureFixture[str]) -> None:
    known = library.load(leaving).calibrations["multilevel"].early_exit
    assert known is not None
    assert anodiff("info", leaving, "--json") == 0
    assert json.loads(capfd.readouterr().out)["calibrations"]["multilevel"]["early_exit"] == known.to_json()
    assert anodiff("info", leaving) == 0
    assert f"multilevel: {known.sentence}" in capfd.readouterr().out


def test_too_few_normals_write_nothing(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.safetensors"
    words = ("calibrate", world.raw, world.data, "--preset", "multilevel", "--rate", 0.2, "--output", new)
    assert anodiff(*words, "--early-exit", 0.01) == 2
    assert "needs at least 299 normal images" in " ".join(capfd.readouterr().err.split())
    assert not new.exists()


def test_other_kinds_of_model_refuse_it() -> None:
    for asked in (True, 0.01, 0.0):
        with pytest.raises(ConfigError, match="expected a model of images, found one of volumes"):
            refuse_leaving(asked, "volumes")
    refuse_leaving(False, "clips")
    refuse_leaving(None, "clips")
