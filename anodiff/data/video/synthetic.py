"""A synthetic surveillance camera: walking figures, day and night, a camera that shakes, and events one can plant.

Every frame is a function of (scene, index) alone, so that hours of footage need no memory and no file, and any part of
it can be made again. What is normal: figures on lanes that walk at a walking pace, light that falls and returns,
shake, sensor noise. What is not: something that runs, something large that drives, a crowd that scatters.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anodiff.data.video.clip import Clip, ClipInfo, Frame
from anodiff.errors import ConfigError
from anodiff.files import make_folder, storage_errors

Kind = Literal["runner", "vehicle", "scatter"]
KINDS: tuple[Kind, ...] = ("runner", "vehicle", "scatter")
#: of a walker: pace in widths of the picture a second, seconds between two on one lane, height in its heights
PACE, EVERY_S, TALL = (0.045, 0.075), 14.0, 0.2
LANES = 4
#: grey levels of background and figures, of 0..1; noise and shake (px) by standard deviation; darkest night
GROUND, FIGURE = (0.35, 0.65), (0.05, 0.95)
NOISE, SHAKE, NIGHT = 0.012, 0.25, 0.45
#: fastest of what is planted, in widths a second: a runner, a vehicle, each of a crowd
RUN, DRIVE, FLEE = 0.45, 0.3, 0.4
CROWD = 7

Grey = NDArray[np.float64]


@dataclass(frozen=True)
class Planted:
    """What happens from ``start`` to ``end`` (seconds)."""

    kind: Kind
    start: float
    end: float


@dataclass(frozen=True)
class Scene:
    """A camera's view.

    Attributes:
        seed: decides the place (background) and everything that moves.
        height, width, fps, duration_s: of the footage.
        events: planted, see `plant`.
        day_s: period of the light; 0 = always day.
        start_s: where in the life of the scene the footage begins: two pieces of one place without common figures.
    """

    seed: int = 0
    height: int = 24
    width: int = 32
    fps: float = 4.0
    duration_s: float = 3600.0
    events: tuple[Planted, ...] = ()
    day_s: float = 3600.0
    start_s: float = 0.0

    def __len__(self) -> int:
        """Number of frames."""
        return round(self.duration_s * self.fps)

    def time(self, index: int) -> float:
        """Seconds from the start of the footage."""
        return index / self.fps

    def frame(self, index: int) -> Frame:
        """One frame, pixels uint8 (height, width, 1)."""
        rng = np.random.default_rng([self.seed, 1, index, round(self.start_s * 1000)])
        picture, _ = self._drawn(self.time(index), rng.normal(0, SHAKE, 2))
        lit = picture * self.light(self.time(index)) + rng.normal(0, NOISE, picture.shape)
        return Frame(index, self.time(index), np.round(lit.clip(0, 1) * 255).astype(np.uint8)[..., None])

    def truth(self, index: int) -> NDArray[np.bool_]:
        """Where the frame shows what was planted: bool (height, width)."""
        rng = np.random.default_rng([self.seed, 1, index, round(self.start_s * 1000)])
        return self._drawn(self.time(index), rng.normal(0, SHAKE, 2))[1]

    def label(self, index: int) -> bool:
        """Whether something planted goes on."""
        return any(event.start <= self.time(index) <= event.end for event in self.events)

    def light(self, time: float) -> float:
        """Gain at a time: 1 at noon, NIGHT at midnight."""
        if self.day_s <= 0:
            return 1.0
        return 1.0 - (1.0 - NIGHT) * 0.5 * (1.0 - float(np.cos(2 * np.pi * (time + self.start_s) / self.day_s)))

    @cached_property
    def _ground(self) -> tuple[Grey, Grey, Grey]:
        """The background's waves: amplitude, frequency (2 a wave), phase. A sum of cosines can be shifted exactly."""
        rng = np.random.default_rng([self.seed, 0])
        return rng.uniform(0.2, 1.0, 12), rng.uniform(-4, 4, (12, 2)), rng.uniform(0, 2 * np.pi, 12)

    def _drawn(self, time: float, shake: Grey) -> tuple[Grey, NDArray[np.bool_]]:
        """Reflectance (height, width) in [0, 1] seen by a camera moved by ``shake`` px; what is planted."""
        y = (np.arange(self.height)[:, None] + 0.5 + shake[0]) / self.height
        x = (np.arange(self.width)[None, :] + 0.5 + shake[1]) / self.width
        amplitude, frequency, phase = self._ground
        # cos(a + b) = cos a cos b - sin a sin b: two small products instead of a wave a pixel
        down, right = 2 * np.pi * frequency[:, :1] * y.T + phase[:, None], 2 * np.pi * frequency[:, 1:] * x
        weight = amplitude[:, None] / amplitude.sum()
        waves = (np.cos(down) * weight).T @ np.cos(right) - (np.sin(down) * weight).T @ np.sin(right)
        share = 0.5 + 0.5 * waves
        picture = GROUND[0] + (GROUND[1] - GROUND[0]) * share
        soft = 0.5 / self.height
        for figure in self._walkers(time):
            picture = _painted(picture, _covered(figure, y, x, soft), figure.grey)
        planted = np.zeros(picture.shape, dtype=bool)
        for figure in self._planted(time):
            cover = _covered(figure, y, x, soft)
            picture, planted = _painted(picture, cover, figure.grey), planted | (cover > 0.5)
        return picture, planted

    def _walkers(self, time: float) -> Iterator[_Figure]:
        """Those who walk past at a time. Walker k of a lane sets off at about k EVERY_S, so none need be remembered."""
        now = time + self.start_s
        longest = 1.2 / PACE[0]
        for lane in range(LANES):
            for k in range(int((now - longest) // EVERY_S) - 1, int(now // EVERY_S) + 2):
                walker = _walker(self.seed, lane, k)
                way = (now - walker.start) * walker.pace - 0.1
                if now < walker.start or way > 1.1:
                    continue
                sway = 0.008 * np.sin(2 * np.pi * 0.9 * now + walker.phase)
                x = way if lane % 2 else 1 - way
                yield _Figure(0.22 + 0.62 * lane / (LANES - 1) + sway, x, walker.tall / 2, walker.tall / 5, walker.grey)

    def _planted(self, time: float) -> Iterator[_Figure]:
        for number, event in enumerate(self.events):
            if event.start <= time <= event.end:
                rng = np.random.default_rng([self.seed, 3, number])
                yield from _MOVES[event.kind](rng, time - event.start)


@dataclass(frozen=True)
class _Walker:
    """Sets off at ``start`` (seconds), at a pace in widths a second; sways with a phase."""

    start: float
    pace: float
    grey: float
    tall: float
    phase: float


@lru_cache(maxsize=1024)
def _walker(seed: int, lane: int, k: int) -> _Walker:
    rng = np.random.default_rng([seed, 2, lane, k + 2**31])
    return _Walker(
        start=(k + rng.uniform()) * EVERY_S,
        pace=rng.uniform(*PACE),
        grey=FIGURE[rng.integers(2)],
        tall=TALL * rng.uniform(0.85, 1.15),
        phase=rng.uniform(0, 2 * np.pi),
    )


@dataclass(frozen=True)
class _Figure:
    """An ellipse: centre, half height and half width in shares of the picture's height (x: width), grey of 0..1."""

    y: float
    x: float
    half_y: float
    half_x: float
    grey: float


def _covered(figure: _Figure, y: Grey, x: Grey, soft: float) -> Grey:
    """How much of each pixel a figure covers, (height, width) in [0, 1]."""
    radius = np.hypot((y - figure.y) / figure.half_y, (x - figure.x) / figure.half_x)
    return np.clip(0.5 - (radius - 1) * min(figure.half_y, figure.half_x) / (2 * soft), 0, 1)


def _painted(picture: Grey, cover: Grey, grey: float) -> Grey:
    return picture + (grey - picture) * cover


def _bounced(way: float) -> float:
    """A way without end, folded into 0..1 and back."""
    return 1 - abs(way % 2 - 1)


def _runner(rng: np.random.Generator, since: float) -> Iterator[_Figure]:
    """One who runs up and down."""
    yield _Figure(0.35 + 0.3 * rng.uniform(), _bounced(RUN * since), TALL / 2, TALL / 4, FIGURE[rng.integers(2)])


def _vehicle(rng: np.random.Generator, since: float) -> Iterator[_Figure]:
    """Something large that drives up and down."""
    yield _Figure(0.5 + 0.2 * rng.uniform(), _bounced(DRIVE * since), 0.2, 0.16, FIGURE[rng.integers(2)])


def _scatter(rng: np.random.Generator, since: float) -> Iterator[_Figure]:
    """Many who run from the middle in all directions, and on along the walls."""
    angle, start = rng.uniform(0, 2 * np.pi, CROWD), rng.uniform(0.3, 0.7, (CROWD, 2))
    for (y, x), turn in zip(start, angle, strict=True):
        down, right = FLEE * since * np.sin(turn), FLEE * since * np.cos(turn)
        yield _Figure(_bounced(y + down), _bounced(x + right), TALL / 2, TALL / 4, FIGURE[rng.integers(2)])


_MOVES = {"runner": _runner, "vehicle": _vehicle, "scatter": _scatter}


#: length of a planted event
EVENT_S = 12.0


def plant(
    duration_s: float, seed: int = 0, length_s: float = EVENT_S, kinds: Sequence[Kind] = KINDS
) -> tuple[Planted, ...]:
    """One event of each kind, each somewhere in its own equal part of the footage.

    Raises:
        ValueError: the parts are too short for the events.
    """
    part = duration_s / max(1, len(kinds))
    if part < 2 * length_s:
        raise ValueError(f"expected at least {2 * length_s:g} s of footage an event, found {part:g} s")
    rng = np.random.default_rng([seed, 4])
    starts = [part * (i + rng.uniform(0.25, 1 - length_s / part)) for i in range(len(kinds))]
    return tuple(Planted(kind, start, start + length_s) for kind, start in zip(kinds, starts, strict=True))


class SyntheticClip(Clip):
    """The footage of a scene as a clip, from frame ``first`` on."""

    def __init__(self, scene: Scene, first: int = 0) -> None:
        self.scene, self.first = scene, first

    @property
    def info(self) -> ClipInfo:
        """Known without reading."""
        scene = self.scene
        return ClipInfo(f"synthetic:{scene.seed}", scene.height, scene.width, 1, len(scene), scene.fps)

    def _frames(self) -> Iterator[Frame]:
        return (self.scene.frame(index) for index in range(self.first, len(self.scene)))

    def close(self) -> None:
        """Nothing is open."""


def write_video(path: str | os.PathLike[str], scene: Scene) -> Path:
    """The scene as a video file (H.264, or MPEG-4 where there is no encoder), the frames' times kept.

    Raises:
        StorageError: it cannot be written.
    """
    from anodiff.data.video.write_av import VideoWriter

    with VideoWriter(path, (scene.height, scene.width), quality=12) as video:
        for frame in SyntheticClip(scene):
            video.write(np.broadcast_to(frame.pixels, (scene.height, scene.width, 3)), frame.time)
    return Path(path)


def write_scenes(
    root: str | os.PathLike[str], train: int = 4, test: int = 3, minutes: float = 2.0, scene: Scene | None = None
) -> Path:
    """A data set of one place: train/normal_NN.mp4, test/scene_NN.mp4, and events.csv (clip, start_s, end_s, kind).

    Each clip is another piece of the scene's life, hence has figures of its own; each test clip has one event, kinds
    taking turns.

    Raises:
        ConfigError: clips too short for an event of 12 s and quiet around it, before anything is written.
        StorageError: it cannot be written.
    """
    import dataclasses

    duration = minutes * 60
    if duration < 2 * EVENT_S:
        raise ConfigError(f"minutes: expected clips of at least {2 * EVENT_S / 60:g} minutes, found {minutes:g}")
    folder, base = make_folder(root), scene or Scene()
    rows: list[tuple[str, float, float, str]] = []
    for number in range(train + test):
        name = f"train/normal_{number:02d}.mp4" if number < train else f"test/scene_{number - train:02d}.mp4"
        events = plant(duration, number, kinds=[KINDS[(number - train) % 3]]) if number >= train else ()
        piece = dataclasses.replace(base, duration_s=duration, events=events, start_s=base.start_s + number * duration)
        make_folder((folder / name).parent)
        write_video(folder / name, piece)
        rows += [(name, event.start, event.end, event.kind) for event in events]
    with (
        storage_errors(folder / "events.csv"),
        open(folder / "events.csv", "w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(("clip", "start_s", "end_s", "kind"))
        writer.writerows(rows)
    return folder
