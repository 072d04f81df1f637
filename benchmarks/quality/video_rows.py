"""The rows of the video table on Ped2: our four ways to see motion, and the baselines; how a cell comes about.

A cell is done once: its numbers are kept with what they were made from, and made anew only where that has changed. The
noise level of a row that is trained here is chosen on normal clips held out of its training, by what is planted there.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anodiff.anomaly.clip_autoencoder import ClipAutoEncoder
from anodiff.anomaly.clips import ClipDetector
from anodiff.anomaly.presets import resolve
from anodiff.anomaly.video_baselines import FlowMagnitude, FrameDifference, FrameNumber, RandomScore, VideoBaseline
from anodiff.config import AnodiffConfig, apply_overrides, load_config, parse_config
from anodiff.data.video.layouts import load_clips
from anodiff.data.video.table import ClipRow
from anodiff.engine.device import resolve_device
from anodiff.errors import ConfigError, DataError
from anodiff.files import make_folder, unquote_cell, write_json
from anodiff.model import build_denoiser, load
from anodiff.pipelines import clip_calibration, evaluate
from anodiff.pipelines.calibrate import store_calibration
from anodiff.pipelines.clip_baselines import measure_baselines
from anodiff.pipelines.clip_training import normal_clips
from anodiff.pipelines.common import file_digest
from anodiff.training.checkpoint import differences
from anodiff.training.clips import read_clips
from benchmarks.quality.models import facts, trained
from benchmarks.quality.rows import scoring_of

RECIPE, PATH = "ped2", "ucsd_ped2"
#: noise levels that are compared on planted anomalies
LEVELS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Options:
    """What all cells share. model: evaluated as the row predict instead of a trained one; note: where it comes from.
    deadline: of ``time.monotonic``."""

    data: Path
    work: Path
    device: str = "auto"
    seed: int = 0
    overrides: tuple[str, ...] = ()
    model: Path | None = None
    note: str = ""
    deadline: float | None = None

    def over(self) -> bool:
        """Whether the time is up: what is begun is finished, nothing more is begun."""
        return self.deadline is not None and time.monotonic() > self.deadline


@dataclass(frozen=True)
class Row:
    """A row: ``said`` on the page; a model with these overrides of the recipe, or a baseline beside the recipe."""

    name: str
    said: str
    overrides: tuple[str, ...] = ()
    baseline: Callable[[AnodiffConfig, Options], VideoBaseline] | None = None


def auto_encoder(config: AnodiffConfig, options: Options) -> VideoBaseline:
    """As many weights as the recipe's network has."""
    weights = sum(each.numel() for each in build_denoiser(config).parameters())
    return ClipAutoEncoder.like(config, weights, resolve_device(options.device), options.seed)


ROWS = {
    row.name: row
    for row in (
        Row("predict", "the change of the frame denoised given three past frames: preset default"),
        Row("channels", "four frames as channels, denoised together, given nothing", ("video.mode=joint",)),
        Row("space-time", "four frames denoised together by a network factorised in space and time, given nothing; "
            "fewer examples, since each costs four frames", ("video.mode=space-time", "training.images=9000")),
        Row("difference", "the frame and its change as channels, given nothing", ("video.mode=difference",)),
        Row("random", "a random number", baseline=lambda _, options: RandomScore(options.seed)),
        Row("frame-number", "the frame's number", baseline=lambda *_: FrameNumber()),
        Row("frame-difference", "mean absolute difference, largest 16-px window, which was chosen with test labels",
            baseline=lambda *_: FrameDifference()),
        Row("optical-flow", "length of the flow (TV-L1), z-score on normals, largest window",
            baseline=lambda *_: FlowMagnitude()),
        Row("auto-encoder", "convolutional auto-encoder of the same size, frames and examples, largest window",
            baseline=auto_encoder),
    )
}  # fmt: skip


def cell(row: Row, options: Options) -> dict[str, Any] | None:
    """The numbers of a row, made where they are missing; None where the evaluation was interrupted."""
    make = model_cell if row.baseline is None else baseline_cell
    return make(row, options)


def model_cell(row: Row, options: Options) -> dict[str, Any] | None:
    """A row with a model: trained and its level chosen, or given; then the official test clips."""
    data, folder = options.data / PATH, options.work / PATH / row.name
    given = options.model if row.name == "predict" else None
    if given is None:
        base = trained(RECIPE, data, folder, options.device, (*row.overrides, *options.overrides), options.deadline)
        model, levels = chosen_level(base, recipe_of(row, options), LEVELS, data, options)
    else:
        model, levels = given, {}
    made_from = {"model": file_digest(model), "seed": options.seed}
    known = stored_cell(row, options)
    if known.get("made_from") == made_from:
        return known
    began = time.monotonic()
    summary, metrics = evaluate.run(
        model, data, options.work / PATH / "out" / row.name,
        overwrite=True, device=options.device, seed=options.seed, quiet=True,
    )  # fmt: skip
    if summary.interrupted:
        return None
    seconds = time.monotonic() - began
    recipe, own = (each.model_dump(mode="json") for each in (load_config(RECIPE), load(model).config))
    # Settings of presets may differ from the recipe's without another training, so they are compared apart.
    changed = [*differences(recipe, own), *differences(recipe["presets"], own["presets"], "settings")]
    detector = ClipDetector(load(model), device="cpu")
    found = {
        "metrics": metrics,
        "frames_per_second": metrics["n_frames"] / seconds,
        "model": facts(model),
        "file_mb": model.stat().st_size / 1e6,
        "levels": detector.settings.to_json()["levels"],
        "planted": levels or own_level(detector),
        "window_px": detector.scorer.window_px,
        "bands": detector.scorer.band_scale is not None,
        "given": None if given is None else {"file": given.name, "note": options.note, "changed": changed},
    }
    return keep(row, options, made_from, known, found)


def baseline_cell(row: Row, options: Options) -> dict[str, Any]:
    """A baseline, fitted on all training clips and measured on the same test clips."""
    config = load_config(RECIPE, options.overrides)
    made_from = {"seed": options.seed, "recipe": config.model_dump(mode="json")}
    known = stored_cell(row, options)
    if is_measured(config, options, known.get("made_from", {})):
        return known
    assert row.baseline is not None
    assert config.video is not None
    method = row.baseline(config, options)
    table = load_clips(options.data / PATH)
    compared = measure_baselines(
        [method], table.split("test").rows, normal_clips(table), config.video, quiet=True
    ).metrics[method.name]
    if "error" in compared:
        raise DataError(f"{row.name}: {compared['error']}")
    found = {
        "metrics": compared,
        "frames_per_second": 1 / compared["seconds_per_frame"],
        "model": {
            "parameters": compared["parameters"],
            "images_seen": method.images if isinstance(method, ClipAutoEncoder) else 0,
            "training_seconds": compared["fit_seconds"],
        },
    }
    return keep(row, options, made_from, known, found)


def is_measured(config: AnodiffConfig, options: Options, made_from: dict[str, Any]) -> bool:
    """Whether a baseline's cell is of this seed and recipe; a key newer than the cell has its default in both."""
    if made_from.get("seed") != options.seed:
        return False
    try:
        return parse_config(made_from["recipe"]) == config
    except ConfigError:
        return False


def recipe_of(row: Row, options: Options) -> AnodiffConfig:
    """The recipe of a row with a model, of today."""
    return load_config(RECIPE, (*row.overrides, *options.overrides))


def chosen_level(
    base: Path, recipe: AnodiffConfig, levels: tuple[float, ...], data: Path, options: Options
) -> tuple[Path, dict[str, float]]:
    """(the model calibrated at the level that shows planted anomalies best, {level: how well}).

    Presets, polarity and calibration are the recipe's, also for an older model; besides its own levels each of
    ``levels`` is tried. Nothing but the normal clips held out of its training is looked at; the recipe's own are kept
    in a tie, and where nothing was planted since window and bands are given. Done once for a model, a seed and these
    settings.
    """
    path, said = chosen_files(base)
    if is_chosen(base, recipe, levels, options):
        shown: dict[str, float] = json.loads(said.read_text(encoding="utf-8"))["planted"]
        return path, shown
    said.unlink(missing_ok=True)  # it tells of another file than the one that is written now
    plain = parse_config(load(base).config.model_dump(mode="json") | scoring_of(recipe))
    clips = read_clips(held_out(data, base.with_name("split.csv")), plain)
    own = resolve(plain.preset, plain)[1].levels
    shown, best = {}, None
    for tried in dict.fromkeys((own, *((level,) for level in levels))):
        candidate = load(base)
        override = f"presets.{plain.preset}.levels={list(tried)}"
        candidate.config = parse_config(apply_overrides(plain.model_dump(mode="json"), [override]))
        candidate.calibrations = {}
        detector = ClipDetector(candidate, plain.preset, device=options.device, seed=options.seed)
        kept = base.with_name(f"level_{'_'.join(f'{level:g}' for level in tried)}")
        store_calibration(
            candidate, detector.name, clip_calibration.fit(detector, clips, plain.calibration, keep=kept, quiet=True)
        )
        found = own_level(detector)
        value = max(found.values(), default=-math.inf)
        if best is None or value > best:
            candidate.save(path)
            best = value
        shown |= found
        clip_calibration.remove_kept(kept)
    write_json(said, {"made_from": choice_origin(base, recipe, levels, options), "planted": shown})
    return path, shown


def chosen_files(base: Path) -> tuple[Path, Path]:
    """Where the model at its chosen level is kept, and what was found of each level."""
    return base.with_name("chosen.safetensors"), base.with_name("levels.json")


def choice_origin(base: Path, recipe: AnodiffConfig, levels: tuple[float, ...], options: Options) -> dict[str, Any]:
    """All that decides what `chosen_level` finds."""
    return {
        "base": file_digest(base),
        "seed": options.seed,
        "levels": list(levels),
        "scoring": scoring_of(recipe),
    }


def is_chosen(base: Path, recipe: AnodiffConfig, levels: tuple[float, ...], options: Options) -> bool:
    """Whether `chosen_level` has been done for what there is now."""
    path, said = chosen_files(base)
    if not (base.exists() and path.exists() and said.exists()):
        return False
    known = json.loads(said.read_text(encoding="utf-8")).get("made_from")
    return bool(known == choice_origin(base, recipe, levels, options))


def is_current(row: Row, options: Options, found: dict[str, Any]) -> bool:
    """Whether a cell is of the seed, the model file and the recipe that are there now.

    A model file that was given once is not asked for again: the cell says what it is of.
    """
    made_from = found["made_from"]
    if row.baseline is not None:
        return is_measured(load_config(RECIPE, options.overrides), options, made_from)
    if made_from["seed"] != options.seed:
        return False
    if row.name == "predict" and options.model is not None:
        return bool(made_from["model"] == file_digest(options.model))
    if found["given"] is not None:
        return True
    base = options.work / PATH / row.name / "model.safetensors"
    chosen, _ = chosen_files(base)
    return is_chosen(base, recipe_of(row, options), LEVELS, options) and made_from["model"] == file_digest(chosen)


def own_level(detector: ClipDetector) -> dict[str, float]:
    """{its level: mean AUROC of planted episodes against normal frames}, by its chosen window; {} where unknown."""
    calibration = detector.calibration
    if calibration is None:
        return {}
    banded = calibration.band_scale is not None
    found = [value for side, bands, value in calibration.choices if (side, bands) == (calibration.window_px, banded)]
    return {" ".join(f"{level:g}" for level in detector.settings.levels): value for value in found}


def held_out(data: Path, split: Path) -> list[ClipRow]:
    """The clips that a training has held out, by the list it has left."""
    with split.open(newline="", encoding="utf-8") as stream:
        named = {
            os.path.realpath(unquote_cell(row["path"])) for row in csv.DictReader(stream) if row["part"] != "train"
        }
    return [row for row in load_clips(data).rows if os.path.realpath(row.path) in named]


def cell_path(row: Row, options: Options) -> Path:
    """Where a row's numbers are kept."""
    return options.work / PATH / "cells" / f"{row.name}.json"


def stored_cell(row: Row, options: Options) -> dict[str, Any]:
    """What is known of a row."""
    path = cell_path(row, options)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"looks": 0}
    return found


def keep(
    row: Row, options: Options, made_from: dict[str, Any], known: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """Stores the numbers of a row, with one more look at test."""
    whole = {"row": row.name, "made_from": made_from, "looks": known["looks"] + 1, **found}
    path = cell_path(row, options)
    make_folder(path.parent)
    write_json(path, whole)
    return whole
