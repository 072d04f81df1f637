"""The MVTec AD layout: train/good, test/<class>, ground_truth/<class>/<stem>_mask.png.

Optional beside them: val/<class> with val_ground_truth, dev/<class> with dev_ground_truth, and a manifest.csv whose
``group`` column (patients, parts) is taken over for the paths it lists.
"""

from __future__ import annotations

import os
from pathlib import Path

from anodiff.data.layouts.folder import list_images, natural_key
from anodiff.data.layouts.manifest import MANIFEST_NAME, read_manifest
from anodiff.data.readers import IMAGE_SUFFIXES
from anodiff.data.table import Sample, SampleTable, build_table
from anodiff.errors import DataError

NORMAL_CLASS = "good"
TRUTH_FOLDERS = {
    "train": "train_ground_truth",
    "val": "val_ground_truth",
    "dev": "dev_ground_truth",
    "test": "ground_truth",
}


def matches(path: Path) -> bool:
    """Whether ``path`` has train/good, or test/ with class folders beside a ground_truth/ or a good class."""
    if (path / "train" / NORMAL_CLASS).is_dir():
        return True
    return (path / "test").is_dir() and ((path / "ground_truth").is_dir() or (path / "test" / NORMAL_CLASS).is_dir())


def load(path: Path) -> SampleTable:
    """The sample table: label 0 for class "good", 1 for every other; groups from manifest.csv where there is one.

    An anomalous image of a class that has annotations gets the path its mask should have even if that file is missing:
    reading it then fails that one row, by name. Raises DataError where there is no image, or the manifest is unusable.
    """
    groups = _groups(path)
    samples = []
    for split, truth in TRUTH_FOLDERS.items():
        if not (path / split).is_dir():
            continue
        for folder in sorted((path / split).iterdir(), key=lambda entry: natural_key(entry.name)):
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            normal = folder.name == NORMAL_CLASS
            masks = None if normal else _mask_index(path / truth / folder.name)
            for image in list_images(folder):
                mask = "" if masks is None else _mask_of(image, folder, path / truth / folder.name, masks)
                group = groups.get(os.path.relpath(image, path).replace(os.sep, "/"), "")
                samples.append(Sample(image, 0 if normal else 1, mask, group, split))
    return build_table(samples, "mvtec", path)


def _groups(path: Path) -> dict[str, str]:
    """Path below the root -> group, of manifest.csv; empty where there is none."""
    file = path / MANIFEST_NAME
    if not file.is_file():
        return {}
    try:
        return {sample.path.replace(os.sep, "/"): sample.group for sample in read_manifest(file)}
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected UTF-8 text, found {error.reason}") from None


def _mask_index(folder: Path) -> dict[str, str] | None:
    """Stem (below ``folder``) -> path of every annotation; None where the class has no annotations at all."""
    if not folder.is_dir():
        return None
    return {os.path.splitext(os.path.relpath(mask, folder))[0]: mask for mask in list_images(folder, masks=True)}


def _mask_of(image: str, folder: Path, truth: Path, masks: dict[str, str]) -> str:
    stem = os.path.splitext(os.path.relpath(image, folder))[0]
    for name in (f"{stem}_mask", stem):
        if name in masks:
            return masks[name]
    return str(truth / f"{stem}_mask{IMAGE_SUFFIXES[0]}")
