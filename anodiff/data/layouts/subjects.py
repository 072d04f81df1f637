"""A folder a subject with a file a modality, as BraTS has them: X/X_flair.nii.gz, X/X_t1.nii.gz, X/X_seg.nii.gz."""

from __future__ import annotations

import os
from pathlib import Path

from anodiff.data.layouts.volume_files import chosen_channels, split_of, tokens_of, volume_files, volume_table
from anodiff.data.table import Sample, SampleTable
from anodiff.data.volumes.marks import channels_path
from anodiff.errors import DataError

#: words of a file name that say what was measured
MODALITIES = (
    "flair", "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t1post", "t2", "t2w", "t2f", "t2star", "pd", "pdw", "dwi",
    "adc", "swi", "cbf", "cbv", "tmax", "mtt", "ct", "cta", "ncct", "pet",
)  # fmt: skip
MASKS = ("seg", "mask", "label", "lesion", "gt")


def matches(path: Path) -> bool:
    """Whether a folder below ``path`` holds volumes of two modalities, or one and a mask of it, by their names."""
    if not path.is_dir():
        return False
    return any(len(names) > 1 or (names and mask) for names, mask in _subjects(path).values())


def load(path: Path, channels: tuple[str, ...] = ()) -> SampleTable:
    """The sample table: one row a folder, its modalities as channels: those of ``channels``, or all in alphabetical
    order. The group is the folder; folders train, val and test on the way to it say the split.

    Raises DataError where a subject lacks a modality that is wanted, or that others have.
    """
    subjects = {folder: found for folder, found in _subjects(path).items() if found[0]}
    everywhere = sorted({name for names, _ in subjects.values() for name in names})
    wanted = chosen_channels(everywhere, channels, path, "brats")
    samples = []
    for folder, (names, mask) in subjects.items():
        missing = [name for name in wanted if name not in names]
        if missing:
            common = sorted(set.intersection(*(set(found) for found, _ in subjects.values())))
            raise DataError(
                f"{folder}: expected the modalities {', '.join(wanted)} like other subjects, found no "
                f"{', '.join(missing)}; --layout brats:NAME,... chooses"
                + (f" ({', '.join(common)} are everywhere)" if common else "")
            )
        file = channels_path([names[name] for name in wanted])
        samples.append(Sample(file, None, mask, os.path.basename(folder), split_of(file, path)))
    return volume_table(samples, "brats", path)


def _subjects(path: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Folder -> (modality -> file, mask or "")."""
    found: dict[str, tuple[dict[str, str], str]] = {}
    for file in volume_files(path):
        words = tokens_of(file)
        modality = next((word for word in reversed(words) if word in MODALITIES), "")
        is_mask = any(word in MASKS for word in words)
        if modality or is_mask:
            names, mask = found.get(os.path.dirname(file), ({}, ""))
            found[os.path.dirname(file)] = (names, file) if is_mask else ({**names, modality: file}, mask)
    return found
