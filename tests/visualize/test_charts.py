"""Charts: every score is drawn once, no column mixes verdicts, curves end where they should."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anodiff.visualize.charts import Histogram, curve_plots, score_histogram

Scores = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)


def _total(histogram: Histogram) -> float:
    return sum(bar.height for bar in histogram.bars)


@settings(max_examples=150, deadline=None)
@given(Scores, st.none() | st.floats(-1e3, 1e3))
def test_all_scores_are_drawn_inside_the_chart(scores: list[float], threshold: float | None) -> None:
    histogram = score_histogram(scores, [None] * len(scores), threshold, width=600, height=200)
    assert histogram is not None
    assert histogram.kinds == (("unlabelled", len(scores)),)
    unit = min(bar.height / int(bar.text.split(": ")[1].split()[0]) for bar in histogram.bars)
    assert _total(histogram) == pytest.approx(unit * len(scores), rel=1e-6)
    for bar in histogram.bars:
        assert bar.x >= -0.01
        assert bar.width > 0
        assert bar.x + bar.width <= 600.01
        assert bar.y >= -0.01
    assert (histogram.threshold is None) == (threshold is None)
    if histogram.threshold is not None:
        assert -0.01 <= histogram.threshold <= 600.01
        for bar in histogram.bars:
            assert bar.x + bar.width <= histogram.threshold + 0.01 or bar.x >= histogram.threshold - 0.01


def test_columns_left_and_right_of_the_threshold_hold_the_verdicts() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=300), 1).tolist()
    threshold = 0.7
    histogram = score_histogram(scores, [0] * 300, threshold)
    assert histogram is not None
    assert histogram.threshold is not None
    above = sum(int(b.text.split(": ")[1].split()[0]) for b in histogram.bars if b.x >= histogram.threshold)
    assert above == sum(score > threshold for score in scores)


def test_classes_are_stacked_without_overlap() -> None:
    histogram = score_histogram([1.0] * 5 + [2.0] * 5, [0, 0, 0, 1, None] * 2, None)
    assert histogram is not None
    assert histogram.kinds == (("normal", 6), ("anomalous", 2), ("unlabelled", 2))
    for x in {bar.x for bar in histogram.bars}:
        stack = sorted((bar.y, bar.y + bar.height) for bar in histogram.bars if bar.x == x)
        for (_, bottom), (top, _) in pairwise(stack):
            assert top == pytest.approx(bottom)


def test_far_outliers_do_not_squeeze_the_rest_and_are_counted() -> None:
    histogram = score_histogram([*np.linspace(0, 1, 100), 1e6], [0] * 101, 0.9)
    assert histogram is not None
    assert histogram.beyond == 1
    assert len({bar.x for bar in histogram.bars}) > 8


def test_nothing_to_draw() -> None:
    assert score_histogram([], [], 1.0) is None
    assert score_histogram([float("nan")], [0], 1.0) is None
    assert curve_plots({}, None) == []


def test_curves_are_drawn_in_the_unit_square_with_their_areas() -> None:
    roc = (np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.75, 1.0]))
    pr = (np.array([0.5, 1.0]), np.array([1.0, 0.5]))
    plots = curve_plots({"image_roc": roc, "pixel_roc": roc, "image_pr": pr}, {"image_auroc": 0.75}, side=100)
    assert [plot.title for plot in plots] == ["ROC", "Precision and recall"]
    assert [line.label for line in plots[0].lines] == ["image, AUROC 0.750", "pixel"]
    assert plots[0].lines[0].points == "0.0,100.0 25.0,25.0 100.0,0.0"
    assert plots[1].lines[0].points == "0.0,0.0 50.0,0.0 50.0,50.0 100.0,50.0"
