"""The rows of the quality table: which model and preset each is, and how a cell (row of a data set) comes about.

A cell is done once: its numbers are kept with what they were made from, and made anew only where that has changed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anodiff.anomaly import resolve
from anodiff.files import make_folder, write_json
from anodiff.model import load
from anodiff.pipelines import calibrate, evaluate, tune
from anodiff.pipelines.common import file_digest
from benchmarks.quality import oracle
from benchmarks.quality.models import VARIANTS, trained
from benchmarks.quality.sets import DataSet

#: most calls an image of everything that is tuned; rows of more calls than MANY see a random subset and few normals
TUNE_NFE = 16
MANY = 64
FEW_NORMALS = ("calibration.threshold_images=20", "calibration.standardise_images=40")


@dataclass(frozen=True)
class Row:
    """model: a variant of models.VARIANTS. preset: of that model; tuned_from: by `anodiff tune` from that preset.

    subset: on a random subset. oracle: chosen on the labels of test. baselines: with the trivial ones beside it.
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
        Row("tuned", "coarse", "tuned", tuned_from="default", baselines=True),
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
    made_from = {
        "model": file_digest(model),
        "split": file_digest(split),
        "seed": options.seed,
        "subset": options.subset if row.subset else None,
    }
    path = options.work / entry.name / "cells" / f"{row.name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"looks": 0}
    if known.get("made_from") == made_from:
        return known
    folder = options.work / entry.name / "out" / row.name
    summary, metrics = evaluate.run(
        model, split, folder,
        preset=row.preset, split="test", subset=made_from["subset"], baselines=row.baselines, heatmaps=False,
        overwrite=bool(known["looks"]), device=options.device, seed=options.seed, quiet=True,
    )  # fmt: skip
    if summary.interrupted:
        return None
    beside = json.loads((folder / "baselines.json").read_text(encoding="utf-8")) if row.baselines else {}
    settings = resolve(row.preset, load(model).config)[1]
    found = {
        "row": row.name,
        "variant": row.model,
        "preset": row.preset,
        "settings": settings.to_json(),
        "made_from": made_from,
        "looks": known["looks"] + 1,
        "metrics": metrics,
        "baselines": {name: each for name, each in beside.get("metrics", {}).items() if name in beside["paired"]},
        "paired": beside.get("paired", {}),
        "fitted_on": beside.get("fitted_on", {}),
    }
    make_folder(path.parent)
    write_json(path, found)
    return found


def model_of(row: Row, entry: DataSet, options: Options) -> Path:
    """The trained model of a row's variant, where it is or will be."""
    return options.work / entry.name / row.model / "model.safetensors"


def recipe_of(row: Row, entry: DataSet, options: Options) -> tuple[str, ...]:
    """What the variant of a data set's recipe sets otherwise."""
    return (*VARIANTS[row.model], *entry.overrides.get(row.model, ()), *options.overrides)


def prepared(row: Row, entry: DataSet, split: Path, options: Options) -> Path:
    """The model file that is calibrated for the row's preset: trained, tuned or calibrated where it is missing."""
    folder = model_of(row, entry, options).parent
    overrides = recipe_of(row, entry, options)
    model = trained(entry.recipe, split, folder, options.device, overrides, options.deadline)
    recipe = load(model).config
    if row.preset == recipe.preset:
        return model
    path = folder / f"{row.preset}.safetensors"
    if path.exists() and path.stat().st_mtime >= model.stat().st_mtime:
        return path
    for old in (path, path.with_suffix(".tune.json"), path.with_suffix(".tune.html")):
        old.unlink(missing_ok=True)
    common: dict[str, Any] = {"device": options.device, "seed": options.seed, "quiet": True}
    if row.oracle:
        oracle.run(
            model, split, path,
            preset=row.tuned_from, preset_name=row.preset, nfe=TUNE_NFE, images=options.oracle_images,
            fit_images=tune.FIT_SHARE * options.tune_images, **common,
        )  # fmt: skip
    elif row.tuned_from:
        tune.run(
            model, split, path,
            preset=row.tuned_from, preset_name=row.preset, nfe=TUNE_NFE, images=options.tune_images, **common,
        )  # fmt: skip
    else:
        costly = resolve(row.preset, recipe)[1].nfe_for(recipe.preprocess.size) > MANY
        calibrate.run(model, split, path, preset=row.preset, overrides=list(FEW_NORMALS) if costly else None, **common)
    return path


def evidence(row: Row, entry: DataSet, options: Options) -> dict[str, Any]:
    """What the tuning of a row found, for the page: the pixel AP of planted anomalies, and its sentences."""
    path = model_of(row, entry, options).with_name(f"{row.preset}.tune.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = next(found for found in values["candidates"] if found["verdict"] == "kept")
    return {"planted_ap": kept["ap"], "planted_ap_error": kept["error"], "sentences": values["sentences"]}
