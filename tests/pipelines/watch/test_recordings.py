"""Watching a recorded source: the events of the whole series, nothing lost to a kill, nothing done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anodiff.anomaly.event_rule import EventRule, EventSettings
from anodiff.anomaly.events import find_events
from anodiff.anomaly.streaming import WindowScorer
from anodiff.data.video.clip import Frame
from anodiff.data.video.synthetic import Scene
from anodiff.errors import ConfigError, StorageError
from anodiff.pipelines.watching import Watch, WatchOptions


def test_a_recorded_source_has_the_events_of_the_whole_series(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    summary = kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path)
    series = kit.scores(scene)
    expected = find_events(rule, series.times, series.scores)
    assert len(expected.events) >= 2
    ends = [line for line in kit.lines(tmp_path) if line["type"] == "end"]
    assert [(e["start"], e["end"], e["peak_time"]) for e in ends] == [
        (e.start, e.end, e.peak_time) for e in expected.events
    ]
    np.testing.assert_allclose([e["peak_score"] for e in ends], [e.peak_score for e in expected.events])
    rows = kit.rows(tmp_path / "frames.csv")
    assert [int(row["frame"]) for row in rows] == list(range(1, 240))
    assert np.array_equal(np.float32([row["score"] for row in rows]), series.scores.astype(np.float32))
    np.testing.assert_allclose([float(row["smoothed"]) for row in rows], expected.smoothed)
    assert expected.anomalous is not None
    assert [row["anomalous"] == "true" for row in rows] == expected.anomalous.tolist()
    table = kit.rows(tmp_path / "events.csv")
    assert [float(row["start"]) for row in table] == [e.start for e in expected.events]
    assert all((tmp_path / row["thumbnail"]).is_file() for row in table)
    assert (summary.frames, summary.scored, summary.unscored, summary.dropped) == (240, 239, 1, 0)
    assert summary.seconds == pytest.approx(239 / 4)
    assert json.loads((tmp_path / "summary.json").read_text())["events"] == summary.events == len(ends)
    for planted in scene.events:
        assert any(e["start"] <= planted.end and e["end"] >= planted.start for e in ends)


def test_the_box_of_an_event_lies_on_what_was_planted(tmp_path: Path, rule: EventRule, scene: Scene, kit: Any) -> None:
    kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path)
    vehicle = next(line for line in kit.lines(tmp_path) if line["type"] == "end" and 40 < line["peak_time"] < 52)
    x, y, w, h = vehicle["box"]
    shown = [scene.truth(round(vehicle["peak_time"] * 4) + k) for k in range(-2, 1)]
    rows, columns = np.nonzero(np.any(shown, axis=0))
    assert max(x, columns.min()) <= min(x + w, columns.max())
    assert max(y, rows.min()) <= min(y + h, rows.max())


@pytest.mark.parametrize("cut", [30, 110])
def test_a_killed_watch_goes_on_and_does_nothing_twice(
    tmp_path: Path, rule: EventRule, scene: Scene, cut: int, kit: Any
) -> None:
    kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path / "whole")
    asked: list[int] = []

    def dies(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(asked) > cut:
            raise SystemExit
        asked.extend([1] * len(frames))
        return kit.energy(past, frames)

    options = WatchOptions(live=False, pixel_threshold=0.03)
    with pytest.raises(SystemExit):
        Watch(kit.Replay(kit.frames(scene)), WindowScorer(dies), rule, tmp_path / "cut", options).run()
    journal = tmp_path / "cut" / ".anodiff" / "watch.csv"
    with journal.open("a") as stream:
        stream.write("9999,2")  # a line that a kill cut off
    before = len(asked)
    asked.clear()

    def counts(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.extend([1] * len(frames))
        return kit.energy(past, frames)

    Watch(kit.Replay(kit.frames(scene)), WindowScorer(counts), rule, tmp_path / "cut", options).run()
    # pictures of events whose peak was scored before the kill are drawn again, at most two an event
    assert 239 - before <= len(asked) <= 239 - before + 2 * len(scene.events)
    for name in ("events.jsonl", "events.csv", "frames.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    pictures = sorted(path.name for path in (tmp_path / "whole" / "thumbnails").iterdir())
    for name in pictures:
        one, other = (tmp_path / run / "thumbnails" / name for run in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_another_rule_does_not_go_on_with_these_scores(tmp_path: Path, rule: EventRule, scene: Scene, kit: Any) -> None:
    kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path, duration=5.0)
    with pytest.raises(StorageError, match="--overwrite"):
        kit.watch(kit.Replay(kit.frames(scene)), rule.at_rate(60.0), tmp_path)
    assert kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path).frames == 240


def test_the_picture_of_an_event_is_of_its_own_peak_though_the_next_begins_with_the_frame_that_ends_it(
    tmp_path: Path, kit: Any
) -> None:
    from PIL import Image

    # a frame every 0.9 s: above, below, above again 1.8 s after the first
    greys, above = (10, 60, 110, 160, 210), (0, 2, 0, 1, 0)
    frames = [Frame(i, 0.9 * i, np.full((12, 16, 1), grey, np.uint8)) for i, grey in enumerate(greys)]

    def scores(past: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([above[greys.index(int(frame[0, 0, 0]))] for frame in now], float)
        return np.zeros((len(now), 3, 4)), values

    rule = EventRule(EventSettings(smooth_s=0, causal=True, close_gap_s=1.0), 1.0, 0.5, 0.5, 1.0, np.empty(0))
    Watch(kit.Replay(frames), WindowScorer(scores, ()), rule, tmp_path, WatchOptions(live=False)).run()
    kinds = [line["type"] for line in kit.lines(tmp_path) if line["type"] != "update"]
    assert kinds == ["begin", "end", "begin", "end"]
    shown = [
        np.asarray(Image.open(tmp_path / f"thumbnails/event_{number:06d}.jpg").convert("L")).mean() for number in (1, 2)
    ]
    np.testing.assert_allclose(shown, [60, 160], atol=3)


def test_a_recorded_clip_is_closed_only_when_no_thread_reads_it(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    class Recorded(kit.Replay):
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
        clip = Recorded(kit.frames(scene))
        with pytest.raises(ConfigError, match="no such network"):
            Watch(clip, WindowScorer(fails), rule, tmp_path / str(number), WatchOptions(live=False)).run()
        assert clip.closed
        assert not clip.torn


def test_the_duration_is_of_the_source(tmp_path: Path, rule: EventRule, scene: Scene, kit: Any) -> None:
    assert kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path, duration=10.0).frames == 40


def test_the_annotated_video_has_every_scored_frame_at_its_time(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    import av

    for live, names in ((False, ["annotated.mp4"]), (True, ["annotated.mp4", "annotated_2.mp4"])):
        kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path, live=live, annotate=True, duration=8.0, max_delay=60)
        assert sorted(path.name for path in tmp_path.glob("*.mp4")) == names
        with av.open(str(tmp_path / names[-1])) as container:
            times = [frame.time for frame in container.decode(video=0)]
        np.testing.assert_allclose(times, np.arange(1, 32) / 4, atol=1e-4)
