"""A job on text files, and its run, for the tests of the loop."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anodiff.engine import loop
from anodiff.engine.loop import run_job
from anodiff.engine.store import Item, ResultStore
from anodiff.errors import InputError

COLUMNS = ["id", "path", "score", "status", "error"]
NAMES = [f"i{n:02d}" for n in range(25)]


class Lengths:
    """A job on text files: the score is the number of characters; faults are planted by the tests."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.batches: list[list[str]] = []
        self.lock = threading.Lock()
        self.reading = self.most_waiting = 0

    def read(self, item: Item) -> str:
        with self.lock:
            self.reading += 1
            self.most_waiting = max(self.most_waiting, self.reading)
        text = Path(item.path).read_text()
        if text.startswith("bad"):
            raise InputError(f"{item.path}: expected good text,\nfound bad")
        return text

    def compute(self, batch: list[str]) -> Sequence[int]:
        self.batches.append(list(batch))
        with self.lock:
            self.reading -= len(batch)
        if any(text.startswith("poison") for text in batch):
            raise ValueError("poisoned batch")
        return [len(text) for text in batch]

    def write(self, item: Item, computed: int) -> Mapping[str, Any]:
        (self.out / f"{item.id}.out").write_text(str(computed))
        return {"score": computed, "files": [f"{item.id}.out"]}


def run(out: Path, items: list[Item], job: Any = None, **options: Any) -> tuple[loop.Summary, list[Any], Any]:
    with ResultStore.open(out, {"job": "lengths"}) as store:
        job = job or Lengths(out)
        summary = run_job(job, items, store, **options)
        store.export_csv(out / "scores.csv", COLUMNS, items)
        return summary, list(store.rows(items)), job
