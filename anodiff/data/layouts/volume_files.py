"""What the layouts of volumes share: which files are volumes, tables of them, labels from their masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from anodiff.data.layouts.folder import list_images, natural_key, walk
from anodiff.data.table import Sample, SampleTable, build_table, make_ids
from anodiff.errors import DataError, InputError

#: by name; DICOM files without an ending are known by their content
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".mgh", ".mgz", ".dcm", ".dicom", ".ima")
_MARKS = re.compile(r"#(?:channels|volume|frame|series|stack|labels)(?:=.*)?$", re.DOTALL)
#: names of folders that say a split
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
#: masks that are unpacked at once
READERS = 4


def volume_suffix(path: str | os.PathLike[str]) -> str:
    """The ending by which a file is a volume; empty where it is none."""
    name = os.path.basename(path).lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), "")


def is_volume(path: str) -> bool:
    """Whether a name is that of a volume: a file by its ending, a folder (a DICOM series), or one with a mark."""
    return bool(volume_suffix(path) or _MARKS.search(path)) or os.path.isdir(path)


def stem_of(path: str) -> str:
    """The file name without its ending: ``case_01`` of ``imagesTr/case_01.nii.gz``."""
    name = os.path.basename(path)
    suffix = volume_suffix(name)
    return name[: len(name) - len(suffix)] if suffix else os.path.splitext(name)[0]


def tokens_of(path: str) -> list[str]:
    """The words of a file name in lower case: ``["brats", "001", "flair"]`` of ``BraTS_001_flair.nii.gz``."""
    return [word for word in re.split(r"[_\-.\s]+", stem_of(path).lower()) if word]


def volume_files(folder: Path) -> list[str]:
    """The files below a folder that are volumes by their ending, in natural order.

    Hidden ones are passed over, and those that are foregrounds by their name, see `foregrounds.foregrounds_among`.
    """
    from anodiff.data.layouts.foregrounds import foregrounds_among

    found: list[str] = []
    for current, folders, files in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(current, name) for name in files if volume_suffix(name) and not name.startswith(".")]
    masks = foregrounds_among(found)
    return sorted((file for file in found if file not in masks), key=natural_key)


def only_volumes(folder: Path) -> bool:
    """Whether a folder holds volumes and no 2-D image."""
    return folder.is_dir() and bool(volume_files(folder)) and not list_images(folder)


def volume_table(
    samples: Iterable[Sample], layout: str, root: Path, channels: Sequence[tuple[str, str]] = ()
) -> SampleTable:
    """A SampleTable of volumes; where a label is not known and a mask is, the mask says it.

    Where no foreground is known, it is the one that lies beside the volume, see `foregrounds.beside`. Raises DataError
    where there is no sample.
    """
    from anodiff.data.layouts.foregrounds import beside

    rows = [row if row.foreground else replace(row, foreground=beside(row.path)) for row in samples]
    if not rows:
        raise DataError(f"{root}: expected volumes ({', '.join(VOLUME_SUFFIXES)}), found none")
    asked = [row for row in rows if row.label is None and row.mask]
    with ThreadPoolExecutor(READERS) as pool:
        known = dict(
            zip([row.mask for row in asked], pool.map(label_of_mask, [row.mask for row in asked]), strict=True)
        )
    rows = [replace(row, label=known[row.mask]) if row.label is None and row.mask else row for row in rows]
    built = build_table(rows, layout, root)
    ids = make_ids([_plain_name(row.path) for row in rows])
    return replace(built, table=built.table.assign(id=ids), channels=tuple(channels))


def label_of_mask(mask: str) -> int | None:
    """1 where a mask of a volume marks any voxel, 0 where it marks none, None where it cannot be read."""
    from anodiff.data.volumes.marks import marked, split_labels
    from anodiff.data.volumes.read import _read
    from anodiff.data.volumes.volume import MAX_VOXELS

    try:
        file, labels = split_labels(mask)
        return int(bool(np.any(marked(_read(file, MAX_VOXELS), labels))))
    except InputError:
        return None


def split_of(path: str, root: Path) -> str:
    """The split that a folder on the way from the root says: train, val or test; empty where none does."""
    parts = Path(os.path.relpath(path, root)).parts[:-1]
    return next((SPLIT_FOLDERS[part.lower()] for part in parts if part.lower() in SPLIT_FOLDERS), "")


def chosen_channels(there: Sequence[str], wanted: Sequence[str], root: Path, layout: str) -> list[str]:
    """The wanted channels as the data write them, in the wanted order; all where none is wanted. Raises DataError."""
    if not wanted:
        return list(there)
    by_name = {name.lower(): name for name in there}
    missing = [name for name in wanted if name.lower() not in by_name]
    if missing:
        raise DataError(
            f"{root}: --layout {layout}:{','.join(wanted)}: expected channels of {', '.join(there)}, "
            f"found {', '.join(missing)}"
        )
    return [by_name[name.lower()] for name in wanted]


def _plain_name(path: str) -> str:
    """A path with one ending that can be cut off, and what its mark names in it."""
    from anodiff.data.volumes.marks import CHANNELS_MARK, CUT_OFF

    common, mark, _ = path.rpartition(CHANNELS_MARK)
    if mark:
        return f"{common.rstrip(CUT_OFF)}.volume"
    found = _MARKS.search(path)
    file, rest = (path[: found.start()], found[0]) if found else (path, "")
    name = os.path.join(os.path.dirname(file), stem_of(file))
    return f"{name}{rest.replace('#', '_').replace('=', '_')}.volume"
