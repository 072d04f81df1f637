"""RegionPool: exact values, resamples within their bound of the set drawn out in full, paired comparison."""

from __future__ import annotations

import numpy as np
import pytest

from anodiff.metrics import Pools, aupimo, aupro, lesion_sensitivity, paired_bootstrap, pool_maps, regionpool
from anodiff.metrics.bootstrap import group_weights

METRICS = ("aupro", "aupro_005", "aupimo")
BOUNDS = (0.002, 0.02)


def _images(seed: int = 0, strength: float = 2.0, n: int = 18, side: int = 14) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        mask = np.zeros((side, side), bool)
        if i % 3 == 1:
            mask[1:4, 2 : 5 + i // 3] = mask[8:11, 9:12] = True
        values = rng.gamma(1.0, 1.0, mask.shape) * (1 + (i == 0)) + strength * mask
        values[rng.random(mask.shape) < 0.3] = 0.0
        out.append((values.astype(np.float32), mask))
    return out


def _pools(images: list[tuple[np.ndarray, np.ndarray]]) -> Pools:
    groups = [f"patient {i // 3 % 4}" for i in range(len(images))]
    labels = [int(mask.any()) for _, mask in images]
    return pool_maps([(f"{i}", v, m) for i, (v, m) in enumerate(images)], labels, [0.0] * len(images), groups)


@pytest.fixture(autouse=True)
def _wide_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUPIMO at rates that a dozen tiny images can show; the bounds are a constant, so they are swapped whole."""
    monkeypatch.setattr(regionpool, "BOUNDS", BOUNDS)
    monkeypatch.setattr(regionpool, "aupimo_of", lambda a, n: _AUPIMO_OF(a, n, BOUNDS))
    monkeypatch.setattr(regionpool, "why_no_aupimo", lambda *counts: _WHY(*counts, BOUNDS))


_AUPIMO_OF, _WHY = regionpool.aupimo_of, regionpool.why_no_aupimo


def _exact(metric: str, images: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    maps, masks = [v for v, _ in images], [m for _, m in images]
    if metric == "aupimo":
        return aupimo(maps, masks, BOUNDS).mean
    return aupro(maps, masks, 0.3 if metric == "aupro" else 0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_values_are_exact(metric: str) -> None:
    images = _images()
    regions = _pools(images).regions
    assert regions.value(metric) == pytest.approx(_exact(metric, images), abs=1e-12)
    assert regions.why_undefined(metric) is None
    assert len(regions.aupimo.per_image) == len(regions.anomalous_ids) == 6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bins", [8, 2048])
def test_resamples_stay_within_the_stated_bound(metric: str, bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regionpool, "TAIL_BINS", bins)
    images = _images()
    regions = _pools(images).regions
    weights = group_weights(4, 10, seed=3)
    values, bounds = regions.resampled((metric,), weights)[metric], regions.error_bound(metric, weights)
    for b, row in enumerate(weights):
        times = dict(zip(regions.groups, row, strict=True))
        drawn = [image for i, image in enumerate(images) for _ in range(times[f"group patient {i // 3 % 4}"])]
        assert abs(values[b] - _exact(metric, drawn)) <= bounds[b] + 1e-6
    if bins == 2048:
        assert bounds.max() < 0.02


def test_everything_drawn_once_is_the_set_itself() -> None:
    regions = _pools(_images()).regions
    for metric, values in regions.resampled(METRICS, np.ones((1, 4))).items():
        assert values[0] == pytest.approx(regions.value(metric), abs=5e-3)


def test_a_group_without_normals_or_regions_gives_nan_where_nothing_else_is_drawn() -> None:
    images = _images()[:6]
    labels = [int(mask.any()) for _, mask in images]
    regions = pool_maps(
        [(f"{i}", v, m) for i, (v, m) in enumerate(images)], labels, [0.0] * 6, ["ill" if x else "well" for x in labels]
    ).regions
    only_ill, only_well = np.array([[2, 0]]), np.array([[0, 2]])
    assert np.isfinite(regions.resampled(("aupro",), only_ill)["aupro"][0])
    assert np.isnan(regions.resampled(("aupimo",), only_ill)["aupimo"][0])
    assert np.isnan(regions.resampled(("aupro",), only_well)["aupro"][0])


def test_paired_comparison_of_a_better_and_a_worse_method() -> None:
    strong, weak = _pools(_images(strength=4.0)).regions, _pools(_images(seed=1, strength=0.5)).regions
    for metric in METRICS:
        found = paired_bootstrap(strong, weak, metric, n_boot=200)
        assert found["difference"] == pytest.approx(strong.value(metric) - weak.value(metric))
        assert found["ci95"][0] > 0
        same = paired_bootstrap(strong, strong, metric, n_boot=50)
        assert same["difference"] == 0
        assert same["ci95"] == [0.0, 0.0]


@pytest.mark.parametrize("threshold", [0.5, 3.0, 5.0, 99.0])
def test_regions_found_by_group_add_up(threshold: float) -> None:
    images = _images()
    regions = _pools(images).regions
    found = regions.found_by_group(threshold)
    assert regions.group_regions.sum() == len(regions.sizes) == 12
    sensitivity = lesion_sensitivity([v for v, _ in images], [m for _, m in images], threshold)
    assert found.sum() / len(regions.sizes) == sensitivity


def test_scores_of_chosen_regions() -> None:
    images = _images()
    regions = _pools(images).regions
    everything = regions.scores_of(np.ones(len(regions.sizes), bool))
    assert sorted(everything) == sorted(np.concatenate([v[m] for v, m in images]))
    assert regions.scores_of(regions.sizes == 9).size == 9 * np.sum(regions.sizes == 9)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="aupro_005 or aupimo"):
        _pools(_images()).regions.value("auroc")
