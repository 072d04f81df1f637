"""Patches of volumes, balanced over the foreground, turned and mirrored only as anatomy allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anodiff.config import AugmentConfig
from anodiff.engine.device import to_device
from anodiff.training.augment import NUMBERS
from anodiff.training.examples import Drawn

#: share of patches whose middle lies in the foreground; the others show what lies around it
FOREGROUND_SHARE = 0.9
#: places that are remembered of a volume, drawn at random where there are more
MOST_PLACES = 100_000


@dataclass(frozen=True)
class Starts:
    """First voxels (n, 3) int32 of patches: with their middle in the foreground, and anywhere.

    covered: share of the foreground that is in one of the first kind.
    """

    inner: Tensor
    anywhere: Tensor
    covered: float


@dataclass(frozen=True)
class PatchSource:
    """volume: (C, I, J, K) float16; inner, anywhere: see `Starts`; spacing in mm; wanted: patches an epoch."""

    volume: Tensor
    inner: Tensor
    anywhere: Tensor
    spacing: tuple[float, ...]
    wanted: int


def lesion_free_starts(
    free: np.ndarray, foreground: np.ndarray, patch: Sequence[int], settings: AugmentConfig
) -> Starts:
    """Where patches of a volume (I, J, K) may begin so that, turned as ``settings`` say, they stay within ``free``."""
    margin = turning_margin(patch, settings)
    window = [edge + 2 * more for edge, more in zip(patch, margin, strict=True)]
    taken = np.pad(~free, [(more, more) for more in margin])
    allowed = window_sums(taken, window) == 0
    middle = tuple(slice(edge // 2, edge // 2 + side) for edge, side in zip(patch, allowed.shape, strict=True))
    inner = allowed & foreground[middle]
    around = np.pad(inner, [(edge - 1, edge - 1) for edge in patch])
    reached = window_sums(around, patch) > 0
    covered = float(reached[foreground].mean()) if foreground.any() else 0.0
    return Starts(_places(inner), _places(allowed), covered)


def window_sums(marked: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Marked voxels in the window of ``sides`` that begins at each place it fits at, by running sums."""
    sums = marked.astype(np.int32)
    for axis, side in enumerate(sides):
        running = np.moveaxis(np.cumsum(sums, axis=axis, dtype=np.int32), axis, 0)
        ends = running[side - 1 :].copy()
        ends[1:] -= running[: len(running) - side]
        sums = np.moveaxis(ends, 0, axis)
    return sums


def turning_margin(patch: Sequence[int], settings: AugmentConfig) -> tuple[int, int, int]:
    """Voxels around a patch that a turned or zoomed one reaches, for voxels that are about cubes."""
    if not settings.rotate_deg and not settings.scale:
        return 0, 0, 0
    angle = math.radians(settings.rotate_deg)
    reach = max(patch) / 2
    i, j, k = (
        math.ceil((edge / 2 * math.cos(angle) + reach * math.sin(angle)) / (1 - settings.scale) - edge / 2) + 1
        for edge in patch
    )
    return i, j, k


@dataclass
class PatchExamples:
    """Patches drawn from prepared volumes; each volume gives as many an epoch as its covered foreground has room for.

    flips: axes (left-right, head-foot) of the grid. Turning is about the head-foot axis. ``shift_px`` adds nothing to
    places that are drawn at random.
    """

    sources: Sequence[PatchSource]
    patch: tuple[int, int, int]
    settings: AugmentConfig
    flips: tuple[int, int] = (0, 2)

    def __post_init__(self) -> None:
        self.owner = torch.repeat_interleave(
            torch.arange(len(self.sources)), torch.tensor([source.wanted for source in self.sources])
        )

    def __len__(self) -> int:
        return len(self.owner)

    def draw(self, index: Tensor, u: Tensor, device: torch.device) -> Drawn:
        """See `examples.Examples`; which place of the volume is drawn, is a function of ``u`` too."""
        margin = turning_margin(self.patch, self.settings)
        cuts, spacings = [], []
        for row, numbers in zip(index.tolist(), u.tolist(), strict=True):
            source = self.sources[int(self.owner[row])]
            places = source.inner if numbers[3] < FOREGROUND_SHARE else source.anywhere
            start = places[min(int(numbers[2] * len(places)), len(places) - 1)]
            cuts.append(_window(source.volume, start.tolist(), self.patch, margin))
            spacings.append(source.spacing)
        windows = to_device(torch.stack(cuts), device, torch.float32)
        u = to_device(u, device, torch.float32)
        if any(margin):
            head_foot = self.flips[1]
            windows = turned(windows, self.patch, torch.tensor(spacings, device=device), head_foot, u, self.settings)
        for on, axis, number in ((self.settings.flip_lr, 0, 4), (self.settings.flip_ud, 1, 5)):
            if on:
                chosen = (u[:, number] < 0.5).view(-1, 1, 1, 1, 1)
                windows = torch.where(chosen, windows.flip(2 + self.flips[axis]), windows)
        if self.settings.gain:
            gain = 1 + (2 * u[:, 6] - 1) * self.settings.gain
            windows = (windows + 1) * gain.view(-1, 1, 1, 1, 1) - 1
        return Drawn(windows)

    def sample(self, count: int, seed: int) -> Drawn:
        """At most ``count`` patches at random places, not augmented."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self), generator=generator)[:count]
        plain = replace(self, settings=AugmentConfig())
        return plain.draw(index, torch.rand(len(index), NUMBERS, generator=generator), torch.device("cpu"))


def turned(
    windows: Tensor, patch: Sequence[int], spacing: Tensor, head_foot: int, u: Tensor, settings: AugmentConfig
) -> Tensor:
    """Patches (N, C, *patch) out of the middle of windows (N, C, I, J, K), turned about an axis by
    (2 u_0 - 1) ``rotate_deg`` and zoomed by 1 + (2 u_1 - 1) ``scale``; spacing: (N, 3) mm, so that a turn is one."""
    angle = (2 * u[:, 0] - 1) * math.radians(settings.rotate_deg)
    zoom = 1 + (2 * u[:, 1] - 1) * settings.scale
    across, down = (axis for axis in range(3) if axis != head_foot)
    offsets = torch.meshgrid(
        *(torch.arange(edge, device=windows.device) - (edge - 1) / 2 for edge in patch), indexing="ij"
    )
    shape = (-1, 1, 1, 1)
    mm = [offset[None] * spacing[:, axis].view(shape) / zoom.view(shape) for axis, offset in enumerate(offsets)]
    cos, sin = angle.cos().view(shape), angle.sin().view(shape)
    mm[across], mm[down] = cos * mm[across] - sin * mm[down], sin * mm[across] + cos * mm[down]
    # grid_sample names the last axis first, in units of half the side
    grid = torch.stack(
        [2 * mm[axis] / spacing[:, axis].view(shape) / windows.shape[2 + axis] for axis in (2, 1, 0)], dim=-1
    )
    return F.grid_sample(windows, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _window(volume: Tensor, start: Sequence[int], patch: Sequence[int], margin: Sequence[int]) -> Tensor:
    """(C, *patch + margins); beyond the volume its border is repeated."""
    for axis, (first, edge, more) in enumerate(zip(start, patch, margin, strict=True)):
        side = volume.shape[1 + axis]
        if first >= more and first + edge + more <= side:
            volume = volume.narrow(1 + axis, first - more, edge + 2 * more)
        else:
            index = torch.arange(first - more, first + edge + more).clamp(0, side - 1)
            volume = volume.index_select(1 + axis, index)
    return volume.clone()


def _places(allowed: np.ndarray) -> Tensor:
    """(n, 3) int32 of a bool (I, J, K), at most MOST_PLACES of them by a fixed draw."""
    flat = np.flatnonzero(allowed)
    if len(flat) > MOST_PLACES:
        flat = np.sort(np.random.default_rng(0).choice(flat, MOST_PLACES, replace=False))
    return torch.from_numpy(np.stack(np.unravel_index(flat, allowed.shape), axis=1).astype(np.int32))
