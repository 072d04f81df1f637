"""Our best single preset minus each baseline, on the same images: from the runs that their rows left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anodiff.engine.progress import Progress
from anodiff.files import write_json
from anodiff.metrics import paired_bootstrap
from anodiff.pipelines.baselines import COMPARED
from anodiff.pipelines.compare import Reading, known_truths, pooled
from anodiff.pipelines.truth import Run, read_run

#: the row of the baselines
THEIRS = "baselines"


def paired(folder: Path, row: str) -> dict[str, dict[str, Any]]:
    """By baseline and metric the preset of our row minus it, of a data set's work folder; {} where a cell is missing.

    Worked out once, and anew where one of both cells is another.
    """
    cells = {name: folder / "cells" / f"{name}.json" for name in (row, THEIRS)}
    if not all(path.exists() for path in cells.values()):
        return {}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in cells.items()}
    made_from = {name: each["made_from"] for name, each in found.items()}
    if "baselines" not in made_from[THEIRS]:
        return {}
    kept = folder / "cells" / "pairs.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if known.get("made_from") != made_from:
        runs = {name: folder / "out" / THEIRS / each["folder"] for name, each in found[THEIRS]["baselines"].items()}
        ours = read_run(folder / "out" / row)
        known = {"made_from": made_from, "paired": {name: against(ours, read_run(run)) for name, run in runs.items()}}
        write_json(kept, known)
    result: dict[str, dict[str, Any]] = known["paired"]
    return result


def against(ours: Run, theirs: Run) -> dict[str, Any]:
    """Ours minus theirs, by metric, on the images that both have scored."""
    ids = [id_ for id_, image in ours.items() if image.map and id_ in theirs and theirs[id_].map]
    known = known_truths((ours, theirs), ids)
    with Progress(None, "maps", quiet=True) as progress:
        pools = [pooled(Reading(each, known, progress)) for each in (ours, theirs)]
    found = {}
    for level, metric in COMPARED:
        one, other = (getattr(each, f"{level}s") for each in pools)
        found[f"{level}_{metric}"] = paired_bootstrap(one, other, metric)
    return found
