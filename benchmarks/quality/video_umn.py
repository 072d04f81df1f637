"""UMN crowds, video files in, events out: how late panic is noticed, by models of the normal starts of other clips.

Each clip is tested once, in one of three folds: the model learns from the starts of the clips of the other folds, cut
from the files without decoding them, up to GUARD_S before the first flag. Then the whole clip is scored.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.config import load_config
from anodiff.data.video.clip import open_clip
from anodiff.data.video.layouts import load_clips
from anodiff.data.video.table import ClipRow
from anodiff.errors import DataError
from anodiff.files import make_folder, write_csv, write_json
from anodiff.metrics.alarms import runs
from anodiff.metrics.ranking import auroc
from anodiff.model import load
from anodiff.pipelines import evaluate
from anodiff.pipelines.common import file_digest
from benchmarks.quality.models import facts, trained
from benchmarks.quality.rows import scoring_of
from benchmarks.quality.video_rows import Options, chosen_files, chosen_level, is_chosen

RECIPE, PATH = "umn", "umn_crowd"
FOLDS = 3
#: of a start that is learnt from: people may begin to run before the flag says so
GUARD_S = 1.0
#: of the frames' times
ROUNDING_S = 1e-4
COLUMNS = ("clip", "start_s", "end_s")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Flagged:
    """A clip with its frames' times (n,) in seconds and flags (n,)."""

    path: Path
    times: Floats
    truth: NDArray[np.bool_]

    @property
    def spans(self) -> list[tuple[float, float]]:
        """(start, end) of the flagged stretches: from their first frame to the first one after them."""
        after = np.append(self.times[1:], 2 * self.times[-1] - self.times[-2])
        return [(float(self.times[run.start]), float(after[run.stop - 1])) for run in runs(self.truth)]


def flagged(row: ClipRow) -> Flagged:
    """The times of a clip's frames, by reading it. Raises DataError where nothing is flagged, InputError."""
    with open_clip(row.path) as clip:
        times = np.array([frame.time for frame in clip])
    truth = row.truth_at(times)
    if truth is None or not truth.any():
        raise DataError(f"{row.path}: expected flagged frames, found none")
    return Flagged(Path(row.path), times, truth)


def fold_cell(fold: int, options: Options) -> dict[str, Any] | None:
    """The clips of a fold, made where they are missing; None where the evaluation was interrupted."""
    folder = options.work / PATH / f"fold{fold}"
    rows = load_clips(options.data / PATH).rows
    clips = [flagged(row) for row in rows]
    data = prepared(clips, fold, folder / "data")
    base = trained(RECIPE, data, folder, options.device, options.overrides, options.deadline)
    model = calibrated(base, data, options)
    made_from = {"model": file_digest(model), "seed": options.seed}
    path = options.work / PATH / "cells" / f"fold{fold}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"looks": 0}
    if known.get("made_from") == made_from:
        found: dict[str, Any] = known
        return found
    began = time.monotonic()
    summary, metrics = evaluate.run(
        model, data, folder / "out", overwrite=True, device=options.device, seed=options.seed, quiet=True
    )
    if summary.interrupted:
        return None
    seconds = time.monotonic() - began
    tested = clips[fold::FOLDS]
    found = {
        "made_from": made_from,
        "looks": known["looks"] + 1,
        "model": facts(model),
        "learnt_from": [clip.path.stem for clip in clips if clip not in tested],
        "frames_per_second": metrics["n_frames"] / seconds,
        "clips": [one_clip(clip, data, folder / "out") for clip in tested],
    }
    make_folder(path.parent)
    write_json(path, found)
    return found


def calibrated(base: Path, data: Path, options: Options) -> Path:
    """The model file with the presets and calibration of today's recipe: the trained one, or one calibrated anew."""
    recipe = load_config(RECIPE, options.overrides)
    if scoring_of(load(base).config) == scoring_of(recipe):
        return base
    return chosen_level(base, recipe, (), data, options)[0]


def is_current(fold: int, options: Options, found: dict[str, Any]) -> bool:
    """Whether a fold's cell is of the seed, the model file and the recipe that are there now."""
    base = options.work / PATH / f"fold{fold}" / "model.safetensors"
    if found["made_from"]["seed"] != options.seed or not base.exists():
        return False
    recipe, path = load_config(RECIPE, options.overrides), base
    if scoring_of(load(base).config) != scoring_of(recipe):
        path, _ = chosen_files(base)
        if not is_chosen(base, recipe, (), options):
            return False
    return bool(found["made_from"]["model"] == file_digest(path))


def prepared(clips: Sequence[Flagged], fold: int, data: Path) -> Path:
    """A data set of its own: train/ with normal starts, test/ with whole clips, events.csv; made once."""
    if (data / "events.csv").exists():
        return data
    shutil.rmtree(data, ignore_errors=True)
    for name in ("train", "test"):
        make_folder(data / name)
    rows = []
    for number, clip in enumerate(clips):
        if number % FOLDS == fold:
            shutil.copyfile(clip.path, data / "test" / clip.path.name)
            rows += [(f"test/{clip.path.name}", start, end) for start, end in clip.spans]
        else:
            cut(clip.path, data / "train" / clip.path.name, clip.spans[0][0] - GUARD_S)
    # written last: with it the data set is whole
    write_csv(data / "events.csv", COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    return data


def cut(source: Path, target: Path, until: float) -> None:
    """Copies the start of a video file, packet by packet, up to the first one that is shown at ``until`` seconds or
    later: what is kept decodes to the same pixels."""
    import av

    with av.open(str(source)) as inside, av.open(str(target), "w") as outside:
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        for packet in inside.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            if float(packet.pts * packet.time_base) >= until - ROUNDING_S:
                break
            packet.stream = copy
            outside.mux(packet)


def one_clip(clip: Flagged, data: Path, out: Path) -> dict[str, Any]:
    """What `anodiff evaluate` has written of a clip against its flags."""
    rows = {Path(row.path).name: row.id for row in load_clips(data).rows}
    name = rows[clip.path.name]
    frames = [row for row in table(out / "frames.csv") if row["clip"] == name]
    scores, smoothed = (np.array([float(row[column] or "nan") for row in frames]) for column in ("score", "smoothed"))
    threshold = next(row["threshold"] for row in table(out / "scores.csv") if row["id"] == name)
    events = [(float(r["start"]), float(r["end"])) for r in table(out / "events.csv") if r["clip"] == name]
    there = np.isfinite(scores)
    return {
        "clip": clip.path.stem,
        "seconds": float(clip.times[-1]),
        "flagged_s": clip.spans[0][0],
        "threshold": float(threshold) if threshold else None,
        **delays(clip, events if threshold else [], smoothed, float(threshold or "inf")),
        "frame_auroc": auroc(clip.truth[there], scores[there]),
        "frame_auroc_smoothed": auroc(clip.truth[there], smoothed[there]),
    }


def delays(clip: Flagged, events: Sequence[tuple[float, float]], smoothed: Floats, threshold: float) -> dict[str, Any]:
    """How late the first flagged stretch is noticed, and what was reported before it.

    event_delay_s: from the first flagged frame to the start of the first event that reaches into the stretch, which
    begins before the flag where it is negative; alarm_delay_s: to the first frame of that event above the threshold;
    None where there is no such event. false_alarms: events that end before the flag, and how many an hour that is.
    """
    start, end = clip.spans[0]
    reached = [event for event in events if event[1] >= start and event[0] < end]
    early = sum(event[1] < start for event in events)
    found = {
        "event_delay_s": None,
        "alarm_delay_s": None,
        "false_alarms": early,
        "false_alarms_per_hour": early / (start - clip.times[0]) * 3600,
    }
    if reached:
        first, last = reached[0]
        above = clip.times[(clip.times >= first) & (clip.times <= last) & (smoothed > threshold)]
        found |= {"event_delay_s": first - start, "alarm_delay_s": float(above[0]) - start if len(above) else None}
    return found


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
