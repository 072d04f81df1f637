"""What a job says besides its summary: failures and passed-over files by name, how many are anomalous, few groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anodiff.pipelines.closing import FEW_GROUPS, few_groups_note, passed_over_note
from anodiff.pipelines.volume_scoring import modality_note

Run = Callable[..., int]


def test_score_names_what_failed_what_it_passed_over_and_how_many_are_anomalous(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = inputs / "out"
    for n in range(4):
        (inputs / f"bad{n}.png").write_bytes(b"no picture")
    (inputs / "notes.txt").write_text("x")
    assert anodiff("score", world.model, inputs, "--output", out) == 1
    lines = capfd.readouterr().err.splitlines()
    assert f"note: 1 file that is no image was passed over: {inputs / 'notes.txt'}" in lines
    failed = [line for line in lines if line.startswith("failed: ")]
    assert [Path(line.removeprefix("failed: ").split(":")[0]).name for line in failed] == [
        f"bad{n}.png" for n in range(3)
    ]
    assert any(line.startswith("... and 1 more") for line in lines)
    rows = [row for row in world.read_table(out / "scores.csv") if row["status"] == "ok"]
    anomalous = sum(row["is_anomalous"] == "true" for row in rows)
    assert f"{anomalous} of {len(rows)} images anomalous (score above the threshold)" in lines
    assert anodiff("score", world.model, inputs, "--output", out, "--overwrite") == 1
    assert "1 file that is no image" in capfd.readouterr().err  # and not the run's own tables


def test_the_folder_of_another_model_is_refused_in_a_short_sentence(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("score", world.model, inputs, "--output", out) == 0
    capfd.readouterr()
    assert anodiff("score", world.raw, inputs, "--output", out, "--preset", "anoddpm") == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "holds a run of another model" in said
    assert said.count(" was ") == 3
    assert "choose another folder" in said
    assert len(said) < 500 + len(str(out))


@pytest.mark.parametrize(("groups", "told"), [(0, False), (1, False), (2, True), (9, True), (10, False), (50, False)])
def test_few_groups_are_told(groups: int, told: bool) -> None:
    note = few_groups_note(groups)
    assert bool(note) == told
    assert not told or (f"{groups} groups" in note[0] and str(FEW_GROUPS) in note[0])


def test_passed_over_files_are_counted_and_the_first_named() -> None:
    assert passed_over_note([]) == ()
    (note,) = passed_over_note([f"{n}.txt" for n in range(5)])
    assert note == "5 files that are no images were passed over: 0.txt, 1.txt, 2.txt and 2 more"


def test_dicom_says_its_modality_to_a_model_of_images() -> None:
    def source(*modalities: str) -> Any:
        return SimpleNamespace(frames=tuple(SimpleNamespace(modality=name) for name in modalities))

    assert modality_note([source(), source("")]) == ()
    (note,) = modality_note([source("CT", "CT"), source("MR"), source("CT")])
    assert "does not know its modality; found CT and MR" in note
