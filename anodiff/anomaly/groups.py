"""Parts of the normals that share no group (patient, clip, part), whatever the order of the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b


def assign_parts(groups: Sequence[str], shares: Sequence[float], seed: int = 0) -> list[int]:
    """The part of each image, so that a group lies in one part only and part k holds about ``shares[k]`` of the images.

    Groups are taken in the order of a hash of their name and the seed, each by the part that lags furthest behind
    its share: the result depends on the names and sizes of the groups, not on the order of the images. With at least
    as many groups as parts no part is empty.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: blake2b(f"{seed}:{group}".encode(), digest_size=8).digest())
    filled = [0] * len(shares)
    part_of: dict[str, int] = {}
    for group in order:
        part = min(range(len(shares)), key=lambda k: filled[k] / shares[k])
        part_of[group] = part
        filled[part] += sizes[group]
    return [part_of[group] for group in groups]
