"""`anodiff calibrate` for volumes: thresholds of slices, volumes and voxels from normal volumes."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anodiff.anomaly.volume_calibration import VolumeCalibration
from anodiff.anomaly.volume_fitting import Limits, NormalVolume, fit_volumes, steps
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.table import group_keys
from anodiff.data.volumes.read import read_given, read_volume
from anodiff.errors import InputError
from anodiff.pipelines.common import drawn, left_out, say
from anodiff.pipelines.volume_scoring import OPEN_KEYS, network_batch, open_volume_model

if TYPE_CHECKING:
    from anodiff.config import CalibrationConfig
    from anodiff.data.table import SampleTable
    from anodiff.model import DiffusionModel

CALIBRATED_KEYS = (*OPEN_KEYS, "preset", "calibration")


def run(
    model_path: Path,
    normals: Path,
    output: Path,
    samples: SampleTable,
    *,
    preset: str | None = None,
    allow_trained: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Calibrate a preset on volumes and write the model with it; the new file, and a sentence for each one left out.

    The new model is one of volumes, also where the old one was of images. Raises DataError where the model has learnt
    from most of the volumes that are to set the threshold, unless ``allow_trained``.
    """
    from anodiff.pipelines.calibrate import store_calibration
    from anodiff.pipelines.calibration_normals import normal_parts

    model, notes = open_volume_model(model_path, overrides, CALIBRATED_KEYS)
    detector = VolumeDetector(
        model, preset or model.config.preset, device=device, precision=precision, seed=seed,
        network_batch=network_batch(batch_size, overrides),
    )  # fmt: skip
    say(f"{normals}: layout {samples.layout}", quiet)
    fitting, deciding = normal_parts(samples)
    if notes:  # the model is of images
        notes = (*notes, *unknown_note(model))
    else:
        notes = learnt_from(model, drawn(deciding, model.config.calibration.threshold_images, seed), normals,
                            allow_trained, quiet)  # fmt: skip
    for note in (*notes, *given_note(samples)):
        say(f"note: {note}", quiet)
    calibration, failed = fit(detector, deciding, fitting, model.config.calibration, quiet=quiet)
    store_calibration(model, detector.name, calibration)
    model.save(output)
    for note in detector.notes:
        say(f"note: {note}", quiet)
    if failed:
        say(left_out(failed).replace("image", "volume"), quiet)
    if calibration.volume_threshold is not None:
        say(
            f"{detector.name}: score threshold {calibration.volume_threshold:.4g} for a false-alarm rate of "
            f"{calibration.rate:g} per volume, from {len(calibration.volume_scores)} normal volumes",
            quiet,
        )
    say(f"wrote {output}, calibrated for {', '.join(map(repr, model.calibrations))}", quiet)
    return output, failed


def learnt_from(
    model: DiffusionModel, deciding: SampleTable, normals: Path, allowed: bool, quiet: bool
) -> tuple[str, ...]:
    """A sentence where the model has learnt from some of these volumes. Raises DataError, see `trained_note`.

    They are read for that once more, before hours of scoring. What cannot be read is told when they are scored.
    """
    from anodiff.engine.progress import Progress
    from anodiff.pipelines.calibration_normals import trained_note
    from anodiff.training.volumes import volume_hash

    if model.seen is None:
        return ()
    hashes = []
    with Progress(len(deciding), "volumes", "comparing with what the model knows", quiet=quiet) as progress:
        for path in deciding.table["path"]:
            with contextlib.suppress(InputError):
                hashes.append(volume_hash(read_volume(str(path))))
            progress.update(1)
    return trained_note(model, hashes, normals, allowed, "volume")


def given_note(samples: SampleTable) -> tuple[str, ...]:
    """A sentence where volumes come with a foreground of their own."""
    named = [str(file) for file in samples.table["foreground"] if file]
    if not named:
        return ()
    return (f"the foreground of {len(named)} of {len(samples)} volumes is given (first {named[0]})",)


def unknown_note(model: DiffusionModel) -> tuple[str, ...]:
    """A sentence on a model of images, which cannot tell whether it has learnt from slices of a volume."""
    if model.seen is None:
        return ()
    return (
        "whether the model has learnt from slices of these volumes cannot be told, since it was trained on images: if "
        "it has, the false-alarm rate will be higher than promised",
    )


def fit(
    detector: VolumeDetector,
    deciding: SampleTable,
    fitting: SampleTable | None,
    config: CalibrationConfig,
    *,
    quiet: bool = False,
) -> tuple[VolumeCalibration, tuple[str, ...]]:
    """Fits the detector on the volumes of two tables, with a progress bar; see `fit_volumes`."""
    from anodiff.engine.progress import Progress

    first = normal_volumes(drawn(deciding, config.threshold_images, detector.detector.seed))
    second = None if fitting is None else normal_volumes(fitting)
    total = steps(detector, len(first), None if second is None else len(second))
    with Progress(total, "volumes", f"calibrating {detector.name}", quiet=quiet) as progress:
        return fit_volumes(
            detector,
            first,
            second,
            Limits(config.rate, config.standardise_images, config.threshold_images),
            progress=lambda count: progress.update(count),
        )


def normal_volumes(samples: SampleTable) -> list[NormalVolume]:
    """The volumes of a table, read when they are needed; a volume of no known group is a group of its own."""
    return [
        NormalVolume(partial(read_given, str(path), str(foreground)), str(group))
        for path, foreground, group in zip(
            samples.table["path"], samples.table["foreground"], group_keys(samples), strict=True
        )
    ]
