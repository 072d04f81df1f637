"""KolektorSDD (kosNN/PartN.jpg beside PartN_label.bmp) and KolektorSDD2 (train|test/N.png beside N_GT.png).

In both, an image is anomalous where its mask marks a pixel. In the first the group is the item (its eight sides or
parts were photographed one by one) and there is no split; in the second every image is a group of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from anodiff.data.layouts.annotations import label_of
from anodiff.data.layouts.folder import list_images
from anodiff.data.table import Sample, SampleTable, build_table

ITEMS, ITEM_MASK = "kos[0-9]*", "_label.bmp"
SPLITS, SPLIT_MASK = ("train", "test"), "_GT.png"


def matches_items(path: Path) -> bool:
    """Whether ``path`` has folders kosNN with a mask PartN_label.bmp."""
    return path.is_dir() and any(True for _ in path.glob(f"{ITEMS}/*{ITEM_MASK}"))


def load_items(path: Path) -> SampleTable:
    """The sample table of KolektorSDD; an image whose mask is missing or broken has no label and fails by name."""
    folders = [folder for folder in path.glob(ITEMS) if folder.is_dir()]
    images = [image for folder in sorted(folders) for image in list_images(folder)]
    samples = [_sample(image, ITEM_MASK, group=os.path.basename(os.path.dirname(image))) for image in images]
    return build_table(samples, "kolektor_sdd", path)


def matches_splits(path: Path) -> bool:
    """Whether ``path`` has a folder train or test with a mask N_GT.png."""
    return path.is_dir() and any(any(True for _ in (path / name).glob(f"*{SPLIT_MASK}")) for name in SPLITS)


def load_splits(path: Path) -> SampleTable:
    """The sample table of KolektorSDD2 with its own split, whose train part holds anomalous images too."""
    samples = [
        _sample(image, SPLIT_MASK, split=name)
        for name in SPLITS
        if (path / name).is_dir()
        for image in list_images(path / name)
    ]
    return build_table(samples, "kolektor_sdd2", path)


def _sample(image: str, mask_end: str, group: str = "", split: str = "") -> Sample:
    mask = f"{os.path.splitext(image)[0]}{mask_end}"
    return Sample(image, label_of(mask), mask, group, split)
