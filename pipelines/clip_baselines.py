"""The baselines beside a model of clips: the same clips, smoothed over time and measured alike.

A clip that cannot be read becomes a row with its error, and the rest goes on; so does a baseline that cannot be fitted.
"""

from __future__ import annotations

import time as clocks
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anodiff.anomaly.temporal import smooth_in_time
from anodiff.data.clip_input import thinned
from anodiff.engine.progress import Progress
from anodiff.errors import DataError, InputError
from anodiff.files import write_csv, write_json
from anodiff.pipelines.common import say, table_text

if TYPE_CHECKING:
    import torch

    from anodiff.anomaly.video_baselines import VideoBaseline
    from anodiff.config import VideoConfig
    from anodiff.data.video.table import ClipRow, ClipTable
    from anodiff.metrics.frames import ClipScores
    from anodiff.model import DiffusionModel

COLUMNS = ("method", "clip", "frames", "anomalous_frames", "seconds", "auroc", "ap", "highest", "reason", "error")


@dataclass
class Compared:
    """metrics: {name: metrics, or {"error": why there are none}}; rows: of baselines.csv, a method's clips in order."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """A sentence for each clip, and each method, that could not be used; once each."""
        said = [row["error"] for row in self.rows if row.get("error")]
        said += [f"{name}: {found['error']}" for name, found in self.metrics.items() if "error" in found]
        return list(dict.fromkeys(said))


def run(
    table: ClipTable,
    rows: Sequence[ClipRow],
    recorded: Sequence[Mapping[str, Any]],
    model: DiffusionModel,
    metrics: Mapping[str, Any],
    output: Path,
    device: torch.device,
    *,
    quiet: bool = False,
) -> None:
    """Measures the baselines on the clips that the model has ``recorded``, and writes and shows them beside its own
    ``metrics``: baselines.json, and baselines.csv with a row a method and clip."""
    from anodiff.pipelines.clip_scoring import SHOWN
    from anodiff.pipelines.clip_training import normal_clips

    assert model.config.video is not None
    try:
        # Where a set has no split, normal clips are among those that are measured: nothing may learn from them.
        measured = {row.id for row in rows}
        normals = [row for row in normal_clips(table) if row.id not in measured]
        if not normals:
            raise DataError(f"{table.root}: expected normal clips that are not measured, found none")
    except DataError as error:
        say(f"note: baselines that learn are left out: {error}", quiet)
        normals = []
    bad = {row["id"]: str(row["error"]) for row in recorded if row["status"] != "ok"}
    methods = baselines_for(model, device)
    compared = measure_baselines(methods, rows, normals, model.config.video, known_bad=bad, quiet=quiet)
    for sentence in compared.failed:
        say(f"note: baselines: {sentence}", quiet)
    write_json(output / "baselines.json", compared.metrics)
    write_csv(output / "baselines.csv", COLUMNS, compared.rows)
    head = ["method", *SHOWN, "smoothed micro", "macro"]
    typer.echo("\n" + table_text(head, baseline_rows(metrics, compared.metrics, SHOWN)))


def baselines_for(model: DiffusionModel, device: torch.device | str, seed: int = 0) -> list[VideoBaseline]:
    """The baselines of every video table beside a model: the trivial ones, and an auto-encoder of its size."""
    from anodiff.anomaly import video_baselines
    from anodiff.anomaly.clip_autoencoder import ClipAutoEncoder

    return [
        *video_baselines.standard_video_baselines(),
        ClipAutoEncoder.like(model.config, model.parameters, device, seed),
    ]


def measure_baselines(
    methods: Sequence[VideoBaseline],
    rows: Sequence[ClipRow],
    normals: Sequence[ClipRow],
    video: VideoConfig,
    *,
    known_bad: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> Compared:
    """Fits each method on the normal clips and measures it on the others.

    known_bad: {id: error} of clips that the model could not score: they are left out, so that all methods are measured
    on the same clips.
    """
    from anodiff.metrics.frames import per_clip_table
    from anodiff.pipelines.clip_scoring import measured

    compared = Compared()
    with Progress(len(methods) * len(rows), "clips", "baselines", quiet=quiet) as progress:
        for method in methods:
            reading = Reading(video)
            began = clocks.monotonic()
            try:
                method.fit(reading.frames(row) for row in normals)
            except DataError as error:
                compared.metrics[method.name] = {"error": str(error)}
                progress.update(len(rows), method=method.name)
                continue
            fitting = clocks.monotonic() - began
            compared.rows += [_failed_row(method, id, error) for id, error in reading.failed.items()]
            began, clips, failed = clocks.monotonic(), [], dict(known_bad or {})
            for row in rows:
                if row.id not in failed:
                    try:
                        clips.append(baseline_clip(method, row, video))
                    except InputError as error:
                        failed[row.id] = str(error)
                progress.update(1, method=method.name)
            seconds = clocks.monotonic() - began
            raw, smoothed = ([clip[part] for clip in clips if clip is not None] for part in (0, 1))
            table = [{"method": method.name, **each} for each in per_clip_table(smoothed)]
            compared.rows += [*table, *(_failed_row(method, id, error) for id, error in failed.items())]
            if not raw:
                compared.metrics[method.name] = {"error": "no clip with truth could be scored"}
                continue
            frames = sum(len(clip.times) for clip in raw)
            compared.metrics[method.name] = {
                **measured(raw, smoothed),
                "nfe": 0,
                "n_failed": len(failed),
                "seconds_per_frame": seconds / frames,
                "fit_seconds": fitting,
                "parameters": getattr(method, "parameters_", 0),
            }
    return compared


@dataclass
class Reading:
    """The frames of normal clips; what cannot be read is noted in ``failed`` {id: error}, and ends its clip."""

    video: VideoConfig
    failed: dict[str, str] = field(default_factory=dict)

    def frames(self, row: ClipRow) -> Iterator[Any]:
        """uint8 (H, W, C) one after the other."""
        from anodiff.data.video.clip import open_clip

        try:
            with open_clip(row.path, fps=row.fps or self.video.fps) as clip:
                for frame, _ in thinned(clip, None):
                    yield frame.pixels
        except InputError as error:
            self.failed[row.id] = f"left out of the normals: {error}"


def baseline_clip(method: VideoBaseline, row: ClipRow, video: VideoConfig) -> tuple[ClipScores, ClipScores] | None:
    """A clip as a baseline scores it, as it is and smoothed; None where its truth is unknown.

    Raises InputError where it cannot be read, or where the size of its frames changes.
    """
    from anodiff.data.video.clip import open_clip
    from anodiff.metrics.frames import clip_scores

    times: list[float] = []

    def pixels() -> Iterator[Any]:
        for frame, _ in thinned(clip, None):
            times.append(frame.time)
            yield frame.pixels

    with open_clip(row.path, fps=row.fps or video.fps) as clip:
        scores = method.scores(pixels())
        truth = row.truth_at(times, broken=bool(clip.broken))
    if truth is None:
        return None
    smooth = smooth_in_time(times, scores, video.smooth_s)
    return clip_scores(row.id, scores, truth, times), clip_scores(row.id, smooth, truth, times)


def baseline_rows(metrics: Mapping[str, Any], compared: Mapping[str, Any], shown: Sequence[str]) -> list[list[Any]]:
    """The model and the baselines as rows of a table; the first two of ``shown`` smoothed too."""
    rows = []
    for name, part in {"model": metrics, **compared}.items():
        smoothed = part.get("smoothed", {})
        rows.append([name, *(part.get(key) for key in shown), *(smoothed.get(key) for key in (shown[0], shown[1]))])
    return rows


def _failed_row(method: VideoBaseline, id: str, error: str) -> dict[str, Any]:
    return {"method": method.name, "clip": id, "error": error}
