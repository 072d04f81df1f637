"""anodiff evaluate on clips: where something was found (RBDC, TBDC), and baselines that outlive a broken clip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from anodiff.anomaly import video_baselines
from anodiff.anomaly.clip_autoencoder import ClipAutoEncoder
from anodiff.anomaly.clips import ClipDetector
from anodiff.data.video.clip import open_clip
from anodiff.model import load

Command = Callable[..., int]


def masks_of(clips: Any, clip: Path, leaps: range) -> list[np.ndarray]:
    """Where the square of a clip is, in the frames in which it leaps."""
    found = []
    for n, file in enumerate(sorted(clip.glob("*.tif"))):
        square = np.asarray(Image.open(file)) == 220
        found.append(square if n in leaps else np.zeros_like(square))
    return found


@pytest.fixture
def marked(clips: Any, tmp_path: Path) -> Path:
    """The data with a mask a frame of Test001, whose square leaps in frames 10 to 17."""
    data = tmp_path / "data"
    shutil.copytree(clips.data, data)
    folder = data / "Test" / "Test001_gt"
    folder.mkdir()
    for n, mask in enumerate(masks_of(clips, data / "Test" / "Test001", range(10, 18))):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{n + 1:03d}.bmp")
    return data


def expected_rbdc(clips: Any, data: Path) -> float:
    """By hand: maps at the model's size, parts above the level, one threshold after the other; two clips."""
    detector = ClipDetector(load(clips.model), device="cpu")
    assert detector.calibration is not None
    level = detector.calibration.pixel_threshold_fpr1
    boxes, truth, count = [], [], 0
    for name in ("Test001", "Test002"):
        masks = masks_of(clips, data / "Test" / name, range(10, 18) if name == "Test001" else range(0))
        with open_clip(data / "Test" / name, fps=10) as clip:
            for n, scored in enumerate(detector.scores(clip)):
                count += 1
                large = scored.map.repeat(2, axis=0).repeat(2, axis=1)  # 16x24 -> 32x48
                labels, parts = ndimage.label(large >= level, np.ones((3, 3)))
                boxes += [(name, n, labels == part, large[labels == part].max()) for part in range(1, parts + 1)]
                if masks[n].any():
                    labels, parts = ndimage.label(masks[n], np.ones((3, 3)))
                    truth += [(name, n, labels == part) for part in range(1, parts + 1)]

    def filled(region: np.ndarray) -> np.ndarray:
        rows, columns = np.where(region.any(1))[0], np.where(region.any(0))[0]
        box = np.zeros_like(region)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        return box

    points = [(0.0, 0.0)]
    for threshold in sorted({score for *_, score in boxes}, reverse=True):
        hit, false = set(), 0
        for name, n, region, score in boxes:
            if score < threshold:
                continue
            mine = filled(region)
            matches = {
                i
                for i, (other, m, there) in enumerate(truth)
                if (other, m) == (name, n) and (mine & filled(there)).sum() / (mine | filled(there)).sum() >= 0.1
            }
            false += not matches
            hit |= matches
        points.append((false / count, len(hit) / len(truth)))
    kept = [point for point in points if point[0] <= 1]
    x, y = np.array([*kept, (1.0, kept[-1][1])]).T
    return float(np.trapezoid(y, x))


def test_what_stands_out_is_held_against_masks_or_boxes(clips: Any, marked: Path, tmp_path: Path, anodiff: Any) -> None:
    assert anodiff("evaluate", clips.model, marked, "--output", tmp_path / "masks") == 0
    metrics = json.loads((tmp_path / "masks" / "metrics.json").read_text())
    assert metrics["rbdc"] == pytest.approx(expected_rbdc(clips, marked))
    assert metrics["rbdc"] > 0.3
    assert metrics["tbdc"] >= metrics["rbdc"]
    assert (metrics["n_track_clips"], metrics["n_track_frames"]) == (2, 44)
    assert metrics["tracks_from"] == "masks"
    assert "rbdc" not in metrics["reasons"]
    assert "rbdc" in (tmp_path / "masks" / "report.html").read_text(encoding="utf-8").lower()
    # The same places as boxes, of one track, give the same; a second run takes up the recorded boxes.
    lines = ["clip,track,frame,x,y,w,h"]
    for n, mask in enumerate(masks_of(clips, marked / "Test" / "Test001", range(10, 18))):
        for rows, columns in ndimage.find_objects(ndimage.label(mask, np.ones((3, 3)))[0]):
            size = f"{columns.stop - columns.start},{rows.stop - rows.start}"
            lines.append(f"Test/Test001,1,{n},{columns.start},{rows.start},{size}")
    (marked / "tracks.csv").write_text("\n".join(lines) + "\n")
    shutil.rmtree(marked / "Test" / "Test001_gt")
    assert anodiff("evaluate", clips.model, marked, "--output", tmp_path / "masks") == 0
    again = json.loads((tmp_path / "masks" / "metrics.json").read_text())
    assert again["tracks_from"] == "tracks.csv"
    assert (again["rbdc"], again["n_regions"]) == (metrics["rbdc"], metrics["n_regions"])
    assert again["n_tracks"] == 1


def test_without_places_or_with_wrong_ones_a_reason_stands_in_for_the_number(
    clips: Any, marked: Path, tmp_path: Path, anodiff: Command
) -> None:
    (marked / "Test" / "Test001_gt" / "024.bmp").unlink()
    assert anodiff("evaluate", clips.model, marked, "--output", tmp_path / "few") == 0
    metrics = json.loads((tmp_path / "few" / "metrics.json").read_text())
    assert metrics["rbdc"] is None
    assert metrics["reasons"]["rbdc"] == "no box in the truth"
    assert "expected 24 masks, one a frame, found 23" in metrics["track_notes"][0]
    assert metrics["n_track_clips"] == 1
    assert anodiff("evaluate", clips.model, clips.data, "--output", tmp_path / "none") == 0
    metrics = json.loads((tmp_path / "none" / "metrics.json").read_text())
    assert metrics["tbdc"] is None
    assert metrics["reasons"]["tbdc"] == "no clip has boxes (tracks.csv) or masks"
    assert anodiff("evaluate", clips.raw, marked, "--output", tmp_path / "raw") == 0
    assert "calibration" in json.loads((tmp_path / "raw" / "metrics.json").read_text())["reasons"]["rbdc"]


def test_a_broken_clip_is_a_row_of_each_baseline_and_the_rest_goes_on(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips.data, data)
    for clip in ("Train/Train002", "Test/Test002"):
        for file in (data / clip).glob("*.tif"):
            file.write_bytes(b"no picture")
    some = [video_baselines.FrameDifference(8), video_baselines.FlowMagnitude(4, (16, 24), method="ilk")]
    monkeypatch.setattr(video_baselines, "standard_video_baselines", lambda: some)
    assert anodiff("evaluate", clips.model, data, "--output", tmp_path / "out", "--baselines") == 1
    found = json.loads((tmp_path / "out" / "baselines.json").read_text())
    assert list(found) == ["frame difference", "optical flow", "auto-encoder"]
    ours = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {each["n_frames"] for each in found.values()} == {ours["n_frames"]} == {24}
    assert {each["n_failed"] for each in found.values()} == {1}
    assert found["frame difference"]["frame_auroc_micro"] > 0.9
    assert found["auto-encoder"]["parameters"] > 5000
    rows = clips.read_table(tmp_path / "out" / "baselines.csv")
    broken = [(row["method"], row["clip"]) for row in rows if row["error"]]
    both = [("optical flow", "Train__Train002"), ("optical flow", "Test__Test002")]
    assert broken == [("frame difference", "Test__Test002"), *both, *(("auto-encoder", clip) for _, clip in both)]
    assert all("001.tif" in row["error"] for row in rows if row["error"])
    assert [row["frames"] for row in rows if not row["error"]] == ["24"] * 3
    shown = capsys.readouterr()
    assert "left out of the normals" in shown.out + shown.err
    assert "optical flow" in shown.out


def test_a_baseline_that_cannot_be_fitted_says_so_beside_the_others(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_baselines, "standard_video_baselines", lambda: [video_baselines.FrameDifference(8)])
    shutil.copytree(clips.data / "Test", tmp_path / "data" / "Test")
    assert anodiff("evaluate", clips.model, tmp_path / "data", "--output", tmp_path / "out", "--baselines") == 0
    found = json.loads((tmp_path / "out" / "baselines.json").read_text())
    assert "expected normal clips of at least 2 frames" in found["auto-encoder"]["error"]
    assert found["frame difference"]["n_clips"] == 2


def test_nothing_learns_from_clips_that_are_measured(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Learns(video_baselines.FrameDifference):
        learnt: list[int]

        def fit(self, clips: Any) -> Any:
            self.learnt = [sum(1 for _ in clip) for clip in clips]
            return self

    method = Learns(8)
    monkeypatch.setattr(video_baselines, "standard_video_baselines", lambda: [method])
    # a set without a split: a clip with an event and a normal one, both measured
    for name, clip in (("a", "Test001"), ("b", "Test002")):
        shutil.copytree(clips.data / "Test" / clip, tmp_path / "data" / "test" / name)
    (tmp_path / "data" / "events.csv").write_text("clip,start_s,end_s\ntest/a,1.0,1.8\n")
    (tmp_path / "data" / "test").rename(tmp_path / "data" / "all")
    (tmp_path / "data" / "events.csv").write_text("clip,start_s,end_s\nall/a,1.0,1.8\nall/b,,\n")
    command = ("evaluate", clips.model, tmp_path / "data", "--output", tmp_path / "out", "--baselines")
    assert anodiff(*command) == 0
    assert method.learnt == []
    shutil.copytree(clips.data / "Train" / "Train001", tmp_path / "data" / "all" / "c")
    assert anodiff(*command, "--overwrite") == 0
    assert method.learnt == [16]


def test_the_auto_encoder_is_as_large_as_the_model_and_sees_its_frames(clips: Any) -> None:
    model = load(clips.model)
    method = ClipAutoEncoder.like(model.config, model.parameters, "cpu")
    assert (method.reach, method.size, method.images) == (1, (16, 24), 32)
    assert method.parameters == model.parameters
