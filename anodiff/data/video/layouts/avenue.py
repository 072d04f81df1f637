"""CUHK Avenue (Lu, Shi and Jia 2013) as shipped: training_videos/NN.avi, testing_videos/NN.avi, N_label.mat.

The masks lie in ``ground_truth_demo/testing_label_mask``, or in ``testing_label_mask``; a MAT file a test clip, a cell
``volLabel`` of one mask a frame.
"""

from __future__ import annotations

from pathlib import Path

from anodiff.data.layouts.folder import natural_key
from anodiff.data.video.clip import is_video
from anodiff.data.video.masks import frame_truth
from anodiff.data.video.table import ClipRow, ClipTable, clip_table
from anodiff.errors import DataError

TRAIN, TEST = "training_videos", "testing_videos"
MASKS = (Path("ground_truth_demo", "testing_label_mask"), Path("testing_label_mask"))


def matches(path: Path) -> bool:
    """Whether ``path`` has testing_videos/."""
    return (path / TEST).is_dir()


def load(path: Path) -> ClipTable:
    """The clips of Avenue, truth by frame from the masks; unknown where there are none at all.

    Raises DataError: no clip, a test clip whose mask file is missing beside others, a MAT file that is none.
    """
    rows = [ClipRow(str(video), split="train") for video in videos_in(path / TRAIN)]
    folder = next((path / name for name in MASKS if (path / name).is_dir()), None)
    for video in videos_in(path / TEST):
        masks = _masks(video, folder)
        rows.append(ClipRow(str(video), split="test", truth=frame_truth(masks) if masks else None, masks=masks))
    return clip_table(rows, "avenue", path)


def videos_in(folder: Path) -> list[Path]:
    """The video files in ``folder`` in natural order; [] where there is no folder."""
    if not folder.is_dir():
        return []
    names = [entry for entry in folder.iterdir() if is_video(entry.name) and not entry.name.startswith(".")]
    return sorted(names, key=lambda entry: natural_key(entry.name))


def _masks(video: Path, folder: Path | None) -> str:
    if folder is None:
        return ""
    # 01.avi belongs to 1_label.mat.
    file = folder / f"{video.stem.lstrip('0') or '0'}_label.mat"
    if not file.is_file():
        raise DataError(f"{file}: expected the masks of {video}, found no such file")
    return str(file)
