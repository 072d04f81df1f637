"""Normal images of any size, looked through once and read again when they are needed: they may be too large to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage
from anodiff.data.seen import pixel_hash
from anodiff.data.table import SampleTable, group_keys
from anodiff.training.reading import read_each, read_raw


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
        prepared = self.preprocessor(read_raw(self.paths[row], self.beside[row], self.max_pixels))
        return prepared.image, prepared.foreground

    def take(self, rows: Sequence[int]) -> ImageFiles:
        """The images of the given row numbers, in that order."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            beside=tuple(self.beside[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            sizes=tuple(self.sizes[row] for row in rows),
            hashes=tuple(self.hashes[row] for row in rows),
        )

    def sample(self, count: int, seed: int = 0) -> ImageFiles:
        """At most ``count`` images, drawn without replacement, in their original order."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count].sort().values.tolist())


def look_through(
    samples: SampleTable, preprocessor: Preprocessor, max_pixels: int, workers: int = 2, quiet: bool = False
) -> ImageFiles:
    """What is known of every image of a table before it is used; broken ones are left out and listed in ``failed``.

    Raises DataError when not one image can be read.
    """

    def look(raw: RawImage) -> tuple[tuple[int, int], int]:
        return preprocessor(raw).geometry.model, pixel_hash(raw)

    kept, found, failed = read_each(samples, look, max_pixels, workers, quiet)
    sizes, hashes = zip(*found, strict=True)
    table, groups = samples.table.iloc[kept], group_keys(samples)
    return ImageFiles(
        preprocessor,
        max_pixels,
        tuple(table["path"]),
        tuple(table["foreground"]),
        tuple(str(groups[row]) for row in kept),
        sizes,
        hashes,
        failed,
    )
