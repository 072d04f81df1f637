"""AUPRO against its definition, threshold by threshold, and against adeval where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from anodiff.errors import DataError
from anodiff.metrics import aupro
from anodiff.metrics.aupro import why_no_aupro

Maps = list[np.ndarray]


def by_definition(maps: Any, masks: Any, limit: float) -> float:
    """Mean overlap and false-positive rate at every distinct score, trapezoids, a straight line at the limit."""
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        labels = measure.label(mask, connectivity=np.ndim(mask))
        regions += [values[labels == k] for k in range(1, labels.max() + 1)]
    normal = np.concatenate([values[~mask] for values, mask in zip(maps, masks, strict=True)])
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(np.ravel(maps))[::-1]:
        fpr.append(float(np.mean(normal >= threshold)))
        pro.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    x, y = np.array(fpr), np.array(pro)
    inside = x <= limit
    y = np.append(y[inside], np.interp(limit, x[inside.sum() - 1 :], y[inside.sum() - 1 :]))
    return float(np.trapezoid(y, np.append(x[inside], limit)) / limit)


def _case(decimals: int = 6, seed: int = 0, n: int = 6, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for i in range(0, n, 2):
        masks[i, 1:4, 2:5] = masks[i, 7 : 9 + i // 2, 6:11] = True
    return np.round(rng.normal(size=masks.shape) + 1.2 * masks, decimals).astype(np.float32), masks


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_it_is_the_definition(limit: float, decimals: int) -> None:
    maps, masks = _case(decimals)
    assert aupro(maps, masks, limit) == pytest.approx(by_definition(maps, masks, limit), abs=1e-12)


def test_a_constant_map_scores_the_diagonal_and_a_perfect_one_1() -> None:
    maps, masks = _case()
    for limit in (0.05, 0.3):
        assert aupro(np.zeros(maps.shape), masks, limit) == pytest.approx(limit / 2, abs=1e-12)
        assert aupro(masks.astype(float), masks, limit) == pytest.approx(1.0, abs=1e-12)
        assert aupro(-masks.astype(float), masks, limit) == 0.0


def test_small_and_large_regions_weigh_the_same() -> None:
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 0, 0] = True
    mask[0, 5:15, 5:15] = True
    found_small = np.zeros(mask.shape)
    found_small[0, 0, 0] = 1.0
    # Half of the regions at once, the other half along the diagonal of the tied background.
    assert aupro(found_small, mask, 0.3) == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-12)


def test_undefined_is_none_with_a_reason() -> None:
    maps, masks = _case()
    assert aupro(maps, np.zeros(masks.shape, bool)) is None
    assert aupro([], []) is None
    assert aupro(maps[1:2], [None]) is None
    assert aupro(maps, np.ones(masks.shape, bool)) is None
    assert why_no_aupro(0, 5) == "no anomalous region"
    assert why_no_aupro(3, 0) == "no normal pixel"
    assert why_no_aupro(3, 5) is None


def test_volumes_tensors_half_floats_and_mixed_sizes() -> None:
    maps, masks = _case(1)
    whole = aupro(maps, masks)
    assert aupro(torch.from_numpy(maps), torch.from_numpy(masks)) == whole
    assert aupro(maps.astype(np.float16), masks) == pytest.approx(whole, abs=1e-12)
    assert aupro([maps[0], maps[2][:, :11]], [masks[0], masks[2][:, :11]]) is not None
    volume = aupro([maps], [masks])
    assert volume == pytest.approx(by_definition([maps], [masks], 0.3), abs=1e-12)


def test_bad_input_gets_one_sentence() -> None:
    with pytest.raises(DataError, match=r"mask of image 0 .* \(2, 2\), found \(3,\)"):
        aupro([np.ones((2, 2))], [np.ones(3)])
    with pytest.raises(DataError, match="map of image 0 holds 4 NaN"):
        aupro([np.full((2, 2), np.nan)], [None])
    with pytest.raises(ValueError, match="limit"):
        aupro([np.eye(3)], [np.eye(3)], limit=0.0)


Cells = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=9, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(Cells, min_size=1, max_size=3), st.sampled_from([0.05, 0.3, 1.0]))
def test_laws(images: list[list[tuple[int, bool]]], limit: float) -> None:
    """On any small tied set: the definition, within [0, 1], unchanged by monotone transforms and by order."""
    maps: Maps = [np.array([v for v, _ in cells], float).reshape(3, 3) for cells in images]
    masks: Maps = [np.array([m for _, m in cells]).reshape(3, 3) for cells in images]
    value = aupro(maps, masks, limit)
    if not np.any(masks) or np.all(masks):
        assert value is None
        return
    assert value is not None
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(by_definition(maps, masks, limit), abs=1e-12)
    assert aupro([np.exp(3 * m) for m in maps], masks, limit) == pytest.approx(value, abs=1e-12)
    assert aupro(maps[::-1], masks[::-1], limit) == pytest.approx(value, abs=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_agrees_with_adeval(monkeypatch: pytest.MonkeyPatch) -> None:
    adeval = pytest.importorskip("adeval", reason="adeval is not installed", exc_type=ImportError)
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # the name that numpy 2 dropped
    maps, masks = _case(6, n=8, side=24)
    low, high = float(maps.min()), float(maps.max())
    theirs = adeval.EvalAccumulator(low, high, low, high)
    for values, mask in zip(maps, masks, strict=True):
        theirs.add_anomap(values, mask.astype(np.uint8))
        theirs.add_image(float(values.max()), int(mask.any()))
    assert aupro(maps, masks) == pytest.approx(theirs.summary()["p_aupro"], abs=5e-4)
