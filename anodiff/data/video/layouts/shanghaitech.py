"""ShanghaiTech Campus (Luo, Liu and Gao 2017): training/videos/SS_NNN.avi, testing/frames/SS_NNNN/*.jpg.

Truth by frame is ``testing/test_frame_mask/SS_NNNN.npy`` (n,), by pixel ``testing/test_pixel_mask/SS_NNNN.npy`` (n, H,
W). The group is the scene, SS. Training clips may lie as frames too, in ``training/frames``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.video.layouts.avenue import videos_in
from anodiff.data.video.layouts.ucsd import TEST, TRAIN, clip_folders
from anodiff.data.video.masks import load_npy
from anodiff.data.video.table import ClipRow, ClipTable, clip_table
from anodiff.errors import DataError, InputError

FPS = 24.0
FRAME_MASKS, PIXEL_MASKS = Path("testing", "test_frame_mask"), Path("testing", "test_pixel_mask")


def matches(path: Path) -> bool:
    """Whether ``path`` has testing/frames/ beside testing/test_frame_mask/."""
    return (path / TEST).is_dir() and (path / FRAME_MASKS).is_dir()


def load(path: Path) -> ClipTable:
    """The clips of ShanghaiTech. Raises DataError: no clip, a test clip without flags, flags that are not 0 and 1."""
    rows = [
        ClipRow(str(clip), split="train", group=_scene(clip), fps=FPS if clip.is_dir() else None)
        for clip in [*videos_in(path / "training" / "videos"), *clip_folders(path / TRAIN)]
    ]
    for clip in clip_folders(path / TEST):
        masks = path / PIXEL_MASKS / f"{clip.name}.npy"
        truth = _flags(path / FRAME_MASKS / f"{clip.name}.npy")
        rows.append(
            ClipRow(str(clip), "", "test", _scene(clip), truth, masks=str(masks) if masks.is_file() else "", fps=FPS)
        )
    return clip_table(rows, "shanghaitech", path)


def _scene(clip: Path) -> str:
    return clip.stem.partition("_")[0]


def _flags(file: Path) -> NDArray[np.bool_]:
    try:
        values = np.array(load_npy(str(file))).ravel()
    except InputError as error:
        raise DataError(str(error)) from None
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"{file}: expected flags 0 and 1, found others, such as {values[~np.isin(values, (0, 1))][0]}")
    return values.astype(bool)
