"""Folder layouts: each module knows one way in which data sets lie on disk and turns it into the sample table."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from anodiff.data.layouts import (
    bids,
    classes,
    folder,
    idx,
    kolektor,
    lgg_tif,
    magnetic_tile,
    manifest,
    medmnist,
    mvtec,
    nnunet,
    open_ms,
    subjects,
    visa,
    volumes,
)
from anodiff.data.layouts.folder import expand_inputs
from anodiff.data.layouts.grouping import BY_PATH, regrouped
from anodiff.data.table import SampleTable
from anodiff.errors import DataError


class Layout(NamedTuple):
    """matches: whether a path can be read so; load: path -> table, given ``normal`` too where ``takes_normal`` and
    ``channels`` where ``takes_channels``; recognises: the stricter question that "auto" asks where no normal class is
    named."""

    matches: Callable[[Path], bool]
    load: Callable[..., SampleTable]
    takes_normal: bool = False
    recognises: Callable[[Path], bool] | None = None
    takes_channels: bool = False


# In the order in which "auto" asks them; the folder layout takes whatever is left.
LAYOUTS: dict[str, Layout] = {
    "mvtec": Layout(mvtec.matches, mvtec.load),
    "manifest": Layout(manifest.matches, manifest.load),
    "visa": Layout(visa.matches, visa.load),
    "magnetic_tile": Layout(magnetic_tile.matches, magnetic_tile.load),
    "kolektor_sdd": Layout(kolektor.matches_items, kolektor.load_items),
    "kolektor_sdd2": Layout(kolektor.matches_splits, kolektor.load_splits),
    "medmnist": Layout(medmnist.matches, medmnist.load, takes_normal=True),
    "idx": Layout(idx.matches, idx.load, takes_normal=True),
    "nnunet": Layout(nnunet.matches, nnunet.load, takes_normal=True, takes_channels=True),
    "open_ms": Layout(open_ms.matches, open_ms.load, takes_channels=True),
    "bids": Layout(bids.matches, bids.load, takes_channels=True),
    "brats": Layout(subjects.matches, subjects.load, takes_channels=True),
    "volumes": Layout(volumes.matches, volumes.load),
    "lgg_tif": Layout(lgg_tif.matches, lgg_tif.load),
    "classes": Layout(classes.matches, classes.load, takes_normal=True, recognises=classes.recognises),
    "folder": Layout(folder.matches, folder.load),
}
# Layouts of sets that come as a folder of data sets, and those that would match that folder as a whole.
CATEGORY_LAYOUTS = ("mvtec", "visa")
CATCH_ALL = ("lgg_tif", "classes", "folder")


def load_table(
    data: str | os.PathLike[str],
    layout: str = "auto",
    *,
    normal: str | Sequence[str] = (),
    group_by: str = "",
    channels: Sequence[str] = (),
) -> SampleTable:
    """The sample table of a data set: a folder or file in one of the LAYOUTS, or a CSV manifest.

    layout: the name of a layout, or "auto"; for volumes of several channels also which, as ``brats:flair,t1``.
    normal: the normal class or classes (a sequence, or one string with commas), where the layout has classes.
    group_by: what belongs together: ``path`` (the folder of the image), a regular expression with one group in
    parentheses that is searched in each path, or a column of the manifest; by default what the layout knows.

    channels: which are taken, by name, where ``layout`` names none: those that a model was trained on.

    Raises DataError: no such path, an unknown layout, a folder that does not have the named layout or has no image, a
    normal class that is not there or needed and not named, a group that cannot be found.
    """
    path = Path(data)
    named = [name.strip() for name in (normal.split(",") if isinstance(normal, str) else normal) if name.strip()]
    if not path.exists():
        raise DataError(f"{path}: expected a data folder or a CSV manifest, found no such path")
    try:
        return _loaded(path, layout, named, group_by, tuple(channels))
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: expected a folder or file that can be read, found {error.strerror}"
        ) from None


def _loaded(path: Path, layout: str, named: Sequence[str], group_by: str, usual: tuple[str, ...] = ()) -> SampleTable:
    layout, _, wanted = layout.partition(":")
    channels = tuple(part.strip() for part in wanted.split(",") if part.strip())
    name = _recognised(path, named) if layout == "auto" else layout
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected auto, {', '.join(LAYOUTS)}"
        raise DataError(f"{path}: unknown layout {name!r}; {hint}")
    chosen = LAYOUTS[name]
    if not chosen.matches(path):
        raise DataError(f"{path}: expected the layout {name!r}, found another; layout 'auto' finds the right one")
    if named and not chosen.takes_normal:
        if name == "folder":
            raise DataError(f"{path}: expected class folders for --normal {','.join(named)}, found none")
        raise DataError(f"{path}: expected no --normal, since the layout {name!r} says by itself what is normal")
    if channels and not chosen.takes_channels:
        raise DataError(f"{path}: expected no channels after the layout {name!r}, found {wanted}")
    column = group_by.strip().lower()
    if name == "manifest" and column not in ("", BY_PATH) and column in manifest.column_names(manifest.file_in(path)):
        return manifest.load(path, column)
    samples = _of_channels(chosen, path, named, channels, usual)
    return regrouped(samples, group_by) if group_by else samples


def _of_channels(
    chosen: Layout, path: Path, named: Sequence[str], channels: tuple[str, ...], usual: tuple[str, ...]
) -> SampleTable:
    """The table with the channels that are asked for, else the usual ones; a single one is it whatever its name."""
    normal = [named] if chosen.takes_normal else []
    if not chosen.takes_channels:
        return chosen.load(path, *normal)
    try:
        return chosen.load(path, *normal, channels=channels or usual)
    except DataError:
        if channels or len(usual) != 1:
            raise
        samples = chosen.load(path, *normal, channels=())
        if len(samples.channels) != 1:
            raise
        return samples


def _recognised(path: Path, normal: Sequence[str]) -> str:
    """The layout that "auto" takes; class folders without a well-known normal class are some only if one is named."""
    for name, layout in LAYOUTS.items():
        if (layout.matches if normal or layout.recognises is None else layout.recognises)(path):
            if name in CATCH_ALL:
                _refuse_categories(path)
            return name
    raise DataError(f"{path}: expected a data folder, a CSV manifest, an NPZ or IDX file, found another kind of file")


def _refuse_categories(path: Path) -> None:
    """Raises DataError for a folder of several data sets, whose anomalies a plain folder would take as normal."""
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [entry.name for entry in inside if any(LAYOUTS[name].matches(entry) for name in CATEGORY_LAYOUTS)]
    if found:
        raise DataError(
            f"{path}: expected one data set, found a folder of {len(found)} ({', '.join(found)}); give one of them, "
            "or --layout folder to take every image as it is"
        )


__all__ = ["LAYOUTS", "Layout", "expand_inputs", "load_table"]
