"""Clips through the command line: train, calibrate, score, evaluate; resuming; clips that break off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anodiff.anomaly.clips import ClipDetector
from anodiff.data.video.clip import open_clip
from anodiff.model import load
from anodiff.pipelines.clip_job import ClipJob

Command = Callable[..., int]


def test_a_training_ends_in_a_calibrated_model_that_scores(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(clips.recipe))
    command = (
        "train",
        tmp_path / "tiny.yaml",
        "--data",
        clips.data,
        "--output",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    assert anodiff(*command) == 0
    model = load(tmp_path / "run" / "model.safetensors")
    assert model.constants["background"].shape == (1, 16, 24)
    detector = ClipDetector(model, device="cpu")
    assert detector.calibration is not None
    assert detector.calibration.unit == "frame"
    parts = {row["path"]: row["part"] for row in clips.read_table(tmp_path / "run" / "split.csv")}
    assert sorted(parts.values()).count("held out") == 2
    assert all("Train" in path for path in parts)
    assert not (tmp_path / "run" / "uncalibrated.safetensors").exists()
    assert anodiff("info", tmp_path / "run" / "model.safetensors") == 0
    assert "per frame" in capsys.readouterr().out


def test_scores_frames_and_events_agree_and_what_leaps_is_found(clips: Any, tmp_path: Path, anodiff: Command) -> None:
    assert anodiff("score", clips.model, clips.data / "Test", "--output", tmp_path, "--maps") == 0
    rows = {row["id"]: row for row in clips.read_table(tmp_path / "scores.csv")}
    assert set(rows) == {"Test001", "Test002"}
    assert float(rows["Test001"]["score"]) > float(rows["Test002"]["score"])
    found = clips.read_table(tmp_path / "frames.csv")
    first = [row for row in found if row["clip"] == "Test001"]
    assert [int(row["frame"]) for row in first] == list(range(24))
    assert float(first[5]["time"]) == pytest.approx(0.5)
    assert max(float(row["smoothed"]) for row in first) == pytest.approx(float(rows["Test001"]["score"]))
    model = load(clips.model)
    detector = ClipDetector(model, device="cpu")
    with open_clip(clips.data / "Test" / "Test001", fps=10) as clip:
        expected = [scored.score for scored in detector.scores(clip)]
    assert [np.float32(row["score"]) for row in first] == [np.float32(score) for score in expected]
    spans = [
        (float(event["start"]), float(event["end"]))
        for event in clips.read_table(tmp_path / "events.csv")
        if event["clip"] == "Test001"
    ]
    inside = {row["frame"] for row in first if any(a <= float(row["time"]) <= b for a, b in spans)}
    assert {row["frame"] for row in first if row["anomalous"] == "true"} == inside
    assert len(inside) >= 8
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="band"') == len(clips.read_table(tmp_path / "events.csv"))
    assert page.count('class="timeline"') == 2
    maps = np.load(tmp_path / "maps" / "Test001.npy")
    assert maps.shape == (24, 32, 48)
    assert maps.dtype == np.float32
    events = clips.read_table(tmp_path / "events.csv")
    high = float(rows["Test001"]["threshold"])
    assert (rows["Test001"]["is_anomalous"] == "true") == any(
        event["clip"] == "Test001" and float(event["peak_score"]) > high for event in events
    )
    assert all((tmp_path / event["thumbnail"]).is_file() for event in events)
    assert (tmp_path / "heatmaps" / "Test002.png").is_file()


def test_a_run_is_resumed_by_clip_and_repeats_itself(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("score", clips.model, clips.data / "Test", "--output", tmp_path)
    assert anodiff(*command) == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("scores.csv", "frames.csv", "events.csv")}
    (tmp_path / ".anodiff" / "frames" / "Test002.npz").unlink()
    scored: list[str] = []
    compute = ClipJob.compute

    def counted(self: ClipJob, batch: list[Any]) -> Any:
        scored.extend(item.path for item in batch)
        return compute(self, batch)

    monkeypatch.setattr(ClipJob, "compute", counted)
    assert anodiff(*command) == 0
    assert [Path(path).name for path in scored] == ["Test002"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert anodiff(*command, "--seed", 1) == 2


def test_a_clip_that_breaks_off_is_scored_up_to_there_and_says_so(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    clips.write_clip(tmp_path / "in" / "broken", clips.footage(12, 3))
    (tmp_path / "in" / "broken" / "009.tif").write_bytes(b"not a picture")
    clips.write_clip(tmp_path / "in" / "short", clips.footage(2, 3)[:1].repeat(2, axis=0))
    (tmp_path / "in" / "short" / "002.tif").write_bytes(b"nor is this")
    command = ("score", clips.model, tmp_path / "in", "--output", tmp_path / "out")
    assert anodiff(*command) == 1
    rows = {row["id"]: row for row in clips.read_table(tmp_path / "out" / "scores.csv")}
    assert rows["broken"]["status"] == "ok"
    assert "009.tif" in rows["broken"]["error"]
    assert "009.tif" in capsys.readouterr().err
    assert rows["short"]["status"] == "failed"
    assert "short" in rows["short"]["error"]
    assert len(clips.read_table(tmp_path / "out" / "frames.csv")) == 8


def test_evaluate_measures_frames_against_their_truth(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.metrics import roc_auc_score

    from anodiff.anomaly import video_baselines

    monkeypatch.setattr(video_baselines, "standard_video_baselines", lambda: [video_baselines.RandomScore()])
    command = ("evaluate", clips.model, clips.data, "--output", tmp_path, "--baselines")
    assert anodiff(*command) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = clips.read_table(tmp_path / "frames.csv")
    truth = [row["clip"].endswith("Test001") and 10 <= int(row["frame"]) < 18 for row in found]
    for part, column in ((metrics, "score"), (metrics["smoothed"], "smoothed")):
        assert part["frame_auroc_micro"] == pytest.approx(roc_auc_score(truth, [float(row[column]) for row in found]))
        assert part["n_frames"] == 44
        assert part["n_clips_one_class"] == 1
    assert metrics["nfe"] == 2
    assert metrics["n_failed"] == 0
    assert [row["anomalous_frames"] for row in clips.read_table(tmp_path / "clips.csv")] == ["8", "0"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert metrics["events"]["n_reported"] == len(clips.read_table(tmp_path / "events.csv"))
    assert metrics["events"]["event_recall"] == 1
    assert "frame auroc micro smoothed" in page
    assert "event false alarms per hour" in page
    assert "false alarms per hour at recall 0.5" in page
    assert page.count('class="truth"') == 1
    baselines = json.loads((tmp_path / "baselines.json").read_text())
    assert 0 <= baselines["random"]["frame_auroc_micro"] <= 1


def test_without_enough_normal_hours_no_frame_is_called_anomalous_and_the_report_says_so(
    clips: Any, tmp_path: Path, anodiff: Command
) -> None:
    command = ("score", clips.model, clips.data / "Test", "--output", tmp_path, "--no-heatmaps")
    assert anodiff(*command, "--set", "video.false_alarms_per_hour=1") == 0
    assert {row["anomalous"] for row in clips.read_table(tmp_path / "frames.csv")} == {""}
    assert clips.read_table(tmp_path / "events.csv")  # excursions, with their p-values
    assert "No threshold." in (tmp_path / "report.html").read_text(encoding="utf-8")


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    """Times and pixels of a video."""
    import av

    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_annotated_videos_show_every_frame_from_kept_maps_or_new_ones_alike(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anodiff.visualize.clips import BOX

    clips.write_clip(tmp_path / "in" / "late", clips.footage(60, 11, fast=range(40, 48)))
    clips.write_clip(tmp_path / "in" / "quiet", clips.footage(12, 12))
    command = ("score", clips.model, tmp_path / "in", "--annotate", "--output")
    assert anodiff(*command, tmp_path / "anew") == 0
    found = decoded(tmp_path / "anew" / "annotated" / "late.mp4")
    np.testing.assert_allclose([time for time, _ in found], np.arange(60) / 10, atol=1e-4)
    rows = [row for row in clips.read_table(tmp_path / "anew" / "frames.csv") if row["clip"] == "late"]
    assert {row["anomalous"] for row in rows} == {"true", "false"}
    height = found[0][1].shape[0] - 90  # without the strip of scores
    boxed = [bool((np.abs(picture[:height].astype(int) - BOX).max(-1) < 70).sum() > 200) for _, picture in found]
    assert boxed == [row["anomalous"] == "true" for row in rows]
    assert len(decoded(tmp_path / "anew" / "annotated" / "quiet.mp4")) == 12

    calls: list[int] = []
    errors = ClipDetector.errors
    monkeypatch.setattr(ClipDetector, "errors", lambda self, frames: calls.append(len(frames)) or errors(self, frames))
    assert anodiff(*command, tmp_path / "anew") == 0
    assert not calls  # nothing is drawn twice
    assert anodiff(*command, tmp_path / "kept", "--maps", "--no-heatmaps") == 0
    assert sum(calls) == 59 + 11  # and kept maps are not computed again
    kept = decoded(tmp_path / "kept" / "annotated" / "late.mp4")
    differ = [np.abs(one.astype(int) - other).mean() for (_, one), (_, other) in zip(found, kept, strict=True)]
    assert max(differ) < 2  # resized once to native pixels, once to the picture's


def test_options_that_are_not_about_clips_or_only_about_clips_are_refused_by_name(
    clips: Any, world: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for job, (model, data), options, said in (
        ("score", (world.model, world.data), ["--annotate"], "--annotate: expected a model of clips"),
        ("score", (clips.raw, clips.data), ["--annotate"], "--annotate: preset 'default' is not calibrated"),
        ("score", (clips.model, clips.data), ["--map-format", "tiff"], "--map-format: expected to be left out"),
        ("score", (clips.model, clips.data), ["--dicom", "sc"], "--dicom: expected to be left out"),
        ("evaluate", (clips.model, clips.data), ["--normal", "good"], "--normal: expected to be left out"),
        ("evaluate", (clips.model, clips.data), ["--group-by", "path"], "--group-by: expected to be left out"),
    ):
        assert anodiff(job, model, data, "--output", tmp_path / "out", *options) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_without_a_calibration_scores_are_raw(clips: Any, tmp_path: Path, anodiff: Command) -> None:
    clip = clips.data / "Test" / "Test002"
    assert anodiff("score", clips.raw, clip, "--output", tmp_path) == 0
    (row,) = clips.read_table(tmp_path / "scores.csv")
    assert row["score"]
    assert not row["p_value"]
    assert not row["threshold"]
    assert not row["is_anomalous"]
    assert not clips.read_table(tmp_path / "events.csv")
    assert not (tmp_path / "heatmaps").exists()


def test_what_the_model_has_learnt_from_does_not_calibrate_it(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from anodiff.data.seen import SeenImages
    from anodiff.data.video.table import ClipRow
    from anodiff.training.clips import read_clips

    model = load(clips.raw)
    rows = [ClipRow(str(path)) for path in sorted((clips.data / "Train").iterdir())]
    model.seen = SeenImages.of(read_clips(rows, model.config).hashes)
    model.save(tmp_path / "seen.safetensors")
    command = ("calibrate", tmp_path / "seen.safetensors", clips.data, "--output", tmp_path / "new.safetensors")
    assert anodiff(*command) == 2
    assert "has not learnt from" in capsys.readouterr().err


def test_streams_and_too_few_clips_are_refused(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("score", clips.model, "rtsp://camera/main", "--output", tmp_path / "out") == 2
    assert "anodiff watch" in capsys.readouterr().err
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(clips.recipe))
    clips.write_clip(tmp_path / "two" / "a", clips.footage(8, 0))
    clips.write_clip(tmp_path / "two" / "b", clips.footage(8, 1))
    command = (
        "train",
        tmp_path / "tiny.yaml",
        "--data",
        tmp_path / "two",
        "--output",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    assert anodiff(*command) == 2
    assert "at least 3 groups" in capsys.readouterr().err
