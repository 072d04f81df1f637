"""What is read, computed and written for one clip: the job of `anodiff score` and `anodiff evaluate` for clips.

A clip is gone through twice, frame by frame: once for the scores, and once, when it is known which frames matter, for
the pictures of those. A thread reads and prepares frames ahead of the device. Memory grows by a few numbers a frame.
A clip that was left in the middle is taken up there.
"""

from __future__ import annotations

import contextlib
import time as clocks
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.anomaly.clip_blocks import footage_seconds
from anodiff.anomaly.clip_boxes import BoxList, native_boxes
from anodiff.anomaly.clip_rule import rule_of
from anodiff.anomaly.clips import ClipDetector, ScoredFrame
from anodiff.anomaly.events import Box, Event, find_events
from anodiff.anomaly.temporal import smooth_in_time
from anodiff.data.clip_input import windows
from anodiff.data.preprocess import Geometry
from anodiff.data.video.clip import Clip, ClipInfo, Frame, open_clip
from anodiff.engine.stopping import Stop, Stopped
from anodiff.engine.store import STATE_FOLDER, Item
from anodiff.errors import InputError
from anodiff.files import atomic_write, storage_errors
from anodiff.pipelines.clip_journal import LINES, MAPS, FrameLines, FrameRow, MapFile
from anodiff.pipelines.pictures import calibrated_scale
from anodiff.pipelines.scoring import short_float
from anodiff.visualize.clips import resized, save_thumbnail, thumbnail
from anodiff.visualize.heatmap import HeatScale, save_heatmap

if TYPE_CHECKING:
    from anodiff.data.video.table import ClipRow
    from anodiff.engine.progress import Progress
    from anodiff.metrics.tracks import Boxes

FRAMES = f"{STATE_FOLDER}/frames"
THUMBNAILS = "thumbnails"
#: of frames that were read ahead of the device, at most
AHEAD_BYTES = 1 << 28

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClipOutputs:
    """What is written for each clip, and where; maps: float32 (frames, H, W) on the clip's own grid.

    boxes: keep the parts of the maps above the calibrated 1 % pixel threshold, to hold them against annotated ones.
    """

    folder: Path
    maps: bool = False
    heatmaps: bool = True
    boxes: bool = False


@dataclass(frozen=True)
class FrameTable:
    """The frames of a clip: index (n,) int64, time (n,) seconds, score (n,) before and smoothed (n,) after smoothing,
    box (n, 4) int64 of the highest window: x, y, width, height in native pixels. A frame without a score has nan, and a
    box of no width."""

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

    @property
    def boxes(self) -> list[Box | None]:
        """One a frame, None where there is none."""
        return [(x, y, width, height) if width else None for x, y, width, height in self.box.tolist()]


class Columns:
    """The scored frames of a clip so far, column by column, few bytes a frame: index; time; score; box, 4 numbers each;
    own. spent: seconds of work on them. places: of what stood out, None where that is not kept."""

    def __init__(self, *, places: bool) -> None:
        self.index, self.box, self.own = array("q"), array("q"), array("b")
        self.time, self.score = array("d"), array("d")
        self.spent = 0.0
        self.places = BoxList() if places else None

    def append(self, row: FrameRow) -> None:
        """The next frame."""
        self.index.append(row.frame)
        self.time.append(row.time)
        self.score.append(row.score)
        self.box.extend(row.box)
        self.own.append(row.own)
        self.spent = row.spent
        if self.places is not None and row.parts:
            self.places.append(row.frame, np.array(row.parts))

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class ScoredClip:
    """One clip, scored; broken: where and why it broke off, "" where it came to its end; p_value: None = unknown;
    boxes: of what stood out in its frames, None where they are not kept."""

    frames: FrameTable
    events: tuple[Event, ...]
    pictures: dict[int, Picture]
    broken: str
    seconds: float
    p_value: float | None = None
    boxes: Boxes | None = None


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
        #: map value above which boxes are kept, None = they are not
        self.box_level = calibration.pixel_threshold_fpr1 if outputs.boxes and calibration is not None else None
        self.progress: Progress | None = None
        #: knows when the run was asked to stop: the clip in hand is left then, and taken up by the next run
        self.stop: Stop | None = None
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
                self._kept(item, MAPS).replace(folder / files["map"])
        worst = int(np.nanargmax(frames.smoothed))
        if self.outputs.heatmaps and self.scale is not None:
            files["heatmap"] = f"heatmaps/{item.id}.png"
            picture = computed.pictures[int(frames.index[worst])]
            values = resized(picture.map, picture.pixels.shape[:2])
            save_heatmap(folder / files["heatmap"], squeezed(picture.pixels), values, self.scale, None)
        if computed.boxes is not None:
            files["boxes"] = f"{FRAMES}/{item.id}.boxes.npz"
            kept = vars(computed.boxes)
            atomic_write(folder / files["boxes"], lambda stream: np.savez(stream, **kept))
        events = [self._illustrated(item, event, computed) for event in computed.events]
        highest = float(frames.smoothed[worst])
        high = None if self.rule is None else self.rule.high
        return {
            "score": short_float(highest),
            "p_value": computed.p_value,
            "is_anomalous": None if high is None else highest > high,
            "threshold": None if high is None else short_float(high),
            "nfe": self.detector.nfe,
            "error": computed.broken,
            "seconds": computed.seconds / len(frames.index),
            "n_frames": len(frames.index),
            "n_without_score": int(np.isnan(frames.score).sum()),
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
        with contextlib.ExitStack() as stack:
            maps = stack.enter_context(MapFile(self._kept(item, MAPS))) if self.outputs.maps else None
            columns = Columns(places=self.box_level is not None)
            identity, most = {"path": item.path, "stamp": item.stamp}, None if maps is None else maps.count
            lines = stack.enter_context(FrameLines(self._kept(item, LINES), identity, columns.append, most))
            known, earlier = len(columns), columns.spent
            if maps is not None:
                maps.cut(known)
            clip = stack.enter_context(self._open(item))
            # The thread that reads ends before the clip is closed, whatever happens here.
            for scored in stack.enter_context(closing(self._named(item, clip, known))):
                geometry = self.detector.prepare.geometry(scored.frame.pixels)
                if maps is not None:
                    maps.append(self.detector.prepare.plain.back(scored.map, geometry))
                row = self._row(scored, geometry, earlier + clocks.monotonic() - began)
                columns.append(row)
                lines.append(row)
            broken = clip.broken or ""
        return self._judged(item, columns, broken, began - earlier)

    def _row(self, scored: ScoredFrame, geometry: Geometry, spent: float) -> FrameRow:
        parts: list[list[float]] = []
        if self.box_level is not None and np.isfinite(scored.score):
            parts = native_boxes(scored.map, self.box_level, geometry).tolist()
        frame = scored.frame
        return FrameRow(frame.index, frame.time, scored.score, scored.box, scored.basis == "own", spent, parts)

    def _judged(self, item: Item, columns: Columns, broken: str, began: float) -> ScoredClip:
        """What the frames of a clip come to: smoothed scores, events, pictures, p-value."""
        index = columns.index
        seconds, values = np.array(columns.time), np.array(columns.score)
        frames = FrameTable(
            np.array(index),
            seconds,
            values,
            smooth_in_time(seconds, values, self.detector.video.smooth_s),
            np.array(columns.box).reshape(-1, 4),
        )
        events: tuple[Event, ...] = ()
        if self.rule is not None:
            found_events = find_events(self.rule, seconds, values, clip=item.id, frames=index, boxes=frames.boxes)
            frames, events = replace(frames, smoothed=found_events.smoothed), tuple(found_events.events)
        wanted = {int(frames.index[np.nanargmax(frames.smoothed)]), *(event.peak_frame for event in events)}
        pictures = self._pictures(item, wanted) if self.outputs.heatmaps and self.scale is not None else {}
        mine = np.array(columns.own, dtype=bool)
        return ScoredClip(
            frames, events, pictures, broken, clocks.monotonic() - began, self._p_value(seconds[mine], values[mine]),
            None if columns.places is None else columns.places.boxes(),
        )  # fmt: skip

    def _p_value(self, times: Floats, scores: Floats) -> float | None:
        """Of a clip by the frames that were scored themselves, as those of normal clips were."""
        calibration = self.detector.calibration
        if calibration is None:
            return None
        highest = smooth_in_time(times, scores, self.detector.video.smooth_s).max()
        return calibration.clip_p_value(float(highest), footage_seconds(times))

    def _named(self, item: Item, clip: Clip, skip: int) -> Generator[ScoredFrame, None, None]:
        """The frames from number ``skip`` on, scored; an InputError names the clip, and the progress bar counts."""
        self.done += skip
        try:
            ahead = frames_ahead(self.batch_size, clip.info)
            frames = self._until_asked(clip)
            with closing(self.detector.scores(frames, self.batch_size, ahead=ahead, skip=skip)) as found:
                for scored in found:
                    self.done += 1
                    if self.progress is not None and self.done % 100 == 0:
                        self.progress.update(0, frames=self.done)
                    if scored.basis == "own" and not np.isfinite(scored.score):
                        raise InputError(f"{item.path}: expected finite scores, found others")
                    yield scored
        except InputError as error:
            known = str(error)
            raise InputError(known if item.path in known else f"{item.path}: {known}") from None

    def _until_asked(self, clip: Clip) -> Iterator[Frame]:
        """The frames of a clip. Raises Stopped where the run was asked to stop, however many there still are."""
        for frame in clip:
            if self.stop is not None and self.stop.asked:
                raise Stopped
            yield frame

    def _pictures(self, item: Item, wanted: set[int]) -> dict[int, Picture]:
        """Some frames of a clip with their maps, from a second reading up to the last of them.

        A frame that the model does not see by itself has the map of the one whose score it took.
        """
        detector, found = self.detector, {}
        first, seen, last = None, None, max(wanted)
        with self._open(item) as clip:
            for window in windows(self._until_asked(clip), unprepared, detector.video):
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
        """The map of a window of frames as they were read, without what was padded to the model's grid."""
        prepare = self.detector.prepare
        maps = self.detector.see(torch.from_numpy(np.stack([prepare(frame) for frame in seen]))[None])
        top, left, height, width = prepare.geometry(pixels).box
        return maps[0, top : top + height, left : left + width].numpy()

    def _illustrated(self, item: Item, event: Event, computed: ScoredClip) -> Event:
        """The event with a thumbnail, where there are pictures."""
        picture = computed.pictures.get(event.peak_frame)
        if picture is None:
            return event
        name = f"{THUMBNAILS}/{item.id}_{event.number:04d}.jpg"
        pixels = thumbnail(squeezed(picture.pixels), anomaly_map=picture.map, scale=self.scale, box=event.box)
        save_thumbnail(self.outputs.folder / name, pixels)
        return replace(event, thumbnail=name)

    def _kept(self, item: Item, ending: str) -> Path:
        return self.outputs.folder / FRAMES / f"{item.id}{ending}"


def frames_ahead(batch_size: int, info: ClipInfo) -> int:
    """How many frames may be read ahead: two batches, or as many as AHEAD_BYTES hold, at least one."""
    return max(1, min(2 * batch_size, AHEAD_BYTES // max(1, info.height * info.width * info.channels)))


def unprepared(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame as it was read: of a whole clip only few are shown."""
    return pixels


def squeezed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 1) as (H, W); (H, W, 3) as it is."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def event_of(values: Mapping[str, Any]) -> Event:
    """The event of a recorded row."""
    box = values["box"]
    return Event(**{**values, "box": None if box is None else tuple(box)})
