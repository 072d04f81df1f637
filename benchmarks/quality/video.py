"""The video tables: Ped2 by its official protocol beside baselines, and UMN's delays; one command, resumable.

    python -m benchmarks.quality.video --data ../shared/data --work runs/video
    python -m benchmarks.quality.video --data ../shared/data --work runs/video --sets ucsd_ped2 --rows predict channels
    python -m benchmarks.quality.video --data ../shared/data --model runs/ped2/model.safetensors --rows predict

Ped2: four ways to see motion, each trained (a training that was stopped goes on) and its noise level chosen on normal
clips with planted anomalies; --model gives a model file to the row predict instead. No score is normalised within a
clip, and no test label is used for a choice, but for the window of frame-difference, which gains by it. UMN: three
folds, each a training of its own. A finished cell is kept in the work folder and is not done twice. RESULTS.md and
results.json are written anew from all finished cells.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.quality import video_rows, video_umn
from benchmarks.quality.results import publish, stored
from benchmarks.quality.runner import Cell, closing, deadline, make_cells, parser_of
from benchmarks.quality.video_rows import ROWS, Options

#: the data sets, and how often their test clips had been looked at before there was this benchmark
SETS = {video_rows.PATH: 2, video_umn.PATH: 1}


def main(words: list[str] | None = None) -> int:
    """Makes what is missing of the chosen cells and writes the page; 1 where a cell failed or the time was up."""
    chosen = parsed(words)
    options = Options(
        data=chosen.data,
        work=chosen.work,
        device=chosen.device,
        seed=chosen.seed,
        overrides=tuple(chosen.set or ()),
        model=chosen.model,
        note=chosen.model_note,
        deadline=deadline(chosen.budget_minutes),
    )
    failures: list[str] = []
    for name in chosen.sets:
        if not (options.data / name).exists():
            print(f"{name}: left out, found no {options.data / name}")
            continue
        failures += make_cells(name, cells(name, chosen.rows, options), options.over)
        found = collected(name, options, SETS[name] if chosen.looks is None else chosen.looks)
        if found is not None:
            sections = stored(chosen.output).get("video", {})
            publish("video", {**sections, name: found}, chosen.output)
            print(f"{name}: {len(found['cells'])} cells in {chosen.output / 'RESULTS.md'}")
    return closing(failures)


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, Path("runs/video"), "models, results of cells", "the noise and of the baselines")
    add = parser.add_argument
    add("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET", help=", ".join(SETS))
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=f"of Ped2: {', '.join(ROWS)}")
    add("--model", type=Path, help="a trained and calibrated model file for the row predict")
    add("--model-note", default="", help="a sentence for the page on where that file comes from and how it was chosen")
    add("--looks", type=int, metavar="N", help="how often test was looked at before this work folder (default: "
        + ", ".join(f"{name} {count}" for name, count in SETS.items()) + ")")  # fmt: skip
    found = parser.parse_args(words)
    if found.looks is not None and found.looks < 0:
        parser.error(f"argument --looks: expected at least 0, found {found.looks}")
    if found.model is not None and not found.model.is_file():
        parser.error(f"argument --model: expected a model file, found no {found.model}")
    return found


def cells(name: str, rows: list[str], options: Options) -> dict[str, Cell]:
    """What there is to make of a data set, by name."""
    if name == video_umn.PATH:
        return {f"fold{number}": partial(video_umn.fold_cell, number, options) for number in range(video_umn.FOLDS)}
    return {key: partial(video_rows.cell, row, options) for key, row in ROWS.items() if key in rows}


def collected(name: str, options: Options, earlier_looks: int) -> dict[str, Any] | None:
    """All that the page says of a data set, from the cells that are finished; None where there is none.

    Cells of another seed, model or recipe than this command's are left out, and said to be. A look is an evaluation of
    test: the row that was evaluated most often counts, since rows are looked at together; so does one that is left out.
    """
    order = list(cells(name, list(ROWS), options))
    paths = {key: options.work / name / "cells" / f"{key}.json" for key in order}
    known = {key: json.loads(path.read_text(encoding="utf-8")) for key, path in paths.items() if path.exists()}
    found = {key: each for key, each in known.items() if is_current(name, key, options, each)}
    for key in (each for each in known if each not in found):
        print(f"{name}: {key} is left out, being of another model, recipe or seed; the same command with it makes it "
              "anew")  # fmt: skip
    if not found:
        return None
    looks = earlier_looks + max(each["looks"] for each in known.values())
    return {"looks": looks, "cells": found}


def is_current(name: str, key: str, options: Options, found: dict[str, Any]) -> bool:
    """Whether a cell is of what this command would make it from."""
    if name == video_rows.PATH:
        return video_rows.is_current(ROWS[key], options, found)
    return video_umn.is_current(int(key.removeprefix("fold")), options, found)


if __name__ == "__main__":
    raise SystemExit(main())
