"""The heatmaps of a run without calibration: drawn by a second pass that records, resumes and loses no score."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anodiff.errors import StorageError
from anodiff.pipelines.scoring import ScoreJob

Run = Callable[..., int]


def test_heatmaps_without_calibration_are_recorded_and_go_on(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert anodiff("score", world.raw, inputs, "--output", calm) == 0
    assert "drawing: 9/9 heatmaps" in capfd.readouterr().err
    pictures = {path.name: path.read_bytes() for path in (calm / "heatmaps").iterdir()}
    assert len(pictures) == 9
    draw = ScoreJob.draw

    def full(job: ScoreJob, path: Path, *rest: Any) -> None:
        if path.name == "i003.png":
            raise StorageError("cannot write: no space left on the device")
        draw(job, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreJob, "draw", full)
        assert anodiff("score", world.raw, inputs, "--output", out) == 2
    assert "no space left" in capfd.readouterr().err
    assert "i003.png" not in {path.name for path in (out / "heatmaps").iterdir()}
    moments = {path.name: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}
    assert anodiff("score", world.raw, inputs, "--output", out) == 0
    assert {path.name: path.read_bytes() for path in (out / "heatmaps").iterdir()} == pictures
    assert {path.name: path.stat().st_mtime_ns for path in (out / "maps").iterdir()} == moments  # nothing done twice
    (out / "heatmaps" / "i001.png").unlink()  # recorded files are missed, and made again
    assert anodiff("score", world.raw, inputs, "--output", out) == 0
    assert {path.name: path.read_bytes() for path in (out / "heatmaps").iterdir()} == pictures
    # More inputs change the one scale of the run: all are drawn again. Starting anew removes what the rows recorded.
    world.write_images(inputs / "wild", 2, 900, lesion=True)
    assert anodiff("score", world.raw, inputs, "--output", out) == 0
    fresh = tmp_path / "fresh"
    assert anodiff("score", world.raw, inputs, "--output", fresh) == 0
    for path in (fresh / "heatmaps").iterdir():
        assert (out / "heatmaps" / path.name).read_bytes() == path.read_bytes()
    assert anodiff("score", world.raw, inputs / "deep", "--output", out, "--overwrite") == 0
    assert len(list((out / "heatmaps").iterdir())) == 4


def test_an_image_that_cannot_be_drawn_keeps_its_score(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: ScoreJob, path: Path, *rest: Any) -> None:
        if path.name == "i003.png":
            raise ValueError("a pen without ink")

    monkeypatch.setattr(ScoreJob, "draw", broken)
    assert anodiff("score", world.raw, inputs, "--output", tmp_path / "out") == 1
    rows = {row["id"]: row for row in world.read_table(tmp_path / "out" / "scores.csv")}
    assert len(rows) == 9
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert all(math.isfinite(float(row["score"])) for row in rows.values())
    said = "scored, but no heatmap: ValueError: a pen without ink"
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {"i003": said}
    assert anodiff("score", world.raw, inputs, "--output", tmp_path / "out") == 1, "it is tried again"
    monkeypatch.undo()
    assert anodiff("score", world.raw, inputs, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "heatmaps" / "i003.png").exists()
    assert not any(row["error"] for row in world.read_table(tmp_path / "out" / "scores.csv"))


def test_without_calibration_and_maps_there_are_no_heatmaps_and_it_says_so(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("score", world.raw, inputs, "--output", out, "--no-maps") == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "no heatmaps are drawn" in line]
    assert len(said) == 1
    assert "--no-maps" in said[0]
    assert "no heatmaps are drawn" in (out / "report.html").read_text()
    assert not (out / "heatmaps").exists()
    assert anodiff("score", world.raw, inputs, "--output", tmp_path / "b", "--no-maps", "--no-heatmaps") == 0
    assert "no heatmaps are drawn" not in capfd.readouterr().err
