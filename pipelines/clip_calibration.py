"""anodiff calibrate for a model of clips: window, bands and thresholds from normal clips alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from anodiff.engine.store import STATE_FOLDER
from anodiff.pipelines.calibrate import store_calibration
from anodiff.pipelines.calibration_normals import trained_note
from anodiff.pipelines.common import left_out, say

if TYPE_CHECKING:
    from anodiff.anomaly.clip_calibration import ClipCalibration
    from anodiff.anomaly.clips import ClipDetector
    from anodiff.config import CalibrationConfig
    from anodiff.model import DiffusionModel
    from anodiff.training.clips import ClipSet


def run(
    model: DiffusionModel,
    normals: Path,
    output: Path,
    *,
    preset: str | None = None,
    allow_trained: bool = False,
    layout: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Calibrate a preset and write the model with it; returns the new file, and a sentence for each clip left out."""
    from anodiff.anomaly.clips import ClipDetector
    from anodiff.data.video.layouts import load_clips
    from anodiff.engine.progress import Progress
    from anodiff.pipelines.clip_training import normal_clips
    from anodiff.training.clips import read_clips

    detector = ClipDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    table = load_clips(normals, layout)
    say(f"{normals}: layout {table.layout}", quiet)
    rows = normal_clips(table)
    with Progress(len(rows), "clips", "reading", quiet=quiet) as progress:
        clips = read_clips(rows, model.config, progress=progress)
    for note in trained_note(model, clips.hashes, normals, allow_trained):
        say(f"note: {note}", quiet)
    keep = output.parent / STATE_FOLDER / f"calibration-{output.stem}"
    calibration = fit(detector, clips, model.config.calibration, batch_size=batch_size, keep=keep, quiet=quiet)
    store_calibration(model, detector.name, calibration)
    model.save(output)
    remove_kept(keep)
    for note in detector.notes:
        say(f"note: {note}", quiet)
    if clips.failed:
        say(left_out(clips.failed), quiet)
    say(f"wrote {output}, calibrated for {', '.join(map(repr, model.calibrations))}", quiet)
    return output, clips.failed


def fit(
    detector: ClipDetector,
    clips: ClipSet,
    config: CalibrationConfig,
    *,
    batch_size: int = 16,
    keep: Path | None = None,
    quiet: bool = False,
) -> ClipCalibration:
    """Fits the detector on normal clips, at most as many frames as the recipe says, with a progress bar.

    keep: folder in which what has been computed survives a kill; for `remove_kept` when the model is safe.
    """
    from anodiff.anomaly.clip_fit import NormalClip, fit_clips, frames_to_fit, identity
    from anodiff.engine.pieces import Pieces
    from anodiff.engine.progress import Progress

    normals = [NormalClip(*clips.clip(number), clips.groups[number]) for number in range(len(clips))]
    limits = config.standardise_images, config.threshold_frames
    total = frames_to_fit(detector, normals, *limits)
    pieces = None if keep is None else Pieces(keep, identity(detector))
    with Progress(total, "frames", f"calibrating {detector.name}", quiet=quiet) as progress:
        calibration = fit_clips(
            detector,
            normals,
            rate=config.rate,
            most_choosing=limits[0],
            most_deciding=limits[1],
            batch_size=batch_size,
            progress=progress.update,
            taken=progress.skip,
            pieces=pieces,
        )
    bands = "none" if calibration.band_scale is None else "by height"
    said = f"{detector.name}: windows of {calibration.window_px} px, bands {bands}"
    if calibration.threshold is not None:
        said += (
            f"; frame threshold {calibration.threshold:.4g} for {calibration.rate:g} of normal frames, from "
            f"{len(calibration.scores)}"
        )
    say(said, quiet)
    return calibration


def remove_kept(keep: Path) -> None:
    """Removes what `fit` has kept for a kill, and the folder above where nothing else is in it."""
    from anodiff.engine.pieces import Pieces

    Pieces(keep).remove()
