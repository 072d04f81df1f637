"""Finding the mask of an image by name, alike for every layout that keeps masks in a folder of their own."""

from __future__ import annotations

import os
from pathlib import Path

from anodiff.data.layouts.folder import MASK_STEM_SUFFIX, list_images
from anodiff.data.readers import IMAGE_SUFFIXES, read_mask
from anodiff.errors import InputError


def mask_index(folder: Path) -> dict[str, str] | None:
    """Stem (below ``folder``) -> path of every annotation; None where there is no such folder."""
    if not folder.is_dir():
        return None
    return {os.path.splitext(os.path.relpath(mask, folder))[0]: mask for mask in list_images(folder, masks=True)}


def mask_of(image: str, folder: Path, truth: Path, masks: dict[str, str]) -> str:
    """The mask in ``truth`` of an image in ``folder``: ``<stem>_mask`` or ``<stem>``.

    Where there is none, the path that it should have: reading it then fails that one row, by name.
    """
    stem = os.path.splitext(os.path.relpath(image, folder))[0]
    for name in (f"{stem}{MASK_STEM_SUFFIX}", stem):
        if name in masks:
            return masks[name]
    return str(truth / f"{stem}{MASK_STEM_SUFFIX}{IMAGE_SUFFIXES[0]}")


def label_of(mask: str) -> int | None:
    """1 where a mask marks any pixel, 0 where it marks none, None where there is none or it cannot be read."""
    try:
        return int(read_mask(mask).any()) if mask else None
    except InputError:
        return None
