"""The report of a scoring run: the stored rows and pictures on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from anodiff.engine.loop import Summary
from anodiff.engine.store import Item
from anodiff.model import DiffusionModel
from anodiff.pipelines.leaving import calls_an_image, exit_notes
from anodiff.pipelines.scoring import ScoreJob, pictures_of, run_facts
from anodiff.visualize.report import Report, ReportRow, write_report


def write_score_report(
    path: Path,
    model: DiffusionModel,
    job: ScoreJob,
    summary: Summary,
    rows: Sequence[dict[str, Any]],
    items: Sequence[Item],
    *,
    title: str = "",
    metrics: Mapping[str, Any] | None = None,
    curves: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes report.html for the recorded `rows` of `items`; metrics and curves where labels are known."""
    detector, calibration = job.detector, job.detector.calibration
    known = {item.id: item for item in items}
    report = Report(
        title=title or f"anodiff: {path.parent.name}",
        settings={
            "model": model.config.name,
            "preset": detector.name,
            "seed": detector.seed,
            "precision": {
                "calibrated": None if calibration is None else calibration.precision,
                "scored": detector.denoiser.precision,
            },
            "network_batch": detector.denoiser.network_batch,
            "windows": detector.window_settings,
            "early_exit": None if detector.early_exit is None else detector.early_exit.to_json(),
            "detector": detector.settings.to_json(),
            "preprocess": model.config.preprocess.model_dump(mode="json"),
        },
        summary=run_facts(job, summary, seconds_per_image(rows)) | {"nfe": calls_an_image(job, rows)},
        metrics=metrics,
        rows=[report_row(job, known[row["id"]], row) for row in rows],
        curves=curves or {},
        scale=job.scale,
        threshold=None if calibration is None else calibration.threshold,
        notes=[*job.notes, *exit_notes(job, rows), *notes],
    )
    write_report(path, report)


def report_row(job: ScoreJob, item: Item, row: dict[str, Any]) -> ReportRow:
    """One recorded row for the report; its pictures are read only if they are shown."""
    return ReportRow(
        id=row["id"],
        path=row["path"],
        label=item.extra.label,
        score=row.get("score"),
        p_value=row.get("p_value"),
        is_anomalous=row.get("is_anomalous"),
        status=row["status"],
        error=row.get("error", ""),
        images=pictures_of(job, item, row) if row["status"] == "ok" else {},
    )


def seconds_per_image(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean seconds of computing (no reading, no writing) for an image, over this run and those it resumed."""
    seconds = [row["seconds"] for row in rows if row["status"] == "ok"]
    return fmean(seconds) if seconds else None
