"""What the commands of the quality pages share: options, a time limit, and cells made one after the other."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from anodiff.errors import AnodiffError
from benchmarks.quality.results import HERE

#: makes a cell, or returns None where it was interrupted
Cell = Callable[[], Any]


def parser_of(description: str | None, work: Path, kept: str, random: str) -> argparse.ArgumentParser:
    """A command line with what all have: ``kept`` is what lies in the work folder, ``random`` what the seed is of."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder of all data sets")
    add("--work", type=Path, default=work, help=kept)
    add("--output", type=Path, default=HERE, help="where RESULTS.md and results.json are")
    add("--budget-minutes", type=float, help="begin nothing after so long, and stop a training")
    add("--device", default="auto")
    add("--seed", type=int, default=0, help=f"of {random}")
    add("--set", action="append", metavar="KEY=VALUE", help="override a key of every recipe, such as training.images")
    return parser


def deadline(minutes: float | None) -> float | None:
    """So many minutes from now, of ``time.monotonic``."""
    return None if minutes is None else time.monotonic() + 60 * minutes


def make_cells(name: str, todo: Mapping[str, Cell], over: Callable[[], bool]) -> list[str]:
    """Makes the cells of a data set, each on its own: what is wrong with one, in a sentence, stops no other."""
    failures: list[str] = []
    for key, make in todo.items():
        if over():
            return [*failures, f"{name}: the time was up before {key}; the same command goes on"]
        began = time.monotonic()
        try:
            found = make()
        except typer.Exit:
            return [*failures, f"{name}: {key} was stopped in training; the same command goes on"]
        except (AnodiffError, SystemExit) as error:
            failures.append(f"{name}: {key}: {error}")
            continue
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            failures.append(f"{name}: {key}: expected more memory, found none left ({first_line(error)})")
            gc.collect()
            continue
        if found is None:
            return [*failures, f"{name}: {key} was interrupted; the same command goes on"]
        print(f"{name}: {key} ({time.monotonic() - began:.0f} s)", flush=True)
        gc.collect()
    return failures


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the device or of the machine; torch has no kind of its own for the latter."""
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in words


def first_line(error: Exception) -> str:
    """The beginning of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def closing(failures: list[str]) -> int:
    """Says what failed; 1 where anything did."""
    for failure in failures:
        print(failure)
    return int(bool(failures))
