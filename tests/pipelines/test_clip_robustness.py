"""Footage with holes, damage and odd lengths through the command line; calibration that is killed or bounded."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anodiff.anomaly.clips import ClipDetector
from anodiff.config import parse_config
from anodiff.data.video.clip import open_clip
from anodiff.data.video.write_av import VideoWriter
from anodiff.errors import ConfigError
from anodiff.model import load
from anodiff.pipelines.clip_job import frames_ahead

Command = Callable[..., int]


def write_video(path: Path, pictures: np.ndarray, times: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = np.arange(len(pictures)) / 10 if times is None else times
    with VideoWriter(path, pictures.shape[1:], quality=0) as video:
        for picture, second in zip(pictures, seconds, strict=True):
            video.write(np.repeat(picture[..., None], 3, axis=2), float(second))
    return path


def rows_of(clips: Any, folder: Path, name: str) -> list[dict[str, str]]:
    return [row for row in clips.read_table(folder / "frames.csv") if row["clip"] == name]


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_gap_leaves_the_same_frames_without_a_score_in_a_file_and_watched(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pictures = clips.footage(40, 11)
    kept = np.array([n for n in range(40) if not 15 <= n < 25])
    if kind == "folder":
        source = tmp_path / "in" / "gap"
        clips.write_clip(source, pictures)
        for n in range(15, 25):
            (source / f"{n + 1:03d}.tif").unlink()
    else:
        source = write_video(tmp_path / "in" / "gap.mp4", pictures[kept], kept / 10)
    command = ("score", clips.model, source, "--output", tmp_path / "out", "--maps", "--annotate")
    assert anodiff(*command) == 0
    assert "1 of 30 frames have no score" in capsys.readouterr().err
    found = rows_of(clips, tmp_path / "out", "gap")
    assert [float(row["time"]) for row in found] == pytest.approx((kept / 10).tolist(), abs=1e-3)
    assert [n for n, row in enumerate(found) if row["score"] == ""] == [15]
    assert [n for n, row in enumerate(found) if row["smoothed"] == ""] == [15]
    maps = np.load(tmp_path / "out" / "maps" / "gap.npy")
    assert np.flatnonzero(np.isnan(maps).all((1, 2))).tolist() == [15]
    assert (tmp_path / "out" / "annotated" / "gap.mp4").stat().st_size > 0
    assert "frames have no score" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    watched = ("watch", clips.model, source, "--device", "cpu", "--output", tmp_path / "watched")
    assert anodiff(*watched) == 0
    beside = clips.read_table(tmp_path / "watched" / "frames.csv")
    assert {row["frame"]: row["score"] for row in beside} == {
        row["frame"]: row["score"] for row in found[1:] if row["score"]
    }
    summary = json.loads((tmp_path / "watched" / "summary.json").read_text())
    assert (summary["frames"], summary["scored"], summary["unscored"]) == (30, 28, 2)


@pytest.mark.parametrize("kind", ["mp4", "avi", "jpg"])
def test_what_was_cut_off_or_damaged_is_scored_to_the_break_which_is_named(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    rng = np.random.default_rng(0)
    pictures = np.clip(clips.footage(30, 3).astype(int) + rng.integers(-30, 30, (30, 32, 48)), 0, 255).astype(np.uint8)
    if kind == "jpg":
        whole = tmp_path / "whole"
        whole.mkdir()
        for n, one in enumerate(pictures):
            Image.fromarray(one).save(whole / f"{n:03d}.jpg")
        cut = tmp_path / "cut"
        cut.mkdir()
        for path in whole.iterdir():
            content = path.read_bytes()
            (cut / path.name).write_bytes(content[: len(content) // 2] if path.name == "014.jpg" else content)
    else:
        import av

        whole, cut = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
        options = {"movflags": "faststart"} if kind == "mp4" else {}
        with av.open(str(whole), "w", options=options) as container:
            stream = container.add_stream("mpeg4", rate=10, options={"g": "1", "qmin": "3", "qmax": "3"})
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for one in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="gray").reformat(format="yuv420p")))
            container.mux(stream.encode())
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    command = ("score", clips.model, whole, cut, "--output", tmp_path / "out")
    assert anodiff(*command) == 0
    rows = {row["id"]: row for row in clips.read_table(tmp_path / "out" / "scores.csv")}
    ok, broken = rows_of(clips, tmp_path / "out", "whole"), rows_of(clips, tmp_path / "out", "cut")
    assert rows["whole"]["error"] == ""
    assert rows["cut"]["status"] == "ok"
    assert f"{cut}: broke off after {len(broken)} frames" in rows["cut"]["error"]
    assert "014.jpg" in rows["cut"]["error"] or kind != "jpg"
    assert "broke off" in capsys.readouterr().err
    assert len(ok) == 30
    assert 8 < len(broken) < 22
    assert [row["score"] for row in broken] == [row["score"] for row in ok[: len(broken)]]


def test_the_p_value_of_a_clip_is_of_clips_of_its_length(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    known = len(next(iter(load(clips.model).calibrations.values())).lengths)
    for name, count in (("alike", 16), ("twice", 31), ("long", 15 * known + 40)):
        clips.write_clip(tmp_path / "in" / name, clips.footage(count, 3, fast=range(5, 12)))
    assert anodiff("score", clips.model, tmp_path / "in", "--output", tmp_path / "out") == 0
    found = {row["id"]: row["p_value"] for row in clips.read_table(tmp_path / "out" / "scores.csv")}
    assert float(found["alike"]) == pytest.approx(1 / (known + 1))
    assert float(found["twice"]) == pytest.approx(2 / (known + 1))
    assert found["long"] == ""
    assert "1 of 3 clips have no p-value" in capsys.readouterr().err


def test_the_device_is_busy_only_while_it_computes(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anodiff.pipelines import clip_scoring

    summaries = []
    run_job = clip_scoring.run_job

    def remembered(*arguments: Any, **options: Any) -> Any:
        summaries.append(run_job(*arguments, **options))
        return summaries[-1]

    busy: list[float] = []
    see = ClipDetector.see

    def seen(self: ClipDetector, frames: Any) -> Any:
        busy.append(self.busy)
        return see(self, frames)

    monkeypatch.setattr(clip_scoring, "run_job", remembered)
    monkeypatch.setattr(ClipDetector, "see", seen)
    assert anodiff("score", clips.model, clips.data / "Test", "--output", tmp_path) == 0
    (summary,) = summaries
    assert busy == sorted(busy)
    said = capsys.readouterr().err
    share = int(said.split("device busy ")[1].split("%")[0]) / 100
    assert 0 < share <= summary.device_busy_share  # reading, pictures and files are not the device's work
    assert f"{share:.0%}" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_frames_are_read_ahead_in_a_thread_that_ends_with_each_clip(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: set[str] = set()
    prepare = ClipDetector.__init__

    def watched(self: ClipDetector, *arguments: Any, **options: Any) -> None:
        prepare(self, *arguments, **options)
        plain = self.prepare

        def called(pixels: Any) -> Any:
            readers.add(threading.current_thread().name)
            return plain(pixels)

        called.geometry, called.plain = plain.geometry, plain.plain  # type: ignore[attr-defined]
        self.prepare = called  # type: ignore[assignment]

    monkeypatch.setattr(ClipDetector, "__init__", watched)
    assert anodiff("score", clips.model, clips.data / "Test", "--output", tmp_path, "--no-heatmaps") == 0
    assert readers == {"anodiff-ahead"}
    assert "anodiff-ahead" not in {thread.name for thread in threading.enumerate()}
    with open_clip(clips.data / "Test" / "Test001") as clip:
        assert frames_ahead(16, clip.info) == 32


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_cleanly_and_the_run_goes_on(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert anodiff("score", clips.model, clips.data / "Test", "--output", whole) == 0
    see = ClipDetector.see
    calls: list[int] = []

    def interrupted(self: ClipDetector, frames: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return see(self, frames)

    with monkeypatch.context() as patched:
        patched.setattr(ClipDetector, "see", interrupted)
        assert anodiff("score", clips.model, clips.data / "Test", "--output", cut) == 130
    assert "anodiff-ahead" not in {thread.name for thread in threading.enumerate()}
    assert anodiff("score", clips.model, clips.data / "Test", "--output", cut) == 0
    for name in ("scores.csv", "frames.csv", "events.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(("job", "how"), [("score", "asked"), ("score", "torn"), ("evaluate", "killed")])
def test_a_long_clip_is_left_within_few_frames_and_taken_up_there(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch, how: str, job: str
) -> None:
    data = tmp_path / "data"
    clips.write_clip(data / "Test" / "Test001", clips.footage(200, 11, fast=range(120, 128)))
    (data / "Test" / "UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [121:128];")
    (data / "tracks.csv").write_text("clip,track,frame,x,y,w,h\nTest/Test001,1,121,0,0,9,9\n")
    source = data if job == "evaluate" else data / "Test"
    options = ["--no-heatmaps"] + ["--maps"] * (job == "score")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert anodiff(job, clips.model, source, "--output", whole, *options) == 0
    see = ClipDetector.see
    seen: list[int] = []

    def interrupted(self: ClipDetector, frames: Any) -> Any:
        if len(seen) == 2:
            if how == "asked":
                signal.raise_signal(signal.SIGINT)
            else:
                raise SystemExit(9)
        seen.append(len(frames))
        return see(self, frames)

    with monkeypatch.context() as patched:
        patched.setattr(ClipDetector, "see", interrupted)
        assert anodiff(job, clips.model, source, "--output", cut, *options) == (130 if how == "asked" else 9)
    (lines,) = (cut / ".anodiff" / "frames").glob("*.journal")
    known = lines.read_bytes().count(b"\n") - 1
    assert 32 <= known <= 120  # two batches at least; of those that were read ahead no more than there is room for
    if how == "torn":
        lines.write_bytes(lines.read_bytes()[:-7])
        known -= 1
        for maps in lines.parent.glob("*.maps"):
            maps.write_bytes(maps.read_bytes()[: -4 * 32 * 48 - 5])  # one whole map less, and a part
            known -= 1
    seen.clear()
    monkeypatch.setattr(ClipDetector, "see", lambda self, frames: seen.append(len(frames)) or see(self, frames))
    assert anodiff(job, clips.model, source, "--output", cut, *options) == 0
    assert sum(seen) == 200 - known + 1  # nothing twice but the frame by which the rest is taken up
    names = ["scores.csv", "frames.csv", "events.csv"]
    names += [f"maps/{path.name}" for path in (whole / "maps").glob("*.npy")]
    assert job == "evaluate" or len(names) == 4
    for name in names:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    if job == "evaluate":
        one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (cut, whole))
        assert one["rbdc"] == other["rbdc"] is not None
    assert {path.suffix for path in lines.parent.iterdir()} == {".npz"}


def test_what_was_known_of_a_clip_that_has_changed_is_not_used(clips: Any, tmp_path: Path) -> None:
    from anodiff.pipelines.clip_journal import FrameLines, FrameRow

    rows = [FrameRow(n, n / 10, float("nan") if n == 1 else 0.1 * n, (1, 2, 3, 4), True, 0.5, []) for n in range(4)]

    def taken_up(stamp: str, most: int | None = None) -> list[FrameRow]:
        found: list[FrameRow] = []
        with FrameLines(tmp_path / "a.journal", {"stamp": stamp}, found.append, most):
            return found

    with FrameLines(tmp_path / "a.journal", {"stamp": "1"}, rows.append) as lines:
        for row in rows:
            lines.append(row)
    assert str(taken_up("1")) == str(rows)
    assert str(taken_up("1", 3)) == str(rows[:3])
    assert len(taken_up("1")) == 3  # what cannot be used is gone
    assert taken_up("2") == []
    assert taken_up("1") == []


def test_a_picture_that_was_mended_is_scored_again(clips: Any, tmp_path: Path, anodiff: Command) -> None:
    clips.write_clip(tmp_path / "in" / "a", clips.footage(12, 3))
    picture = tmp_path / "in" / "a" / "005.tif"
    good = picture.read_bytes()
    picture.write_bytes(b"no picture")
    for count, content in ((4, b"no picture"), (12, good)):
        picture.write_bytes(content)
        os.utime(picture, (2e9, 2e9 + count))
        assert anodiff("score", clips.model, tmp_path / "in", "--output", tmp_path / "out", "--no-heatmaps") == 0
        assert len(clips.read_table(tmp_path / "out" / "frames.csv")) == count


def test_a_calibration_that_was_killed_is_taken_up(
    clips: Any, tmp_path: Path, anodiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("calibrate", clips.raw, clips.data, "--output")
    assert anodiff(*command, tmp_path / "a" / "whole.safetensors") == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole.safetensors"]
    errors = ClipDetector.errors
    computed: list[int] = []

    def killed(self: ClipDetector, frames: Any) -> Any:
        computed.append(len(frames))
        if len(computed) == 4:
            raise KeyboardInterrupt
        return errors(self, frames)

    with monkeypatch.context() as patched:
        patched.setattr(ClipDetector, "errors", killed)
        assert anodiff(*command, tmp_path / "b" / "new.safetensors") == 130
    assert not (tmp_path / "b" / "new.safetensors").exists()
    before, done = sum(computed[:3]), []
    monkeypatch.setattr(ClipDetector, "errors", lambda self, frames: done.append(len(frames)) or errors(self, frames))
    assert anodiff(*command, tmp_path / "b" / "new.safetensors") == 0
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["new.safetensors"]
    whole, again = (
        load(tmp_path / name).calibrations["default"] for name in ("a/whole.safetensors", "b/new.safetensors")
    )
    assert again.to_json() == whole.to_json()
    assert (again.series == whole.series).all()
    done_first = sum(done)
    done.clear()
    assert anodiff(*command, tmp_path / "c" / "new.safetensors") == 0
    assert done_first == sum(done) - before


def test_frames_that_set_the_threshold_are_bounded_by_their_own_key(
    clips: Any, tmp_path: Path, anodiff: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("calibrate", clips.raw, clips.data, "--output")
    assert anodiff(*command, tmp_path / "few.safetensors", "--set", "calibration.threshold_frames=9") == 0
    counts = load(tmp_path / "few.safetensors").calibrations["default"].counts
    assert counts["threshold_frames"] == 9
    assert anodiff(*command, tmp_path / "new.safetensors", "--set", "calibration.threshold_images=9") == 2
    assert "calibration.threshold_frames" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"calibration\.threshold_images"):
        parse_config({"name": "images", "calibration": {"threshold_frames": 9}})
