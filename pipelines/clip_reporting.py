"""report.html of a run over recorded clips: what the store and the folder hold, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.anomaly.event_rule import EventRule
from anodiff.engine.store import Item
from anodiff.visualize.clip_report import ClipEntry, ClipReport, write_clip_report
from anodiff.visualize.clips import ScoreAxis

if TYPE_CHECKING:
    from anodiff.pipelines.clip_job import ClipJob


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
        metrics=metrics,
        scale=job.scale,
        notes=job.notes,
    )
    write_clip_report(path, report)


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
        f"Set on {rule.hours:.3g} hours of normal footage. Events in it: {rule.on_normals.sentence()}.",
    ]
