"""A folder a subject with a file a modality, as BraTS has them: X/X_flair.nii.gz, X/X_t1.nii.gz, X/X_seg.nii.gz.

Files of several subjects may lie in one folder: then what is left of their names tells the subjects apart.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from anodiff.data.layouts.volume_files import (
    SPLIT_FOLDERS,
    chosen_channels,
    split_of,
    tokens_of,
    volume_files,
    volume_table,
)
from anodiff.data.table import Sample, SampleTable
from anodiff.data.volumes.marks import channels_path
from anodiff.errors import DataError

#: words of a file name that say what was measured
MODALITIES = (
    "flair", "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t1post", "t2", "t2w", "t2f", "t2star", "pd", "pdw", "dwi",
    "adc", "swi", "cbf", "cbv", "tmax", "mtt", "ct", "cta", "ncct", "pet",
)  # fmt: skip
MASKS = ("seg", "mask", "label", "lesion", "gt")
#: BraTS since 2023: of a patient's scans at several times each has a folder
_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}")


def matches(path: Path) -> bool:
    """Whether a folder below ``path`` holds volumes of two modalities, or one and a mask of it, by their names."""
    if not path.is_dir():
        return False
    return any(len(names) > 1 or (names and masks) for names, masks in _subjects(path).values())


def load(path: Path, channels: tuple[str, ...] = ()) -> SampleTable:
    """The sample table: one row a subject, its modalities as channels: those of ``channels``, or all in alphabetical
    order. The group is the patient, see `_patients`; folders train, val and test on the way to it say the split.

    Raises DataError where a subject lacks a modality that is wanted, or that others have, or has two files of one.
    """
    subjects = {subject: found for subject, found in _subjects(path).items() if found[0]}
    everywhere = sorted({name for names, _ in subjects.values() for name in names})
    wanted = chosen_channels(everywhere, channels, path, "brats")
    patients = _patients(subjects, path)
    samples = []
    for subject, (names, masks) in subjects.items():
        missing = [name for name in wanted if name not in names]
        if missing:
            common = sorted(set.intersection(*(set(found) for found, _ in subjects.values())))
            raise DataError(
                f"{subject}: expected the modalities {', '.join(wanted)} like other subjects, found no "
                f"{', '.join(missing)}; --layout brats:NAME,... chooses"
                + (f" ({', '.join(common)} are everywhere)" if common else "")
            )
        file = channels_path([_only(names[name], name, subject) for name in wanted])
        mask = _only(masks, "mask", subject) if masks else ""
        samples.append(Sample(file, None, mask, patients[subject], split_of(file, path)))
    return volume_table(samples, "brats", path, [(name, name) for name in wanted])


def to_score(path: Path, channels: Sequence[str]) -> list[str]:
    """The volume of each subject that has any of the ``channels``; a file that is not there is named all the same,
    and reading says so. Raises DataError where a subject has two files of one."""
    volumes = []
    for subject, (names, _) in _subjects(path).items():
        if any(name.lower() in names for name in channels):
            found = [names.get(name.lower(), [os.path.join(subject, name)]) for name in channels]
            volumes.append(
                channels_path([_only(files, name, subject) for files, name in zip(found, channels, strict=True)])
            )
    return volumes


def _only(files: Sequence[str], what: str, subject: str) -> str:
    if len(files) > 1:
        named = ", ".join(os.path.basename(file) for file in files)
        raise DataError(f"{subject}: expected one {what} of a subject, found {named}; a CSV manifest says which")
    return files[0]


def _subjects(path: Path) -> dict[str, tuple[dict[str, list[str]], list[str]]]:
    """Subject -> (modality -> files, masks). A subject is a folder; where a folder has several files of one modality,
    it is what their names have in common beside modality and mask."""
    folders: dict[str, list[tuple[str, str]]] = {}
    for file in volume_files(path):
        kind = _kind(tokens_of(file))
        if kind:
            folders.setdefault(os.path.dirname(file), []).append((file, kind))
    found: dict[str, tuple[dict[str, list[str]], list[str]]] = {}
    for folder, files in folders.items():
        kinds = [kind for _, kind in files if kind != "mask"]
        alone = len(set(kinds)) == len(kinds)
        for file, kind in files:
            rest = "_".join(word for word in tokens_of(file) if word not in (*MODALITIES, *MASKS))
            names, masks = found.setdefault(folder if alone or not rest else os.path.join(folder, rest), ({}, []))
            (masks if kind == "mask" else names.setdefault(kind, [])).append(file)
    return found


def _kind(words: Sequence[str]) -> str:
    """The modality that a file's name says, ``mask``, or nothing."""
    if any(word in MASKS for word in words):
        return "mask"
    return next((word for word in reversed(words) if word in MODALITIES), "")


def _patients(subjects: Iterable[str], path: Path) -> dict[str, str]:
    """Subject -> patient: the folder's name. Where folders of several parents share one, as those of sessions do, it
    is the parents' name; folders that say the split do not count."""
    parts = {}
    for subject in subjects:
        below = [part for part in Path(os.path.relpath(subject, path)).parts if part.lower() not in SPLIT_FOLDERS]
        parts[subject] = below or [os.path.basename(os.path.realpath(subject))]
    sessions = max(Counter(names[-1] for names in {tuple(found) for found in parts.values()}).values(), default=1) > 1
    named = {
        subject: "/".join(found[:-1]) if sessions and len(found) > 1 else found[-1] for subject, found in parts.items()
    }
    return {subject: _VISIT.sub(r"\1", name) for subject, name in named.items()}
