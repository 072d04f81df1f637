"""How often a data set's test images were looked at: one file a data set, which outlives its cells."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from anodiff.files import make_folder, write_json


def path_of(folder: Path) -> Path:
    """The file of a data set's work folder."""
    return folder / "looks.json"


def known(folder: Path) -> list[dict[str, Any]]:
    """The looks so far, oldest first: row, time.

    Cells from before there was such a file tell their own.
    """
    path = path_of(folder)
    if path.exists():
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["looks"]
        return found
    cells = sorted((folder / "cells").glob("*.json"))
    counts = {cell.stem: json.loads(cell.read_text(encoding="utf-8")).get("looks", 0) for cell in cells}
    return [{"row": row, "at": ""} for row, count in counts.items() for _ in range(count)]


def add(folder: Path, row: str) -> None:
    """Counts a look, before it is taken: one that is broken off has been taken too."""
    looks = [*known(folder), {"row": row, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}]
    make_folder(folder)
    write_json(path_of(folder), {"looks": looks})


def counts(folder: Path) -> dict[str, int]:
    """Looks by row."""
    found: dict[str, int] = {}
    for look in known(folder):
        found[look["row"]] = found.get(look["row"], 0) + 1
    return found
