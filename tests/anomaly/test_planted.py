"""One home of planting in held-out normals: each kind in each image, and how sizes are told apart."""

from __future__ import annotations

from itertools import pairwise

import torch

from anodiff.anomaly.planted import CLEAN, Normals, PlantedImages
from anodiff.anomaly.planting import plant


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


def test_classes_of_size_hold_all_of_a_kind_in_order_of_area() -> None:
    found = PlantedImages.of(normals(7, 0), ["blob", "cutpaste"], 5, "both", normals(3, 1).images)
    areas = found.masks.flatten(1).sum(dim=1)
    cells = found.cells()
    assert list(cells) == ["blob", "cutpaste"]
    for kind, classes in cells.items():
        assert sorted(n for rows in classes for n in rows) == [n for n, name in enumerate(found.kinds) if name == kind]
        assert len(classes) == 3
        assert max(map(len, classes)) - min(map(len, classes)) <= 1
        for smaller, larger in pairwise(classes):
            assert areas[smaller].max() <= areas[larger].min()
    assert found.cells(1)["blob"][0] == sorted(found.cells(1)["blob"][0], key=lambda n: int(areas[n]))
    two = PlantedImages.of(normals(2, 0), ["blob"], 5, "both", normals(3, 1).images)
    assert [len(rows) for rows in two.cells()["blob"]] == [1, 1]
