"""anodiff calibrate: fit a preset on normal images and write a new model file; also for imported weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anodiff.pipelines.calibration_normals import read_normals
from anodiff.pipelines.common import (
    IMAGES_AT_ONCE,
    AnyBatch,
    Device,
    Foreground,
    GroupBy,
    Layout,
    Model,
    ModelOutput,
    Normal,
    Precision,
    Preset,
    Seed,
    Set,
    left_out,
    new_file,
    open_model,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anodiff.anomaly import AnomalyDetector, Calibration
    from anodiff.config import CalibrationConfig
    from anodiff.model import DiffusionModel
    from anodiff.training.image_files import ImageFiles
    from anodiff.training.images import ImageSet

#: keys of the recipe that a calibration may set; the others are what the model was trained with
OPEN_KEYS = (
    "engine", "preset", "presets", "polarity", "calibration",
    "preprocess.max_pixels", "preprocess.channel", "preprocess.value_range", "volume",
)  # fmt: skip


def main(
    model: Model,
    normals: Annotated[Path, typer.Argument(help="Normal images: a folder, a known layout, or a CSV manifest.")],
    output: ModelOutput,
    preset: Preset = None,
    rate: Annotated[float | None, typer.Option(help="False-alarm rate of the threshold (calibration.rate).")] = None,
    allow_trained: Annotated[
        bool, typer.Option("--allow-trained", help="Also where the model has learnt from most of these images.")
    ] = False,
    layout: Layout = "auto",
    normal: Normal = "",
    group_by: GroupBy = "",
    foreground: Foreground = "",
    early_exit: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR", help="Also learn when images may leave early, losing this share of what is found."
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: AnyBatch = None,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Fit a preset on normal images only: how large normal error is, the threshold, p-values, pixel thresholds.

    Two parts with no patient or part in common are used: one for the size of normal error, the other for the threshold.
    Where the data has splits, train is the first and val the second, and test is not looked at. Images that the model
    has learnt from would make the threshold too low; a model file knows its own again, and others set the threshold.

    \b
    Examples:
      anodiff calibrate model.safetensors normals/ --preset one-step --output model2.safetensors
      anodiff calibrate imported.safetensors brain_lgg --preset default --rate 0.01 --output calibrated.safetensors
      anodiff calibrate model.safetensors normals/ --set 'engine.window=[256, 256]' --output windowed.safetensors
    """
    overrides = [*(set_ or []), *([] if rate is None else [f"calibration.rate={rate}"])]
    _, failed = run(
        model, normals, output,
        preset=preset, allow_trained=allow_trained, layout=layout, normal=normal, group_by=group_by,
        foreground=foreground, device=device, precision=precision, batch_size=batch_size, seed=seed,
        overrides=overrides, early_exit=early_exit,
    )  # fmt: skip
    raise typer.Exit(int(bool(failed)))


def run(
    model_path: Path,
    normals: Path,
    output: Path,
    *,
    preset: str | None = None,
    allow_trained: bool = False,
    layout: str = "auto",
    normal: str = "",
    group_by: str = "",
    foreground: str = "",
    early_exit: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Calibrate a preset and write the model with it; returns the new file, and a sentence for each image left out."""
    from anodiff.anomaly import AnomalyDetector
    from anodiff.data.layouts import load_table
    from anodiff.data.layouts.foregrounds import given
    from anodiff.pipelines import clip_calibration, clip_scoring, volume_calibrating, volume_scoring
    from anodiff.pipelines.leaving import refuse_leaving
    from anodiff.pipelines.sizes import refuse_any_size

    new_file(output)
    model = open_model(model_path, overrides, OPEN_KEYS)
    if model.config.video is not None:
        refuse_leaving(early_exit, "clips")
        clip_scoring.refuse_foreign({"--foreground": foreground})
        return clip_calibration.run(
            model, normals, output, preset=preset, allow_trained=allow_trained, layout=layout, device=device,
            precision=precision, batch_size=batch_size or IMAGES_AT_ONCE, seed=seed, quiet=quiet,
        )  # fmt: skip
    if volume_scoring.concerns(model, [str(normals)]):
        refuse_leaving(early_exit, "volumes")
        known = model.provenance.get("channels", ())
        samples = load_table(normals, layout, normal=normal, group_by=group_by, channels=known)
        return volume_calibrating.run(
            model_path, normals, output, given(samples, foreground), preset=preset, allow_trained=allow_trained,
            device=device, precision=precision, batch_size=batch_size, seed=seed, overrides=overrides, quiet=quiet,
        )  # fmt: skip
    refuse_any_size(model, "--early-exit", early_exit)
    detector = AnomalyDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    known = read_normals(
        model,
        normals,
        layout=layout,
        normal=normal,
        group_by=group_by,
        foreground=foreground,
        allow_trained=allow_trained,
        seed=seed,
        quiet=quiet,
    )
    limits = model.config.calibration
    calibration = fit(
        detector, known.deciding, known.fitting, limits, batch_size=batch_size or IMAGES_AT_ONCE, early_exit=early_exit,
        quiet=quiet,
    )  # fmt: skip
    store_calibration(model, detector.name, calibration)
    model.save(output)
    for note in detector.notes:
        say(f"note: {note}", quiet)
    if known.failed:
        say(left_out(known.failed), quiet)
    if calibration.threshold is not None:
        say(
            f"{detector.name}: score threshold {calibration.threshold:.4g} for a false-alarm rate of "
            f"{calibration.rate:g} per {calibration.unit}, from {len(calibration.scores)} normal {calibration.unit}s",
            quiet,
        )
    if calibration.early_exit is not None:
        say(calibration.early_exit.sentence, quiet)
    say(f"wrote {output}, calibrated for {', '.join(map(repr, model.calibrations))}", quiet)
    return output, known.failed


def fit(
    detector: AnomalyDetector,
    normals: ImageSet | ImageFiles,
    standardise_on: ImageSet | ImageFiles | None,
    config: CalibrationConfig,
    *,
    batch_size: int | None = None,
    early_exit: float | None = None,
    quiet: bool = False,
) -> Calibration:
    """Fits the detector on at most as many images as the recipe says, with a progress bar.

    early_exit: also the early exit, at this stated error; see `AnomalyDetector.fit`. Not of images of any size.
    """
    from anodiff.anomaly.any_size import fit_any_size
    from anodiff.engine.progress import Progress
    from anodiff.training.image_files import ImageFiles

    threshold = normals.sample(config.threshold_images, detector.seed)
    fitting = None if standardise_on is None else standardise_on.sample(config.standardise_images, detector.seed)
    total = len(threshold) + (0 if fitting is None or detector.settings.standardise == "none" else len(fitting))
    # how many anomalies must be planted until enough are found is not known beforehand
    with Progress(
        total if early_exit is None else None, "images", f"calibrating {detector.name}", quiet=quiet
    ) as progress:
        if isinstance(threshold, ImageFiles):
            assert fitting is None or isinstance(fitting, ImageFiles)
            found = fit_any_size(
                detector, threshold, config.rate, config.unit, standardise_on=fitting, progress=progress.update
            )
            detector.calibration = with_foregrounds(found, threshold.given)
            return detector.calibration
        assert fitting is None or not isinstance(fitting, ImageFiles)
        detector.fit(
            threshold.images,
            threshold.groups,
            threshold.foreground,
            config.rate,
            config.unit,
            standardise_on=None if fitting is None else fitting.images,
            standardise_groups=None if fitting is None else fitting.groups,
            standardise_foreground=None if fitting is None else fitting.foreground,
            progress=progress.update,
            batch_size=batch_size,
            early_exit=early_exit,
        )
    assert detector.calibration is not None
    detector.calibration = with_foregrounds(detector.calibration, threshold.given)
    return detector.calibration


def with_foregrounds(calibration: Calibration, given: Sequence[bool]) -> Calibration:
    """The calibration, with a count of the normals whose foreground was made elsewhere where there was any."""
    from anodiff.pipelines.scoring import ESTIMATED_COUNT, GIVEN_COUNT

    if not any(given):
        return calibration
    counts = {GIVEN_COUNT: sum(given), ESTIMATED_COUNT: len(given) - sum(given)}
    return replace(calibration, counts=calibration.counts | counts)


def store_calibration(model: DiffusionModel, name: str, calibration: Calibration) -> None:
    """Keeps a calibration in the model (in memory) under its preset's name."""
    model.calibrations = {**model.calibrations, name: calibration}
