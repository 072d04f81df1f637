"""anodiff info: what a model file holds. Reading it verifies the whole file and runs no code from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.pipelines.common import Model, table_text

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration
    from anodiff.config import VideoConfig
    from anodiff.model import DiffusionModel


def main(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print what a model file holds: recipe, calibrations, provenance.

    \b
    Examples:
      anodiff info runs/brain/model.safetensors
      anodiff info runs/brain/model.safetensors --json
    """
    from anodiff.model import load

    loaded = load(model)
    facts = facts_of(loaded)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else text_of(loaded, facts))


def facts_of(model: DiffusionModel) -> dict[str, Any]:
    """Everything but the tensors, as plain values."""
    return {
        "path": str(model.path),
        "parameters": model.parameters,
        "config": model.config.model_dump(mode="json"),
        "calibrations": {
            name: calibration_facts(found, model.config.preprocess.size)
            | volume_facts(found)
            | event_facts(found, model.config.video)
            for name, found in model.calibrations.items()
        },
        "provenance": model.provenance,
    }


def calibration_facts(calibration: Calibration, size: tuple[int, int]) -> dict[str, Any]:
    """A calibration in plain values: its promise, its cost for images of ``size``, what it was learnt from."""
    from anodiff.anomaly.settings import DetectorSettings

    return {
        "nfe": DetectorSettings(**calibration.settings).nfe_for(size),
        "precision": calibration.precision,
        "rate": calibration.rate,
        "unit": calibration.unit,
        "threshold": calibration.threshold,
        "message": calibration.message,
        "normals": len(calibration.scores),
        "pixel_threshold_fpr5": calibration.pixel_threshold_fpr5,
        "pixel_threshold_fpr1": calibration.pixel_threshold_fpr1,
        "counts": calibration.counts,
        "windows": calibration.windows,
        "early_exit": None if calibration.early_exit is None else calibration.early_exit.to_json(),
        "settings": calibration.settings,
    }


def volume_facts(calibration: Calibration) -> dict[str, Any]:
    """What a calibration on volumes promises of whole ones, at the rate of its slices; nothing of images and clips."""
    from anodiff.anomaly.volume_calibration import VolumeCalibration

    if not isinstance(calibration, VolumeCalibration):
        return {}
    return {
        "volumes": {
            "threshold": calibration.volume_threshold,
            "message": calibration.volume_message,
            "normals": len(calibration.volume_scores),
            "voxel_threshold_fpr5": calibration.voxel_quantiles[0.95],
            "voxel_threshold_fpr1": calibration.voxel_quantiles[0.99],
            "volume": calibration.volume,
        }
    }


def event_facts(calibration: Calibration, video: VideoConfig | None) -> dict[str, Any]:
    """What a calibration on clips promises of events at the recipe's rate; nothing of images and volumes."""
    from anodiff.anomaly.clip_calibration import ClipCalibration
    from anodiff.anomaly.clip_rule import rule_from

    if video is None or not isinstance(calibration, ClipCalibration):
        return {}
    rule = rule_from(calibration, video)
    return {
        "events": {
            "false_alarms_per_hour": rule.rate,
            "threshold": rule.high,
            "normal_hours": rule.hours,
            "lowest_false_alarms_per_hour": rule.lowest_rate,
            "message": rule.message,
        }
    }


def text_of(model: DiffusionModel, facts: dict[str, Any]) -> str:
    """The facts for a reader."""
    config = model.config
    prepared, diffusion = config.preprocess, config.diffusion
    height, width = prepared.size
    lines = [
        f"{facts['path']}: {config.name}" + (f", {config.description}" if config.description else ""),
        f"  network     {config.network.kind}, {facts['parameters'] / 1e6:.2f} M weights",
        f"  images      {height}x{width}, {prepared.channels} channel(s), resize {prepared.resize}, "
        f"intensity {prepared.intensity.kind}, foreground {prepared.foreground}",
        f"  diffusion   {diffusion.prediction} prediction, schedule {diffusion.schedule}, {diffusion.noise} noise",
        f"  anomalies   {'brighter or darker' if config.polarity == 'both' else config.polarity} than normal",
    ]
    if config.conditioning is not None:
        normal = config.class_names[config.conditioning.normal_index]
        lines.append(f"  classes     {', '.join(config.class_names)}; a detector holds images against {normal}")
    lines += [f"  {name:<11} {value}" for name, value in flatten(model.provenance)]
    if not facts["calibrations"]:
        return "\n".join([*lines, "not calibrated: scores are raw until `anodiff calibrate` has seen normal images"])
    of_volumes = any("volumes" in found for found in facts["calibrations"].values())
    kind = "frame threshold" if model.config.video is not None else "slice threshold" if of_volumes else "threshold"
    header = ["preset", "NFE", kind, "false alarms", "normals", "pixel threshold (5 %)"]
    rows = [
        [name, found["nfe"], found["threshold"], f"{found['rate']:g} per {found['unit']}", found["normals"],
         found["pixel_threshold_fpr5"]]
        for name, found in facts["calibrations"].items()
    ]  # fmt: skip
    every = facts["calibrations"].items()
    messages = [f"{name}: {found['message']}" for name, found in every if found["message"]]
    messages += [f"{name}: {volumes_text(found)}" for name, found in every if "volumes" in found]
    messages += [f"{name}: {events_text(found)}" for name, found in every if "events" in found]
    leaving = {name: found.early_exit for name, found in model.calibrations.items()}
    messages += [f"{name}: {found.sentence}" for name, found in leaving.items() if found is not None]
    return "\n".join([*lines, "calibrated for", indent(table_text(header, rows)), *messages])


def volumes_text(facts: dict[str, Any]) -> str:
    """The thresholds of a calibration on volumes in words: of a whole volume, and of its voxels."""
    found = facts["volumes"]
    voxels = f"candidates are of voxels above {found['voxel_threshold_fpr1']:.4g}, as 1 % of normal voxels are"
    if found["threshold"] is None:
        return f"volumes have no threshold: {found['message']}; {voxels}"
    return (
        f"volumes have a threshold of their own, {found['threshold']:.4g}, for false alarms of {facts['rate']:g} per "
        f"volume, from {found['normals']} normal volumes; {voxels}"
    )


def events_text(facts: dict[str, Any]) -> str:
    """The two thresholds of a calibration on clips in words: of frames, and of events."""
    from anodiff.anomaly.event_rule import RATE_KEY, footage

    found = facts["events"]
    frames = "frames have no threshold"
    if facts["threshold"] is not None:
        share, level = f"{100 * facts['rate']:g} %", f"{facts['threshold']:.4g}"
        frames = f"at most {share} of normal frames score above the frame threshold {level}"
    head = f"{frames}; events have a threshold of their own"
    if found["threshold"] is None:
        return f"{head}, and this model has none: {found['message']}"
    return (
        f"{head}, {found['threshold']:.4g}, for {found['false_alarms_per_hour']:g} false alarms an hour, set on "
        f"{footage(found['normal_hours'])} of normal footage; the lowest rate that can be asked of these is "
        f"{found['lowest_false_alarms_per_hour']:g} an hour (--set {RATE_KEY})"
    )


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as (dotted name, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def indent(text: str) -> str:
    """Two spaces before each line."""
    return "\n".join(f"  {line}" for line in text.splitlines())
