"""Clips through the command line: train, calibrate, score, evaluate; resuming; clips that break off."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from anodiff.anomaly.clips import ClipDetector
from anodiff.config import parse_config
from anodiff.data.video.clip import open_clip
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.pipelines import cli

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [16, 24]},
    "video": {"past": 1, "step": 1, "fps": 10, "window_px": 4, "bands": False, "false_alarms_per_hour": 3600},
    "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
    "diffusion": {"sigma_data": 0.25, "sigma": {"mean": -1.5, "std": 0.8}},
    "training": {"images": 32, "batch_size": 8, "validate_every_images": 32, "validation_images": 8, "holdout": 0.4},
    "engine": {"network_batch": 4},
    "presets": {"default": {"levels": [0.1], "residual": "squared", "standardise": "none", "smooth_px": 1.0}},
}
Command = Callable[..., int]


def frames(count: int, seed: int, fast: range = range(0)) -> np.ndarray:
    """A square over a noisy scene, 32x48; it leaps where it is fast."""
    rng = np.random.default_rng(seed)
    scene = np.random.default_rng(0).integers(80, 120, (32, 48))
    left, found = int(rng.integers(40)), np.zeros((count, 32, 48), dtype=np.uint8)
    for n in range(count):
        left += 9 if n in fast else 1
        found[n] = scene + rng.integers(-1, 2, scene.shape)
        found[n, 12:18][:, (left + np.arange(5)) % 48] = 220
    return found


def write_clip(folder: Path, pictures: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for n, picture in enumerate(pictures, 1):
        Image.fromarray(picture).save(folder / f"{n:03d}.tif")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ in the layout of UCSD, and raw.safetensors, a network without training that says: nothing changes."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("clips")
    for number in range(1, 6):
        write_clip(root / "data" / "Train" / f"Train{number:03d}", frames(16, number))
    write_clip(root / "data" / "Test" / "Test001", frames(24, 11, fast=range(10, 18)))
    write_clip(root / "data" / "Test" / "Test002", frames(20, 12))
    listed = "TestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [11:18];\nTestVideoFile{end+1}.gt_frame = [];\n"
    (root / "data" / "Test" / "UCSDped2.m").write_text(listed)
    torch.manual_seed(0)
    config = parse_config(RECIPE)
    DiffusionModel(config, build_denoiser(config), constants={"background": torch.zeros(1, 16, 24)}).save(
        root / "raw.safetensors"
    )
    arguments = ["calibrate", root / "raw.safetensors", root / "data", "--output", root / "model.safetensors"]
    assert cli.main([*map(str, arguments), "--device", "cpu"]) == 0
    return root


def test_a_training_ends_in_a_calibrated_model_that_scores(
    world: Path, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    command = (
        "train",
        tmp_path / "tiny.yaml",
        "--data",
        world / "data",
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
    parts = {row["path"]: row["part"] for row in table(tmp_path / "run" / "split.csv")}
    assert sorted(parts.values()).count("held out") == 2
    assert all("Train" in path for path in parts)
    assert not (tmp_path / "run" / "uncalibrated.safetensors").exists()
    assert anodiff("info", tmp_path / "run" / "model.safetensors") == 0
    assert "per frame" in capsys.readouterr().out


def test_scores_frames_and_events_agree_and_what_leaps_is_found(world: Path, tmp_path: Path, anodiff: Command) -> None:
    assert anodiff("score", world / "model.safetensors", world / "data" / "Test", "--output", tmp_path, "--maps") == 0
    rows = {row["id"]: row for row in table(tmp_path / "scores.csv")}
    assert set(rows) == {"Test001", "Test002"}
    assert float(rows["Test001"]["score"]) > float(rows["Test002"]["score"])
    found = table(tmp_path / "frames.csv")
    first = [row for row in found if row["clip"] == "Test001"]
    assert [int(row["frame"]) for row in first] == list(range(24))
    assert float(first[5]["time"]) == pytest.approx(0.5)
    assert max(float(row["smoothed"]) for row in first) == pytest.approx(float(rows["Test001"]["score"]))
    model = load(world / "model.safetensors")
    detector = ClipDetector(model, device="cpu")
    with open_clip(world / "data" / "Test" / "Test001", fps=10) as clip:
        expected = [scored.score for scored in detector.scores(clip)]
    assert [float(row["score"]) for row in first] == expected
    threshold = detector.calibration.threshold  # type: ignore[union-attr]
    assert {row["frame"] for row in first if row["anomalous"] == "true"} == {
        row["frame"]
        for row in first
        if float(row["smoothed"]) > threshold  # type: ignore[operator]
    }
    maps = np.load(tmp_path / "maps" / "Test001.npy")
    assert maps.shape == (24, 32, 48)
    assert maps.dtype == np.float32
    events = table(tmp_path / "events.csv")
    high = float(rows["Test001"]["threshold"])
    assert (rows["Test001"]["is_anomalous"] == "true") == any(
        event["clip"] == "Test001" and float(event["peak_score"]) > high for event in events
    )
    assert all((tmp_path / event["thumbnail"]).is_file() for event in events)
    assert (tmp_path / "heatmaps" / "Test002.png").is_file()


def test_a_run_is_resumed_by_clip_and_repeats_itself(
    world: Path, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("score", world / "model.safetensors", world / "data" / "Test", "--output", tmp_path)
    assert anodiff(*command) == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("scores.csv", "frames.csv", "events.csv")}
    (tmp_path / ".anodiff" / "frames" / "Test002.npz").unlink()
    scored: list[str] = []
    scores = ClipDetector.scores

    def counted(self: ClipDetector, clip: Any, batch_size: int = 16) -> Any:
        scored.append(clip.info.path)
        return scores(self, clip, batch_size)

    monkeypatch.setattr(ClipDetector, "scores", counted)
    assert anodiff(*command) == 0
    assert [Path(path).name for path in scored] == ["Test002"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert anodiff(*command, "--seed", 1) == 2


def test_a_clip_that_breaks_off_is_scored_up_to_there_and_says_so(
    world: Path, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "in" / "broken", frames(12, 3))
    (tmp_path / "in" / "broken" / "009.tif").write_bytes(b"not a picture")
    write_clip(tmp_path / "in" / "short", frames(2, 3)[:1].repeat(2, axis=0))
    (tmp_path / "in" / "short" / "002.tif").write_bytes(b"nor is this")
    command = ("score", world / "model.safetensors", tmp_path / "in", "--output", tmp_path / "out")
    assert anodiff(*command) == 1
    rows = {row["id"]: row for row in table(tmp_path / "out" / "scores.csv")}
    assert rows["broken"]["status"] == "ok"
    assert "009.tif" in rows["broken"]["error"]
    assert "009.tif" in capsys.readouterr().err
    assert rows["short"]["status"] == "failed"
    assert "short" in rows["short"]["error"]
    assert len(table(tmp_path / "out" / "frames.csv")) == 8


def test_evaluate_measures_frames_against_their_truth(
    world: Path, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.metrics import roc_auc_score

    from anodiff.anomaly import video_baselines

    monkeypatch.setattr(video_baselines, "standard_video_baselines", lambda: [video_baselines.RandomScore()])
    command = ("evaluate", world / "model.safetensors", world / "data", "--output", tmp_path, "--baselines")
    assert anodiff(*command) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = table(tmp_path / "frames.csv")
    truth = [row["clip"].endswith("Test001") and 10 <= int(row["frame"]) < 18 for row in found]
    for part, column in ((metrics, "score"), (metrics["smoothed"], "smoothed")):
        assert part["frame_auroc_micro"] == pytest.approx(roc_auc_score(truth, [float(row[column]) for row in found]))
        assert part["n_frames"] == 44
        assert part["n_clips_one_class"] == 1
    assert metrics["nfe"] == 2
    assert metrics["n_failed"] == 0
    assert [row["anomalous_frames"] for row in table(tmp_path / "clips.csv")] == ["8", "0"]
    baselines = json.loads((tmp_path / "baselines.json").read_text())
    assert 0 <= baselines["random"]["frame_auroc_micro"] <= 1


def test_without_a_calibration_scores_are_raw(world: Path, tmp_path: Path, anodiff: Command) -> None:
    clip = world / "data" / "Test" / "Test002"
    assert anodiff("score", world / "raw.safetensors", clip, "--output", tmp_path) == 0
    (row,) = table(tmp_path / "scores.csv")
    assert row["score"]
    assert not row["p_value"]
    assert not row["threshold"]
    assert not row["is_anomalous"]
    assert not table(tmp_path / "events.csv")
    assert not (tmp_path / "heatmaps").exists()


def test_what_the_model_has_learnt_from_does_not_calibrate_it(
    world: Path, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from anodiff.data.seen import SeenImages
    from anodiff.data.video.table import ClipRow
    from anodiff.training.clips import read_clips

    model = load(world / "raw.safetensors")
    clips = [ClipRow(str(path)) for path in sorted((world / "data" / "Train").iterdir())]
    model.seen = SeenImages.of(read_clips(clips, model.config).hashes)
    model.save(tmp_path / "seen.safetensors")
    command = ("calibrate", tmp_path / "seen.safetensors", world / "data", "--output", tmp_path / "new.safetensors")
    assert anodiff(*command) == 2
    assert "has not learnt from" in capsys.readouterr().err


def test_streams_and_too_few_clips_are_refused(
    world: Path, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("score", world / "model.safetensors", "rtsp://camera/main", "--output", tmp_path / "out") == 2
    assert "anodiff watch" in capsys.readouterr().err
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    write_clip(tmp_path / "two" / "a", frames(8, 0))
    write_clip(tmp_path / "two" / "b", frames(8, 1))
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
