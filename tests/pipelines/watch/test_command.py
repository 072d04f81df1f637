"""`anodiff watch` with a model of clips: the scores of a file, and a recording that is taken up again."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


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
    clips: Any, night: Path, tmp_path: Path, anodiff: Callable[..., int], capfd: pytest.CaptureFixture[str], kit: Any
) -> None:
    arguments = [str(clips.model), str(night), "--device", "cpu"]
    assert anodiff("watch", *arguments, "--output", tmp_path / "a", "--annotate") == 0
    said = capfd.readouterr().err
    assert "false alarms on the normal footage that set the threshold" in said
    assert (tmp_path / "a/annotated.mp4").is_file()
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", "--duration", "2") == 0
    assert len(kit.rows(tmp_path / "b/frames.csv")) == 19
    # the second time with pictures, for which frames are scored again: nothing is listed twice
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", "--annotate") == 0
    for name in ("events.jsonl", "events.csv", "frames.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert len(kit.rows(tmp_path / "b/frames.csv")) == 59
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", "--duration", "2") == 0
    assert len(kit.rows(tmp_path / "b/frames.csv")) == 19
    rate = ["--set", "video.false_alarms_per_hour=9"]
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", *rate) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert anodiff("watch", *arguments, "--output", tmp_path / "b", *rate, "--overwrite") == 0
    said = capfd.readouterr().err
    assert "needs at least 6.67 min of normal footage" in said
    assert "excursions above what is usual: " in said
    asked = re.findall(r"--set (video.false_alarms_per_hour=\S+)\)", said)[0]
    assert anodiff("watch", *arguments, "--output", tmp_path / "d", "--duration", "2", "--set", asked) == 0
    assert "events: " in capfd.readouterr().err
    assert anodiff("watch", arguments[0], clips.data / "Test", "--output", tmp_path / "c") == 2
    below = clips.data / "Test" / "Test001"
    assert f"found 0; below it lie the clips {below} and 1 more" in capfd.readouterr().err
    assert anodiff("watch", arguments[0], tmp_path / "none.mp4", "--output", tmp_path / "c") == 2
    assert "none.mp4" in capfd.readouterr().err


def test_signals_that_come_together_ask_once_to_stop() -> None:
    """GNU timeout sends two; the watch still ends with its summary."""
    from anodiff.pipelines.watch import stopping

    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        assert not stop.is_set()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is before
