"""What is read, computed and written for one clip: the job of `anodiff score` and `anodiff evaluate` for clips.

A clip is gone through twice, frame by frame: once for the scores, and once, when it is known which frames matter, for
the pictures of those. Memory grows by a few numbers a frame.
"""

from __future__ import annotations

import time as clocks
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.anomaly.clip_rule import rule_of
from anodiff.anomaly.clips import ClipDetector
from anodiff.anomaly.events import Event, find_events
from anodiff.anomaly.temporal import smooth_in_time
from anodiff.data.clip_input import windows
from anodiff.data.video.clip import Clip, open_clip
from anodiff.engine.store import STATE_FOLDER, Item
from anodiff.errors import InputError
from anodiff.files import atomic_write, make_folder, storage_errors
from anodiff.pipelines.pictures import calibrated_scale
from anodiff.pipelines.scoring import short_float
from anodiff.visualize.clips import resized, save_thumbnail, thumbnail
from anodiff.visualize.heatmap import HeatScale, save_heatmap

if TYPE_CHECKING:
    from anodiff.data.video.table import ClipRow
    from anodiff.engine.progress import Progress

FRAMES = f"{STATE_FOLDER}/frames"
THUMBNAILS = "thumbnails"
#: ending of files in the making, which a later run removes
PART = ".anodiff-part"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClipOutputs:
    """What is written for each clip, and where; maps: float32 (frames, H, W) on the clip's own grid."""

    folder: Path
    maps: bool = False
    heatmaps: bool = True


@dataclass(frozen=True)
class FrameTable:
    """The frames of a clip: index (n,) int64, time (n,) seconds, score (n,) before and smoothed (n,) after smoothing,
    box (n, 4) int64 of the highest window: x, y, width, height in native pixels."""

    index: NDArray[np.int64]
    time: Floats
    score: Floats
    smoothed: Floats
    box: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Writes an NPZ file, atomically."""
        atomic_write(path, lambda stream: np.savez(stream, **vars(self)))

    @classmethod
    def load(cls, path: Path) -> FrameTable:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in ("index", "time", "score", "smoothed", "box")})


@dataclass(frozen=True)
class ScoredClip:
    """One clip, scored; broken: where and why it broke off, "" where it came to its end."""

    frames: FrameTable
    events: tuple[Event, ...]
    pictures: dict[int, Picture]
    broken: str
    seconds: float


@dataclass(frozen=True)
class Picture:
    """A frame with its map (h, w) on the model's grid, stretched over the frame."""

    pixels: NDArray[np.uint8]
    map: NDArray[np.float32]


class ClipJob:
    """read -> item, compute -> ScoredClip, write -> the row of scores.csv; see `anodiff.engine.loop.Job`."""

    def __init__(self, detector: ClipDetector, outputs: ClipOutputs, max_pixels: int, *, batch_size: int = 16) -> None:
        self.detector, self.outputs, self.max_pixels, self.batch_size = detector, outputs, max_pixels, batch_size
        calibration = detector.calibration
        self.scale: HeatScale | None = calibrated_scale(calibration)
        self.rule = None if calibration is None else rule_of(detector)
        self.progress: Progress | None = None
        self.done = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this run, one sentence each."""
        if self.rule is None:
            return (*self.detector.notes, "without a calibration there are no events and no pictures")
        return (*self.detector.notes, *([] if self.rule.message is None else [f"events: {self.rule.message}"]))

    def read(self, item: Item) -> Item:
        """Nothing yet: a clip is read while it is computed."""
        return item

    def compute(self, batch: list[Item]) -> Sequence[ScoredClip]:
        """Scores clips one after the other."""
        return [self._scored(item) for item in batch]

    def write(self, item: Item, computed: ScoredClip) -> dict[str, Any]:
        """Writes frames, maps and pictures of one clip; returns its row."""
        folder, frames = self.outputs.folder, computed.frames
        files = {"frames": f"{FRAMES}/{item.id}.npz"}
        frames.save(folder / files["frames"])
        if self.outputs.maps:
            files["map"] = f"maps/{item.id}.npy"
            with storage_errors(folder / files["map"]):
                self._part(item).replace(folder / files["map"])
        worst = int(np.argmax(frames.smoothed))
        if self.outputs.heatmaps and self.scale is not None:
            files["heatmap"] = f"heatmaps/{item.id}.png"
            picture = computed.pictures[int(frames.index[worst])]
            values = resized(picture.map, picture.pixels.shape[:2])
            save_heatmap(folder / files["heatmap"], squeezed(picture.pixels), values, self.scale, None)
        events = [self._illustrated(item, event, computed) for event in computed.events]
        highest, calibration = float(frames.smoothed[worst]), self.detector.calibration
        high = None if self.rule is None else self.rule.high
        return {
            "score": short_float(highest),
            "p_value": None if calibration is None else calibration.clip_p_value(highest),
            "is_anomalous": None if high is None else highest > high,
            "threshold": None if high is None else short_float(high),
            "nfe": self.detector.nfe,
            "error": computed.broken,
            "seconds": computed.seconds / len(frames.index),
            "n_frames": len(frames.index),
            "events": [vars(event) for event in events],
            "files": [*files.values(), *(event.thumbnail for event in events if event.thumbnail)],
            **files,
        }

    def _open(self, item: Item) -> Clip:
        row: ClipRow | None = item.extra
        fps = (row.fps if row is not None else None) or self.detector.video.fps
        return open_clip(item.path, fps=fps, max_pixels=self.max_pixels)

    def _scored(self, item: Item) -> ScoredClip:
        began = clocks.monotonic()
        index, time, score, box = [], [], [], []
        kept: AbstractContextManager[MapFile | None] = nullcontext()
        if self.outputs.maps:
            kept = MapFile(self._part(item))
        with self._open(item) as clip, kept as maps:
            for scored in self._named(item, clip):
                index.append(scored.frame.index)
                time.append(scored.frame.time)
                score.append(scored.score)
                box.append(scored.box)
                if maps is not None:
                    geometry = self.detector.prepare.geometry(scored.frame.pixels)
                    maps.append(self.detector.prepare.plain.back(scored.map, geometry))
            broken = clip.broken or ""
        values = np.array(score, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{item.path}: expected finite scores, found others")
        seconds = np.array(time, dtype=np.float64)
        frames = FrameTable(
            np.array(index, dtype=np.int64),
            seconds,
            values,
            smooth_in_time(seconds, values, self.detector.video.smooth_s),
            np.array(box, dtype=np.int64),
        )
        events: tuple[Event, ...] = ()
        if self.rule is not None:
            boxes = [tuple(row) for row in frames.box.tolist()]
            found = find_events(self.rule, seconds, values, clip=item.id, frames=index, boxes=boxes)
            frames, events = replace(frames, smoothed=found.smoothed), tuple(found.events)
        wanted = {int(frames.index[np.argmax(frames.smoothed)]), *(event.peak_frame for event in events)}
        pictures = self._pictures(item, wanted) if self.outputs.heatmaps and self.scale is not None else {}
        return ScoredClip(frames, events, pictures, broken, clocks.monotonic() - began)

    def _named(self, item: Item, clip: Clip) -> Iterator[Any]:
        """The scored frames; an InputError names the clip, and the progress bar counts."""
        try:
            for scored in self.detector.scores(clip, self.batch_size):
                self.done += 1
                if self.progress is not None and self.done % 100 == 0:
                    self.progress.update(0, frames=self.done)
                yield scored
        except InputError as error:
            known = str(error)
            raise InputError(known if item.path in known else f"{item.path}: {known}") from None

    def _pictures(self, item: Item, wanted: set[int]) -> dict[int, Picture]:
        """Some frames of a clip with their maps, from a second reading up to the last of them.

        A frame that the model does not see by itself has the map of the one whose score it took.
        """
        detector, found = self.detector, {}
        first, seen, last = None, None, max(wanted)
        with self._open(item) as clip:
            for window in windows(clip, detector.prepare, detector.video):
                seen = window.seen or seen
                first = first or seen
                number = window.frame.index
                if number in wanted:
                    found[number] = (window.frame.pixels, seen)
                if number >= last and seen is not None:
                    break
        assert first is not None
        return {number: Picture(pixels, self._map(past or first, pixels)) for number, (pixels, past) in found.items()}

    def _map(self, seen: tuple[NDArray[np.uint8], ...], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The map of a window, without what was padded to the model's grid."""
        errors = self.detector.errors(torch.from_numpy(np.stack(seen))[None])
        top, left, height, width = self.detector.prepare.geometry(pixels).box
        return self.detector.maps(errors)[0, top : top + height, left : left + width].cpu().numpy()

    def _illustrated(self, item: Item, event: Event, computed: ScoredClip) -> Event:
        """The event with a thumbnail, where there are pictures."""
        picture = computed.pictures.get(event.peak_frame)
        if picture is None:
            return event
        name = f"{THUMBNAILS}/{item.id}_{event.number:04d}.jpg"
        pixels = thumbnail(squeezed(picture.pixels), anomaly_map=picture.map, scale=self.scale, box=event.box)
        save_thumbnail(self.outputs.folder / name, pixels)
        return replace(event, thumbnail=name)

    def _part(self, item: Item) -> Path:
        return self.outputs.folder / "maps" / f".{item.id}{PART}"


class MapFile:
    """An NPY file of maps (frames, H, W) float32, written one by one; a context manager."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path, self.count = path, 0
        self.shape: tuple[int, ...] = ()
        with storage_errors(path):
            self._stream: IO[bytes] = path.open("w+b")

    def append(self, values: NDArray[np.float32]) -> None:
        """One more map. Raises StorageError."""
        with storage_errors(self.path):
            if not self.count:
                self.shape = values.shape
                self._header()
            self._stream.write(np.ascontiguousarray(values, dtype="<f4").tobytes())
        self.count += 1

    def _header(self) -> None:
        # NumPy leaves room for the first axis to grow, so that this header and the last one have one length.
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)}
        self._stream.seek(0)
        np.lib.format.write_array_header_1_0(self._stream, facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self.path), self._stream:
            if kind is None and self.count:
                self._header()
        if kind is not None:
            self.path.unlink(missing_ok=True)


def squeezed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 1) as (H, W); (H, W, 3) as it is."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def event_of(values: Mapping[str, Any]) -> Event:
    """The event of a recorded row."""
    box = values["box"]
    return Event(**{**values, "box": None if box is None else tuple(box)})
