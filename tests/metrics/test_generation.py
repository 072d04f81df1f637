"""Distances between sets of images: closed forms, scipy, and that each sees what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from anodiff.metrics import generation as g


def textures(count: int, seed: int, slope: float = 1.0, gain: float = 0.3, mean: float = 0.0) -> np.ndarray:
    """Gaussian images (count, 1, 24, 24) whose amplitude falls as frequency to the power -slope."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(24), np.fft.fftfreq(24), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / 24) ** slope
    images = np.fft.ifft2(np.fft.fft2(rng.standard_normal((count, 1, 24, 24))) * amplitude).real
    return mean + gain * images / images.std()


def seen(images: np.ndarray) -> g.Described:
    return g.described(images, images.reshape(len(images), -1)[:, ::23])


def test_sliced_distance_of_gaussians_is_that_of_their_moments() -> None:
    """W2 of N(0, s) and N(m, t) in one dimension is sqrt(m^2 + (s - t)^2)."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (400, 50, 3)), rng.normal(0.5, 2, (300, 50, 3))
    assert g.sliced_wasserstein(a, b) == pytest.approx(np.hypot(0.5, 1), rel=0.03)
    assert g.sliced_wasserstein(a, a) == 0


def test_sliced_distance_of_equal_counts_is_that_of_sorted_values() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (20, 50, 2)), rng.gamma(2, 1, (20, 50, 2))
    wanted = np.sqrt(np.mean((np.sort(a.reshape(-1, 2), axis=0) - np.sort(b.reshape(-1, 2), axis=0)) ** 2))
    assert g.sliced_wasserstein(a, b) == pytest.approx(wanted, rel=1e-9)


def test_projections_are_of_unit_directions_of_patches_of_the_image() -> None:
    images = np.random.default_rng(2).standard_normal((300, 2, 12, 15))
    assert g.patch_projections(images).std() == pytest.approx(1, rel=0.02)
    constant = g.patch_projections(np.ones((1, 1, 9, 9)))
    np.testing.assert_allclose(constant, np.broadcast_to(constant[:, :1], constant.shape))
    with pytest.raises(ValueError, match="at least 7x7, found 6x9"):
        g.patch_projections(np.zeros((1, 1, 6, 9)))


def test_histogram_distance_is_scipys() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.uniform(-0.9, 0.3, (5, 1, 40, 40)), rng.normal(0.1, 0.2, (7, 1, 40, 40)).clip(-1, 1)
    found = g.histogram_distance(g.intensity_histogram(a), g.intensity_histogram(b))
    assert found == pytest.approx(wasserstein_distance(a.ravel(), b.ravel()), abs=2 / g.BINS)


def test_power_of_a_wave_lies_in_its_band_and_gain_is_decibels() -> None:
    x = np.arange(32)
    wave = np.cos(2 * np.pi * 5 * x / 32)[None, None, None, :].repeat(32, axis=2)
    power = g.radial_power(wave)
    assert power.argmax() == 4
    assert np.delete(power[0], 4).max() < 1e-20
    a = textures(40, 0)
    assert g.spectrum_distance(g.radial_power(2 * a), g.radial_power(a)) == pytest.approx(20 * np.log10(2))


def test_kernel_distance_is_unbiased_and_equals_the_double_sum() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((6, 4)), rng.standard_normal((5, 4)) + 0.5

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    wanted = (
        sum(k(a[i], a[j]) for i in range(6) for j in range(6) if i != j) / 30
        + sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
        - 2 * sum(k(x, y) for x in a for y in b) / 30
    )
    assert g.kernel_distance(a, b) == pytest.approx(wanted)
    twice = np.concatenate([a, a])
    assert g.kernel_distance(twice, b, np.tile(np.arange(6), 2)) == pytest.approx(wanted)
    twice_b = np.concatenate([b, b])
    assert g.kernel_distance(twice, twice_b, *(np.tile(np.arange(n), 2) for n in (6, 5))) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="at least two images on either side, found 6 and 1"):
        g.kernel_distance(a, twice_b[[0, 5]], rows_b=np.zeros(2, dtype=np.int64))
    drawn = [g.kernel_distance(*rng.standard_normal((2, 20, 4))) for _ in range(300)]
    assert abs(np.mean(drawn)) < 3 * np.std(drawn) / np.sqrt(300)


@pytest.mark.parametrize(
    ("change", "statistic"),
    [
        ({"slope": 0.5}, "spectrum_db"),
        ({"mean": 0.2}, "intensities"),
        ({"gain": 0.45}, "patches"),
        ({"mean": 0.3}, "features_kid"),
    ],
)
def test_each_sees_what_it_is_for(change: dict[str, float], statistic: str) -> None:
    real, same, other = seen(textures(60, 0)), seen(textures(60, 1)), seen(textures(60, 2, **change))
    floor, found = g.distances(same, real), g.distances(other, real)
    assert found[statistic] > 3 * floor[statistic]


@pytest.mark.parametrize("gain", [0.3, 0.45])
def test_resampled_distances_surround_the_distance(gain: float) -> None:
    """Also that of images from the distribution of the real ones, which every resample with copies is farther from."""
    real, other = seen(textures(50, 0)), seen(textures(50, 1, gain=gain))
    value, drawn = g.distances(other, real), g.bootstrap_distances(other, real, n_boot=60)
    for name, values in drawn.items():
        low, high = np.percentile(values, (2.5, 97.5))
        assert low < value[name] < high
        assert values.mean() == pytest.approx(value[name])
    again = g.bootstrap_distances(other, real, n_boot=60)
    np.testing.assert_array_equal(again["patches"], drawn["patches"])


def known_draws(pool: g.Described, count: int, times: int, seed: int) -> list[g.Described]:
    """Sets of so many images, drawn from a distribution that is all of the pool."""
    rng = np.random.default_rng(seed)
    return [pool.take(rng.integers(0, len(pool), count)) for _ in range(times)]


def test_intervals_cover_the_mean_distance_of_sets_drawn_from_known_distributions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In 48 of 50 cases expected; images as real as the real ones, whose distance is all of it the small sets'."""
    monkeypatch.setattr(g, "PATCHES", 4)
    monkeypatch.setattr(g, "DIRECTIONS", 6)
    monkeypatch.setattr(g, "QUANTILES", 100)
    pools = seen(textures(400, 1)), seen(textures(400, 0))
    many = [
        g.distances(*pair)
        for pair in zip(*(known_draws(pool, 16, 300, 2 + k) for k, pool in enumerate(pools)), strict=True)
    ]
    wanted = {name: np.mean([each[name] for each in many]) for name in many[0]}
    covered = dict.fromkeys(wanted, 0)
    for found, real in zip(*(known_draws(pool, 16, 50, 4 + k) for k, pool in enumerate(pools)), strict=True):
        for name, values in g.bootstrap_distances(found, real, n_boot=60).items():
            low, high = np.percentile(values, (2.5, 97.5))
            covered[name] += low <= wanted[name] <= high
    assert min(covered.values()) >= 43, covered


def test_a_resample_is_what_its_rows_give() -> None:
    images = seen(textures(9, 1))
    drawn = g.Redraws(images).drawn(np.random.default_rng(5))
    rows = np.random.default_rng(5).integers(0, 9, 9)
    assert len(set(rows)) < 9
    np.testing.assert_array_equal(drawn.numbers, rows)
    wanted, real = images.take(rows), seen(textures(12, 0))
    assert g.distances(drawn, real) == pytest.approx(g.distances(wanted, real), rel=1e-9)


def test_what_is_resampled_of_two_sets_may_be_subtracted() -> None:
    """Images of two chains from one start noise stay together: what an image brings to both distances cancels."""
    real, images = seen(textures(40, 0)), textures(30, 1, gain=0.45)
    sets = (images, 1.02 * images, 1.02 * images[::-1])
    one, same, turned = (g.bootstrap_distances(seen(each), real, n_boot=40) for each in sets)
    for name in one:
        assert (same[name] - one[name]).std() < 0.3 * (turned[name] - one[name]).std()


def test_the_nearest_image_is_found() -> None:
    known = textures(30, 0)
    copies = known[[4, 21, 9]] + 0.01
    index, gap = g.nearest(copies, known)
    assert index.tolist() == [4, 21, 9]
    np.testing.assert_allclose(gap, 0.01)
