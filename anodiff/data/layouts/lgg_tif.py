"""The layout of the TCGA-LGG segmentation set (Buda et al. 2019): PATIENT/<name>_N.tif beside <name>_N_mask.tif."""

from __future__ import annotations

import os
from pathlib import Path

from anodiff.data.layouts.annotations import label_of
from anodiff.data.layouts.folder import MASK_STEM_SUFFIX, list_images
from anodiff.data.table import Sample, SampleTable, build_table

TIFF_SUFFIXES = (".tif", ".tiff")


def matches(path: Path) -> bool:
    """Whether any folder below ``path`` holds a TIFF mask beside its image."""
    return path.is_dir() and any(_mask_of(image) for image in list_images(path))


def load(path: Path) -> SampleTable:
    """The sample table: the group is the folder (the patient), the label is 1 where the mask marks any pixel.

    A mask that cannot be read leaves the label unknown and stays in the table: reading it again says why. Images
    without a mask have no label. Splits are not part of this layout. Raises DataError where there is no image.
    """
    samples = []
    for image in list_images(path):
        if not image.lower().endswith(TIFF_SUFFIXES):
            continue
        mask = _mask_of(image)
        samples.append(Sample(image, label_of(mask), mask, os.path.basename(os.path.dirname(image))))
    return build_table(samples, "lgg_tif", path)


def _mask_of(image: str) -> str:
    stem, suffix = os.path.splitext(image)
    mask = f"{stem}{MASK_STEM_SUFFIX}{suffix}"
    return mask if suffix.lower() in TIFF_SUFFIXES and os.path.isfile(mask) else ""
