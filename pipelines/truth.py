"""What is known of a measured run: OUT/truth.csv beside OUT/scores.csv, so that runs can be paired."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anodiff.errors import DataError
from anodiff.files import unquote_cell, write_csv

TRUTH_FILE = "truth.csv"
TRUTH_COLUMNS = ("id", "path", "label", "mask", "group", "map")


@dataclass(frozen=True)
class Measured:
    """One image of a run: what is known of it, and what was found; paths "" and values None where unknown."""

    id: str
    path: str
    label: int | None
    mask: str
    group: str
    map: str
    score: float | None
    is_anomalous: bool | None


Run = dict[str, Measured]


def write_truth(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes truth.csv: `label` 0, 1 or empty; paths absolute, but `map` below the folder where it lies there."""
    return write_csv(folder / TRUTH_FILE, TRUTH_COLUMNS, rows)


def read_run(folder: Path) -> Run:
    """The images of an output folder by id.

    Raises:
        DataError: the folder has no truth.csv or no scores.csv, or one of them is not such a table.
    """
    for name in (TRUTH_FILE, "scores.csv"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: expected an output folder of anodiff evaluate or anodiff metrics, found no {name} in it "
                "(the same anodiff evaluate command writes it again and scores nothing twice)"
            )
    scores = {row["id"]: row for row in read_csv(folder / "scores.csv", ("id", "score", "is_anomalous"))}
    truths = {row["id"]: row for row in read_csv(folder / TRUTH_FILE, TRUTH_COLUMNS)}
    return {id_: measured(folder, truth, scores.get(id_, {})) for id_, truth in truths.items()}


def measured(folder: Path, truth: Mapping[str, str], found: Mapping[str, str]) -> Measured:
    """One row of each table as an image; DataError for a label or score that is no number."""
    try:
        label = int(truth["label"]) if truth["label"] else None
        score = float(found["score"]) if found.get("score") else None
    except ValueError as error:
        raise DataError(f"{folder}: expected numbers as label and score of {truth['id']}, found {error}") from None
    return Measured(
        id=truth["id"],
        path=truth["path"],
        label=label,
        mask=truth["mask"],
        group=truth["group"],
        map=str(folder / truth["map"]) if truth["map"] else "",
        score=score if score is None or math.isfinite(score) else None,
        is_anomalous={"true": True, "false": False}.get(found.get("is_anomalous", "").lower()),
    )


def pixel_threshold(folder: Path) -> float | None:
    """The threshold that 5 % of the pixels of normal images exceed, as the run recorded it."""
    import json

    try:
        value = json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("pixel_threshold_fpr5")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / 'metrics.json'}: expected the metrics of a run, found {error}") from None
    return None if value is None else float(value)


def read_csv(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV with at least the columns `needed`, cells as they were before `quote_cell`.

    Raises:
        DataError: unreadable, or a column is missing.
    """
    import csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or ())
            rows = [{name: unquote_cell(row[name] or "") for name in header} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: expected a CSV table, found none that can be read ({reason})") from None
    missing = [name for name in needed if name not in header]
    if missing:
        raise DataError(f"{path}: expected the columns {', '.join(needed)}, found {', '.join(header) or 'none'}")
    return rows
