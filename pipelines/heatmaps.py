"""The heatmaps of a run without calibration: its one colour scale is known only when all maps are.

They are drawn by a second pass of the same loop over the scored images, so that progress, errors, Ctrl-C and resuming
are as in the first. A row learns of its heatmap when that is on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.engine.loop import Summary, run_job
from anodiff.engine.progress import Progress
from anodiff.engine.store import Item, ResultStore
from anodiff.pipelines.pictures import raw_scale
from anodiff.visualize.heatmap import HeatScale

if TYPE_CHECKING:
    from anodiff.pipelines.scoring import Loaded, ScoreJob

NOT_DRAWN = (
    "no heatmaps are drawn: without a calibration their one colour scale is known only when all maps are, and "
    "--no-maps keeps none"
)
BATCH = 16


@dataclass(frozen=True)
class Drawable:
    """One image with its stored map, float32 (h, w) on the display grid."""

    loaded: Loaded
    values: NDArray[np.float32]


class HeatmapJob:
    """read image and stored map -> draw; see `anodiff.engine.loop.Job`."""

    def __init__(self, job: ScoreJob, rows: Mapping[str, dict[str, Any]]) -> None:
        self.job, self.rows = job, rows

    def read(self, item: Item) -> Drawable:
        """The image again, and its map."""
        loaded = self.job.read(item)
        return Drawable(loaded, self.job.shown_map(self.rows[item.id], loaded.shown.shape[:2]))

    def compute(self, batch: list[Drawable]) -> Sequence[Drawable]:
        """Nothing to compute."""
        return batch

    def write(self, item: Item, computed: Drawable) -> dict[str, Any]:
        """Draws the heatmap; returns what the row learns."""
        name = f"heatmaps/{item.id}.png"
        self.job.draw(self.job.outputs.folder / name, computed.loaded, computed.values)
        return {"heatmap": name, "files": [name]}


class HeatmapStore:
    """The rows of a scoring run as the second pass sees them: done is what has a heatmap in this scale."""

    def __init__(self, store: ResultStore, rows: Mapping[str, dict[str, Any]], scale: HeatScale) -> None:
        self._store, self._rows = store, rows
        self._scale = [scale.low, scale.centre, scale.high]
        self._status: dict[str, str] = {}

    def begin(self, items: Sequence[Item]) -> set[str]:
        """Ids whose heatmap is there and in this scale."""
        done = {item.id for item in items if self._rows[item.id].get("heatmap_scale") == self._scale}
        self._status = dict.fromkeys(done, "ok")
        return done

    def record(self, item: Item, row: Mapping[str, Any], stamp: str) -> None:
        """Adds the heatmap to the row; an image that cannot be drawn keeps its score, and is tried again next time."""
        self._status[item.id] = str(row["status"])
        known = self._rows[item.id]
        if row["status"] != "ok":
            self._store.amend(item, {**known, "error": f"scored, but no heatmap: {row['error']}"})
            return
        files = list(dict.fromkeys([*known["files"], *row["files"]]))
        self._store.amend(item, {**known, **row, "error": "", "files": files, "heatmap_scale": self._scale})

    def counts(self) -> dict[str, int]:
        """Images of this pass by status."""
        return {name: list(self._status.values()).count(name) for name in set(self._status.values())}


def add_heatmaps(
    job: ScoreJob, items: Sequence[Item], store: ResultStore, *, workers: int, quiet: bool = False
) -> Summary | None:
    """Gives `job` the scale of the recorded maps and draws what is not drawn yet; None where nothing can be."""
    rows = {row["id"]: row for row in store.rows(items) if row.get("map")}
    job.scale = raw_scale(rows.values())
    if job.scale is None or not job.outputs.heatmaps:
        return None
    scored = [item for item in items if item.id in rows]
    with Progress(len(scored), "heatmaps", "drawing", quiet=quiet) as progress:
        return run_job(
            HeatmapJob(job, rows),
            scored,
            HeatmapStore(store, rows, job.scale),
            workers=workers,
            batch_size=BATCH,
            progress=progress,
        )


def with_heatmaps(scoring: Summary, drawing: Summary, store: ResultStore) -> Summary:
    """The summary of both passes: rows as they are recorded now, the time of both; not drawn counts as failed."""
    counts = store.counts()
    seconds = scoring.seconds + drawing.seconds
    return replace(
        scoring,
        ok=counts.get("ok", 0) - drawing.failed,
        failed=counts.get("failed", 0) + drawing.failed,
        skipped=counts.get("skipped", 0),
        seconds=seconds,
        images_per_second=scoring.images_per_second * scoring.seconds / seconds,
        device_busy_share=scoring.device_busy_share * scoring.seconds / seconds,
        interrupted=drawing.interrupted,
        failures=(*scoring.failures, *drawing.failures),
        processor_seconds=scoring.processor_seconds + drawing.processor_seconds,
        beside_seconds=scoring.beside_seconds + drawing.processor_seconds,
    )
