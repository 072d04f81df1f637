"""Which images a model has learnt from, as short hashes: enough to notice one of them later, useless to recover it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from anodiff.data.readers import RawImage

#: hashes that are kept, 8 bytes each: 2 MB at most in a model file
MOST_HASHES = 250_000


def pixel_hash(raw: RawImage) -> int:
    """The first 8 bytes of blake2b of the decoded pixels and their shape, as a number.

    A copy of the file, under another name or in another lossless format, has the same one; of two different images
    one pair in 2**64 has, so that even among millions of images there is hardly a chance hit.
    """
    state = hashlib.blake2b(repr(raw.pixels.shape).encode(), digest_size=8)
    state.update(np.ascontiguousarray(raw.pixels).data)
    return int.from_bytes(state.digest(), "big")


@dataclass(frozen=True)
class SeenImages:
    """Hashes of the images that a model was trained on.

    Attributes:
        hashes: distinct ones, ascending, uint64 (n,); where there were more than MOST_HASHES, the smallest of them: a
            fair sample, since a hash has nothing to do with what is in the image.
        distinct: how many there were.
    """

    hashes: Tensor
    distinct: int

    @classmethod
    def of(cls, hashes: Iterable[int], most: int = MOST_HASHES) -> SeenImages:
        """Keeps at most ``most`` of the given hashes."""
        found = sorted(set(hashes))
        return cls(torch.from_numpy(np.array(found[:most], dtype=np.uint64)), len(found))

    def contains(self, value: int) -> bool | None:
        """Whether an image was learnt from; None where the kept sample cannot tell."""
        if len(self._kept) < self.distinct and value > self._largest:
            return None
        return value in self._kept

    def count(self, hashes: Iterable[int]) -> tuple[int, int]:
        """(images learnt from, images of which that can be told) among those of the given hashes."""
        told = [found for value in hashes if (found := self.contains(value)) is not None]
        return sum(told), len(told)

    @cached_property
    def _kept(self) -> frozenset[int]:
        return frozenset(self.hashes.tolist())

    @cached_property
    def _largest(self) -> int:
        return max(self._kept, default=-1)
