"""Parts that share no group, whatever the order of the images."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from anodiff.anomaly.groups import assign_parts

GROUPS = [f"patient {i}" for i in range(23) for _ in range(1 + i % 7)]


@pytest.mark.parametrize("shares", [[1.0, 1.0], [1.0] * 4, [3.0, 1.0]])
def test_no_group_lies_in_two_parts_and_shares_are_kept(shares: list[float]) -> None:
    parts = assign_parts(GROUPS, shares, seed=3)
    assert all(len({p for g, p in zip(GROUPS, parts, strict=True) if g == group}) == 1 for group in GROUPS)
    sizes = Counter(parts)
    for part, share in enumerate(shares):
        assert sizes[part] / len(GROUPS) == pytest.approx(share / sum(shares), abs=8 / len(GROUPS))


def test_the_order_of_the_images_does_not_matter_and_the_seed_does() -> None:
    expected = dict(zip(GROUPS, assign_parts(GROUPS, [1.0, 1.0]), strict=True))
    shuffled = random.Random(0).sample(GROUPS, len(GROUPS))
    assert dict(zip(shuffled, assign_parts(shuffled, [1.0, 1.0]), strict=True)) == expected
    assert assign_parts(GROUPS, [1.0, 1.0], seed=1) != assign_parts(GROUPS, [1.0, 1.0], seed=2)


def test_no_part_is_empty_while_groups_suffice() -> None:
    assert set(assign_parts(["a"] * 50 + ["b", "c", "d"], [1.0] * 4)) == {0, 1, 2, 3}
