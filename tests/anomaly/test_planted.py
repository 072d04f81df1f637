"""One home of planting in held-out normals: each kind in each image, or the kinds in turn."""

from __future__ import annotations

import torch

from anodiff.anomaly.planted import CLEAN, Normals, PlantedImages
from anodiff.anomaly.planting import kinds_for, plant


def normals(count: int, seed: int, masked: bool = False) -> Normals:
    images = 0.3 * torch.randn(count, 1, 20, 20, generator=torch.Generator().manual_seed(seed))
    inside = torch.zeros(count, 20, 20, dtype=torch.bool)
    inside[:, 2:18, 2:18] = True
    return Normals(images, tuple(f"g{seed}-{n}" for n in range(count)), inside if masked else None)


def test_each_kind_in_each_normal_and_the_clean_ones_last() -> None:
    own, donors = normals(4, 0), normals(3, 1).images
    found = PlantedImages.of(own, ["blob", "cutpaste"], 5, "both", donors)
    assert found.kinds[found.planted :] == (CLEAN,) * 4
    assert torch.equal(found.images[found.planted :], own.images)
    for kind in ("blob", "cutpaste"):
        images, masks = plant(own.images, None, kind, 5, "both", donors)
        rows = [n for n, name in enumerate(found.kinds) if name == kind]
        kept = masks.flatten(1).any(dim=1)
        assert torch.equal(found.images[rows], images[kept])
        assert torch.equal(found.masks[rows], masks[kept])
        assert [found.groups[n] for n in rows] == [group for group, k in zip(own.groups, kept, strict=True) if k]


def test_kinds_take_turns_and_foreign_tissue_is_the_donors() -> None:
    own, donors = normals(11, 0), normals(5, 1)
    found = PlantedImages.in_turn(own, "both", donors)
    kinds = kinds_for("both")
    assert found.kinds == tuple(kinds[n % len(kinds)] for n in range(11))
    assert found.groups == own.groups
    for n, kind in enumerate(found.kinds):
        image, mask = plant(own.images[n : n + 1], None, kind, 0, "both", donors.images)
        assert torch.equal(found.images[n], image[0])
        assert torch.equal(found.masks[n], mask[0])


def test_nothing_depends_on_what_lies_outside_the_foreground() -> None:
    own, donors = normals(6, 0, masked=True), normals(4, 1, masked=True)
    wild = [
        Normals(torch.where(each.foreground[:, None], each.images, 9.0), each.groups, each.foreground)  # type: ignore[index]
        for each in (own, donors)
    ]
    found, other = PlantedImages.in_turn(own, "brighter", donors), PlantedImages.in_turn(wild[0], "brighter", wild[1])
    assert own.foreground is not None
    assert torch.equal(found.masks, other.masks)
    assert torch.equal(found.images[:, 0][own.foreground], other.images[:, 0][own.foreground])
    assert torch.equal(found.images[:, 0][~own.foreground], own.images[:, 0][~own.foreground])
    assert not found.masks[~own.foreground].any()
    assert found.masks.any()
