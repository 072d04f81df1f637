"""The quality table: every preset and baseline on every data set, one command, resumable.

    python -m benchmarks.quality.table --data ../shared/data --work runs/table
    python -m benchmarks.quality.table --data ../shared/data --work runs/table --sets bottle --rows tuned dae --oracle
    python -m benchmarks.quality.table --data ../shared/data --work runs/table --rows baselines

Per data set: the split is written as a file, the models that a row needs are trained where they are missing (a training
that was stopped goes on), tuned and calibrated on normals, and each cell is evaluated on test. A finished cell is kept
in the work folder and is not done twice. The table in RESULTS.md and results.json is written anew after every data set,
from all finished cells. --budget-minutes ends a run early; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from anodiff.config import load_config
from anodiff.data.layouts import load_table
from anodiff.data.splits import count_splits
from anodiff.errors import AnodiffError
from benchmarks.quality import looks
from benchmarks.quality.models import facts
from benchmarks.quality.pairs import THEIRS, paired
from benchmarks.quality.results import publish, stored
from benchmarks.quality.rows import BASELINES, PROCEDURE, ROWS, TUNE_NFE, Options, cell, evidence, is_current, model_of
from benchmarks.quality.runner import closing, deadline, make_cells, parser_of
from benchmarks.quality.sets import SETS, DataSet
from benchmarks.quality.table_page import ours


def main(words: list[str] | None = None) -> int:
    """Makes what is missing of the chosen cells and writes the table; 1 where a cell failed or the time was up."""
    chosen = parsed(words)
    options = Options(
        data=chosen.data,
        work=chosen.work,
        device=chosen.device,
        seed=chosen.seed,
        subset=chosen.subset,
        tune_images=chosen.tune_images,
        oracle_images=chosen.oracle_images,
        overrides=tuple(chosen.set or ()),
        deadline=deadline(chosen.budget_minutes),
    )
    rows = [ROWS[name] for name in ROWS if name in chosen.rows or (ROWS[name].oracle and chosen.oracle)]
    failures: list[str] = []
    for name in chosen.sets:
        entry = SETS[name]
        absent = [path for path in (entry.path, entry.others) if path and not (options.data / path).exists()]
        if absent:
            print(f"{name}: left out, found no {' and no '.join(str(options.data / path) for path in absent)}")
            continue
        failures += make_cells(name, {row.name: partial(cell, row, entry, options) for row in rows}, options.over)
        try:
            found = collected(entry, options, chosen.earlier_looks)
        except AnodiffError as error:
            failures.append(f"{name}: {error}")
            continue
        if found is not None:
            sets = {**stored(chosen.output).get("table", {"sets": {}})["sets"], name: found}
            ordered = {key: sets[key] for key in SETS if key in sets}
            publish("table", {"tune_nfe": TUNE_NFE, "sets": ordered}, chosen.output)
            print(f"{name}: {len(found['rows'])} rows in {chosen.output / 'RESULTS.md'}")
    return closing(failures)


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(
        __doc__, Path("runs/table"), "splits, models, results of cells", "splits, noise, planting and subsets"
    )
    add = parser.add_argument
    honest = [name for name, row in ROWS.items() if not row.oracle]
    add("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET", help=", ".join(SETS))
    add("--rows", nargs="+", choices=list(ROWS), default=honest, metavar="ROW", help=", ".join(ROWS))
    add("--oracle", action="store_true", help="also the choice on the labels of test, in rows named oracle_")
    add("--subset", type=int, default=60, help="images of the rows of hundreds of calls")
    add("--tune-images", type=int, default=48, help="normals in which anomalies are planted")
    add("--oracle-images", type=int, default=200, help="test images that an oracle chooses on, at most")
    add("--earlier-looks", type=int, default=0, help="how often test was looked at before this work folder")
    return parser.parse_args(words)


def collected(entry: DataSet, options: Options, earlier_looks: int) -> dict[str, Any] | None:
    """All that the page says of a data set, from the cells that are finished; None where there is none."""
    folder = options.work / entry.name
    rows: dict[str, Any] = {}
    for name, row in ROWS.items():
        path = folder / "cells" / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        if not is_current(row, entry, options, found["made_from"]):
            print(
                f"{entry.name}: {name} is left out, being of another model, polarity, preset, split, seed or "
                f"procedure; --rows {name} makes it anew"
            )
            continue
        tuned = bool(row.tuned_from) and not row.oracle
        rows[name] = {
            **{key: found[key] for key in ("variant", "preset", "settings", "metrics")},
            "baselines": found["baselines"] if row.baselines else {},
            "subset": row.subset,
            "oracle": row.oracle,
            "tuning": evidence(row, entry, options) if tuned else None,
        }
    if not rows:
        return None
    split = load_table(folder / "split.csv")
    best = ours(rows)
    models = {ROWS[name].model: model_of(ROWS[name], entry, options) for name in rows}
    return {
        "data": entry.path,
        "has_masks": bool((split.table["mask"] != "").any()),
        "polarity": load_config(entry.recipe, options.overrides).polarity,
        "seed": options.seed,
        "looks": max(looks.counts(folder).values(), default=0) + earlier_looks,
        "evaluations": len(looks.known(folder)),
        "procedure": [PROCEDURE, BASELINES],
        "counts": [asdict(count) for count in count_splits(split)],
        "models": {variant: facts(path) for variant, path in models.items()},
        "rows": rows,
        "ours": best,
        "paired": paired(folder, best) if best is not None and THEIRS in rows else {},
    }


if __name__ == "__main__":
    raise SystemExit(main())
