"""Class folders: one folder a class, at least one of them normal, optionally below train/, val/, test/ folders.

A pair of folders (normal/ and anomalous/, good/ and bad/) is the case of two classes. Masks, where there are any, lie
in ``masks/`` or ``ground_truth/`` beside the classes: in a folder of the class's name, or all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anodiff.data.layouts.annotations import mask_index, mask_of
from anodiff.data.layouts.folder import TRUTH_SUFFIX, list_images, natural_key
from anodiff.data.layouts.named_classes import has_normal_name, normal_classes
from anodiff.data.readers import image_suffix
from anodiff.data.table import Sample, SampleTable, build_table

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "dev", "test": "test"}
MASK_FOLDERS = ("masks", "mask", TRUTH_SUFFIX)


def matches(path: Path) -> bool:
    """Whether ``path`` holds at least two class folders and no image of its own, itself or in its split folders."""
    return path.is_dir() and len({folder.name for part in _parts(path) for folder in _classes(part)}) > 1


def recognises(path: Path) -> bool:
    """Whether ``matches`` holds and one of the classes has a name that says it is normal."""
    return matches(path) and any(has_normal_name(folder.name) for part in _parts(path) for folder in _classes(part))


def load(path: Path, normal: Sequence[str] = ()) -> SampleTable:
    """The sample table: label 0 for the normal classes, 1 for the others; the split of its folder, no groups.

    Where a class has masks, an image of it that lacks its own gets the path that it should have. Masks that lie all
    together belong to the anomalous classes. Raises DataError where the normal class is not known, and without images.
    """
    parts = _parts(path)
    names = sorted({folder.name for part in parts for folder in _classes(part)}, key=natural_key)
    normals = normal_classes(names, normal, path)
    samples = []
    for part, split in parts.items():
        for folder in _classes(part):
            is_normal = folder.name in normals
            truth = _truth(part, folder.name, is_normal)
            masks = None if truth is None else mask_index(truth)
            for image in list_images(folder):
                mask = "" if truth is None or masks is None else mask_of(image, folder, truth, masks)
                samples.append(Sample(image, int(not is_normal), mask, split=split, class_name=folder.name))
    return build_table(samples, "classes", path)


def _parts(path: Path) -> dict[Path, str]:
    """Folder that holds class folders -> its split."""
    inside = _folders(path)
    if inside and all(folder.name.lower() in SPLIT_FOLDERS for folder in inside):
        return {folder: SPLIT_FOLDERS[folder.name.lower()] for folder in inside}
    return {path: ""}


def _folders(path: Path) -> list[Path]:
    found = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def _classes(part: Path) -> list[Path]:
    """The class folders of a part; none where images lie beside them."""
    if any(image_suffix(entry) for entry in part.iterdir() if not entry.is_dir()):
        return []
    return [folder for folder in _folders(part) if folder.name.lower() not in MASK_FOLDERS]


def _truth(part: Path, name: str, is_normal: bool) -> Path | None:
    """The folder of a class's masks; one folder for all classes is none for the normal ones, whose names may recur."""
    for folder in (part / mask for mask in MASK_FOLDERS):
        if (folder / name).is_dir():
            return folder / name
        if folder.is_dir() and not is_normal:
            return folder
    return None
