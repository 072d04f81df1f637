"""Trees named as the Brain Imaging Data Structure has it: sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from anodiff.data.layouts.volume_files import chosen_channels, stem_of, volume_files, volume_table
from anodiff.data.table import Sample, SampleTable
from anodiff.data.volumes.marks import channels_path
from anodiff.errors import DataError

DERIVATIVES = ("derivatives", "sourcedata", "code")
#: folders of images, the one that is meant first where no suffix is named
DATATYPES = ("anat", "pet", "perf", "swi", "dwi")
_LESION = re.compile(r"lesion", re.IGNORECASE)


def matches(path: Path) -> bool:
    """Whether ``path`` has folders sub-..., or is one of them, that hold NIfTI files named after them."""
    return path.is_dir() and any(
        any(True for _ in path.glob(f"{above}{datatype}/sub-*.nii*"))
        for above in ("sub-*/", "sub-*/ses-*/", "", "ses-*/")
        for datatype in DATATYPES
    )


def load(path: Path, channels: tuple[str, ...] = ()) -> SampleTable:
    """The sample table: ``channels`` are suffixes (FLAIR, T1w, pet, ...), the group is the subject.

    With one suffix a row is a file; with several a row is what has them all with the same entities before the suffix.
    Where none is named, only the first of DATATYPES that is there is looked into. Masks are files with "lesion" in
    their name, of the same subject and session, also below ``derivatives``.

    Raises DataError where several suffixes are there and none is named, or a file of one is missing.
    """
    images, masks = _files(path)
    if not channels:
        images = _first_datatype(images)
    there = sorted({suffix for found in images.values() for suffix in found})
    if len(there) > 1 and not channels:
        raise DataError(
            f"{path}: expected one kind of image, found {', '.join(there)}; choose with --layout bids:{there[0]}, or "
            "several as channels with commas"
        )
    wanted = chosen_channels(there, channels, path, "bids")
    samples = []
    for key, found in images.items():
        missing = [suffix for suffix in wanted if suffix not in found]
        if len(missing) == len(wanted):
            continue
        if missing:
            raise DataError(f"{key}: expected the suffixes {', '.join(wanted)}, found no {', '.join(missing)}")
        file = channels_path([found[suffix] for suffix in wanted])
        samples.append(Sample(file, None, _mask_of(key, masks), _entity(key, "sub")))
    return volume_table(samples, "bids", path, [(suffix, suffix) for suffix in wanted])


def to_score(path: Path, channels: Sequence[str]) -> list[str]:
    """The volumes that have any of the suffixes ``channels``, below a tree, a subject or a session; a file that is not
    there is named all the same, and reading says so."""
    volumes = []
    for key, found in _files(path)[0].items():
        by_name = {suffix.lower(): file for suffix, file in found.items()}
        if any(name.lower() in by_name for name in channels):
            volumes.append(channels_path([by_name.get(name.lower(), f"{key}_{name}") for name in channels]))
    return volumes


def _files(path: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """(what stands before the suffix -> suffix -> image, lesion masks)."""
    files = [file for file in volume_files(path) if stem_of(file).startswith("sub-")]
    # A subject may be called so: what says it is a later part of the name.
    masks = [file for file in files if _LESION.search(stem_of(file).partition("_")[2])]
    images: dict[str, dict[str, str]] = {}
    for file in files:
        parts = Path(os.path.relpath(file, path)).parts
        if Path(file).absolute().parent.name in DATATYPES and parts[0] not in DERIVATIVES and file not in masks:
            entities, _, suffix = stem_of(file).rpartition("_")
            images.setdefault(os.path.join(os.path.dirname(file), entities), {})[suffix] = file
    return images, masks


def _first_datatype(images: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Of what `_files` found, the images in folders of the first datatype that there is."""
    by_type = {key: Path(key).absolute().parent.name for key in images}
    first = next((datatype for datatype in DATATYPES if datatype in by_type.values()), "")
    return {key: found for key, found in images.items() if by_type[key] == first}


def _entity(path: str, name: str) -> str:
    """``sub-01`` of ``.../sub-01_ses-1``; empty where there is no such entity."""
    found = re.search(rf"(?:^|_)({name}-[A-Za-z0-9]+)", os.path.basename(path))
    return found[1] if found else ""


def _mask_of(image: str, masks: list[str]) -> str:
    """The one lesion mask of the same subject and session; several are told apart by nothing, so none is taken."""
    same = [mask for mask in masks if all(_entity(mask, name) == _entity(image, name) for name in ("sub", "ses"))]
    if len(same) > 1:
        raise DataError(f"{image}: expected one lesion mask, found {', '.join(map(os.path.basename, same))}")
    return same[0] if same else ""
