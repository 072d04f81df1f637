"""The MedMNIST layout (Yang et al. 2023): one NPZ with {train,val,test}_images and {train,val,test}_labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.layouts.named_classes import normal_classes
from anodiff.data.stacks import array_shapes, index_path, open_array
from anodiff.data.table import Sample, SampleTable, build_table
from anodiff.errors import DataError, InputError

SPLITS = ("train", "val", "test")
NORMAL_LABEL = "0"


def matches(path: Path) -> bool:
    """Whether ``path`` is an NPZ file with images of a split."""
    return path.is_file() and path.suffix.lower() == ".npz"


def load(path: Path, normal: Sequence[str] = ()) -> SampleTable:
    """The sample table with the set's own split: label 0 is normal, or the classes of ``normal``; no groups, no masks.

    Where an image has several labels (one column each), normal means that all are 0. Raises DataError: images without
    labels or of another number, labels that are no whole numbers, classes chosen among several columns.
    """
    try:
        shapes = array_shapes(path)
        parts = [split for split in SPLITS if f"{split}_images" in shapes]
        if not parts:
            raise DataError(
                f"{path}: expected arrays train_images, val_images or test_images with their labels, "
                f"found {', '.join(shapes) or 'none'}"
            )
        labels = {split: _labels(path, split, shapes) for split in parts}
    except InputError as error:
        raise DataError(str(error)) from None
    several = [key for split in parts if (shapes[key := f"{split}_labels"] + (1, 1))[1] > 1]
    if normal and several:
        raise DataError(
            f"{path}: expected one label an image where --normal chooses classes, "
            f"found {shapes[several[0]][1]} columns in {several[0]} "
            "(without --normal an image is normal where all of them are 0)"
        )
    normals = _normals(path, np.concatenate(list(labels.values())), normal)
    samples = [
        Sample(index_path(path, f"{split}_images", row), int(label not in normals), split=split, class_name=str(label))
        for split, values in labels.items()
        for row, label in enumerate(values.tolist())
    ]
    return build_table(samples, "medmnist", path)


def _labels(path: Path, split: str, shapes: dict[str, tuple[int, ...]]) -> NDArray[np.int64]:
    """int (N,): the class of each image; of several columns 0 where all are 0, else 1."""
    key = f"{split}_labels"
    if key not in shapes:
        raise DataError(f"{path}: expected an array {key} beside {split}_images, found {', '.join(shapes)}")
    values = open_array(path, key)
    count = shapes[f"{split}_images"][0]
    if values.dtype.kind not in "bui" or values.ndim not in (1, 2) or len(values) != count:
        shape = " x ".join(map(str, values.shape))
        raise DataError(f"{path}: expected {count} whole numbers in {key}, found {shape} of type {values.dtype}")
    if values.ndim == 2 and values.shape[1] > 1:
        return np.any(values != 0, axis=1).astype(np.int64)
    return np.asarray(values, dtype=np.int64).ravel()


def _normals(path: Path, labels: NDArray[np.int64], normal: Sequence[str]) -> set[int]:
    classes = [str(value) for value in np.unique(labels)]
    return {int(name) for name in normal_classes(classes, normal or [NORMAL_LABEL], path)}
