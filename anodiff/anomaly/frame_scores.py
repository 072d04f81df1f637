"""From the error maps of frames to one score a frame: the largest window, on the scale of normal ones at its height.

Motion is sparse: most pixels never move, and dividing by what is normal at each of them lets the quiet ones decide.
What normal clips do support is one scale a level, and one a row, since people near the camera are larger and faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anodiff.anomaly.smoothing import smooth_axis
from anodiff.data.preprocess import Geometry

#: rows whose normal error is smaller than this share of the largest row's are divided by that share of it
BAND_FLOOR = 0.25
#: smoothing of the scale over rows, as a share of the height
BAND_WIDTH = 0.1

#: (top, left, height, width) on the model's grid
Box = tuple[int, int, int, int]


def window_means(maps: Tensor, side: int, box: Box | None = None) -> Tensor:
    """Mean of every whole window of ``side`` px inside ``box``, (N, h, w) -> (N, h', w') float64.

    By an integral image in float64: a frame's values do not depend, to the bit, on the other frames.
    """
    top, left, height, width = box or (0, 0, *maps.shape[1:])
    inside = maps[:, top : top + height, left : left + width].double()
    tall, wide = min(side, height), min(side, width)
    total = torch.nn.functional.pad(inside.cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows = total[:, tall:] - total[:, :-tall]
    return (rows[:, :, wide:] - rows[:, :, :-wide]) / (tall * wide)


def row_scale(maps: Tensor, side: int) -> Tensor:
    """What is normal for the largest window at each height: (h,) float64, from the maps (N, h, w) of normal frames.

    The mean over frames of the largest window whose centre lies in the row, smoothed over rows and floored; rows that
    no window's centre reaches have the value of the nearest that one does. Its mean over rows is 1.
    """
    largest = window_means(maps, side).amax(dim=2).mean(dim=0)
    height = maps.shape[1]
    smooth = smooth_axis(largest[None], BAND_WIDTH * height, 1)[0]
    smooth = smooth.clamp(min=BAND_FLOOR * float(smooth.max()))
    if not float(smooth.max()) > 0:
        return torch.ones(height, dtype=torch.float64)
    row = (torch.arange(height) - (height - len(smooth)) // 2).clamp(0, len(smooth) - 1)
    return smooth[row] / smooth[row].mean()


@dataclass(frozen=True)
class FrameScorer:
    """level_scale (L,): divides the levels; window_px: side of the window; band_scale (h,): by height, or None."""

    level_scale: Tensor
    window_px: int
    band_scale: Tensor | None = None

    @classmethod
    def plain(cls, window_px: int, levels: int) -> FrameScorer:
        """Errors as they are."""
        return cls(torch.ones(levels), window_px)

    def level(self, errors: Tensor) -> Tensor:
        """Levels on one scale, (L, N, h, w)."""
        return errors / self.level_scale.to(errors.device, errors.dtype).reshape(-1, 1, 1, 1)

    def frames(self, maps: Tensor, box: Box | None = None) -> tuple[Tensor, Tensor]:
        """(scores (N,) float64, windows (N, 4) int64 as (top, left, height, width)) of maps (N, h, w).

        box: the part of the model's grid that the frame fills, where that is not all of it.
        """
        top, left, height, width = box or (0, 0, *maps.shape[1:])
        means = window_means(maps, self.window_px, (top, left, height, width))
        tall, wide = min(self.window_px, height), min(self.window_px, width)
        if self.band_scale is not None:
            centre = top + torch.arange(means.shape[1]) + tall // 2
            means = means / self.band_scale[centre].to(means.device)[:, None]
        values, places = means.flatten(1).max(dim=1)
        row, column = places // means.shape[2], places % means.shape[2]
        size = torch.tensor([tall, wide], device=row.device).expand(len(row), 2)
        return values, torch.cat([torch.stack([row + top, column + left], dim=1), size], dim=1)

    def native(self, window: list[int], geometry: Geometry) -> tuple[int, int, int, int]:
        """A window on the model's grid as (x, y, width, height) in native pixels."""
        top, left, height, width = geometry.box
        across, down = geometry.native[1] / width, geometry.native[0] / height
        x, y = round((window[1] - left) * across), round((window[0] - top) * down)
        return (
            x,
            y,
            min(round(window[3] * across), geometry.native[1] - x),
            min(round(window[2] * down), geometry.native[0] - y),
        )
