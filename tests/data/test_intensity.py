"""One home of intensity statistics: images, volumes and the way back agree to the bit with the formulas spelt out."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from anodiff.config import IntensityConfig, PreprocessConfig
from anodiff.data.intensity import limit, line, robust_moments, statistics
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage
from anodiff.data.volumes.preprocess import VolumeIntensity, normalise
from anodiff.errors import InputError
from anodiff.restoration.intensity import intensity_of

KINDS: dict[str, dict[str, Any]] = {
    "percentile": {"kind": "percentile", "low": 2, "high": 98},
    "zscore": {"kind": "zscore"},
    "clipped zscore": {"kind": "zscore", "clip": 2},
    "robust": {"kind": "robust", "clip": 4},
    "lower": {"kind": "robust", "clip": 3.3, "spread": "lower"},
    "upper": {"kind": "robust", "clip": 5, "spread": "upper"},
}


def values(*shape: int) -> np.ndarray:
    """Skewed positive numbers, float32."""
    return np.random.default_rng(0).gamma(2.0, 40.0, shape).astype(np.float32)


def quartile_deviation(rows: np.ndarray, spread: str) -> tuple[np.ndarray, np.ndarray]:
    first, centre, third = (np.quantile(rows.astype(np.float64), q, axis=1) for q in (0.25, 0.5, 0.75))
    distance = {"both": (third - first) / 2, "lower": centre - first, "upper": third - centre}[spread]
    return centre, distance / NormalDist().inv_cdf(0.75)


def spelt_out(planes: np.ndarray, reference: np.ndarray, kind: dict[str, Any]) -> np.ndarray:
    """What images have always been mapped to: planes (C, ...), reference (C, N); to the bit."""
    shape = (-1, *[1] * (planes.ndim - 1))
    if kind["kind"] == "percentile":
        low, high = np.percentile(reference, [kind["low"], kind["high"]], axis=1)
        return np.clip((planes - low.reshape(shape)) / (high - low).reshape(shape) * 2 - 1, -1, 1)
    if kind["kind"] == "robust":
        centre, spread = quartile_deviation(reference, kind.get("spread", "both"))
        return np.clip((planes - centre.reshape(shape)) / (float(kind["clip"]) * spread.reshape(shape)), -1, 1)
    mean, spread = reference.mean(axis=1, dtype=np.float64), reference.std(axis=1, dtype=np.float64)
    scores = (planes - mean.reshape(shape)) / spread.reshape(shape)
    return np.clip(scores, -kind["clip"], kind["clip"]) if "clip" in kind else scores


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_mapped_by_the_formulas_to_the_bit(name: str, channels: int) -> None:
    pixels = values(16, 12, channels)
    settings = PreprocessConfig.model_validate({"channels": channels, "size": (16, 12), "intensity": KINDS[name]})
    raw = RawImage(pixels, 0.0, 255.0, "uint8", "x")
    planes = np.moveaxis(pixels, 2, 0)
    expected = spelt_out(planes, planes.reshape(channels, -1), KINDS[name]).astype(np.float32)
    preprocessor = Preprocessor(settings)
    assert np.array_equal(preprocessor(raw).image.numpy(), expected)
    way = intensity_of(raw, preprocessor)
    inside = np.abs(expected) < (limit(settings.intensity) or np.inf) * 0.999
    back = np.moveaxis(way.back(expected), 2, 0)
    np.testing.assert_allclose(back[inside], planes[inside], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", KINDS)
def test_volumes_are_mapped_by_the_same_line_to_the_bit(name: str) -> None:
    data = values(2, 6, 5, 4)
    inside = data[0] > 20
    settings = VolumeIntensity(**{"clip": None} | KINDS[name])
    offset, scale = line(data[:, inside].astype(np.float64), settings, "x")
    expected = (data - offset.reshape(-1, 1, 1, 1).astype(np.float32)) / scale.reshape(-1, 1, 1, 1).astype(np.float32)
    end = limit(settings)
    expected = expected if end is None else np.clip(expected, -end, end)
    found = normalise(data, inside, 0.0, 255.0, settings, "x")
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(found, spelt_out(data, data[:, inside], KINDS[name]), atol=1e-4)


@pytest.mark.parametrize(("kind", "ends"), [("unit_range", (10.0, 190.0)), ("window", (-20.0, 80.0))])
def test_a_known_range_needs_no_statistics(kind: Any, ends: tuple[float, float]) -> None:
    data = values(1, 4, 4, 4)
    settings = VolumeIntensity(kind, window=ends if kind == "window" else None)
    found = normalise(data, np.zeros((4, 4, 4), bool), 10.0, 190.0, settings, "x")
    np.testing.assert_allclose(found, np.interp(data, ends, (-1, 1)), atol=1e-6)


def test_robust_moments_of_a_normal_distribution_are_its_own() -> None:
    drawn = np.random.default_rng(1).normal(7.0, 3.0, (1, 200_000))
    for spread in ("both", "lower", "upper"):
        centre, deviation = robust_moments(drawn, spread)
        assert centre[0] == pytest.approx(7.0, abs=0.05)
        assert deviation[0] == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("kind", ["percentile", "robust", "zscore"])
def test_values_without_a_spread_are_refused_by_name(kind: Any) -> None:
    flat = np.stack([np.arange(50.0), np.full(50, 3.0)])
    settings = IntensityConfig(kind=kind, clip=5)
    for function in (statistics, line):
        with pytest.raises(InputError, match=r"scan 7: .* found no spread \((percentiles|quartiles|standard dev)"):
            function(flat, settings, "scan 7")
