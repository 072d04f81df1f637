"""Scenes to watch, a stand-in for a model, and a tape that is played like a camera."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from anodiff.anomaly.event_rule import EventRule, EventSettings
from anodiff.anomaly.events import Series, fit_rule
from anodiff.anomaly.streaming import WindowScorer
from anodiff.data.video.clip import Clip, ClipInfo, Frame
from anodiff.data.video.synthetic import Planted, Scene, plant
from anodiff.pipelines.watch_summary import WatchSummary
from anodiff.pipelines.watching import Watch, WatchOptions

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
    return fit_rule([scores(normal)], SETTINGS, 30.0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(seed=3, duration_s=60, events=(Planted("runner", 20, 28), Planted("vehicle", 42, 50)), **PLACE)  # type: ignore[arg-type]


@lru_cache(maxsize=2)
def frames(scene: Scene) -> list[Frame]:
    """The frames of a scene, made once."""
    return [scene.frame(i) for i in range(len(scene))]


def scores(scene: Scene) -> Series:
    shown = frames(scene)
    pixels = np.stack([frame.pixels for frame in shown])
    return Series("n", np.array([frame.time for frame in shown[1:]]), energy(pixels[:-1, None], pixels[1:])[1])


def watch(clip: Clip, rule: EventRule, output: Path, live: bool = False, **changes: Any) -> WatchSummary:
    options = WatchOptions(live=live, pixel_threshold=0.03, **changes)
    return Watch(clip, WindowScorer(energy), rule, output, options).run()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def hour_scene() -> Scene:
    """An hour with day and night, and three events."""
    return Scene(seed=11, duration_s=3600, events=plant(3600, 11))


def hour_rule() -> EventRule:
    """From two other hours of the same place."""
    normals = [scores(Scene(seed=11, duration_s=3600, start_s=3600.0 * k)) for k in (10, 20)]
    return fit_rule(normals, SETTINGS, 2.0)


def resident() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers, since test modules cannot import this file."""
    return SimpleNamespace(
        energy=energy,
        Replay=Replay,
        frames=frames,
        scores=scores,
        watch=watch,
        lines=lines,
        rows=rows,
        hour_scene=hour_scene,
        hour_rule=hour_rule,
    )
