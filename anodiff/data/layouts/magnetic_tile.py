"""The magnetic tile set (Huang et al. 2018): MT_Free and MT_<defect>, each Imgs/<stem>.jpg beside <stem>.png, its mask.

Names are ``exp<exposure>_num_<number>``. A tile was photographed under up to six exposures one after the other, and its
numbers lie close together: of neighbours in number up to 200 apart nearly all show the same surface, of those more than
300 apart no more than chance (correlation of the images at 32x32). So images whose numbers are at most 300 apart, from
one to the next, are one group; a plain random split would put the same tile on both sides.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from anodiff.data.layouts.folder import list_images, natural_key
from anodiff.data.table import Sample, SampleTable, build_table

PREFIX, IMAGES, NORMAL = "MT_", "Imgs", "MT_Free"
SAME_TILE = 300
_NUMBER = re.compile(r"_num_([0-9]+)$")


def matches(path: Path) -> bool:
    """Whether ``path`` has folders MT_*/Imgs."""
    return any(_classes(path))


def load(path: Path) -> SampleTable:
    """The sample table: label 0 for MT_Free, 1 for the defects; the group is the tile. Splits are not part of it.

    Masks are smoothed at their rims: values from 128 on count (as for every 8-bit mask). Every defect image gets the
    path of its mask even if that is missing. Raises DataError where there is no image.
    """
    found = []
    for folder in sorted(_classes(path), key=lambda entry: natural_key(entry.name)):
        for image in list_images(folder / IMAGES):
            mask = f"{os.path.splitext(image)[0]}.png"
            normal = folder.name == NORMAL
            found.append(Sample(image, int(not normal), "" if normal and not os.path.isfile(mask) else mask))
    groups = tiles([sample.path for sample in found])
    samples = [Sample(sample.path, sample.label, sample.mask, groups.get(sample.path, "")) for sample in found]
    return build_table(samples, "magnetic_tile", path)


def tiles(paths: list[str]) -> dict[str, str]:
    """Path -> ``tile_<first number>``; images of another naming are left out."""
    numbered = []
    for path in paths:
        if match := _NUMBER.search(os.path.splitext(path)[0]):
            numbered.append((int(match[1]), path))
    groups, first, before = {}, 0, -SAME_TILE - 1
    for number, path in sorted(numbered):
        if number - before > SAME_TILE:
            first = number
        groups[path] = f"tile_{first}"
        before = number
    return groups


def _classes(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [folder for folder in path.glob(f"{PREFIX}*") if (folder / IMAGES).is_dir()]
