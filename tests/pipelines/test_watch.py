"""Watching: the same events as offline, bounded delay, nothing lost to a kill, streams that go away and come back."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from anodiff.anomaly.event_rule import EventRule, EventSettings
from anodiff.anomaly.events import Series, find_events, fit_rule
from anodiff.anomaly.streaming import Backlog, WindowScorer
from anodiff.data.video.clip import Clip, ClipInfo, Frame
from anodiff.data.video.synthetic import Planted, Scene, plant
from anodiff.errors import ConfigError, StorageError
from anodiff.pipelines.watch_summary import WatchSummary
from anodiff.pipelines.watching import WAITING_BYTES, Watch, WatchOptions, room_for

PLACE = {"height": 12, "width": 16, "day_s": 0.0}
SETTINGS = EventSettings(causal=True, smooth_s=0.5)


def energy(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame difference in the largest window, whatever the light: a stand-in for a model."""
    light = frames.astype(np.float64).mean((1, 2, 3), keepdims=True)
    change = ((frames - past[:, 0].astype(np.float64)) / light).mean(-1) ** 2
    maps = ndimage.uniform_filter(change, (0, 5, 5))
    return maps, maps.max((1, 2))


class Replay(Clip):
    """Given frames; pauses before those indices for so many seconds."""

    def __init__(self, frames: Iterable[Frame], pauses: dict[int, float] | None = None) -> None:
        self.frames, self.pauses, self.closed = list(frames), pauses or {}, False

    @property
    def info(self) -> ClipInfo:
        height, width, channels = self.frames[0].pixels.shape
        return ClipInfo("camera:7", height, width, channels, None, 4.0)

    def _frames(self) -> Iterator[Frame]:
        for frame in self.frames:
            time.sleep(self.pauses.get(frame.index, 0.0))
            yield frame

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def rule() -> EventRule:
    normal = Scene(seed=3, duration_s=240, start_s=5000, **PLACE)  # type: ignore[arg-type]
    return fit_rule([_scores(normal)], SETTINGS, 30.0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(seed=3, duration_s=60, events=(Planted("runner", 20, 28), Planted("vehicle", 42, 50)), **PLACE)  # type: ignore[arg-type]


@lru_cache(maxsize=2)
def _frames(scene: Scene) -> list[Frame]:
    """The frames of a scene, made once."""
    return [scene.frame(i) for i in range(len(scene))]


def _scores(scene: Scene) -> Series:
    frames = _frames(scene)
    pixels = np.stack([frame.pixels for frame in frames])
    return Series("n", np.array([frame.time for frame in frames[1:]]), energy(pixels[:-1, None], pixels[1:])[1])


def _watch(clip: Clip, rule: EventRule, output: Path, live: bool = False, **changes: Any) -> WatchSummary:
    options = WatchOptions(live=live, pixel_threshold=0.03, **changes)
    return Watch(clip, WindowScorer(energy), rule, output, options).run()


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_recorded_source_has_the_events_of_the_whole_series(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    summary = _watch(Replay(_frames(scene)), rule, tmp_path)
    series = _scores(scene)
    expected = find_events(rule, series.times, series.scores)
    assert len(expected.events) >= 2
    ends = [line for line in _lines(tmp_path) if line["type"] == "end"]
    assert [(e["start"], e["end"], e["peak_time"]) for e in ends] == [
        (e.start, e.end, e.peak_time) for e in expected.events
    ]
    np.testing.assert_allclose([e["peak_score"] for e in ends], [e.peak_score for e in expected.events])
    rows = _rows(tmp_path / "frames.csv")
    assert [int(row["frame"]) for row in rows] == list(range(1, 240))
    assert [float(row["score"]) for row in rows] == series.scores.tolist()
    np.testing.assert_allclose([float(row["smoothed"]) for row in rows], expected.smoothed)
    assert expected.anomalous is not None
    assert [row["anomalous"] == "true" for row in rows] == expected.anomalous.tolist()
    table = _rows(tmp_path / "events.csv")
    assert [float(row["start"]) for row in table] == [e.start for e in expected.events]
    assert all((tmp_path / row["thumbnail"]).is_file() for row in table)
    assert (summary.frames, summary.scored, summary.unscored, summary.dropped) == (240, 239, 1, 0)
    assert summary.seconds == pytest.approx(239 / 4)
    assert json.loads((tmp_path / "summary.json").read_text())["events"] == summary.events == len(ends)
    for planted in scene.events:
        assert any(e["start"] <= planted.end and e["end"] >= planted.start for e in ends)


def test_the_box_of_an_event_lies_on_what_was_planted(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    _watch(Replay(_frames(scene)), rule, tmp_path)
    vehicle = next(line for line in _lines(tmp_path) if line["type"] == "end" and 40 < line["peak_time"] < 52)
    x, y, w, h = vehicle["box"]
    shown = [scene.truth(round(vehicle["peak_time"] * 4) + k) for k in range(-2, 1)]
    rows, columns = np.nonzero(np.any(shown, axis=0))
    assert max(x, columns.min()) <= min(x + w, columns.max())
    assert max(y, rows.min()) <= min(y + h, rows.max())


@pytest.mark.parametrize("cut", [30, 110])
def test_a_killed_watch_goes_on_and_does_nothing_twice(tmp_path: Path, rule: EventRule, scene: Scene, cut: int) -> None:
    _watch(Replay(_frames(scene)), rule, tmp_path / "whole")
    asked: list[int] = []

    def dies(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(asked) > cut:
            raise SystemExit
        asked.extend([1] * len(frames))
        return energy(past, frames)

    options = WatchOptions(live=False, pixel_threshold=0.03)
    with pytest.raises(SystemExit):
        Watch(Replay(_frames(scene)), WindowScorer(dies), rule, tmp_path / "cut", options).run()
    journal = tmp_path / "cut" / ".anodiff" / "watch.csv"
    with journal.open("a") as stream:
        stream.write("9999,2")  # a line that a kill cut off
    before = len(asked)
    asked.clear()

    def counts(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.extend([1] * len(frames))
        return energy(past, frames)

    Watch(Replay(_frames(scene)), WindowScorer(counts), rule, tmp_path / "cut", options).run()
    # pictures of events whose peak was scored before the kill are drawn again, at most two an event
    assert 239 - before <= len(asked) <= 239 - before + 2 * len(scene.events)
    for name in ("events.jsonl", "events.csv", "frames.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    pictures = sorted(path.name for path in (tmp_path / "whole" / "thumbnails").iterdir())
    for name in pictures:
        one, other = (tmp_path / run / "thumbnails" / name for run in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_another_rule_does_not_go_on_with_these_scores(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    _watch(Replay(_frames(scene)), rule, tmp_path, duration=5.0)
    with pytest.raises(StorageError, match="--overwrite"):
        _watch(Replay(_frames(scene)), rule.at_rate(60.0), tmp_path)
    assert _watch(Replay(_frames(scene)), rule, tmp_path).frames == 240


def test_a_live_source_that_is_too_fast_loses_the_oldest_scores_but_no_past(
    tmp_path: Path, rule: EventRule, scene: Scene
) -> None:
    seen: dict[bytes, float] = {}

    called: list[float] = []

    def slow(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        called.append(time.monotonic())
        time.sleep(0.02)
        maps, scores = energy(past, frames)
        seen.update(zip([frame.tobytes() for frame in frames], scores.tolist(), strict=True))
        return maps, scores

    options = WatchOptions(live=True, room=6, batch_size=2)
    summary = Watch(Replay(_frames(scene)), WindowScorer(slow), rule, tmp_path, options).run()
    assert summary.dropped > 50
    assert summary.scored + summary.dropped + summary.unscored == summary.frames == 240
    # three batches wait at most, behind the one in hand
    assert summary.worst_delay < 5 * max(np.diff([*called, time.monotonic()]))
    pixels = np.stack([scene.frame(i).pixels for i in range(240)])
    truth = energy(pixels[:-1, None], pixels[1:])[1].tolist()
    scores = dict(zip([frame.tobytes() for frame in pixels[1:]], truth, strict=True))
    assert len(scores) == 239
    assert all(scores[key] == score for key, score in seen.items())
    assert pixels[-1].tobytes() in seen  # the newest is kept


def test_the_backlog_drops_the_oldest_and_the_late_and_keeps_news() -> None:
    clock = [0.0]
    backlog = Backlog(3, 2.0, now=lambda: clock[0])
    for entry in "abc":
        backlog.put(entry)
    backlog.put("gap", keep=True)
    backlog.put("d")
    assert backlog.dropped == 1
    clock[0] = 1.0
    assert backlog.take(2, 0) == ["b", "c"]
    backlog.put("e")
    clock[0] = 2.5
    assert backlog.take(9, 0) == ["gap", "e"]
    assert (backlog.dropped, backlog.longest) == (2, 1.5)
    assert backlog.take(1, 0) == []
    backlog.close()
    assert backlog.take(1, 0) is None


def test_a_recorded_source_waits_for_room() -> None:
    backlog = Backlog(2, 0.0, drop=False)
    writer = threading.Thread(target=lambda: [backlog.put(i) for i in range(50)] and backlog.close())
    writer.start()
    taken: list[int] = []
    while (entries := backlog.take(3, 1.0)) is not None:
        assert len(entries) <= 2
        taken += entries
    writer.join()
    assert taken == list(range(50))
    assert backlog.dropped == 0


def test_large_frames_wait_in_bounded_memory() -> None:
    info = ClipInfo("c", 2160, 3840, 3, None, 25.0)
    assert 1 < room_for(256, info) == WAITING_BYTES // (2160 * 3840 * 3)
    assert room_for(256, ClipInfo("c", 240, 320, 3, None, 25.0)) == 256
    assert room_for(256, ClipInfo("c", 100_000, 100_000, 3, None, 25.0)) == 1


def test_the_picture_of_an_event_is_of_its_own_peak_though_the_next_begins_with_the_frame_that_ends_it(
    tmp_path: Path,
) -> None:
    from PIL import Image

    # a frame every 0.9 s: above, below, above again 1.8 s after the first
    greys, above = (10, 60, 110, 160, 210), (0, 2, 0, 1, 0)
    frames = [Frame(i, 0.9 * i, np.full((12, 16, 1), grey, np.uint8)) for i, grey in enumerate(greys)]

    def scores(past: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([above[greys.index(int(frame[0, 0, 0]))] for frame in now], float)
        return np.zeros((len(now), 3, 4)), values

    rule = EventRule(EventSettings(smooth_s=0, causal=True, close_gap_s=1.0), 1.0, 0.5, 0.5, 1.0, np.empty(0))
    Watch(Replay(frames), WindowScorer(scores, ()), rule, tmp_path, WatchOptions(live=False)).run()
    kinds = [line["type"] for line in _lines(tmp_path) if line["type"] != "update"]
    assert kinds == ["begin", "end", "begin", "end"]
    shown = [
        np.asarray(Image.open(tmp_path / f"thumbnails/event_{number:06d}.jpg").convert("L")).mean() for number in (1, 2)
    ]
    np.testing.assert_allclose(shown, [60, 160], atol=3)


def test_a_recorded_clip_is_closed_only_when_no_thread_reads_it(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    class Recorded(Replay):
        reading = torn = False

        def _frames(self) -> Iterator[Frame]:
            for frame in self.frames:
                self.reading = True
                time.sleep(0.002)
                self.reading = False
                yield frame

        def close(self) -> None:
            self.torn |= self.reading
            super().close()

    def fails(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise ConfigError("no such network")

    for number in range(3):
        clip = Recorded(_frames(scene))
        with pytest.raises(ConfigError, match="no such network"):
            Watch(clip, WindowScorer(fails), rule, tmp_path / str(number), WatchOptions(live=False)).run()
        assert clip.closed
        assert not clip.torn


def test_a_gap_ends_the_event_is_reported_and_the_past_is_gathered_anew(
    tmp_path: Path, rule: EventRule, scene: Scene
) -> None:
    away = [
        Frame(frame.index, frame.time + (30.0 if frame.time >= 24 else 0.0), frame.pixels) for frame in _frames(scene)
    ]
    asked: list[int] = []

    def function(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(past.shape[1])
        return energy(past, frames)

    options = WatchOptions(live=True)
    summary = Watch(Replay(away), WindowScorer(function, (3, 1)), rule, tmp_path, options).run()
    assert (summary.gaps, summary.gap_seconds) == (1, 30.25)
    assert summary.unscored == 6  # three at the start, three after the gap
    assert summary.seconds == pytest.approx(239 / 4 - 0.25)
    assert set(asked) == {2}
    lines = _lines(tmp_path)
    at = next(i for i, line in enumerate(lines) if line["type"] == "gap")
    assert (lines[at]["start"], lines[at]["end"]) == (23.75, 54.0)
    assert lines[at - 1]["type"] == "end"
    assert lines[at - 1]["end"] <= 23.75
    later = [line["start"] for line in lines[at:] if line["type"] == "begin"]
    assert later
    assert min(later) >= 54.75


def test_a_stream_that_falls_silent_is_reported_and_leaves_no_event_open(
    tmp_path: Path, rule: EventRule, scene: Scene
) -> None:
    frames = [frame for frame in _frames(scene) if frame.time >= 12]
    said: list[str] = []
    options = WatchOptions(live=True, silence_s=0.3)
    watch = Watch(
        Replay(frames, {frames[50].index: 0.9}), WindowScorer(energy), rule, tmp_path, options, say=said.append
    )
    watch.run()
    kinds = [line["type"] for line in _lines(tmp_path)]
    assert kinds.count("lost") == 1
    assert kinds[kinds.index("lost") - 1] == "end"
    assert any("waiting" in text for text in said)
    assert kinds[-1] == "end"


def test_asked_to_stop_it_ends_with_a_summary(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    stop = threading.Event()
    clip = Replay(_frames(scene), dict.fromkeys(range(240), 0.005))

    def function(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if frames.shape[0] and function.calls > 100:  # type: ignore[attr-defined]
            stop.set()
        function.calls += len(frames)  # type: ignore[attr-defined]
        return energy(past, frames)

    function.calls = 0  # type: ignore[attr-defined]
    summary = Watch(clip, WindowScorer(function), rule, tmp_path, WatchOptions(live=True), stop=stop).run()
    assert summary.interrupted
    assert 100 < summary.scored < 239
    assert clip.closed
    lines = _lines(tmp_path)
    opened = [line["event"] for line in lines if line["type"] == "begin"]
    assert opened == [line["event"] for line in lines if line["type"] == "end"]
    assert (tmp_path / "summary.json").is_file()


def test_a_live_watch_goes_on_with_the_file_of_one_that_was_killed(
    tmp_path: Path, rule: EventRule, scene: Scene
) -> None:
    text = '{"type": "begin", "event": 4, "start": 1.0}\n{"type": "upda'
    (tmp_path / "events.jsonl").write_text(text)
    _watch(Replay(_frames(scene)), rule, tmp_path, live=True)
    whole = (tmp_path / "events.jsonl").read_text().splitlines()
    assert whole[1] == '{"type": "upda'
    later = [json.loads(line) for line in whole[2:]]
    assert (later[0]["type"], later[0]["event"], later[0]["reason"]) == ("end", 4, "killed")
    assert next(line["event"] for line in later[1:] if line["type"] == "begin") == 5
    assert all("clock" in line for line in later)


def test_the_duration_is_of_the_source(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    assert _watch(Replay(_frames(scene)), rule, tmp_path, duration=10.0).frames == 40


def test_the_annotated_video_has_every_scored_frame_at_its_time(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    import av

    for live, names in ((False, ["annotated.mp4"]), (True, ["annotated.mp4", "annotated_2.mp4"])):
        _watch(Replay(_frames(scene)), rule, tmp_path, live=live, annotate=True, duration=8.0, max_delay=60)
        assert sorted(path.name for path in tmp_path.glob("*.mp4")) == names
        with av.open(str(tmp_path / names[-1])) as container:
            times = [frame.time for frame in container.decode(video=0)]
        np.testing.assert_allclose(times, np.arange(1, 32) / 4, atol=1e-4)


def test_errors_of_the_source_and_of_the_scorer_come_out(tmp_path: Path, rule: EventRule, scene: Scene) -> None:
    class Broken(Replay):
        def _frames(self) -> Iterator[Frame]:
            yield from self.frames[:5]
            raise StorageError("the tape is torn")

    with pytest.raises(StorageError, match="torn"):
        _watch(Broken(_frames(scene)), rule, tmp_path / "a", live=True)

    def fails(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise ConfigError("no such network")

    clip = Replay(_frames(scene))
    with pytest.raises(ConfigError, match="no such network"):
        Watch(clip, WindowScorer(fails), rule, tmp_path / "b", WatchOptions(live=True)).run()
    assert clip.closed


def test_pushing_scores_every_frame_that_has_its_past(scene: Scene) -> None:
    frames = [scene.frame(i) for i in range(12)]

    def last_lag(past: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert past.shape[1:3] == (2, 12)
        sums = past.astype(np.float64).sum((2, 3, 4))
        return now[..., 0], sums[:, 0] - sums[:, 1]

    scorer = WindowScorer(last_lag, (4, 1))
    found = [*scorer.push(frames[:3]), *scorer.push(frames[3:7]), *scorer.push(frames[7:])]
    sums = [float(frame.pixels.sum()) for frame in frames]
    assert [(one.index, one.score) for one in found] == [(i, sums[i - 4] - sums[i - 1]) for i in range(4, 12)]
    scorer.reset()
    assert scorer.push(frames[:4]) == []
    with pytest.raises(ValueError, match="at least one frame"):
        WindowScorer(last_lag, (0,))


@pytest.fixture
def night(clips: Any, tmp_path: Path) -> Path:
    """A video of 60 frames at 10 a second with a square that leaps in two places."""
    from anodiff.data.video.write_av import VideoWriter

    pictures = np.concatenate([clips.footage(30, seed, fast=range(10, 18)) for seed in (1, 2)])
    with VideoWriter(tmp_path / "night.mp4", (32, 48), quality=0) as video:
        for number, picture in enumerate(pictures):
            video.write(np.repeat(picture[..., None], 3, axis=2), number / 10)
    return tmp_path / "night.mp4"


def test_a_model_scores_frames_of_a_stream_as_in_a_file(clips: Any, night: Path) -> None:
    import anodiff
    from anodiff.anomaly.clips import ClipDetector
    from anodiff.anomaly.streaming import DetectorScorer
    from anodiff.data.video.clip import open_clip

    detector = ClipDetector(anodiff.load(clips.model), device="cpu")
    with open_clip(night) as clip:
        whole = {scored.frame.index: scored for scored in detector.scores(clip)}
    with open_clip(night) as clip:
        frames = list(clip)
    scorer = DetectorScorer(detector)
    found = [one for start in range(0, len(frames), 7) for one in scorer.push(frames[start : start + 7])]
    assert [one.index for one in found] == list(range(1, 60))
    for one in found:
        assert one.score == whole[one.index].score
        assert one.box == whole[one.index].box
        np.testing.assert_array_equal(one.map, whole[one.index].map)


def test_the_command_watches_a_recording_and_goes_on(
    clips: Any, night: Path, tmp_path: Path, anodiff: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(clips.model), str(night), "--device", "cpu"]
    assert anodiff("watch", *arguments, "--output", tmp_path / "a", "--annotate") == 0
    said = capfd.readouterr().err
    assert "false alarms on the normal footage that set the threshold" in said
    assert (tmp_path / "a/annotated.mp4").is_file()
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", "--duration", "2") == 0
    assert len(_rows(tmp_path / "b/frames.csv")) == 19
    # the second time with pictures, for which frames are scored again: nothing is listed twice
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", "--annotate") == 0
    for name in ("events.jsonl", "events.csv", "frames.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert len(_rows(tmp_path / "b/frames.csv")) == 59
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", "--duration", "2") == 0
    assert len(_rows(tmp_path / "b/frames.csv")) == 19
    rate = ["--set", "video.false_alarms_per_hour=9"]
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", *rate) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", *rate, "--overwrite") == 0
    assert "needs at least 0.111 hours of normal footage" in capfd.readouterr().err
    assert anodiff("watch", arguments[0], tmp_path / "none.mp4", "--output", tmp_path / "c") == 2
    assert "none.mp4" in capfd.readouterr().err


HOUR = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_watch import energy, hour_scene, resident
from anodiff.anomaly.event_rule import EventRule
from anodiff.anomaly.streaming import WindowScorer
from anodiff.data.video.synthetic import SyntheticClip
from anodiff.pipelines.watching import Watch, WatchOptions
sizes = []
def function(past, frames):
    sizes.append(resident())
    return energy(past, frames)
rule = EventRule.from_json(json.loads(Path({rule!r}).read_text()))
clip = SyntheticClip(hour_scene())
summary = Watch(clip, WindowScorer(function), rule, Path({output!r}), WatchOptions(live=False)).run()
print(max(sizes[len(sizes) // 4:]) - sizes[len(sizes) // 4])
print(*summary.sentences(), sep="\\n")
"""


def hour_scene() -> Scene:
    """An hour with day and night, and three events."""
    return Scene(seed=11, duration_s=3600, events=plant(3600, 11))


def hour_rule() -> EventRule:
    """From two other hours of the same place."""
    normals = [_scores(Scene(seed=11, duration_s=3600, start_s=3600.0 * k)) for k in (10, 20)]
    return fit_rule(normals, SETTINGS, 2.0)


def resident() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_an_hour_runs_in_constant_memory_survives_a_kill_finds_the_events_and_states_its_false_alarms(
    tmp_path: Path,
) -> None:
    rule = hour_rule()
    (tmp_path / "rule.json").write_text(json.dumps(rule.to_json()))

    def start(output: Path) -> subprocess.Popen[str]:
        names = {"tests": str(Path(__file__).parent), "rule": str(tmp_path / "rule.json"), "output": str(output)}
        code = textwrap.dedent(HOUR.format(**names))
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    said = whole.communicate(timeout=600)[0].splitlines()
    assert whole.returncode == 0
    assert int(said[0]) < 16e6, f"memory grew by {said[0]} bytes in three quarters of an hour of footage"
    assert "false alarms an hour" in said[2]

    killed = start(tmp_path / "cut")
    journal = tmp_path / "cut" / ".anodiff" / "watch.csv"
    until = time.monotonic() + 300
    while time.monotonic() < until and not (journal.exists() and journal.stat().st_size > 100_000):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "cut" / "summary.json").exists()
    again = start(tmp_path / "cut")
    again.communicate(timeout=600)
    assert again.returncode == 0
    for name in ("events.jsonl", "events.csv", "frames.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    scene = hour_scene()
    events = [(float(row["start"]), float(row["end"])) for row in _rows(tmp_path / "whole" / "events.csv")]
    for planted in scene.events:
        assert any(a <= planted.end and b >= planted.start for a, b in events), planted
    false = [e for e in events if not any(e[0] <= p.end + 2 and e[1] >= p.start - 2 for p in scene.events)]
    # 2 an hour are promised on average: more than 8 would happen in fewer than 3 of 10,000 hours
    assert len(false) <= 8
