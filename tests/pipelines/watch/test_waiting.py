"""Frames that wait to be scored, and the past that belongs to each, whichever are left out."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from anodiff.anomaly.streaming import Backlog, WindowScorer
from anodiff.data.video.clip import ClipInfo
from anodiff.data.video.synthetic import Scene
from anodiff.pipelines.watching import WAITING_BYTES, room_for


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
