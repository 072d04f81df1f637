"""Plain folders of images, and what ``score`` was given on the command line: files, folders, globs, CSVs of paths."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from anodiff.data.readers import IMAGE_SUFFIXES, image_suffix, split_page
from anodiff.data.table import Sample, SampleTable, build_table, page_paths
from anodiff.errors import DataError

MASK_STEM_SUFFIX = "_mask"
TRUTH_SUFFIX = "ground_truth"


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder: any folder of images will do."""
    return path.is_dir()


def load(path: Path) -> SampleTable:
    """Every image below a folder, with no label, group or split known. Raises DataError where there is none."""
    return build_table([Sample(image) for image in list_images(path)], "folder", path)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A sorting key by which slice_2 comes before slice_10."""
    return [
        (1, int(part), part) if part.isascii() and part.isdigit() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text)
    ]


def list_images(folder: str | os.PathLike[str], *, masks: bool = False) -> list[str]:
    """The image files below ``folder`` in natural order; hidden files and folders are passed over.

    Unless ``masks``, annotations are left out too: folders named ``ground_truth`` or ``..._ground_truth``, and
    ``x_mask.png`` where an image ``x`` lies beside it.
    """
    found = []
    for current, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and (masks or not _is_truth(name))]
        images = [name for name in files if image_suffix(name) and not name.startswith(".")]
        stems = {os.path.splitext(name)[0] for name in images}
        found += [
            os.path.join(current, name)
            for name in images
            if masks or not _is_mask_of_another(os.path.splitext(name)[0], stems)
        ]
    return sorted(found, key=natural_key)


def _is_truth(name: str) -> bool:
    return name == TRUTH_SUFFIX or name.endswith(f"_{TRUTH_SUFFIX}")


def _is_mask_of_another(stem: str, stems: set[str]) -> bool:
    return stem.endswith(MASK_STEM_SUFFIX) and stem.removesuffix(MASK_STEM_SUFFIX) in stems


def expand_inputs(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The images that a list of files, folders, glob patterns and CSVs (a column ``path``) stands for.

    Each file once, in natural order; every page of a multi-page TIFF on its own, as ``stack.tif#page=1``. Files named
    one by one are kept whatever they are, and paths listed in a CSV even if missing: reading them says what is wrong,
    in their own row. Raises DataError for an argument that is neither a file, a folder nor a pattern that matches, and
    where there is no image at all.
    """
    found: dict[str, str] = {}
    for item in inputs:
        for path in _expand(os.fspath(item)):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        places = ", ".join(os.fspath(item) for item in inputs) or "no input"
        raise DataError(f"{places}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    ordered = sorted(found.values(), key=natural_key)
    return [page for path in ordered for page in page_paths(path)]


def _expand(item: str) -> list[str]:
    if os.path.isdir(item):
        return list_images(item)
    if os.path.lexists(item) or os.path.isfile(split_page(item)[0]):
        return _listed(Path(item)) if item.lower().endswith(".csv") else [item]
    if glob.has_magic(item):
        matched = [path for path in glob.glob(item, recursive=True) if os.path.isfile(path) and image_suffix(path)]
        if matched:
            return matched
        raise DataError(f"{item}: expected a pattern that matches images, found no match")
    raise DataError(f"{item}: expected a file, a folder, a pattern or a CSV of paths, found no such path")


def _listed(file: Path) -> list[str]:
    from anodiff.data.layouts.manifest import read_manifest, resolve

    return [resolve(file, sample.path) for sample in read_manifest(file)]
