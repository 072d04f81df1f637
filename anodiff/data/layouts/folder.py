"""Plain folders of images, and what ``score`` was given on the command line: files, folders, globs, CSVs of paths."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from anodiff.data.readers import IMAGE_SUFFIXES, file_of, image_suffix
from anodiff.data.stacks import is_stack
from anodiff.data.table import Sample, SampleTable, build_table, page_paths
from anodiff.errors import DataError

MASK_STEM_SUFFIX = "_mask"
#: what a mask's name has after the stem of the image beside it
MASK_SUFFIXES = (MASK_STEM_SUFFIX, "_label", "_GT")
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


def refuse_unlisted(error: OSError) -> None:
    """Raises DataError for a folder that cannot be listed: what lies in it would be missing without a word."""
    raise DataError(f"{error.filename}: expected a folder that can be listed, found {error.strerror or error}")


def walk(
    folder: str | os.PathLike[str], onerror: Callable[[OSError], None] = refuse_unlisted
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk from the top, into linked folders too, save those that lead back to a folder on the way to them.

    ``onerror`` is told of each folder that cannot be listed; by default it raises DataError.
    """
    above = {os.fspath(folder): {os.path.realpath(folder)}}
    for current, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        passed = above.pop(current)
        real = {name: os.path.realpath(os.path.join(current, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in passed]
        yield current, folders, files
        above |= {os.path.join(current, name): {*passed, real[name]} for name in folders}


def _silent(_path: str) -> None:
    """Tells nobody."""


def list_images(
    folder: str | os.PathLike[str],
    *,
    masks: bool = False,
    onerror: Callable[[OSError], None] = refuse_unlisted,
    onother: Callable[[str], object] = _silent,
) -> list[str]:
    """The image files below ``folder`` in natural order, linked folders too; hidden ones are passed over.

    Unless ``masks``, annotations are left out too: folders named ``ground_truth`` or ``..._ground_truth``, ``Masks``
    beside ``Images``; ``x_mask``, ``x_label`` and ``x_GT`` where an image ``x`` lies beside; and the PNGs of magnetic
    tiles (``MT_*/Imgs/x.png`` beside ``x.jpg``). ``onerror`` is told of each folder that cannot be listed, ``onother``
    of each file that is no image.
    """
    found = []
    for current, folders, files in walk(folder, onerror):
        folders[:] = [name for name in folders if not name.startswith(".") and (masks or not _is_truth(name, folders))]
        images = [name for name in files if image_suffix(name) and not name.startswith(".")]
        kept = images if masks else without_masks(current, images)
        found += [os.path.join(current, name) for name in kept]
        for name in sorted(files, key=natural_key):
            if not image_suffix(name) and not name.startswith("."):
                onother(os.path.join(current, name))
    return sorted(found, key=natural_key)


def _is_truth(name: str, beside: Sequence[str]) -> bool:
    return name == TRUTH_SUFFIX or name.endswith(f"_{TRUTH_SUFFIX}") or (name == "Masks" and "Images" in beside)


def without_masks(folder: str, images: Sequence[str]) -> list[str]:
    """The names of ``folder`` that are not annotations of another one beside them."""
    stems = {os.path.splitext(name)[0] for name in images}
    photographs = {os.path.splitext(name)[0] for name in images if name.lower().endswith((".jpg", ".jpeg"))}
    tiles = os.path.basename(folder) == "Imgs" and os.path.basename(os.path.dirname(folder)).startswith("MT_")
    kept = []
    for name in images:
        stem, suffix = os.path.splitext(name)
        of_another = any(stem.endswith(mark) and stem.removesuffix(mark) in stems for mark in MASK_SUFFIXES)
        if not of_another and not (tiles and suffix.lower() == ".png" and stem in photographs):
            kept.append(name)
    return kept


def expand_inputs(inputs: Sequence[str | os.PathLike[str]], onother: Callable[[str], object] = _silent) -> list[str]:
    """The images that a list of files, folders, glob patterns and CSVs (a column ``path``) stands for.

    Each file once, in natural order; every page of a multi-page TIFF on its own, as ``stack.tif#page=1``, and every
    image of an NPZ or IDX file, as ``set.npz#index=images/0``. Files named one by one are kept whatever they are, paths
    listed in a CSV even if missing, and folders that cannot be listed: reading them says what is wrong, in their own
    row. ``onother`` is told of each file below a folder that is no image. Raises DataError for an argument that is
    neither a file, a folder nor a pattern that matches, and where there is no image at all.
    """
    found: dict[str, str] = {}
    for item in inputs:
        for path in _expand(os.fspath(item), onother):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        places = ", ".join(os.fspath(item) for item in inputs) or "no input"
        raise DataError(f"{places}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    ordered = sorted(found.values(), key=natural_key)
    return [page for path in ordered for page in page_paths(path)]


def _expand(item: str, onother: Callable[[str], object]) -> list[str]:
    if os.path.isdir(item):
        unlisted: list[str] = []
        found = list_images(item, onerror=lambda error: unlisted.append(os.fspath(error.filename)), onother=onother)
        return found + unlisted
    if os.path.lexists(item) or os.path.isfile(file_of(item)):
        return _listed(Path(item)) if item.lower().endswith(".csv") else [item]
    if glob.has_magic(item):
        files = [path for path in glob.glob(item, recursive=True) if os.path.isfile(path)]
        matched = [path for path in files if image_suffix(path) or is_stack(path)]
        if matched:
            return matched
        raise DataError(f"{item}: expected a pattern that matches images, found no match")
    raise DataError(f"{item}: expected a file, a folder, a pattern or a CSV of paths, found no such path")


def _listed(file: Path) -> list[str]:
    from anodiff.data.layouts.manifest import read_manifest, resolve

    return [resolve(file, sample.path) for sample in read_manifest(file, paths_only=True)]
