"""report.html of a run over recorded clips: what the store and the folder hold, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.anomaly.clip_blocks import footage_seconds
from anodiff.anomaly.event_rule import EventRule, footage
from anodiff.engine.device import describe
from anodiff.engine.loop import Summary
from anodiff.engine.store import Item
from anodiff.visualize.clip_report import ClipEntry, ClipReport, write_clip_report
from anodiff.visualize.clips import ScoreAxis

if TYPE_CHECKING:
    from anodiff.pipelines.clip_job import ClipJob


#: parts of metrics.json, and what their names end in on the page
NESTED = (("smoothed", "_smoothed"), ("alarms", ""), ("events", ""))


def write_report(
    path: Path,
    job: ClipJob,
    items: Sequence[Item],
    rows: Sequence[Mapping[str, Any]],
    *,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page for the recorded `rows` of `items`; facts of the run are listed, metrics where truth is known.

    Raises:
        StorageError: it cannot be written.
    """
    detector, known = job.detector, {item.id: item for item in items}
    clips = [entry(job, known[row["id"]], row) for row in rows]
    report = ClipReport(
        title=f"anodiff: {path.parent.name}",
        settings={
            "preset": detector.name,
            "seed": detector.seed,
            "precision": detector.denoiser.precision,
            "network_batch": detector.denoiser.network_batch,
            "detector": detector.settings.to_json(),
            "video": detector.video_settings(),
            "events": {} if job.rule is None else vars(job.rule.settings),
        },
        summary=facts,
        clips=clips,
        axis=axis_of(job.rule, clips),
        false_alarms=promises(job.rule),
        metrics=None if metrics is None else flat_metrics(metrics),
        scale=job.scale,
        notes=(*job.notes, *remarks(job, [row for row in rows if row["status"] == "ok"])),
    )
    write_clip_report(path, report)


def facts_of(job: ClipJob, summary: Summary, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The run in numbers, over all recorded clips."""
    scored = [row for row in rows if row["status"] == "ok"]
    frames = sum(row["n_frames"] for row in scored)
    seconds = sum(row["n_frames"] * row["seconds"] for row in scored)
    detector = job.detector
    return {
        "nfe": detector.nfe,
        "frames": frames,
        "frames_without_score": sum(row.get("n_without_score", 0) for row in scored),
        "frames_per_second": frames / seconds if seconds > 0 else None,
        **describe(detector.denoiser.device, detector.denoiser.precision),
        "device_busy": f"{summary.device_busy_share:.0%}",
    }


def remarks(job: ClipJob, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader should know of the scored clips, one sentence each."""
    said = [
        f"{row['path']}: {row['n_without_score']} of {row['n_frames']} frames have no score, since too little came "
        "before them after a gap"
        for row in rows
        if row.get("n_without_score")
    ]
    long = sum(row["p_value"] is None for row in rows)
    calibration = job.detector.calibration
    if long and calibration is not None:
        longest = max(footage_seconds(times) for times, _ in calibration.clips)
        said.append(
            f"{long} of {len(rows)} clips have no p-value: they are too long to be compared with "
            f"{len(calibration.lengths)} normal clips of at most {longest:.3g} s; their events have one each"
        )
    return said


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """metrics.json without its nesting, under names that say what it was in."""
    flat: dict[str, Any] = {"reasons": {}}
    parts = [(metrics, ""), *((metrics.get(name, {}), end) for name, end in NESTED)]
    for part, end in parts:
        for key, value in part.items():
            if key == "reasons":
                flat["reasons"] |= {_named(name, end): reason for name, reason in value.items()}
            elif not isinstance(value, Mapping):
                flat[_named(key, end)] = value
    return flat


def _named(key: str, end: str) -> str:
    """The name of a metric with an ending; of its interval too, which is named after it."""
    name = key.removesuffix("_ci95")
    return f"{name}{end}{key[len(name) :]}"


def entry(job: ClipJob, item: Item, row: Mapping[str, Any]) -> ClipEntry:
    """One recorded clip; its pictures are read only if they are shown."""
    from anodiff.pipelines.clip_job import FrameTable, event_of

    if row["status"] != "ok":
        return ClipEntry(row["id"], row["path"], status=row["status"], error=row.get("error", ""))
    frames = FrameTable.load(job.outputs.folder / row["frames"])
    events = [event_of(event) for event in row["events"]]
    truth = None if item.extra is None else item.extra.truth_at(frames.time, broken=bool(row["error"]))
    return ClipEntry(
        id=row["id"],
        path=row["path"],
        times=frames.time,
        smoothed=frames.smoothed,
        events=events,
        thumbnails={e.number: picture(job.outputs.folder / e.thumbnail) for e in events if e.thumbnail},
        labels=truth,
        error=row["error"],
    )


def picture(path: Path) -> Callable[[], NDArray[np.uint8]]:
    """A function that reads a thumbnail."""

    def read() -> NDArray[np.uint8]:
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    return read


def axis_of(rule: EventRule | None, clips: Sequence[ClipEntry] = ()) -> ScoreAxis:
    """The one scale of scores of a run: threshold a third of the way up; without one, what the clips reach."""
    if rule is not None and rule.high is not None:
        return ScoreAxis.around(rule.low - max(rule.high - rule.low, 1e-6), rule.high)
    ends = [(float(np.nanmin(c.smoothed)), float(np.nanmax(c.smoothed))) for c in clips if np.size(c.smoothed)]
    if rule is not None:
        ends.append((rule.low, float(rule.peaks[-1:].max(initial=rule.low))))
    low, high = (min(a for a, _ in ends), max(b for _, b in ends)) if ends else (0.0, 1.0)
    return ScoreAxis(low, high + 0.05 * max(high - low, 1e-6))


def promises(rule: EventRule | None) -> list[str]:
    """What the threshold means, for the reader."""
    if rule is None or rule.high is None:
        return []
    return [
        f"An event rises above {rule.high:.4g}, where at most {rule.rate:g} false alarms an hour are expected; it "
        f"lasts while the score is above {rule.low:.4g}, which {rule.settings.low_share:.0%} of normal frames are.",
        f"Set on {footage(rule.hours)} of normal footage. Events in it: {rule.on_normals.sentence()}.",
    ]
