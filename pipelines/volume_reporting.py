"""The report of a run over volumes: the stored rows, and a viewer with three planes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anodiff.engine.device import describe
from anodiff.engine.loop import Summary
from anodiff.model import DiffusionModel
from anodiff.pipelines.reporting import seconds_per_image
from anodiff.pipelines.volume_job import VolumeItem, VolumeJob
from anodiff.pipelines.volume_pictures import affine_mm, shown_volume
from anodiff.visualize.volume_report import Lesion, VolumeRow, VolumeViews, write_volume_report

#: candidates of a volume that the page lists
LISTED = 50
_PHI = ("PatientName", "PatientID", "PatientBirthDate")


def write_report(
    path: Path,
    model: DiffusionModel,
    job: VolumeJob,
    summary: Summary,
    rows: Sequence[dict[str, Any]],
    items: Sequence[VolumeItem],
    *,
    title: str = "",
    metrics: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    show_phi: bool = False,
) -> None:
    """Writes report.html for the recorded ``rows`` of ``items``; ``show_phi`` names the patients of DICOM inputs."""
    detector, known = job.detector, {item.id: item for item in items}
    calibration = detector.volume_calibration
    facts: dict[str, Any] = {
        "volumes": len(rows),
        "seconds_per_volume": seconds_per_image(rows),
        **describe(detector.detector.denoiser.device, detector.detector.denoiser.precision),
        "device_busy": f"{summary.device_busy_share:.0%}",
        "volume_score": score_rule(job),
    }
    if calibration is not None and calibration.volume_threshold is not None:
        facts |= {"false_alarm_rate": calibration.rate, "unit": "volume"}
    write_volume_report(
        path,
        title or f"anodiff: {path.parent.name}",
        facts,
        [report_row(job, known[row["id"]], row, show_phi) for row in rows],
        scale=job.scale,
        threshold=None if calibration is None else calibration.volume_threshold,
        metrics=metrics,
        settings={
            "model": model.config.name,
            "preset": detector.name,
            "seed": detector.detector.seed,
            "network_batch": detector.detector.denoiser.network_batch,
            "detector": detector.settings.to_json(),
            "preprocess": model.config.preprocess.model_dump(mode="json"),
            "volume": detector.config.model_dump(mode="json"),
        },
        notes=list(dict.fromkeys((*notes, *detector.detector.denoiser.notes))),
    )


def score_rule(job: VolumeJob) -> str:
    """How slices, or voxels, make the score of a volume."""
    config, settings = job.detector.config, job.detector.settings
    if config.mode == "patches":
        share = f" of the highest {settings.topk:.3g} of its voxels" if settings.reduction == "topk" else ""
        return f"{'mean' if settings.reduction == 'topk' else settings.reduction}{share}"
    if config.score_slices == 1:
        return "its highest slice score"
    return f"mean of its {config.score_slices} highest slice scores"


def report_row(job: VolumeJob, item: VolumeItem, row: dict[str, Any], show_phi: bool) -> VolumeRow:
    """One recorded row for the report; its voxels are read only if they are shown."""
    lesions = [
        Lesion(
            each["volume_mm3"], each["peak"], tuple(each["centre_mm"]), each["mean_p_value"], tuple(each["peak_voxel"])
        )
        for each in row.get("lesions", ())[:LISTED]
    ]
    return VolumeRow(
        id=row["id"],
        path=f"{patient(item)}{row['path']}" if show_phi else row["path"],
        label=item.extra.label,
        score=row.get("score"),
        p_value=row.get("p_value"),
        is_anomalous=row.get("is_anomalous"),
        status=row["status"],
        error=row.get("error", ""),
        lesions=lesions,
        candidates=len(row.get("lesions", ())) + row.get("lesions_left_out", 0),
        peak_voxel=tuple(row["peak"]) if row.get("peak") else None,
        remarks=row.get("remarks", ()),
        views=views_of(job, item, row) if row["status"] == "ok" else None,
    )


def views_of(job: VolumeJob, item: VolumeItem, row: dict[str, Any]) -> Callable[[], VolumeViews]:
    """Image, map and mask of a volume on its native grid, read when they are needed."""

    def read() -> VolumeViews:
        volume, mask = job.look(item)
        return VolumeViews(
            image=shown_volume(volume, job.channel),
            map=job.stored_map(row) if row.get("map") else None,
            mask=mask,
            affine=affine_mm(volume),
            window=(0.0, 255.0),
        )

    return read


def patient(item: VolumeItem) -> str:
    """Name, number and birth date as the first DICOM file has them, with a dash after; "" for other formats, and where
    it can no longer be read."""
    frames = () if item.source is None else item.source.frames
    if not frames:
        return ""
    import pydicom

    try:
        header = pydicom.dcmread(frames[0].path, stop_before_pixels=True, force=True, specific_tags=list(_PHI))
    except Exception:
        # The volumes are scored, and the report is about them: a damaged header names nobody.
        return ""
    return f"{', '.join(str(header.get(tag, '') or 'unknown') for tag in _PHI)} - "
