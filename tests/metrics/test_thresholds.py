"""Thresholds on normals: the promised share of false positives, never more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anodiff.anomaly.calibration import upper_quantiles
from anodiff.errors import DataError
from anodiff.metrics import threshold_at_fpr, thresholds_on_normals


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.5, 0.99]))
def test_the_smallest_score_that_keeps_the_promise(scores: list[int], rate: float) -> None:
    values = np.array(scores, float)
    threshold = threshold_at_fpr(values, rate)
    assert np.mean(values > threshold) <= rate + 1e-9
    smaller = values[values < threshold]
    assert not smaller.size or np.mean(values > smaller.max()) > rate


@pytest.mark.parametrize("count", [1, 7, 20, 100, 1001])
def test_it_is_the_calibration_s_quantile(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    stored = upper_quantiles(torch.from_numpy(values), (0.95, 0.99))
    assert threshold_at_fpr(values, 0.05) == stored[0.95]
    assert threshold_at_fpr(values, 0.01) == stored[0.99]


def test_a_share_that_is_no_binary_fraction_is_not_rounded_down() -> None:
    """0.29 x 100 is 28.999999999999996 in floating point; 29 scores may lie above."""
    assert threshold_at_fpr(np.arange(100.0), 0.29) == 70.0


def test_names_and_pooling() -> None:
    maps = [np.arange(60.0).reshape(6, 10), np.arange(60.0, 100.0)]
    assert thresholds_on_normals(maps) == {"fpr1": 98.0, "fpr5": 94.0, "fpr10": 89.0}
    assert thresholds_on_normals(iter(maps), (0.005,)) == {"fpr0.5": 99.0}


def test_bad_input() -> None:
    with pytest.raises(DataError, match="found none"):
        thresholds_on_normals([])
    with pytest.raises(ValueError, match="NaN"):
        threshold_at_fpr([1.0, float("nan")], 0.05)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="false-positive rate"):
            threshold_at_fpr([1.0], rate)
