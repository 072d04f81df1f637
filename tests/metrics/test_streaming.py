"""Streaming: within the stated bound of the exact form, constant memory, the same interface."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from anodiff.errors import DataError
from anodiff.metrics import ExactMetrics, StreamingMetrics, aupimo, aupro, streaming, threshold_at_fpr
from anodiff.metrics.streaming import METRICS, PixelMetrics, leading_bits

THRESHOLDS = {"fpr5": 1.6, "fpr1": 2.3}


def _images(n: int = 10, side: int = 20, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(seed)
    out: list[tuple[np.ndarray, np.ndarray | None]] = []
    for i in range(n):
        mask = np.zeros((side, side), bool)
        if i % 2:
            mask[2:5, 3 : 6 + i // 2] = mask[10:14, 12:15] = True
        values = (rng.normal(size=mask.shape) + 1.5 * mask).astype(np.float32)
        out.append((values, mask if i % 2 else None))
    return out


def _filled(metrics: PixelMetrics, images: list[tuple[np.ndarray, np.ndarray | None]]) -> PixelMetrics:
    for values, mask in images:
        metrics.update(values, mask)
    return metrics


@pytest.fixture
def _wide_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of AUPIMO that tiny images can show; those of the exact form are tested in test_aupimo.py."""
    monkeypatch.setitem(streaming.AREAS, "aupimo", streaming.LogGain(0.002, 0.02))
    monkeypatch.setattr(streaming, "why_no_aupimo", lambda *counts: _WHY(*counts, (0.002, 0.02)))


_WHY = streaming.why_no_aupimo


def test_the_exact_form_is_scikit_learn_and_the_functions() -> None:
    images = _images()
    exact = _filled(ExactMetrics(THRESHOLDS), images)
    values = np.ravel([v for v, _ in images])
    mask = np.ravel([np.zeros(v.shape, bool) if m is None else m for v, m in images])
    assert exact.value("auroc") == pytest.approx(sk.roc_auc_score(mask, values), abs=1e-12)
    assert exact.value("ap") == pytest.approx(sk.average_precision_score(mask, values), abs=1e-12)
    assert exact.value("aupro") == aupro([v for v, _ in images], [m for _, m in images])
    assert exact.value("dice_at_fpr5") == pytest.approx(sk.f1_score(mask, values > 1.6), abs=1e-12)
    assert exact.value("iou_at_fpr1") == pytest.approx(sk.jaccard_score(mask, values > 2.3), abs=1e-12)
    assert all(exact.error_bound(metric) == 0.0 for metric in exact.names)


@pytest.mark.usefixtures("_wide_bounds")
@pytest.mark.parametrize("bits", [10, 13, 22])
def test_streaming_stays_within_its_bound(bits: int) -> None:
    images = _images()
    exact, stream = _filled(ExactMetrics(THRESHOLDS), images), _filled(StreamingMetrics(THRESHOLDS, bits), images)
    expected = exact.values() | {"aupimo": aupimo([v for v, _ in images], [m for _, m in images], (0.002, 0.02)).mean}
    for metric, value in stream.values().items():
        assert value is not None
        assert abs(value - expected[metric]) <= stream.error_bound(metric) + 1e-12
        assert metric in METRICS or stream.error_bound(metric) == 0.0
    if bits == 22:
        assert max(stream.error_bound(metric) for metric in METRICS) < 5e-3


@pytest.mark.parametrize("bits", [10, 12])
def test_the_stated_bound_of_aupro_is_the_fullest_bin_over_the_limit(bits: int) -> None:
    images = _images()
    stream = StreamingMetrics(bits=bits)
    _filled(stream, images)
    fullest = stream._negative.max() / stream.n_negative
    assert stream.error_bound("aupro") <= fullest / 0.3


def test_eight_bit_maps_are_exact() -> None:
    images = [(np.round(20 * v) / 16, m) for v, m in _images()]
    exact, stream = _filled(ExactMetrics(), images), _filled(StreamingMetrics(bits=16), images)
    for metric in ("auroc", "ap", "max_dice", "aupro", "aupro_005"):
        assert stream.error_bound(metric) == 0.0
        assert stream.value(metric) == pytest.approx(exact.value(metric), abs=1e-12)


Cells = st.lists(
    st.tuples(st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1.0]), st.booleans()), min_size=1, max_size=9
)


@settings(max_examples=60, deadline=None)
@given(st.lists(Cells, min_size=1, max_size=3))
def test_the_bound_holds_on_anything(images: list[list[tuple[float, bool]]]) -> None:
    """Random, tied, constant, single-class and all-anomalous sets; both forms are undefined together."""
    exact, stream = ExactMetrics(), StreamingMetrics(bits=12)
    for cells in images:
        values, mask = np.array([v for v, _ in cells], np.float32), np.array([m for _, m in cells])
        exact.update(values, mask)
        stream.update(values, mask)
    for metric in METRICS:
        value, streamed = exact.value(metric), stream.value(metric)
        assert exact.why_undefined(metric) == stream.why_undefined(metric)
        assert (value is None) == (streamed is None) == (exact.why_undefined(metric) is not None)
        if value is not None and streamed is not None:
            assert 0 <= value <= 1
            assert abs(streamed - value) <= stream.error_bound(metric) + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=30))
def test_keys_ascend_with_the_scores(scores: list[float]) -> None:
    keys = leading_bits(np.sort(np.array(scores)), 20)
    assert (np.diff(keys) >= 0).all()
    assert (keys >= 0).all()
    assert (keys < 1 << 20).all()


def test_infinite_and_huge_scores_have_a_place() -> None:
    stream = StreamingMetrics(bits=12)
    stream.update(np.array([-np.inf, -1e300, 0.0, 1e300, np.inf]), np.array([0, 0, 0, 1, 1]))
    assert stream.value("auroc") == 1.0


def test_flipping_labels_and_scores_keeps_auroc() -> None:
    rng = np.random.default_rng(3)
    scores, labels = np.round(rng.normal(size=200), 1), rng.random(200) < 0.4
    flipped = ExactMetrics()
    flipped.update(-scores, ~labels)
    plain = ExactMetrics()
    plain.update(scores, labels)
    assert plain.value("auroc") == pytest.approx(flipped.value("auroc"), abs=1e-12)


def test_empty_and_single_class_sets_have_reasons() -> None:
    for make in (ExactMetrics, StreamingMetrics):
        metrics = make()
        assert set(metrics.values().values()) == {None}
        assert all(metrics.why_undefined(metric) for metric in METRICS)
        metrics.update(np.ones((3, 3)))
        assert metrics.why_undefined("aupro") == "no anomalous region"
        assert metrics.value("auroc") is None
        metrics = make()
        metrics.update(np.ones((3, 3)), np.ones((3, 3)))
        assert metrics.why_undefined("auroc") == "no normal pixel"
        assert metrics.why_undefined("ap") == "no normal pixel"
        assert metrics.value("ap") is metrics.value("max_dice") is None
        with pytest.raises(ValueError, match="metric must be one of"):
            metrics.value("accuracy")
        with pytest.raises(DataError, match="mask of image 1"):
            metrics.update(np.ones(3), np.ones(4))


@pytest.mark.usefixtures("_wide_bounds")
def test_two_halves_merged_are_the_whole() -> None:
    images = _images() + [(np.round(v), m) for v, m in _images(4, seed=7)]
    whole = _filled(StreamingMetrics(THRESHOLDS, 14), images)
    first, second = StreamingMetrics(THRESHOLDS, 14), StreamingMetrics(THRESHOLDS, 14)
    _filled(first, images[:5])
    _filled(second, images[5:])
    first.merge(second)
    for metric in whole.names:
        assert first.value(metric) == pytest.approx(whole.value(metric), abs=1e-12)
        assert first.error_bound(metric) == pytest.approx(whole.error_bound(metric), abs=1e-12)
    with pytest.raises(ValueError, match="same bits"):
        first.merge(StreamingMetrics(THRESHOLDS, 12))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_threshold_on_normals_keeps_its_promise_and_is_at_most_a_bin_too_high(rate: float) -> None:
    values = np.random.default_rng(5).normal(size=(4, 30, 30))
    stream = StreamingMetrics(bits=16)
    for each in values:
        stream.update(each)
    found, exact = stream.threshold_at_fpr(rate), threshold_at_fpr(values, rate)
    assert found is not None
    assert exact <= found <= exact * (1 + 2.0 ** (9 - 16)) + 1e-6
    tied = StreamingMetrics(bits=16)
    tied.update(np.round(values))
    assert tied.threshold_at_fpr(rate) == threshold_at_fpr(np.round(values), rate)
    assert StreamingMetrics(bits=10).threshold_at_fpr(0.05) is None


def test_memory_does_not_grow_with_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak while updating and evaluating, with images and with ten times as many; a large map goes in pieces."""
    monkeypatch.setattr(streaming, "CHUNK", 1 << 14)

    def peak(n: int) -> int:
        rng = np.random.default_rng(0)
        mask = np.zeros((128, 128), bool)
        mask[:8, :8] = True
        tracemalloc.start()
        stream = StreamingMetrics(bits=16)
        for i in range(n):
            stream.update(rng.random((128, 128), dtype=np.float32), mask if i % 2 else None)
        stream.values()
        stream.error_bound("aupro")
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, many = peak(8), peak(80)
    assert many < 1.1 * few
    assert many < 49 * 2**16 * 3 + 4e6


def test_bits_out_of_range_are_refused() -> None:
    for bits in (9, 27):
        with pytest.raises(ValueError, match="bits"):
            StreamingMetrics(bits=bits)
