"""Normal images of any size, looked through once and read again when they are needed: they may be too large to keep."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anodiff.data.foreground import with_given
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage, read_image
from anodiff.data.seen import pixel_hash
from anodiff.data.table import SampleTable, group_keys
from anodiff.engine.progress import Progress
from anodiff.errors import DataError, InputError


@dataclass(frozen=True)
class ImageFiles:
    """Files that are images: paths, groups, sizes (H, W) and hashes, N of each; failed: sentences on the others.

    ``hashes``: numbers by which `anodiff.data.seen` knows an image again. ``beside``: the path of each given
    foreground, "" where it is estimated.
    """

    preprocessor: Preprocessor
    max_pixels: int
    paths: tuple[str, ...]
    beside: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    hashes: tuple[int, ...]
    failed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def given(self) -> tuple[bool, ...]:
        """Whether the foreground of each was made elsewhere."""
        return tuple(bool(path) for path in self.beside)

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """One image (C, H, W) float32 and its foreground (H, W) bool. Raises InputError where it cannot be used."""
        prepared = self.preprocessor(_raw(self.paths[row], self.beside[row], self.max_pixels))
        return prepared.image, prepared.foreground

    def sample(self, count: int, seed: int = 0) -> ImageFiles:
        """At most ``count`` images, drawn without replacement, in their original order."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rows = order[:count].sort().values.tolist()
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            beside=tuple(self.beside[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            sizes=tuple(self.sizes[row] for row in rows),
            hashes=tuple(self.hashes[row] for row in rows),
        )


def look_through(
    samples: SampleTable, preprocessor: Preprocessor, max_pixels: int, workers: int = 2, quiet: bool = False
) -> ImageFiles:
    """What is known of every image of a table before it is used; broken ones are left out and listed in ``failed``.

    Raises DataError when not one image can be read.
    """
    paths, beside = list(samples.table["path"]), list(samples.table["foreground"])

    def look(path: str, foreground: str) -> tuple[tuple[int, int], int] | str:
        try:
            raw = _raw(path, foreground, max_pixels)
            return preprocessor(raw).geometry.model, pixel_hash(raw)
        except InputError as error:
            return str(error)

    kept, sizes, hashes, failed = [], [], [], []
    with ThreadPoolExecutor(workers) as pool, Progress(len(paths), "images", "reading", quiet=quiet) as progress:
        for row, outcome in enumerate(pool.map(look, paths, beside)):
            progress.update(1)
            if isinstance(outcome, str):
                failed.append(outcome)
                progress.note(f"left out: {outcome}")
                continue
            kept.append(row)
            sizes.append(outcome[0])
            hashes.append(outcome[1])
    if not kept:
        raise DataError(f"{samples.root}: expected readable images, found none in {len(paths)} ({failed[0]})")
    groups = group_keys(samples)
    return ImageFiles(
        preprocessor,
        max_pixels,
        tuple(paths[row] for row in kept),
        tuple(beside[row] for row in kept),
        tuple(str(groups[row]) for row in kept),
        tuple(sizes),
        tuple(hashes),
        tuple(failed),
    )


def _raw(path: str, foreground: str, max_pixels: int) -> RawImage:
    return with_given(read_image(path, max_pixels=max_pixels), foreground, max_pixels=max_pixels)
