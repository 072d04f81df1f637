"""Pools: exact values equal scikit-learn's, and binned resamples stay within the bound they state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from anodiff.metrics import CutPool, ImagePool, PixelPool, oracle_max_dice, rank_counts
from anodiff.metrics.bootstrap import group_weights
from anodiff.metrics.pools import binning_error, metric_of_bins, metric_value

METRICS = ("auroc", "ap", "max_dice")


def _images(
    n: int = 24, side: int = 24, background: float = 0.4
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Maps with a background of exact zeros, masks on half of the images, five groups of unequal size."""
    rng = np.random.default_rng(1)
    maps, masks, groups = [], [], []
    for i in range(n):
        mask = np.zeros((side, side), bool)
        if i % 2:
            y, x = rng.integers(4, side - 8, 2)
            mask[y : y + 5, x : x + 6] = True
        values = rng.gamma(1.0, 1.0, (side, side)) + 2.0 * mask
        values[rng.random((side, side)) < background] = 0.0
        maps.append(values.astype(np.float32))
        masks.append(mask)
        groups.append(f"patient {min(i // 3, 4)}")
    return maps, masks, groups


def _pool(bins: int = 2048, **kwargs: float) -> tuple[PixelPool, list[np.ndarray], list[np.ndarray], list[str]]:
    maps, masks, groups = _images(**kwargs)  # type: ignore[arg-type]
    pairs = list(zip(maps, masks, strict=True))
    return PixelPool([m[t] for m, t in pairs], [m[~t] for m, t in pairs], groups, bins), maps, masks, groups


def _exact(metric: str, labels: np.ndarray, scores: np.ndarray) -> float:
    if metric == "auroc":
        return float(sk.roc_auc_score(labels, scores))
    if metric == "ap":
        return float(sk.average_precision_score(labels, scores))
    best = oracle_max_dice(labels, scores)
    assert best is not None
    return best


def _drawn(weights: np.ndarray, groups: list[str], pool: PixelPool | ImagePool) -> list[int]:
    times = dict(zip(pool.groups, weights, strict=True))
    return [i for i, name in enumerate(groups) for _ in range(times[name])]


@pytest.mark.parametrize("metric", METRICS)
def test_pixel_values_are_exact(metric: str) -> None:
    pool, maps, masks, _ = _pool(bins=8)
    assert pool.value(metric) == pytest.approx(_exact(metric, np.ravel(masks), np.ravel(maps)), abs=1e-12)


@pytest.mark.parametrize("bins", [4, 32, 256])
@pytest.mark.parametrize("metric", METRICS)
def test_binned_resamples_stay_within_the_stated_bound(metric: str, bins: int) -> None:
    pool, maps, masks, groups = _pool(bins=bins)
    weights = group_weights(len(pool.groups), 12, seed=5)
    counts = pool.resample(weights)
    binned = metric_of_bins(metric, *counts)
    bound = pool.error_bound(metric, *counts)
    for b in range(len(weights)):
        rows = _drawn(weights[b], groups, pool)
        exact = _exact(metric, np.ravel([masks[i] for i in rows]), np.ravel([maps[i] for i in rows]))
        assert abs(binned[b] - exact) <= bound[b] + 1e-12
    if bins == 256:
        assert bound.max() < 0.02


def test_default_bins_are_fine_enough_to_ignore() -> None:
    pool, _, _, _ = _pool(n=60, side=64)
    counts = pool.resample(group_weights(len(pool.groups), 50, seed=0))
    for metric, tolerance in (("auroc", 2e-4), ("ap", 3e-3), ("max_dice", 3e-3)):
        assert pool.error_bound(metric, *counts).max() < tolerance


Pixels = st.lists(st.integers(0, 12), min_size=0, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(Pixels, Pixels), min_size=1, max_size=3), st.integers(2, 4), st.integers(0, 9))
def test_the_bound_holds_on_any_small_set(images: list[tuple[list[int], list[int]]], bins: int, seed: int) -> None:
    positives = [np.array(positive, np.float32) for positive, _ in images]
    negatives = [np.array(negative, np.float32) for _, negative in images]
    pool = PixelPool(positives, negatives, [f"{i}" for i in range(len(images))], bins)
    weights = group_weights(len(images), 3, seed)
    counts = pool.resample(weights)
    for b in range(3):
        times = np.repeat(np.arange(len(images)), weights[b])
        exact = rank_counts(
            np.concatenate([positives[i] for i in times]), np.concatenate([negatives[i] for i in times])
        )
        for metric in METRICS:
            value = metric_value(exact, metric)
            if value is not None:
                binned = metric_of_bins(metric, *counts)[b]
                assert abs(binned - value) <= pool.error_bound(metric, *counts)[b] + 1e-12


@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_is_reached(metric: str) -> None:
    """One bin of three anomalous and five normal pixels, in the two extreme orders: one of them is as far as stated."""
    counts = (np.array([3.0]), np.array([5.0]))
    bound = binning_error(metric, *counts, np.array([False]))
    binned = metric_of_bins(metric, *counts)
    orders = [rank_counts([6, 7, 8], [1, 2, 3, 4, 5]), rank_counts([1, 2, 3], [4, 5, 6, 7, 8])]
    values = [value for order in orders if (value := metric_value(order, metric)) is not None]
    assert max(abs(binned - value) for value in values) == pytest.approx(bound, abs=1e-12)


@pytest.mark.parametrize("bins", [3, 17, 200])
def test_whole_set_auroc_is_within_one_over_bins(bins: int) -> None:
    pool, _, _, _ = _pool(bins=bins)
    everything = pool.resample(np.ones((1, len(pool.groups))))
    value = pool.value("auroc")
    assert value is not None
    assert abs(metric_of_bins("auroc", *everything)[0] - value) <= 1 / (bins - 1)


def test_a_background_of_zeros_is_a_bin_of_its_own_and_costs_nothing() -> None:
    values = [np.zeros(1000, np.float32), np.r_[np.zeros(500), np.ones(3)].astype(np.float32)]
    pool = PixelPool([values[1]], [values[0]], ["a"], bins=16)
    counts = pool.resample(np.ones((1, 1)))
    assert pool.error_bound("ap", *counts)[0] == 0.0
    assert metric_of_bins("ap", *counts)[0] == pytest.approx(pool.value("ap"), abs=1e-12)


def test_counts_are_conserved() -> None:
    pool, _, masks, _ = _pool(bins=16)
    positive, negative = pool.resample(np.ones((1, len(pool.groups))))
    assert positive.sum() == np.sum(masks) == pool.group_positives.sum()
    assert negative.sum() == np.sum(~np.array(masks)) == pool.group_negatives.sum()


def test_dice_at_threshold_per_group_adds_up() -> None:
    pool, maps, masks, _ = _pool()
    threshold = float(maps[1][masks[1]].min())
    predicted = np.array(maps) > threshold
    hits, above = pool.above(threshold)
    assert hits.sum() == (predicted & np.array(masks)).sum()
    assert above.sum() == predicted.sum()
    cut, truth = CutPool(pool, threshold), np.ravel(masks)
    assert cut.value("dice") == pytest.approx(sk.f1_score(truth, predicted.ravel()), abs=1e-12)
    assert cut.value("iou") == pytest.approx(sk.jaccard_score(truth, predicted.ravel()), abs=1e-12)


def test_resamples_of_a_cut_are_exact_and_undefined_without_an_anomalous_pixel() -> None:
    maps = [np.array([3.0, 1.0, 2.0]), np.array([3.0, 0.0, 3.0]), np.array([5.0])]
    masks = [np.array([1, 1, 0], bool), np.array([1, 0, 0], bool), np.array([0], bool)]
    pairs = list(zip(maps, masks, strict=True))
    pool = PixelPool([m[t] for m, t in pairs], [m[~t] for m, t in pairs], ["a", "b", "c"])
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 3]])
    found = CutPool(pool, 1.5).resampled(("dice", "iou"), weights)
    for row, drawn in enumerate(weights[:3]):
        truth = np.concatenate([np.tile(t, n) for t, n in zip(masks, drawn, strict=True)])
        above = np.concatenate([np.tile(m, n) for m, n in zip(maps, drawn, strict=True)]) > 1.5
        assert found["dice"][row] == pytest.approx(sk.f1_score(truth, above))
        assert found["iou"][row] == pytest.approx(sk.jaccard_score(truth, above))
    assert np.isnan([found["dice"][3], found["iou"][3]]).all()
    with pytest.raises(ValueError, match="dice or iou, found 'auroc'"):
        CutPool(pool, 1.5).value("auroc")


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("metric", METRICS)
def test_image_resamples_are_exact(metric: str, decimals: int) -> None:
    rng = np.random.default_rng(2)
    labels = rng.random(60) < 0.5
    scores = np.round(rng.normal(size=60) + labels, decimals)
    groups = [f"g{i % 9}" for i in range(60)]
    pool = ImagePool(labels, scores, groups)
    assert pool.value(metric) == pytest.approx(_exact(metric, labels, scores), abs=1e-12)
    weights = group_weights(len(pool.groups), 10, seed=1)
    values = metric_of_bins(metric, *pool.resample(weights))
    for b in range(len(weights)):
        rows = _drawn(weights[b], groups, pool)
        assert values[b] == pytest.approx(_exact(metric, labels[rows], scores[rows]), abs=1e-12)


def test_empty_pools_have_no_values() -> None:
    for pool in (ImagePool([], [], []), PixelPool([], [], [])):
        assert [pool.value(metric) for metric in METRICS] == [None, None, None]
        assert pool.groups == ()


def test_unknown_metric_and_uneven_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="auroc, ap or max_dice"):
        ImagePool([1], [0.5], ["a"]).value("f1")
    with pytest.raises(ValueError, match="as many"):
        ImagePool([1, 0], [0.5], ["a"])
    with pytest.raises(ValueError, match="as many"):
        PixelPool([np.ones(2)], [], ["a"])
