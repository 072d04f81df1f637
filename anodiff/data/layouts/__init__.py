"""Folder layouts: each module knows one way in which data sets lie on disk and turns it into the sample table."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from anodiff.data.layouts import folder, lgg_tif, manifest, mvtec
from anodiff.data.layouts.folder import expand_inputs
from anodiff.data.table import SampleTable
from anodiff.errors import DataError

# In the order in which "auto" asks them; the folder layout takes whatever is left.
LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], SampleTable]]] = {
    "mvtec": (mvtec.matches, mvtec.load),
    "manifest": (manifest.matches, manifest.load),
    "lgg_tif": (lgg_tif.matches, lgg_tif.load),
    "folder": (folder.matches, folder.load),
}


def load_table(data: str | os.PathLike[str], layout: str = "auto") -> SampleTable:
    """The sample table of a data set: a folder in one of the LAYOUTS, or a CSV manifest.

    Raises DataError: no such path, an unknown layout, a folder that does not have the named layout or has no image.
    """
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: expected a data folder or a CSV manifest, found no such path")
    if path.is_file() and path.suffix.lower() != ".csv":
        raise DataError(f"{path}: expected a data folder or a CSV manifest, found another kind of file")
    if layout == "auto":
        layout = next(name for name, (matches, _) in LAYOUTS.items() if matches(path))
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected auto, {', '.join(LAYOUTS)}"
        raise DataError(f"{path}: unknown layout {layout!r}; {hint}")
    matches, load = LAYOUTS[layout]
    if not matches(path):
        raise DataError(f"{path}: expected the layout {layout!r}, found another; layout 'auto' finds the right one")
    return load(path)


__all__ = ["LAYOUTS", "expand_inputs", "load_table"]
