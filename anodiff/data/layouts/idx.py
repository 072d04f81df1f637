"""The MNIST layout (LeCun et al. 1998; Fashion-MNIST, KMNIST): IDX files of images and of labels, plain or gzipped.

``train-images-idx3-ubyte(.gz)`` with ``train-labels-idx1-ubyte(.gz)`` beside it, and ``t10k-...`` likewise; the folder
may be the one above ``raw/``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.layouts.folder import natural_key
from anodiff.data.layouts.named_classes import normal_classes
from anodiff.data.stacks import index_path, open_array
from anodiff.data.table import Sample, SampleTable, build_table
from anodiff.errors import DataError, InputError

RAW = "raw"
_IMAGES = re.compile(r"(^|.*[-_.])images[-.]idx[34]-ubyte(\.gz)?$", re.IGNORECASE)
_SPLITS = (("train", "train"), ("t10k", "test"), ("test", "test"), ("val", "val"))


def matches(path: Path) -> bool:
    """Whether ``path`` is an IDX file of images, or a folder with one in it or in its raw/."""
    return bool(_image_files(path))


def load(path: Path, normal: Sequence[str] = ()) -> SampleTable:
    """The sample table with the set's own split (train, t10k = test); label 0 for the classes of ``normal``.

    Raises DataError: no class named normal (the message lists them), labels missing or not as many as the images.
    """
    try:
        files = {file: _labels(file) for file in _image_files(path)}
    except InputError as error:
        raise DataError(str(error)) from None
    classes = [str(value) for value in np.unique(np.concatenate(list(files.values())))]
    normals = {int(name) for name in normal_classes(classes, normal, path)}
    samples = [
        Sample(index_path(file, "", row), int(label not in normals), split=_split(file), class_name=str(label))
        for file, labels in files.items()
        for row, label in enumerate(labels.tolist())
    ]
    return build_table(samples, "idx", path)


def _image_files(path: Path) -> list[Path]:
    """The image files, each once: of ``x`` and ``x.gz`` the one that need not be unpacked."""
    if path.is_file():
        return [path] if _IMAGES.match(path.name) else []
    for folder in (path, path / RAW):
        found = [file for file in folder.glob("*") if file.is_file() and _IMAGES.match(file.name)]
        plain = {file.name for file in found}
        kept = [file for file in found if file.suffix.lower() != ".gz" or file.name[:-3] not in plain]
        if kept:
            return sorted(kept, key=lambda file: natural_key(file.name))
    return []


def _labels(file: Path) -> NDArray[np.int64]:
    """int (N,): the labels of an image file, from the file beside it."""
    images = open_array(file)
    name = re.sub(r"idx[34](?=-ubyte)", "idx1", re.sub(r"images(?=[-.]idx)", "labels", file.name))
    beside = [file.with_name(name), file.with_name(name.removesuffix(".gz")), file.with_name(f"{name}.gz")]
    found = next((candidate for candidate in beside if candidate.is_file()), None)
    if found is None:
        raise DataError(f"{file}: expected its labels in {name} beside it, found no such file")
    labels = open_array(found)
    if labels.shape != (len(images),) or labels.dtype.kind not in "ui":
        shape = " x ".join(map(str, labels.shape))
        raise DataError(f"{found}: expected {len(images)} labels for {file.name}, found {shape} of type {labels.dtype}")
    return np.asarray(labels).astype(np.int64)


def _split(file: Path) -> str:
    return next((split for mark, split in _SPLITS if mark in file.name.lower()), "")
