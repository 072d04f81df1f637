"""annotated/<id>.mp4 of scored clips: the footage with heatmap, box, and the clip's whole curve of scores below it.

A clip is read once more. Its maps come from the run where they were kept (``--maps``), else they are computed again:
the same ones, since a score is a function of the pixels.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.data.video.clip import Clip, Frame, open_clip
from anodiff.engine.progress import Progress
from anodiff.engine.store import Item, ResultStore
from anodiff.errors import ConfigError, InputError
from anodiff.files import make_folder
from anodiff.pipelines.clip_job import FrameTable, event_of, frames_ahead
from anodiff.pipelines.clip_reporting import axis_of
from anodiff.pipelines.common import say
from anodiff.visualize.clips import AnnotatedVideo

if TYPE_CHECKING:
    from anodiff.pipelines.clip_job import ClipJob

FOLDER = "annotated"


def refuse_uncalibrated(job: ClipJob) -> None:
    """Raises ConfigError where the model has no scale for pictures."""
    if job.scale is None:
        raise ConfigError(
            f"--annotate: preset {job.detector.name!r} is not calibrated in this model, so that there is no scale to "
            "draw with (anodiff calibrate)"
        )


def annotate_clips(job: ClipJob, items: Sequence[Item], store: ResultStore, *, quiet: bool = False) -> None:
    """Draws every recorded clip that has no video yet, and records it; one that cannot be read again is named.

    Raises:
        StorageError: a video cannot be written.
    """
    make_folder(job.outputs.folder / FOLDER)
    known = {item.id: item for item in items}
    rows = [row for row in store.rows(items) if row["status"] == "ok" and not row.get("annotated")]
    with Progress(len(rows), "clips", "annotating", quiet=quiet) as progress:
        for row in rows:
            name = f"{FOLDER}/{row['id']}.mp4"
            try:
                draw(job, known[row["id"]], row, job.outputs.folder / name)
            except InputError as error:
                say(f"note: {name} was not made: {error}", quiet)
            else:
                store.amend(known[row["id"]], {**row, "annotated": name, "files": [*row["files"], name]})
            progress.update(1)


def draw(job: ClipJob, item: Item, row: Mapping[str, Any], path: Path) -> None:
    """One clip, frame by frame. Raises InputError where it can no longer be read as it was; StorageError."""
    frames = FrameTable.load(job.outputs.folder / row["frames"])
    boxes = frames.boxes
    events = [event_of(event) for event in row["events"]]
    video, preprocess = job.detector.video, job.detector.prepare
    with open_clip(item.path, fps=video.fps, max_pixels=job.max_pixels) as clip:
        size = (clip.info.height, clip.info.width)
        curve = (frames.time, frames.smoothed)
        top, left, height, width = preprocess.plain.geometry(size).box
        inside = (slice(top, top + height), slice(left, left + width))
        with (
            AnnotatedVideo(path, size, axis_of(job.rule), scale=job.scale, curve=curve, events=events) as drawn,
            closing(with_maps(job, row, clip, inside)) as shown,
        ):
            count = 0
            for frame, values in shown:
                if count >= len(frames.index):
                    break
                time = float(frames.time[count])
                event = next((event for event in events if event.start <= time <= event.end), None)
                score = float(frames.smoothed[count])
                drawn.write(frame.pixels, time, score, anomaly_map=values, box=boxes[count], event=event)
                count += 1
            if count < len(frames.index):
                raise InputError(
                    f"{item.path}: expected {len(frames.index)} frames as when it was scored, found {count}"
                )


def with_maps(
    job: ClipJob, row: Mapping[str, Any], clip: Clip, inside: tuple[slice, slice]
) -> Generator[tuple[Frame, NDArray[np.float32]], None, None]:
    """Every frame with its map, over the whole frame; ``inside``: the part of the model's grid that the frame fills."""
    if "map" in row:
        kept = np.load(job.outputs.folder / row["map"], mmap_mode="r", allow_pickle=False)
        yield from zip(clip, kept, strict=False)
        return
    with closing(job.detector.scores(clip, job.batch_size, ahead=frames_ahead(job.batch_size, clip.info))) as found:
        for scored in found:
            yield scored.frame, scored.map[inside]
