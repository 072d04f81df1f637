"""The clips a model learns from or is calibrated on: read once at the model's size, kept as bytes in a file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anodiff.config import AnodiffConfig
from anodiff.data.clip_input import ClipInput, FramePreprocessor, median_background, thinned
from anodiff.data.video.beat import between_gaps
from anodiff.engine.device import to_device
from anodiff.errors import DataError, InputError
from anodiff.training.augment import augment
from anodiff.training.examples import Drawn

if TYPE_CHECKING:
    from anodiff.data.video.table import ClipRow
    from anodiff.engine.progress import Progress


@dataclass(frozen=True)
class ClipSet:
    """Normal clips at the model's size.

    frames: uint8 (M, C, h, w), clip after clip, thinned to the model's rate, in memory that the system may page out;
    lengths: frames of each clip; times: seconds of each frame from the start of its clip (M,) float64; paths, groups:
    a string a clip; failed: a sentence for each clip that could not be used, or broke off (what came before is kept).
    """

    frames: Tensor
    lengths: tuple[int, ...]
    times: Tensor
    paths: tuple[str, ...]
    groups: tuple[str, ...]
    failed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> list[int]:
        """Row of the first frame of each clip."""
        return [sum(self.lengths[:clip]) for clip in range(len(self))]

    def clip(self, number: int) -> tuple[Tensor, Tensor]:
        """(frames (T, C, h, w), times (T,)) of one clip."""
        rows = slice(self.starts[number], self.starts[number] + self.lengths[number])
        return self.frames[rows], self.times[rows]

    @property
    def hashes(self) -> list[int]:
        """A number by which `anodiff.data.seen` knows each frame again: of its pixels at the model's size."""
        digests = (hashlib.blake2b(frame.numpy().tobytes(), digest_size=8).digest() for frame in self.frames)
        return [int.from_bytes(digest, "big") for digest in digests]

    def examples(self, reach: int, fps: float | None) -> Tensor:
        """Rows of the frames with ``reach`` frames before them in their clip since its last gap, (N,) int64.

        fps: of the model; what is a gap says `anodiff.data.video.beat.Beat`.
        """
        rows = [
            torch.arange(start + piece.start + reach, start + piece.stop)
            for start, times in zip(self.starts, self.times.split(list(self.lengths)), strict=True)
            for piece in between_gaps(times, fps, reach)
        ]
        return torch.cat(rows) if rows else torch.empty(0, dtype=torch.long)

    def take(self, clips: Sequence[int]) -> ClipSet:
        """Some of the clips (a copy of their frames)."""
        parts = [self.clip(number) for number in clips]
        return ClipSet(
            torch.cat([frames for frames, _ in parts]),
            tuple(self.lengths[number] for number in clips),
            torch.cat([times for _, times in parts]),
            tuple(self.paths[number] for number in clips),
            tuple(self.groups[number] for number in clips),
            self.failed,
        )


@dataclass
class ClipExamples:
    """Frames with their past, drawn from normal clips; the same augmentation for all frames of an example."""

    clips: ClipSet
    input: ClipInput
    config: AnodiffConfig

    def __post_init__(self) -> None:
        self.rows = self.clips.examples(self.input.video.reach, self.input.video.fps)

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, index: Tensor, u: Tensor, device: torch.device) -> Drawn:
        """See `anodiff.training.examples.Examples`."""
        clean, context = self.input(to_device(self.clips.frames[self._frames(index)], device))
        together = clean if context is None else torch.cat([clean, context], dim=1)
        moved = augment(together, self.config.augment, u)
        count = clean.shape[1]
        return Drawn(moved[:, :count], None if context is None else moved[:, count:])

    def sample(self, count: int, seed: int) -> Drawn:
        """At most ``count`` of them, drawn without replacement, not augmented."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values
        return Drawn(*self.input(self.clips.frames[self._frames(order)]))

    def _frames(self, index: Tensor) -> Tensor:
        """Rows (N, F) of the frames of each example, the current one first."""
        return self.rows[index, None] - torch.tensor(self.input.video.offsets)


def background_of(clips: ClipSet, config: AnodiffConfig) -> Tensor | None:
    """The background (C, h, w) that a recipe takes off every frame, measured on the clips; None where it wants none."""
    assert config.video is not None
    return median_background(clips.frames) if config.video.background == "median" else None


def read_clips(rows: Sequence[ClipRow], config: AnodiffConfig, *, progress: Progress | None = None) -> ClipSet:
    """Reads clips into a temporary file that goes with the last reference to it: memory does not grow with them.

    A clip that breaks off is kept up to there, one that is too short between its gaps or cannot be read is left out;
    both are named in ``failed``. Raises DataError where not one clip can be used.
    """
    from anodiff.data.video.clip import open_clip

    assert config.video is not None
    prepare = FramePreprocessor(config)
    lengths, times, kept, failed = [], [], [], []
    height, width = config.preprocess.size
    shape = (config.preprocess.channels, height, width)
    with tempfile.TemporaryFile() as store:
        for row in rows:
            seconds: list[float] = []
            began = store.tell()
            try:
                fps = row.fps or config.video.fps
                with open_clip(row.path, fps=fps, max_pixels=config.preprocess.max_pixels) as clip:
                    for frame, taken in thinned(clip, config.video.fps):
                        if taken:
                            store.write(prepare(frame.pixels).tobytes())
                            seconds.append(frame.time)
                    if clip.broken:
                        failed.append(clip.broken)
                if not between_gaps(seconds, config.video.fps, config.video.reach):
                    raise InputError(
                        f"{row.path}: expected at least {config.video.reach + 1} frames without a gap at the model's "
                        f"rate, found {len(seconds)}{' with gaps' if len(seconds) > config.video.reach else ''}"
                    )
            except InputError as error:
                failed.append(str(error))
                store.seek(began)
                seconds = []
            if seconds:
                kept.append(row)
                lengths.append(len(seconds))
                times += seconds
            if progress is not None:
                progress.update(1)
        if not kept:
            raise DataError(
                f"expected clips that can be read, found none in {len(rows)} ({failed[0] if failed else ''})"
            )
        store.flush()
        frames = np.memmap(store, dtype=np.uint8, mode="c", shape=(sum(lengths), *shape))
    return ClipSet(
        torch.from_numpy(frames),
        tuple(lengths),
        torch.tensor(times, dtype=torch.float64),
        tuple(row.path for row in kept),
        tuple(row.group or row.path for row in kept),
        tuple(failed),
    )
