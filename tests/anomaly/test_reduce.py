"""Scores from maps, against numpy, within the foreground, and alike in every batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anodiff.anomaly.reduce import reduce_maps


def reference(values: np.ndarray, reduction: str, share: float) -> float:
    if reduction == "mean":
        return float(values.mean())
    if reduction == "max":
        return float(values.max())
    return float(np.sort(values)[::-1][: max(1, round(share * len(values)))].mean())


@pytest.mark.parametrize("reduction", ["mean", "max", "topk"])
@pytest.mark.parametrize("share", [0.0001, 0.05, 1.0])
def test_agrees_with_numpy_within_the_foreground(reduction: str, share: float) -> None:
    maps = torch.randn(6, 12, 15) - 3.0
    foreground = torch.rand(6, 12, 15) > torch.linspace(0, 0.9, 6)[:, None, None]
    ours = reduce_maps(maps, reduction, topk=share, foreground=foreground)  # type: ignore[arg-type]
    theirs = [reference(m[f].double().numpy(), reduction, share) for m, f in zip(maps, foreground, strict=True)]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)


def test_without_any_foreground_all_pixels_count() -> None:
    maps = torch.randn(2, 8, 8)
    foreground = torch.zeros(2, 8, 8, dtype=torch.bool)
    foreground[1, :2] = True
    scores = reduce_maps(maps, "max", foreground=foreground)
    assert float(scores[0]) == float(maps[0].max())
    assert float(scores[1]) == float(maps[1, :2].max())


@pytest.mark.parametrize("reduction", ["mean", "max", "topk"])
def test_a_score_does_not_know_its_batch_mates(reduction: str) -> None:
    maps = torch.randn(32, 37, 41)
    foreground = torch.rand(32, 37, 41) > torch.rand(32, 1, 1)
    together = reduce_maps(maps, reduction, topk=0.03, foreground=foreground)  # type: ignore[arg-type]
    order = torch.randperm(32)
    for size in (1, 7):
        for chosen in order.split(size):
            alone = reduce_maps(maps[chosen], reduction, topk=0.03, foreground=foreground[chosen])  # type: ignore[arg-type]
            assert torch.equal(alone, together[chosen])


def test_volumes_reduce_as_their_pixels_do() -> None:
    maps = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(
        reduce_maps(maps, "topk", topk=0.1), reduce_maps(maps.flatten(1)[:, None], "topk", topk=0.1)
    )


def test_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="'median'"):
        reduce_maps(torch.zeros(1, 4, 4), "median")  # type: ignore[arg-type]
