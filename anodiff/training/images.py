"""The images a model learns from or is calibrated on: read once, preprocessed, kept as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage
from anodiff.data.seen import pixel_hash
from anodiff.data.table import SampleTable, group_keys, select, split_groups
from anodiff.errors import DataError
from anodiff.training.reading import read_each


@dataclass(frozen=True)
class ImageSet:
    """images: float32 (N, C, H, W); foreground: bool (N, H, W); groups and paths: N strings; failed: sentences.

    ``hashes``: N numbers by which `anodiff.data.seen` knows an image again. ``labels``: the class of each, where known.
    ``given``: whether the foreground of each was made elsewhere.
    """

    images: Tensor
    foreground: Tensor
    groups: tuple[str, ...]
    paths: tuple[str, ...]
    failed: tuple[str, ...] = ()
    hashes: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    given: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int] | Tensor) -> ImageSet:
        """The images of the given row numbers, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        chosen = index.tolist()
        return ImageSet(
            self.images[index],
            self.foreground[index],
            tuple(self.groups[i] for i in chosen),
            tuple(self.paths[i] for i in chosen),
            self.failed,
            tuple(self.hashes[i] for i in chosen) if self.hashes else (),
            tuple(self.labels[i] for i in chosen) if self.labels else (),
            tuple(self.given[i] for i in chosen) if self.given else (),
        )

    def sample(self, count: int, seed: int = 0) -> ImageSet:
        """At most ``count`` images, drawn without replacement, in their original order."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count].sort().values)


def load_images(
    samples: SampleTable,
    preprocessor: Preprocessor,
    max_pixels: int,
    workers: int = 2,
    quiet: bool = False,
    labels: Sequence[int] = (),
) -> ImageSet:
    """Read and preprocess every image of a table; broken ones are left out and listed in ``failed``.

    ``labels``: the class of each row, which the images keep. Raises DataError when not one image can be read.
    """

    def prepare(raw: RawImage) -> tuple[Tensor, Tensor, int]:
        prepared = preprocessor(raw)
        return prepared.image, prepared.foreground, pixel_hash(raw)

    kept, found, failed = read_each(samples, prepare, max_pixels, workers, quiet)
    images, foreground, hashes = zip(*found, strict=True)
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        shown = ", ".join("x".join(map(str, size[::-1])) for size in sizes[:3])
        raise DataError(f"{samples.root}: expected images of one size, found {len(sizes)} ({shown}...)")
    table, groups = samples.table.iloc[kept], group_keys(samples)
    return ImageSet(
        torch.stack(images),
        torch.stack(foreground),
        tuple(str(groups[row]) for row in kept),
        tuple(table["path"]),
        failed,
        hashes,
        tuple(labels[row] for row in kept) if labels else (),
        tuple(map(bool, table["foreground"])),
    )


def split_normals(samples: SampleTable, holdout: float, seed: int) -> tuple[SampleTable, SampleTable]:
    """The normal images to learn from and those held out: by the data's own train/val split, else whole groups.

    Images of other splits (test, dev) are never taken. Without a ``val`` split, a share ``holdout`` of the groups of
    the training images is held out, drawn by ``seed``.

    Raises DataError where there is no normal image, only one group to draw from, or a group on both sides.
    """
    splits = set(samples.table["split"])
    usable = next((split for split in ("train", "") if split in splits), None)
    if usable is None:
        raise DataError(
            f"{samples.root}: expected images of split train or of none, found only {', '.join(sorted(splits))}"
        )
    normals = select(samples, usable, normal_only=True)
    if "val" not in splits:
        return split_groups(normals, holdout, seed)
    heldout = select(samples, "val", normal_only=True)
    shared = set(group_keys(normals)) & set(group_keys(heldout))
    if shared:
        raise DataError(
            f"{samples.root}: expected groups in one split only, found {len(shared)} in both "
            f"{usable or 'no split'} and val, {min(shared)!r} first"
        )
    return normals, heldout
