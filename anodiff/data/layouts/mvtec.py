"""The MVTec AD layout: train/good, test/<class>, ground_truth/<class>/<stem>_mask.png.

Sets that lie alike are read alike: MPDD; BTAD (class ``ok`` for normal, masks named as their image); BMAD (``valid``
beside ``test``, and in sets with masks ``test/Ungood/img`` beside ``test/Ungood/label``). Optional: val/<class> with
val_ground_truth, dev/<class> with dev_ground_truth, and a manifest.csv whose ``group`` column (patients, parts) is
taken over for the paths it lists.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from anodiff.data.layouts.annotations import mask_index, mask_of
from anodiff.data.layouts.folder import list_images, natural_key
from anodiff.data.layouts.manifest import MANIFEST_NAME, read_manifest
from anodiff.data.table import Sample, SampleTable, build_table
from anodiff.errors import DataError

NORMAL_CLASSES = ("good", "ok")
#: folder -> (its split, the folder of its annotations)
SPLIT_FOLDERS = {
    "train": ("train", "train_ground_truth"),
    "val": ("val", "val_ground_truth"),
    "valid": ("val", "valid_ground_truth"),
    "dev": ("dev", "dev_ground_truth"),
    "test": ("test", "ground_truth"),
}
INSIDE_IMAGES, INSIDE_MASKS = "img", "label"


def matches(path: Path) -> bool:
    """Whether ``path`` has train/good, or test/ with class folders beside a ground_truth/ or a good class."""
    if _has_normal(path / "train"):
        return True
    return (path / "test").is_dir() and ((path / "ground_truth").is_dir() or _has_normal(path / "test"))


def load(path: Path) -> SampleTable:
    """The sample table: label 0 for class "good" ("ok"), 1 for every other; groups from manifest.csv where there is.

    An anomalous image of a class that has annotations gets the path its mask should have even if that file is missing:
    reading it then fails that one row, by name. Raises DataError where there is no image, or the manifest is unusable.
    """
    groups = _groups(path)
    samples = []
    for name, (split, truth) in SPLIT_FOLDERS.items():
        if not (path / name).is_dir():
            continue
        for folder in sorted((path / name).iterdir(), key=lambda entry: natural_key(entry.name)):
            if folder.is_dir() and not folder.name.startswith("."):
                for sample in _class(folder, path / truth / folder.name, split):
                    group = groups.get(os.path.relpath(sample.path, path).replace(os.sep, "/"), "")
                    samples.append(replace(sample, group=group))
    return build_table(samples, "mvtec", path)


def _has_normal(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in NORMAL_CLASSES)


def _class(folder: Path, truth: Path, split: str) -> list[Sample]:
    """The images of one class with their masks."""
    name, normal = folder.name, folder.name in NORMAL_CLASSES
    if (folder / INSIDE_IMAGES).is_dir():
        folder, truth = folder / INSIDE_IMAGES, folder / INSIDE_MASKS
    masks = None if normal else mask_index(truth)
    return [
        Sample(
            image,
            0 if normal else 1,
            "" if masks is None else mask_of(image, folder, truth, masks),
            split=split,
            class_name=name,
        )
        for image in list_images(folder)
    ]


def _groups(path: Path) -> dict[str, str]:
    """Path below the root -> group, of manifest.csv; empty where there is none."""
    file = path / MANIFEST_NAME
    if not file.is_file():
        return {}
    try:
        return {sample.path.replace(os.sep, "/"): sample.group for sample in read_manifest(file)}
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected UTF-8 text, found {error.reason}") from None
