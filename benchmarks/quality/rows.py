"""The rows of the quality table: which model and preset each is, and how a cell (row of a data set) comes about.

A cell is done once: its numbers are kept with what they were made from, and made anew only where that has changed. So
is a model file that is tuned or calibrated for a row.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anodiff.anomaly import PRESETS, AnomalyDetector, resolve
from anodiff.anomaly.tuning_grid import WIDEST
from anodiff.config import AnodiffConfig, load_config
from anodiff.data.layouts import load_table
from anodiff.data.table import select
from anodiff.errors import StorageError
from anodiff.files import make_folder, write_json
from anodiff.model import load
from anodiff.pipelines import baselines, calibrate, evaluate, tune
from anodiff.pipelines.common import file_digest
from anodiff.pipelines.scoring import Outputs, ScoreJob, items_of_table
from benchmarks.quality import looks, oracle
from benchmarks.quality.models import VARIANTS, trained
from benchmarks.quality.sets import DataSet

#: most calls an image of everything that is tuned; rows of more calls than MANY see a random subset and few normals
TUNE_NFE = 16
MANY = 64
#: raised by hand with a change that alters a choice, since no digest sees code: PROCEDURE with what is planted, how it
#: is measured and what is chosen from (all that is tuned, and all baselines, are then made anew); BASELINES with what a
#: baseline learns or how it chooses
PROCEDURE = 3
BASELINES = 2
#: side of the images that the presets' widths are meant for, px
USUAL_SIDE = 128
FEW_NORMALS = ("calibration.threshold_images=20", "calibration.standardise_images=40")


@dataclass(frozen=True)
class Row:
    """model: a variant of models.VARIANTS. preset: of that model; tuned_from: by `anodiff tune` from that preset.

    subset: on a random subset. oracle: chosen on the labels of test. baselines: all of them, and no preset; the
    feature memory sees with the model's encoder, and limits of the preset are offered to those that can use them.
    """

    name: str
    model: str
    preset: str
    tuned_from: str = ""
    subset: bool = False
    oracle: bool = False
    baselines: bool = False


ROWS = {
    row.name: row
    for row in (
        Row("default", "coarse", "default"),
        Row("dit", "dit", "default"),
        Row("baselines", "coarse", "default", baselines=True),
        Row("tuned", "coarse", "tuned", tuned_from="default"),
        Row("default-white", "white", "default"),
        Row("tuned-white", "white", "tuned", tuned_from="default"),
        Row("one-step", "white", "one-step"),
        Row("multilevel", "white", "multilevel"),
        Row("ddad-features", "white", "ddad-features"),
        Row("pddpm", "simplex", "pddpm"),
        Row("dae", "auto-encoder", "dae"),
        Row("dae-tuned", "auto-encoder", "tuned", tuned_from="dae"),
        Row("tuned-subset", "coarse", "tuned", tuned_from="default", subset=True),
        Row("anoddpm", "simplex", "anoddpm", subset=True),
        Row("autoddpm-features", "white", "autoddpm-features", subset=True),
        Row("thor-features", "white", "thor-features", subset=True),
        Row("oracle_tuned", "coarse", "oracle_tuned", tuned_from="default", oracle=True),
        Row("oracle_tuned-white", "white", "oracle_tuned", tuned_from="default", oracle=True),
    )
}


@dataclass(frozen=True)
class Options:
    """What all cells share. subset: images of a subset row; deadline: of ``time.monotonic``; images: tuned on."""

    data: Path
    work: Path
    device: str = "auto"
    seed: int = 0
    subset: int = 60
    tune_images: int = 48
    oracle_images: int = 200
    overrides: tuple[str, ...] = ()
    deadline: float | None = None

    def over(self) -> bool:
        """Whether the time is up: what is begun is finished, nothing more is begun."""
        return self.deadline is not None and time.monotonic() > self.deadline


def cell(row: Row, entry: DataSet, options: Options) -> dict[str, Any] | None:
    """The numbers of a row of a data set, made where they are missing; None where the evaluation was interrupted."""
    split = entry.split(options.data, options.work, options.seed)
    model = prepared(row, entry, split, options)
    made_from: dict[str, Any] = {
        "model": file_digest(model),
        "split": file_digest(split),
        "seed": options.seed,
        "subset": options.subset if row.subset else None,
    } | ({"baselines": [PROCEDURE, BASELINES]} if row.baselines else {})
    folder = options.work / entry.name
    path = folder / "cells" / f"{row.name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("made_from") == made_from:
        return known
    looks.add(folder, row.name)
    out = folder / "out" / row.name
    head = {"row": row.name, "variant": row.model, "preset": row.preset, "made_from": made_from}
    if row.baselines:
        found = head | {"settings": {}, "metrics": {}, "baselines": measured_baselines(model, row, split, out, options)}
    else:
        summary, metrics = evaluated(model, row, split, out, bool(known), options)
        if summary.interrupted:
            return None
        settings = resolve(row.preset, load(model).config)[1].to_json()
        found = head | {"settings": settings, "metrics": metrics, "baselines": {}}
    make_folder(path.parent)
    write_json(path, found)
    return found


def evaluated(model: Path, row: Row, split: Path, out: Path, overwrite: bool, options: Options) -> Any:
    """What evaluate.run gives; an evaluation that was broken off goes on, a folder of another run is written anew."""
    common: dict[str, Any] = {
        "preset": row.preset, "split": "test", "subset": options.subset if row.subset else None, "heatmaps": False,
        "device": options.device, "seed": options.seed, "quiet": True,
    }  # fmt: skip
    try:
        return evaluate.run(model, split, out, overwrite=overwrite, **common)
    except StorageError:
        if overwrite:
            raise
        return evaluate.run(model, split, out, overwrite=True, **common)


def measured_baselines(model_path: Path, row: Row, split: Path, out: Path, options: Options) -> dict[str, Any]:
    """The baselines on all of test, each with a run of its own below ``out``."""
    model = load(model_path)
    detector = AnomalyDetector(model, row.preset, device=options.device, seed=options.seed)
    samples = load_table(split)
    job = ScoreJob(model, detector, Outputs(out, heatmaps=False))
    return baselines.measure(job, model, samples, items_of_table(select(samples, "test")), quiet=True)


def model_of(row: Row, entry: DataSet, options: Options) -> Path:
    """The trained model of a row's variant, where it is or will be."""
    return options.work / entry.name / row.model / "model.safetensors"


def recipe_of(row: Row, entry: DataSet, options: Options) -> tuple[str, ...]:
    """What the variant of a data set's recipe sets otherwise."""
    overrides = (*VARIANTS[row.model], *entry.overrides.get(row.model, ()), *options.overrides)
    return (*overrides, *in_proportion(load_config(entry.recipe, overrides)))


def in_proportion(recipe: AnodiffConfig) -> tuple[str, ...]:
    """Overrides that fit the smoothing of presets to a small image: 5 px of 128 would leave nothing of 28.

    A width that the recipe names itself is kept, up to the widest that a tuning may choose.
    """
    side = min(recipe.preprocess.size)
    found = []
    for name, settings in PRESETS.items():
        own = recipe.presets.get(name, {}).get("smooth_px")
        wanted = settings.smooth_px * min(1.0, side / USUAL_SIDE) if own is None else own
        wanted = min(wanted, side * WIDEST)
        if wanted != (settings.smooth_px if own is None else own):
            found.append(f"presets.{name}.smooth_px={wanted:g}")
    return tuple(found)


def prepared(row: Row, entry: DataSet, split: Path, options: Options) -> Path:
    """The model file that is calibrated for the row's preset: trained, tuned or calibrated where it is missing.

    What the presets are, and how they are calibrated, is the recipe's of today, also for an older model. A file is
    made anew where its record, a JSON beside it, is of anything else than what it would be made from now.
    """
    folder = model_of(row, entry, options).parent
    overrides = recipe_of(row, entry, options)
    model = trained(entry.recipe, split, folder, options.device, overrides, options.deadline)
    recipe = load_config(entry.recipe, overrides)
    if row.preset == recipe.preset and is_calibrated(model, recipe):
        return model
    path = folder / f"{row.preset}.safetensors"
    made_from = origin(row, recipe, model, split, options)
    record = path.with_suffix(".made.json")
    if path.exists() and record.exists() and json.loads(record.read_text(encoding="utf-8")) == made_from:
        return path
    for old in (record, path, *(path.with_suffix(end) for end in (".tune.json", ".tune.html", ".oracle.json"))):
        old.unlink(missing_ok=True)
    asked = [f"{key}={json.dumps(value)}" for key, value in scoring_of(recipe).items()]
    common: dict[str, Any] = {"device": options.device, "seed": options.seed, "quiet": True}
    if row.oracle:
        oracle.run(
            model, split, path,
            preset=row.tuned_from, preset_name=row.preset, nfe=TUNE_NFE, images=options.oracle_images,
            fit_images=tune.FIT_SHARE * options.tune_images, overrides=asked, **common,
        )  # fmt: skip
    elif row.tuned_from:
        tune.run(
            model, split, path,
            preset=row.tuned_from, preset_name=row.preset, nfe=TUNE_NFE, images=options.tune_images, overrides=asked,
            **common,
        )  # fmt: skip
    else:
        few = FEW_NORMALS if is_costly(row, recipe) else ()
        calibrate.run(model, split, path, preset=row.preset, overrides=[*asked, *few], **common)
    write_json(record, made_from)
    return path


def scoring_of(recipe: AnodiffConfig) -> dict[str, Any]:
    """What of a recipe changes no weight but a score."""
    values = recipe.model_dump(mode="json")
    return {key: values[key] for key in ("polarity", "presets", "preset", "calibration")}


def is_calibrated(model: Path, recipe: AnodiffConfig) -> bool:
    """Whether a trained model is calibrated for its own preset as the recipe of today has it."""
    found = load(model)
    same = resolve(recipe.preset, found.config) == resolve(recipe.preset, recipe)
    return same and found.config.calibration == recipe.calibration and recipe.preset in found.calibrations


def is_costly(row: Row, recipe: AnodiffConfig) -> bool:
    """Whether the row's preset takes too many calls for many normals."""
    return resolve(row.preset, recipe)[1].nfe_for(recipe.preprocess.size) > MANY


def origin(row: Row, recipe: AnodiffConfig, model: Path, split: Path, options: Options) -> dict[str, Any]:
    """All that decides what a tuned or calibrated model file is."""
    found: dict[str, Any] = {
        "base": file_digest(model),
        "split": file_digest(split),
        "seed": options.seed,
        "scoring": scoring_of(recipe),
        "preset": row.tuned_from or row.preset,
    }
    if row.tuned_from:
        found |= {"procedure": PROCEDURE, "nfe": TUNE_NFE, "images": options.tune_images}
    if row.oracle:
        found |= {"oracle_images": options.oracle_images}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def is_current(row: Row, entry: DataSet, options: Options, made_from: dict[str, Any]) -> bool:
    """Whether a cell is of the split, seed and model file that are there now, and of today's recipe and procedure.

    With how many images was tuned may differ: the page is also written by a command that names other rows.
    """
    split = options.work / entry.name / "split.csv"
    alike = {"split": file_digest(split), "seed": options.seed, "subset": options.subset if row.subset else None}
    if any(made_from.get(key) != value for key, value in alike.items()):
        return False
    if row.baselines and made_from.get("baselines") != [PROCEDURE, BASELINES]:
        return False
    base = model_of(row, entry, options)
    if not base.exists():
        return False
    recipe = load_config(entry.recipe, recipe_of(row, entry, options))
    if row.preset == recipe.preset and made_from["model"] == file_digest(base):
        return is_calibrated(base, recipe)
    path = base.with_name(f"{row.preset}.safetensors")
    record = path.with_suffix(".made.json")
    if not (path.exists() and record.exists() and made_from["model"] == file_digest(path)):
        return False
    known = json.loads(record.read_text(encoding="utf-8"))
    wanted = origin(row, recipe, base, split, options)
    return all(known.get(key) == wanted.get(key) for key in ("base", "scoring", "procedure"))


def evidence(row: Row, entry: DataSet, options: Options) -> dict[str, Any] | None:
    """What the tuning of a row found, for the page: the pixel AP of planted anomalies, and its sentences."""
    path = model_of(row, entry, options).with_name(f"{row.preset}.tune.json")
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = next(found for found in values["candidates"] if found["verdict"] == "kept")
    return {"planted_ap": kept["ap"], "planted_ap_error": kept["error"], "sentences": values["sentences"]}
