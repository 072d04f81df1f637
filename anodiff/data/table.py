"""The one sample table: which images there are, what is known of them, and which belong together.

Columns: ``id`` (unique, safe as a file name), ``path``, ``label`` (Int64: 0 normal, 1 anomalous, <NA> unknown),
``mask`` (path of the pixel annotation, "" = none), ``group`` (patient, part, clip; "" = unknown), ``split``
("train", "val", "dev", "test" or "" = not said), ``class_name`` (as the data has it; "" = unknown) and ``foreground``
(path of a mask of what is looked at, such as a brain; "" = none).
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anodiff.data.readers import IMAGE_SUFFIXES, PAGE_MARK, count_pages, file_of
from anodiff.data.stacks import INDEX_MARK, image_paths, is_stack
from anodiff.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "path", "label", "mask", "group", "split", "class_name", "foreground")
SPLITS = ("train", "val", "dev", "test", "")
MAX_ID_BYTES = 120
NAMED_GROUPS = 3
HASH_DIGITS = 8
_DEVICE_NAMES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


@dataclass(frozen=True)
class SampleTable:
    """table: the data frame described above; layout: the name of the layout it was read by; root: the data's folder.

    channels: of volumes whose channels have names, (name, the word by which a file's name says it), in their order.
    """

    table: pd.DataFrame
    layout: str
    root: Path
    channels: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, **conditions: Any) -> SampleTable:
        """The rows whose columns equal ``conditions``, e.g. ``rows(split="test", label=1)``; <NA> equals nothing."""
        keep = np.ones(len(self.table), dtype=bool)
        for column, value in conditions.items():
            keep &= self.table[column].eq(value).fillna(False).to_numpy(dtype=bool)
        return self._keep(keep)

    def _keep(self, keep: np.ndarray) -> SampleTable:
        return replace(self, table=self.table[keep].reset_index(drop=True))


@dataclass(frozen=True)
class Sample:
    """One row on its way into a table."""

    path: str
    label: int | None = None
    mask: str = ""
    group: str = ""
    split: str = ""
    class_name: str = ""
    foreground: str = ""


def build_table(samples: Iterable[Sample], layout: str, root: str | os.PathLike[str]) -> SampleTable:
    """A SampleTable of ``samples`` in their order, one row a page where a TIFF has several, with ids made.

    Raises DataError where there is no sample.
    """
    import pandas as pd

    rows = [page for sample in samples for page in _pages(sample)]
    if not rows:
        raise DataError(f"{root}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    table = pd.DataFrame(
        {
            "id": make_ids([row.path for row in rows]),
            "path": [row.path for row in rows],
            "label": pd.array([row.label for row in rows], dtype="Int64"),
            "mask": [row.mask for row in rows],
            "group": [row.group for row in rows],
            "split": [row.split for row in rows],
            "class_name": [row.class_name for row in rows],
            "foreground": [row.foreground for row in rows],
        },
        columns=list(COLUMNS),
    )
    return SampleTable(table, layout, Path(root))


def page_paths(path: str) -> list[str]:
    """``[path]``, or ``path#page=1`` ... for a TIFF of several pages, ``path#index=...`` for an NPZ or IDX file."""
    if is_stack(path):
        return image_paths(path)
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return [path]
    pages = count_pages(path)
    return [path] if pages < 2 else [f"{path}{PAGE_MARK}{number}" for number in range(1, pages + 1)]


def _pages(sample: Sample) -> list[Sample]:
    paths = page_paths(sample.path)
    if paths == [sample.path]:
        return [sample]
    group = sample.group or sample.path
    beside = zip(paths, _pages_of(sample.mask, len(paths)), _pages_of(sample.foreground, len(paths)), strict=True)
    return [replace(sample, path=path, mask=mask, foreground=given, group=group) for path, mask, given in beside]


def _pages_of(path: str, count: int) -> list[str]:
    """``count`` masks: the pages of a file that has as many, else the one for all: reading says whether it fits."""
    pages = page_paths(path) if path else [""]
    return pages if len(pages) == count else [path] * count


def make_ids(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """One id a path: the path below the paths' common folder without its extension, safe as a file name, unique.

    "/" becomes "__"; letters and digits of any script, "-", "_" and "." stay; anything else becomes "_". Ids that
    would be equal (also when only upper and lower case differ) or longer than 120 bytes get a short hash of their
    path. The result does not depend on the order of ``paths``.
    """
    if not paths:
        return []
    files = [file_of(path) for path in paths]
    marks = [os.fspath(path)[len(file) :] for path, file in zip(paths, files, strict=True)]
    full = [os.path.abspath(file) for file in files]
    folders = {os.path.dirname(path) for path in full}
    try:
        common = os.path.commonpath(list(folders))
    except ValueError:  # drives of their own
        common = ""
    below = [os.path.relpath(path, common) if common else path for path in full]
    plain = [_safe(_stem(path, mark)) for path, mark in zip(below, marks, strict=True)]
    seen = Counter(name.casefold() for name in plain)
    ids = []
    for name, path in zip(plain, map("".join, zip(below, marks, strict=True)), strict=True):
        if seen[name.casefold()] > 1 or len(name.encode()) > MAX_ID_BYTES or name.casefold() in _DEVICE_NAMES:
            digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
            name = f"{_cut(name)}-{digest[:HASH_DIGITS]}"
        ids.append(name)
    return ids if len({name.casefold() for name in ids}) == len(ids) else _numbered(ids)


def _stem(path: str, mark: str) -> str:
    """``path`` without its extension, with what ``mark`` ("#page=3", "#index=test_images/17") names in it."""
    stem = os.path.splitext(path)[0]
    if not mark:
        return stem
    name = mark.removeprefix(INDEX_MARK).replace(PAGE_MARK, "page_").replace("/", "_")
    return f"{stem}_{name}"


def _safe(name: str) -> str:
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    cleaned = ["".join(c if c.isalnum() or c in "-_." else "_" for c in part).lstrip(".-") or "_" for part in parts]
    return "__".join(cleaned)


def _cut(name: str) -> str:
    """At most so many bytes that name, dash and hash stay within MAX_ID_BYTES, never half a character."""
    return name.encode()[: MAX_ID_BYTES - HASH_DIGITS - 1].decode("utf-8", "ignore")


def _numbered(ids: list[str]) -> list[str]:
    """Make ids unique by number, for the same path listed twice (or the one in 2^32 hashes that agree)."""
    taken: set[str] = set()
    result = []
    for name in ids:
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique.casefold())
        result.append(unique)
    return result


def select(samples: SampleTable, split: str | Sequence[str] | None = None, *, normal_only: bool = False) -> SampleTable:
    """The rows of one or several splits (None: all), on request only the normal ones.

    Where no row of the table has a label, every image counts as normal: a plain folder is what its user says it is.
    Raises DataError naming what is there instead, when nothing is left.
    """
    table = samples.table
    keep = np.ones(len(table), dtype=bool)
    if split is not None:
        wanted = [split] if isinstance(split, str) else list(split)
        keep &= table["split"].isin(wanted).to_numpy()
        if not keep.any():
            counts = ", ".join(f"{name or '(none)'} {n}" for name, n in table["split"].value_counts().items())
            raise DataError(f"{samples.root}: expected images of split {' or '.join(wanted)}, found {counts}")
    if normal_only and table["label"].notna().any():
        found = int(keep.sum())
        keep &= table["label"].eq(0).fillna(False).to_numpy(dtype=bool)
        if not keep.any():
            where = f" in split {split}" if split is not None else ""
            raise DataError(f"{samples.root}: expected normal images{where}, found {found} images and none normal")
    return samples._keep(keep)


def group_keys(samples: SampleTable) -> np.ndarray:
    """The group of each row as strings; an image of no known group is a group of its own (its path)."""
    table = samples.table
    return np.asarray(table["group"].where(table["group"] != "", table["path"]), dtype=object)


def refuse_shared_groups(samples: SampleTable, split: str, others: Sequence[str] = ("train", "val")) -> None:
    """Raises DataError where a group (patient, part) of ``split`` also occurs in another split that is learnt from.

    An image listed twice is such a group, too.
    """
    keys, splits = group_keys(samples), samples.table["split"]
    inside = set(keys[splits.eq(split).to_numpy()])
    for other in others:
        shared = sorted(inside & set(keys[splits.eq(other).to_numpy()])) if other != split else []
        if shared:
            raise DataError(
                f"{samples.root}: expected each group in one split only, found {len(shared)} both in "
                f"{split or 'no split'} and in {other}: {', '.join(shared[:NAMED_GROUPS])}"
                f"{', ...' if len(shared) > NAMED_GROUPS else ''}"
            )


def split_groups(samples: SampleTable, fraction: float, seed: int = 0) -> tuple[SampleTable, SampleTable]:
    """(kept, held out): whole groups are held out, in seeded random order, until ``fraction`` of the rows is reached.

    Depends on the group names and ``seed`` only, not on the order of rows. Both parts hold at least one group.
    Raises DataError where there is only one group, and ValueError for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction between 0 and 1, found {fraction}")
    keys = group_keys(samples)
    names, counts = np.unique(keys.astype(str), return_counts=True)
    if len(names) < 2:
        raise DataError(
            f"{samples.root}: expected at least two groups (patients, parts) to hold one out, found {len(names)}"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.concatenate([[0], np.cumsum(counts[order])[:-1]])
    count = min(max(1, int((before < fraction * len(keys)).sum())), len(names) - 1)
    held = np.isin(keys.astype(str), names[order[:count]])
    return samples._keep(~held), samples._keep(held)
