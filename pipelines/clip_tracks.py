"""RBDC and TBDC of `anodiff evaluate` on clips: what stood out in their frames against annotated boxes, or masks.

A detection is a part of the anomaly map above the calibrated 1 % pixel threshold, its score the highest value in it.
Annotated boxes come from the set's tracks.csv; where there is none, from its masks (`tracks_of_masks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import DataError, InputError
from anodiff.metrics.tracks import ALPHA, BETA, Boxes, boxes_of, track_curves, tracks_of_masks
from anodiff.pipelines.clip_job import FrameTable

if TYPE_CHECKING:
    from anodiff.data.video.table import ClipRow
    from anodiff.engine.store import Item
    from anodiff.pipelines.clip_job import ClipJob

NAMES = ("rbdc", "tbdc")


def has_places(rows: Sequence[ClipRow]) -> bool:
    """Whether it is known of any clip where in the picture it is anomalous."""
    return any(row.masks or row.tracks is not None for row in rows)


def tracks_measured(job: ClipJob, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """rbdc and tbdc of the recorded clips of which places are known; n_track_clips, n_track_frames, n_regions,
    n_tracks, tracks_from (what the truth was made of); track_notes, a sentence for each clip left out; reasons {key:
    sentence} for what is None."""
    nothing = {**dict.fromkeys(NAMES), "n_track_clips": 0}
    known = {item.id: item.extra for item in items}
    if not has_places([item.extra for item in items]):
        return nothing | {"reasons": dict.fromkeys(NAMES, "no clip has boxes (tracks.csv) or masks")}
    if job.box_level is None:
        return nothing | {"reasons": dict.fromkeys(NAMES, "boxes need the pixel threshold of a calibration")}
    found: list[Boxes] = []
    truths: list[Boxes] = []
    notes: list[str] = []
    n_frames = 0
    for row in rows:
        clip: ClipRow = known[row["id"]]
        if row["status"] != "ok" or not _is_known(clip):
            continue
        frames = FrameTable.load(job.outputs.folder / row["frames"])
        try:
            truth = truth_boxes(clip, len(frames.index), broken=bool(row["error"]))
        except (DataError, InputError) as error:
            notes.append(f"{clip.id}: {error}")
            continue
        truths.append(truth)
        with np.load(job.outputs.folder / row["boxes"], allow_pickle=False) as stored:
            found.append(boxes_of(stored["frames"], stored["boxes"], stored["values"]))
        n_frames += len(frames.index)
    curves = track_curves(found, truths, n_frames)
    values = {"rbdc": curves.rbdc, "tbdc": curves.tbdc}
    reason = "no clip with places could be used" if not truths else "no box in the truth"
    return {
        **values,
        "n_track_clips": len(truths),
        "n_track_frames": n_frames,
        "n_regions": curves.n_regions,
        "n_tracks": curves.n_tracks,
        "tracks_from": "tracks.csv" if any(clip.tracks is not None for clip in known.values()) else "masks",
        "track_alpha_beta": [ALPHA, BETA],
        "track_notes": notes,
        "reasons": {name: reason for name, value in values.items() if value is None},
    }


def truth_boxes(clip: ClipRow, frames: int, *, broken: bool = False) -> Boxes:
    """The annotated boxes of a clip's first ``frames`` frames; those of a clip that broke off end there.

    Raises DataError or InputError: boxes of later frames, another number of masks than of frames, masks that cannot be
    read.
    """
    if clip.tracks is not None:
        inside = clip.tracks[:, 1] < frames
        if not inside.all() and not broken:
            raise DataError(
                f"{clip.path}: expected boxes of frames 0 ... {frames - 1}, found one of {int(clip.tracks[:, 1].max())}"
            )
        kept = clip.tracks[inside]
        return boxes_of(kept[:, 1].astype(np.int64), kept[:, 2:], kept[:, 0])
    if not clip.masks:
        return boxes_of([], [], [])
    return tracks_of_masks(_masks(clip, frames, broken))


def _masks(clip: ClipRow, frames: int, broken: bool) -> Iterator[NDArray[np.bool_]]:
    from anodiff.data.video.masks import read_masks

    count = 0
    for mask in read_masks(clip.masks):
        count += 1
        if count <= frames:
            yield mask
    if count < frames or (count > frames and not broken):
        raise DataError(f"{clip.masks}: expected {frames} masks, one a frame, found {count}")


def _is_known(clip: ClipRow) -> bool:
    """Whether the places of a clip are known: by boxes, by masks, or because nothing in it is anomalous."""
    if clip.tracks is not None or clip.masks:
        return True
    return not clip.truth.any() if clip.truth is not None else clip.events == ()
