"""Every image of a table, read by several threads: what became of each, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from anodiff.data.foreground import with_given
from anodiff.data.readers import RawImage, read_image
from anodiff.data.table import SampleTable
from anodiff.engine.progress import Progress
from anodiff.errors import DataError, InputError

Outcome = TypeVar("Outcome")


def read_each(
    samples: SampleTable, use: Callable[[RawImage], Outcome], max_pixels: int, workers: int = 2, quiet: bool = False
) -> tuple[list[int], list[Outcome], tuple[str, ...]]:
    """Row numbers of the images that can be used, what ``use`` makes of each, and a sentence on every other one.

    Raises DataError when not one image can be used.
    """
    paths, beside = list(samples.table["path"]), list(samples.table["foreground"])

    def outcome(path: str, foreground: str) -> Outcome | InputError:
        try:
            return use(read_raw(path, foreground, max_pixels))
        except InputError as error:
            return error

    kept, found, failed = [], [], []
    with ThreadPoolExecutor(workers) as pool, Progress(len(paths), "images", "reading", quiet=quiet) as progress:
        for row, each in enumerate(pool.map(outcome, paths, beside)):
            progress.update(1)
            if isinstance(each, InputError):
                failed.append(str(each))
                progress.note(f"left out: {each}")
                continue
            kept.append(row)
            found.append(each)
    if not kept:
        raise DataError(f"{samples.root}: expected readable images, found none in {len(paths)} ({failed[0]})")
    return kept, found, tuple(failed)


def read_raw(path: str, foreground: str, max_pixels: int) -> RawImage:
    """An image file with its given foreground, where it has one. Raises InputError."""
    return with_given(read_image(path, max_pixels=max_pixels), foreground, max_pixels=max_pixels)
