"""Watching a live source: bounded delay, gaps and silence reported, no event left open, errors that come out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anodiff.anomaly.event_rule import EventRule
from anodiff.anomaly.streaming import WindowScorer
from anodiff.data.video.clip import Frame
from anodiff.data.video.synthetic import Scene
from anodiff.errors import ConfigError, StorageError
from anodiff.pipelines.watching import TICK, Watch, WatchOptions


def test_a_live_source_that_is_too_fast_loses_the_oldest_scores_but_no_past(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    seen: dict[bytes, float] = {}

    called: list[float] = []

    def slow(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        called.append(time.monotonic())
        time.sleep(0.02)
        maps, scores = kit.energy(past, frames)
        seen.update(zip([frame.tobytes() for frame in frames], scores.tolist(), strict=True))
        return maps, scores

    options = WatchOptions(live=True, room=6, batch_size=2)
    summary = Watch(kit.Replay(kit.frames(scene)), WindowScorer(slow), rule, tmp_path, options).run()
    assert summary.dropped > 50
    assert summary.scored + summary.dropped + summary.unscored == summary.frames == 240
    # three batches wait at most, behind the one in hand
    assert summary.worst_delay < 5 * max(np.diff([*called, time.monotonic()]))
    pixels = np.stack([scene.frame(i).pixels for i in range(240)])
    truth = kit.energy(pixels[:-1, None], pixels[1:])[1].tolist()
    scores = dict(zip([frame.tobytes() for frame in pixels[1:]], truth, strict=True))
    assert len(scores) == 239
    assert all(scores[key] == score for key, score in seen.items())
    assert pixels[-1].tobytes() in seen  # the newest is kept


def test_a_gap_ends_the_event_is_reported_and_the_past_is_gathered_anew(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    away = [
        Frame(frame.index, frame.time + (30.0 if frame.time >= 24 else 0.0), frame.pixels)
        for frame in kit.frames(scene)
    ]
    asked: list[int] = []

    def function(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(past.shape[1])
        return kit.energy(past, frames)

    options = WatchOptions(live=True)
    summary = Watch(kit.Replay(away), WindowScorer(function, (3, 1)), rule, tmp_path, options).run()
    assert (summary.gaps, summary.gap_seconds) == (1, 30.25)
    assert summary.unscored == 6  # three at the start, three after the gap
    assert summary.seconds == pytest.approx(239 / 4 - 0.25)
    assert set(asked) == {2}
    lines = kit.lines(tmp_path)
    at = next(i for i, line in enumerate(lines) if line["type"] == "gap")
    assert (lines[at]["start"], lines[at]["end"]) == (23.75, 54.0)
    assert lines[at - 1]["type"] == "end"
    assert lines[at - 1]["end"] <= 23.75
    later = [line["start"] for line in lines[at:] if line["type"] == "begin"]
    assert later
    assert min(later) >= 54.75


def test_a_stream_that_falls_silent_is_reported_and_leaves_no_event_open(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    told: list[str] = []
    lost = threading.Event()

    def say(text: str) -> None:
        told.append(text)
        lost.set()

    class Silent(kit.Replay):
        """Falls silent in an event until that is said, and for a while longer."""

        def _frames(self) -> Iterator[Frame]:
            for number, frame in enumerate(self.frames):
                if number == 50:
                    lost.clear()
                    said = len(told)
                    assert lost.wait(60)
                    time.sleep(4 * TICK)
                    assert len(told) == said + 1
                yield frame

    frames = [frame for frame in kit.frames(scene) if frame.time >= 12]
    options = WatchOptions(live=True, silence_s=1.0)
    Watch(Silent(frames), WindowScorer(kit.energy), rule, tmp_path, options, say=say).run()
    assert "waiting" in told[0]
    kinds = [line["type"] for line in kit.lines(tmp_path)]
    assert kinds[kinds.index("lost") - 1] == "end"
    assert kinds[-1] == "end"


def test_asked_to_stop_it_ends_with_a_summary(tmp_path: Path, rule: EventRule, scene: Scene, kit: Any) -> None:
    stop = threading.Event()
    clip = kit.Replay(kit.frames(scene), dict.fromkeys(range(240), 0.005))

    def function(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if frames.shape[0] and function.calls > 100:  # type: ignore[attr-defined]
            stop.set()
        function.calls += len(frames)  # type: ignore[attr-defined]
        return kit.energy(past, frames)

    function.calls = 0  # type: ignore[attr-defined]
    summary = Watch(clip, WindowScorer(function), rule, tmp_path, WatchOptions(live=True), stop=stop).run()
    assert summary.interrupted
    assert 100 < summary.scored < 239
    assert clip.closed
    lines = kit.lines(tmp_path)
    opened = [line["event"] for line in lines if line["type"] == "begin"]
    assert opened == [line["event"] for line in lines if line["type"] == "end"]
    assert (tmp_path / "summary.json").is_file()


def test_a_live_watch_goes_on_with_the_file_of_one_that_was_killed(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    text = '{"type": "begin", "event": 4, "start": 1.0}\n{"type": "upda'
    (tmp_path / "events.jsonl").write_text(text)
    kit.watch(kit.Replay(kit.frames(scene)), rule, tmp_path, live=True)
    whole = (tmp_path / "events.jsonl").read_text().splitlines()
    assert whole[1] == '{"type": "upda'
    later = [json.loads(line) for line in whole[2:]]
    assert (later[0]["type"], later[0]["event"], later[0]["reason"]) == ("end", 4, "killed")
    assert next(line["event"] for line in later[1:] if line["type"] == "begin") == 5
    assert all("clock" in line for line in later)


def test_errors_of_the_source_and_of_the_scorer_come_out(
    tmp_path: Path, rule: EventRule, scene: Scene, kit: Any
) -> None:
    class Broken(kit.Replay):
        def _frames(self) -> Iterator[Frame]:
            yield from self.frames[:5]
            raise StorageError("the tape is torn")

    with pytest.raises(StorageError, match="torn"):
        kit.watch(Broken(kit.frames(scene)), rule, tmp_path / "a", live=True)

    def fails(past: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise ConfigError("no such network")

    clip = kit.Replay(kit.frames(scene))
    with pytest.raises(ConfigError, match="no such network"):
        Watch(clip, WindowScorer(fails), rule, tmp_path / "b", WatchOptions(live=True)).run()
    assert clip.closed
