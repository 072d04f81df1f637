"""UCSD Ped1 and Ped2 (Mahadevan et al. 2010), as their owners ship them and as folders of frames with ranges.

- As shipped: ``Train/TrainNNN/*.tif``, ``Test/TestNNN/*.tif``, masks of some or all test clips in ``Test/TestNNN_gt``,
  anomalous frames of all in ``Test/UCSDped*.m`` (``gt_frame = [61:180]``).
- As frames, also used for Avenue: ``training/frames/NN/*.jpg``, ``testing/frames/NN/*.jpg`` and one MAT file whose cell
  ``gt`` has the ranges of one test clip after the other: 2 rows, first and last frame, counted from 1, both included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.layouts.folder import natural_key
from anodiff.data.video.clip import TRUTH_MARK, list_frames
from anodiff.data.video.frames import places_in
from anodiff.data.video.masks import frame_truth
from anodiff.data.video.matlab import cells, read_mat
from anodiff.data.video.table import ClipRow, ClipTable, clip_table
from anodiff.errors import DataError

#: frames a second at which the sets were taken
FPS = {"ucsd": 10.0, "avenue": 25.0}
RANGES_KEY = "gt"
TRAIN, TEST = Path("training", "frames"), Path("testing", "frames")
_LISTED = re.compile(r"gt_frame\s*=\s*\[([^\]]*)\]")


def matches_shipped(path: Path) -> bool:
    """Whether ``path`` has Train/Train001 or Test/Test001."""
    return any((path / name / f"{name}001").is_dir() for name in ("Train", "Test"))


def load_shipped(path: Path) -> ClipTable:
    """The clips of UCSDped1 or UCSDped2 as shipped.

    Truth by frame comes from the .m file, without it from the masks, and is unknown for clips that have neither.
    Raises DataError: no clip, a .m file of another number of clips, frames that do not exist.
    """
    tests = clip_folders(path / "Test")
    listed = _listed(path / "Test", tests)
    rows = [ClipRow(str(folder), split="train", fps=FPS["ucsd"]) for folder in clip_folders(path / "Train")]
    for number, folder in enumerate(tests):
        masks = folder.with_name(folder.name + TRUTH_MARK)
        marked = str(masks) if masks.is_dir() and list_frames(masks) else ""
        truth = listed[number] if listed else frame_truth(marked) if marked else None
        rows.append(ClipRow(str(folder), split="test", truth=truth, masks=marked, fps=FPS["ucsd"]))
    return clip_table(rows, "ucsd", path)


def matches_ranges(path: Path) -> bool:
    """Whether ``path`` has testing/frames/ with a folder a clip, and a MAT file beside it."""
    return (path / TEST).is_dir() and len(list(path.glob("*.mat"))) == 1


def load_ranges(path: Path) -> ClipTable:
    """The clips of training/frames and testing/frames with the ranges of the MAT file.

    A set whose MAT file is named after Avenue was taken at 25 frames a second, any other counts as UCSD, at 10. Raises
    DataError: no clip, ranges of another number of clips, frames that do not exist.
    """
    file = next(path.glob("*.mat"))
    fps = FPS["avenue" if "avenue" in file.stem.lower() else "ucsd"]
    tests = clip_folders(path / TEST)
    found = cells(read_mat(file, RANGES_KEY))
    if len(found) != len(tests):
        raise DataError(f"{file}: expected ranges of {len(tests)} test clips, found those of {len(found)}")
    rows = [ClipRow(str(folder), split="train", fps=fps) for folder in clip_folders(path / TRAIN)]
    for folder, ranges in zip(tests, found, strict=True):
        pairs = _pairs(ranges, f"{file}, clip {folder.name}")
        truth = truth_of_ranges(pairs, counted(folder), f"{file}, clip {folder.name}")
        rows.append(ClipRow(str(folder), split="test", truth=truth, fps=fps))
    return clip_table(rows, "frames_ranges", path)


def clip_folders(folder: Path) -> list[Path]:
    """The folders of frames in ``folder``, in natural order, without those of masks; [] where there is no folder."""
    if not folder.is_dir():
        return []
    inside = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    kept = [entry for entry in inside if not entry.name.endswith(TRUTH_MARK)]
    return sorted(kept, key=lambda entry: natural_key(entry.name))


def counted(folder: Path) -> int:
    """Frames of a clip, those among them whose numbers are missing in the names: ranges count these too."""
    places = places_in(str(folder))
    return round(places[-1]) + 1 if places else 0


def truth_of_ranges(ranges: Sequence[tuple[int, int]], frames: int, where: str) -> NDArray[np.bool_]:
    """bool (frames,) from ranges (first, last) counted from 1, both included. Raises DataError for others."""
    truth = np.zeros(frames, dtype=bool)
    for first, last in ranges:
        if not 1 <= first <= last <= frames:
            raise DataError(f"{where}: expected ranges within 1 ... {frames}, found {first} ... {last}")
        truth[first - 1 : last] = True
    return truth


def _pairs(values: NDArray[np.generic], where: str) -> list[tuple[int, int]]:
    if not values.size:
        return []
    if values.dtype.kind not in "uif" or values.ndim != 2 or values.shape[0] != 2:
        raise DataError(f"{where}: expected ranges as 2 rows, found the shape {values.shape} of type {values.dtype}")
    return [(int(first), int(last)) for first, last in values.T]


def _listed(folder: Path, tests: Sequence[Path]) -> list[NDArray[np.bool_]]:
    """Truth of each test clip by the .m file in ``folder``; [] without one."""
    file = next(iter(sorted(folder.glob("*.m"))), None)
    if file is None:
        return []
    listed = _LISTED.findall(file.read_text(encoding="utf-8", errors="replace"))
    if len(listed) != len(tests):
        raise DataError(f"{file}: expected gt_frame of {len(tests)} test clips, found {len(listed)}")
    truths = []
    for text, test in zip(listed, tests, strict=True):
        where = f"{file}, clip {test.name}"
        try:
            parts = [[int(end) for end in part.split(":")] for part in re.split(r"[,\s]+", text.strip()) if part]
        except ValueError:
            raise DataError(f"{where}: expected frames as 61:180, found {text.strip()!r}") from None
        truths.append(truth_of_ranges([(part[0], part[-1]) for part in parts], counted(test), where))
    return truths
