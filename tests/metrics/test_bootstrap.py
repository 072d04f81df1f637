"""The bootstrap: right width, by group, alike for both methods of a pair, and honest when it cannot be done."""

from __future__ import annotations

import numpy as np
import pytest

from anodiff.errors import DataError
from anodiff.metrics import ImagePool, PixelPool, bootstrap_intervals, paired_bootstrap
from anodiff.metrics.bootstrap import group_weights, interval_of, resampled_metrics


def _image_pool(n: int, seed: int, shift: float = 1.0) -> ImagePool:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    return ImagePool(labels, rng.normal(size=n) + shift * labels, [f"{i}" for i in range(n)])


def test_weights_draw_with_replacement_and_depend_on_the_seed_only() -> None:
    weights = group_weights(20, 500, seed=4)
    assert weights.shape == (500, 20)
    assert (weights.sum(1) == 20).all()
    assert weights.var() == pytest.approx(0.95, abs=0.05)
    assert np.array_equal(weights, group_weights(20, 500, seed=4))
    assert not np.array_equal(weights, group_weights(20, 500, seed=5))


def test_interval_width_is_that_of_the_sampling_distribution() -> None:
    repeats = [value for seed in range(300) if (value := _image_pool(200, seed).value("auroc")) is not None]
    width = np.mean([np.ptp(_bounds(_image_pool(200, seed))) for seed in range(8)])
    assert width == pytest.approx(2 * 1.96 * np.std(repeats), rel=0.12)


def _bounds(pool: ImagePool) -> tuple[float, float]:
    interval = bootstrap_intervals(pool, ("auroc",), n_boot=600)["auroc"]
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def test_groups_widen_the_interval_when_their_images_are_alike() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2 == 0, 10)
    scores = np.repeat(rng.normal(size=40), 10) + labels + 0.01 * rng.normal(size=400)
    alone = _bounds(ImagePool(labels, scores, [f"{i}" for i in range(400)]))
    grouped = _bounds(ImagePool(labels, scores, [f"{i // 10}" for i in range(400)]))
    assert np.ptp(grouped) > 2 * np.ptp(alone)


def test_order_of_the_images_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    labels, scores = rng.random(50) < 0.5, rng.normal(size=50)
    groups = [f"g{i % 7}" for i in range(50)]
    order = rng.permutation(50)
    shuffled = ImagePool(labels[order], scores[order], [groups[i] for i in order])
    assert bootstrap_intervals(ImagePool(labels, scores, groups)) == bootstrap_intervals(shuffled)


def test_no_interval_without_two_groups_or_with_too_few_defined_resamples() -> None:
    single = bootstrap_intervals(ImagePool([0, 1], [0.0, 1.0], ["a", "a"]), ("auroc",))["auroc"]
    assert single.as_list() is None
    assert "at least 2" in str(single.reason)
    rare = interval_of(np.array([0.5, *[np.nan] * 9]), 5)
    assert rare.as_list() is None
    assert rare.reason == "only 1 of 10 resamples hold both classes"


def test_resamples_without_a_class_are_left_out_not_counted_as_zero() -> None:
    pool = ImagePool([1, 1, 0, 0], [3.0, 4.0, 1.0, 2.0], list("abcd"))
    values = resampled_metrics(pool, ("auroc",), n_boot=400)["auroc"]
    assert np.isnan(values).any()
    assert (values[np.isfinite(values)] == 1.0).all()
    assert bootstrap_intervals(pool, ("auroc",))["auroc"].as_list() == [1.0, 1.0]


def _pixel_pools(gain: float) -> tuple[PixelPool, PixelPool]:
    rng = np.random.default_rng(8)
    positive, noise, negative, groups = [], [], [], []
    for i in range(30):
        positive.append(rng.normal(1.0, 1.0, 40))
        noise.append(rng.normal(0.0, 0.3, 40))
        negative.append(rng.normal(0.0, 1.0, 400))
        groups.append(f"p{i % 10}")
    better = [p + gain for p in positive]
    worse = [p + n for p, n in zip(positive, noise, strict=True)]
    return PixelPool(better, negative, groups), PixelPool(worse, negative, groups)


def test_a_clear_difference_is_found_and_a_method_equals_itself() -> None:
    better, worse = _pixel_pools(0.5)
    found = paired_bootstrap(better, worse, "ap", n_boot=500)
    assert found["difference"] == pytest.approx(better.value("ap") - worse.value("ap"))  # type: ignore[operator]
    assert found["ci95"][0] > 0
    assert found["p"] < 0.01
    assert found["p"] > 0
    assert found["n_groups"] == 10
    same = paired_bootstrap(better, better, "auroc", n_boot=200)
    assert same["difference"] == 0.0
    assert same["ci95"] == [0.0, 0.0]
    assert same["p"] == 1.0


def test_pairing_is_narrower_than_two_separate_intervals() -> None:
    a, b = _pixel_pools(0.1)
    paired = paired_bootstrap(a, b, "ap", n_boot=500)
    apart = [bootstrap_intervals(pool, ("ap",), n_boot=500)["ap"].as_list() for pool in (a, b)]
    assert np.ptp(paired["ci95"]) < 0.7 * sum(np.ptp(bounds) for bounds in apart if bounds)


def test_the_p_value_is_uniform_when_there_is_no_difference() -> None:
    rng = np.random.default_rng(12)
    p_values = []
    for _ in range(120):
        labels = np.arange(80) % 2 == 0
        shared = rng.normal(size=80) + labels
        a, b = (ImagePool(labels, shared + rng.normal(size=80), [f"{i}" for i in range(80)]) for _ in range(2))
        p_values.append(paired_bootstrap(a, b, "auroc", n_boot=200)["p"])
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.16)
    assert np.mean(np.array(p_values) < 0.05) < 0.14


def test_pools_of_other_images_are_refused_and_undefined_metrics_say_so() -> None:
    a = ImagePool([0, 1], [0.0, 1.0], ["a", "b"])
    with pytest.raises(DataError, match="same images"):
        paired_bootstrap(a, ImagePool([0, 1], [0.0, 1.0], ["a", "c"]), "auroc")
    with pytest.raises(DataError, match="same images"):
        paired_bootstrap(a, ImagePool([0, 0], [0.0, 1.0], ["a", "b"]), "auroc")
    normal = ImagePool([0, 0], [0.0, 1.0], ["a", "b"])
    undefined = paired_bootstrap(normal, normal, "ap")
    assert undefined["difference"] is None
    assert undefined["p"] is None
    assert undefined["reason"]
