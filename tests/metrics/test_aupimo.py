"""AUPIMO against its definition, integrated piece by piece, and against its authors' package where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anodiff.metrics import Aupimo, aupimo
from anodiff.metrics.aupimo import why_no_aupimo

WIDE = (0.01, 0.2)


def by_definition(maps: list[np.ndarray], masks: list[np.ndarray], bounds: tuple[float, float]) -> list[float]:
    """Recall against ln of the mean false-positive rate of the normal images, over every distinct score."""
    normal = [values for values, mask in zip(maps, masks, strict=True) if not mask.any()]
    rates, thresholds = [0.0], []
    for threshold in np.unique(np.concatenate([values.ravel() for values in maps]))[::-1]:
        if rates[-1] <= bounds[1]:  # no later corner lies in the range
            thresholds.append(threshold)
            rates.append(float(np.mean([np.mean(values >= threshold) for values in normal])))
    out = []
    for values, mask in zip(maps, masks, strict=True):
        if mask.any():
            recalls = [0.0, *(float(np.mean(values[mask] >= t)) for t in thresholds)]
            out.append(_log_area(rates, recalls, *bounds))
    return out


def _log_area(rates: list[float], recalls: list[float], low: float, high: float) -> float:
    """Integral over ln F in [low, high] of the polyline recall(F): a + b F between corners, so a ln F + b F."""
    total = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], recalls, recalls[1:], strict=False):
        start, end = max(x0, low), min(x1, high)
        if end > start:
            slope = (y1 - y0) / (x1 - x0)
            total += (y0 - slope * x0) * math.log(end / start) + slope * (end - start)
    return total / math.log(high / low)


def _case(decimals: int, seed: int = 0, n: int = 8, side: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(n):
        mask = np.zeros((side, side + i), bool)
        if i % 2:
            mask[2:6, 3 : 5 + i] = True
        maps.append(np.round(rng.normal(size=mask.shape) + 1.5 * mask, decimals).astype(np.float32))
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("bounds", [WIDE, (0.002, 0.02), (0.1, 1.0)])
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_it_is_the_definition(bounds: tuple[float, float], decimals: int) -> None:
    maps, masks = _case(decimals)
    found = aupimo(maps, masks, bounds)
    assert found.reason is None
    assert found.per_image == pytest.approx(np.array(by_definition(maps, masks, bounds)), abs=1e-12)
    assert found.mean == pytest.approx(np.mean(found.per_image))
    assert found.percentile(50) == pytest.approx(np.median(found.per_image))


def test_default_bounds_on_enough_pixels() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((60, 60), bool)
    mask[10:30, 10:20] = True
    masks = [mask if i < 2 else np.zeros_like(mask) for i in range(40)]
    maps = [rng.normal(size=mask.shape) + 4.0 * m for m in masks]
    found = aupimo(maps, masks)
    assert found.per_image == pytest.approx(np.array(by_definition(maps, masks, (1e-5, 1e-4))), abs=1e-12)
    assert 0.2 < found.per_image.min() < 1.0


def test_only_the_tail_of_the_normals_counts_and_one_bright_image_does_not_hide_the_others() -> None:
    """A normal image brighter than all anomalies fills the range alone; anomalies above it score 1."""
    rng = np.random.default_rng(2)
    normal = [rng.random((30, 30)) for _ in range(4)] + [rng.random((30, 30)) + 5.0]
    mask = np.zeros((30, 30), bool)
    mask[:5] = True
    below, above = 3.0 * mask, 9.0 * mask
    found = aupimo([*normal, below, above], [None] * 5 + [mask, mask], (0.001, 0.1))
    assert found.per_image == pytest.approx(np.array([0.0, 1.0]), abs=1e-12)


def test_constant_maps_score_like_chance() -> None:
    _, masks = _case(0)
    low, high = WIDE
    found = aupimo([np.zeros(mask.shape) for mask in masks], masks, WIDE)
    assert found.per_image == pytest.approx((high - low) / math.log(high / low), abs=1e-12)


def test_undefined_is_none_with_a_reason() -> None:
    maps, masks = _case(3)
    normal = [mask.any() for mask in masks].index(False)
    for found, reason in (
        (aupimo([], []), "no image with anomalous pixels"),
        (aupimo(maps, [None] * len(maps)), "no image with anomalous pixels"),
        (aupimo(maps[1:2], masks[1:2]), "no normal image"),
        (aupimo(maps, masks), "too few normal pixels"),
        (aupimo([maps[1], maps[normal][:0]], [masks[1], None]), "no normal image"),
    ):
        assert found.mean is None
        assert found.percentile(50) is None
        assert str(found.reason).startswith(reason)
    assert why_no_aupimo(1, 1, 100_000) is None
    assert why_no_aupimo(1, 1, 99_999) is not None


Cells = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(Cells, min_size=1, max_size=3), st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=9), max_size=3)
)
def test_laws(images: list[list[tuple[int, bool]]], normals: list[list[int]]) -> None:
    """On any small tied set: the definition, within [0, 1], unchanged by monotone transforms."""
    maps = [np.array([v for v, _ in cells], float) for cells in images] + [np.array(v, float) for v in normals]
    masks = [np.array([m for _, m in cells]) for cells in images] + [np.zeros(len(v), bool) for v in normals]
    found = aupimo(maps, masks, (0.2, 0.7))
    if found.reason is not None:
        return
    assert ((found.per_image >= 0) & (found.per_image <= 1)).all()
    assert found.per_image == pytest.approx(np.array(by_definition(maps, masks, (0.2, 0.7))), abs=1e-12)
    assert aupimo([np.exp(m) for m in maps], masks, (0.2, 0.7)).per_image == pytest.approx(found.per_image, abs=1e-12)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_agrees_with_the_authors_package(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("aupimo.pimo_numpy", reason="aupimo is not installed", exc_type=ImportError)
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # the name that numpy 2 dropped
    maps, masks = (np.stack([each[:, :12] for each in part]) for part in _case(6))
    bounds = (6 / 576, 60 / 576)  # whole normal pixels: the package snaps to them
    *_, values, _ = theirs.aupimo_scores(
        maps.astype(np.float64), masks, 8_000, binclf_algorithm="python", fpr_bounds=bounds, force=True
    )
    ours: Aupimo = aupimo(maps, masks, bounds)
    assert ours.per_image == pytest.approx(values[masks.any((1, 2))], abs=5e-3)
