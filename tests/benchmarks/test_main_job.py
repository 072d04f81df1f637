"""The main-job benchmark's page: from its stored results, with undefined numbers as dashes and every look counted."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.config import load_config
from benchmarks.quality import main_job, models, results


@pytest.fixture
def found() -> dict[str, Any]:
    stored: dict[str, Any] = results.stored()["main_job"]
    for model in stored["models"].values():
        model.setdefault("intensity", "robust")  # results of before it was stored
    return {**stored, "looks": 2}


def row_of(page: str, name: str) -> str:
    return next(line for line in page.split("minus each baseline")[1].splitlines() if line.startswith(f"| {name} |"))


def test_undefined_numbers_are_dashes_and_the_others_stay(found: dict[str, Any]) -> None:
    whole = main_job.markdown(found)
    name = next(iter(found["test"]["paired"]))
    pair = found["test"]["paired"][name]["pixel_auroc"]
    assert f"{pair['difference']:+.3f}" in row_of(whole, name)
    found["test"]["paired"][name]["pixel_ap"] = {"difference": None, "ci95": None, "p": None}
    found["subset"][main_job.OURS]["seconds_per_image"] = None
    found["subset"][main_job.PEER]["pixel_ap"] = None
    page = main_job.markdown(found)
    cells = [cell.strip() for cell in row_of(page, name).split("|")][2:-1]
    assert cells[:3] == ["-", "-", "-"]
    assert cells[3] == f"{pair['difference']:+.3f}"
    assert "over `anoddpm`: - times" in page
    assert "None" not in page
    assert "nan" not in page


@pytest.mark.parametrize(("looks", "words"), [(1, "test was looked at once."), (3, "test was looked at 3 times.")])
def test_the_looks_at_test_are_told_with_how_settings_were_chosen(
    found: dict[str, Any], looks: int, words: str
) -> None:
    page = main_job.markdown({**found, "looks": looks})
    assert f"{main_job.CHOSEN}; {words}" in page


def test_how_both_sides_were_chosen_is_told_as_it_was(found: dict[str, Any]) -> None:
    """That the baselines chose on planted anomalies is in what they stored."""
    settings = found["test"]["settings"]
    assert settings.keys() == found["test"]["metrics"].keys() - {"anodiff default"}
    assert all(each["planted_ap"] is not None for each in settings.values())
    page = main_job.markdown(found)
    assert "our settings were chosen on the labelled dev split" in page
    assert "those of the baselines on normals with planted anomalies" in page


def test_looks_must_be_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ([], "--looks"), (["--looks", "0"], "expected at least 1"):
        monkeypatch.setattr(sys, "argv", ["main_job", "--data", "nowhere", *arguments])
        with pytest.raises(SystemExit) as end:
            main_job.main()
        assert end.value.code == 2
        assert words in capsys.readouterr().err


def test_a_model_of_another_recipe_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    for override, refused in (([], False), (["preprocess.intensity.clip=4"], True)):
        model = SimpleNamespace(config=load_config("brain_flair", override))
        monkeypatch.setattr(models, "load", lambda _, model=model: model)
        if not refused:
            assert models.trained("brain_flair", tmp_path, tmp_path, "cpu").exists()
            continue
        with pytest.raises(SystemExit, match=r"preprocess.intensity.clip: 4.0 -> 5.0"):
            models.trained("brain_flair", tmp_path, tmp_path, "cpu")


def test_the_page_in_the_repository_is_that_of_its_stored_results() -> None:
    assert (results.HERE / "RESULTS.md").read_text(encoding="utf-8") == results.rendered(results.stored())
