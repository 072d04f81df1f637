"""Layouts of clips: each module knows one way in which data sets of clips lie on disk and makes a ClipTable of it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from anodiff.data.video.clip import expand_clips
from anodiff.data.video.layouts import avenue, events, shanghaitech, ucsd, umn
from anodiff.data.video.table import ClipRow, ClipTable, clip_table
from anodiff.data.video.tracks import with_tracks
from anodiff.errors import DataError, InputError

PLAIN = "clips"


class ClipLayout(NamedTuple):
    """matches: whether a path can be read so; load: path -> table."""

    matches: Callable[[Path], bool]
    load: Callable[[Path], ClipTable]


def load_plain(path: Path) -> ClipTable:
    """A video, or every clip below a folder, with nothing known of any. Raises DataError where there is none."""
    return clip_table([ClipRow(source.path) for source in expand_clips([path])], PLAIN, path)


# In the order in which "auto" asks them; plain clips are what is left.
CLIP_LAYOUTS: dict[str, ClipLayout] = {
    "events": ClipLayout(events.matches, events.load),
    "ucsd": ClipLayout(ucsd.matches_shipped, ucsd.load_shipped),
    "shanghaitech": ClipLayout(shanghaitech.matches, shanghaitech.load),
    "frames_ranges": ClipLayout(ucsd.matches_ranges, ucsd.load_ranges),
    "avenue": ClipLayout(avenue.matches, avenue.load),
    "umn": ClipLayout(umn.matches, umn.load),
    PLAIN: ClipLayout(Path.exists, load_plain),
}


def recognise(path: Path) -> str:
    """The layout that "auto" takes for a file or folder of clips."""
    return next(name for name, layout in CLIP_LAYOUTS.items() if layout.matches(path))


def load_clips(data: str | os.PathLike[str], layout: str = "auto") -> ClipTable:
    """The table of a data set of clips: a folder in one of the CLIP_LAYOUTS, or one video.

    Raises DataError: no such path, an unknown layout, a folder that does not have the named layout, has no clip, or
    whose truth cannot be used. A tracks.csv in the folder is read with any layout.
    """
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: expected a folder of clips or a video, found no such path")
    try:
        name = recognise(path) if layout == "auto" else layout
        if name not in CLIP_LAYOUTS:
            near = difflib.get_close_matches(name, CLIP_LAYOUTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected auto, {', '.join(CLIP_LAYOUTS)}"
            raise DataError(f"{path}: unknown layout {name!r} of clips; {hint}")
        if not CLIP_LAYOUTS[name].matches(path):
            raise DataError(f"{path}: expected the layout {name!r}, found another; layout 'auto' finds the right one")
        return with_tracks(CLIP_LAYOUTS[name].load(path))
    except InputError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: expected a folder or file that can be read, found {error.strerror}"
        ) from None


__all__ = ["CLIP_LAYOUTS", "ClipLayout", "load_clips", "recognise"]
