"""AUROC and AP against scikit-learn and against their definitions, on every shape of input that turns up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from anodiff.metrics import (
    auroc,
    average_precision,
    max_dice,
    precision_recall_curve,
    rank_counts,
    roc_curve,
    why_undefined,
)


def _case(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    labels = rng.random(500) < 0.2
    scores: np.ndarray = rng.normal(size=500) + labels
    if kind == "tied":
        scores = np.round(scores)
    if kind == "constant":
        scores = np.zeros(500)
    if kind == "float32":
        scores = scores.astype(np.float32)
    if kind == "perfect":
        scores = labels + rng.random(500) * 0.5
    if kind == "reversed":
        scores = -(labels + rng.random(500) * 0.5)
    if kind == "signed zeros":
        scores = np.where(rng.random(500) < 0.5, 0.0, -0.0)
    if kind == "huge":
        scores = scores * 1e30
    if kind == "integers":
        scores = rng.integers(0, 9, 500)
    return labels, scores


KINDS = ["random", "tied", "constant", "float32", "perfect", "reversed", "signed zeros", "huge", "integers"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_scikit_learn(kind: str) -> None:
    labels, scores = _case(kind)
    assert auroc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40))
def test_auroc_is_the_share_of_ordered_pairs(items: list[tuple[bool, int]]) -> None:
    positive = np.array([s for label, s in items if label])
    negative = np.array([s for label, s in items if not label])
    value = auroc([label for label, _ in items], [s for _, s in items])
    if not len(positive) or not len(negative):
        assert value is None
        return
    beaten = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert value == pytest.approx(beaten, abs=1e-12)


def test_undefined_is_none_with_a_reason_and_never_zero() -> None:
    assert auroc([], []) is None
    assert average_precision([], []) is None
    assert auroc([0, 0], [0.1, 0.2]) is None
    assert average_precision([0, 0], [0.1, 0.2]) is None
    assert auroc([1, 1], [0.1, 0.2]) is None
    assert sk.average_precision_score([1, 1], [0.1, 0.2]) == 1.0  # which any scores get
    assert average_precision([1, 1], [0.1, 0.2]) is None
    assert max_dice(rank_counts([0.1, 0.2], [])) is None
    assert why_undefined("auroc", 0, 0) == "no image with a known label"
    assert why_undefined("auroc", 3, 0) == "no normal image"
    assert why_undefined("ap", 0, 3, "pixel") == "no anomalous pixel"
    assert why_undefined("ap", 3, 0) == why_undefined("max_dice", 3, 0) == "no normal image"
    assert why_undefined("dice", 3, 0) is None  # a threshold set elsewhere can miss some of them
    assert why_undefined("auroc", 1, 1) is None


def test_a_constant_score_gets_one_half_and_the_prevalence() -> None:
    labels = np.array([1, 0, 0, 0])
    assert auroc(labels, np.full(4, 2.0)) == 0.5
    assert average_precision(labels, np.full(4, 2.0)) == 0.25


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        auroc([0, 1], [0.0, np.nan])
    with pytest.raises(ValueError, match="shape"):
        auroc([0, 1, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="labels must be 0"):
        auroc([0, 2], [0.0, 1.0])


def test_no_rounding_at_a_hundred_million_pairs() -> None:
    positive = np.arange(10_000, dtype=np.float64)
    negative = np.arange(10_000, dtype=np.float64) + 0.5
    assert rank_counts(positive, negative).auroc == (10_000 * 9_999 / 2) / 1e8


def test_input_is_left_as_it_was() -> None:
    scores = np.array([3.0, 1.0, 2.0])
    rank_counts(scores, scores[::-1])
    assert scores.tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_curves_carry_the_areas(kind: str) -> None:
    labels, scores = _case(kind)
    counts = rank_counts(scores[labels], scores[~labels])
    roc = roc_curve(counts, max_points=10_000)
    assert roc is not None
    fpr, tpr = roc
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert np.trapezoid(tpr, fpr) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    pr = precision_recall_curve(counts, max_points=10_000)
    assert pr is not None
    area = np.sum(np.diff(pr[0], prepend=0) * pr[1])
    assert area == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)


def test_thinned_curves_stay_close_and_keep_their_ends() -> None:
    rng = np.random.default_rng(0)
    counts = rank_counts(rng.normal(1, 1, 20_000), rng.normal(0, 1, 50_000))
    roc = roc_curve(counts, max_points=200)
    assert roc is not None
    assert counts.auroc is not None
    assert len(roc[0]) <= 200
    assert (roc[0][0], roc[1][0], roc[0][-1], roc[1][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(roc[1], roc[0]) == pytest.approx(counts.auroc, abs=1e-3)
    pr = precision_recall_curve(counts, max_points=200)
    assert pr is not None
    assert len(pr[0]) <= 200
    assert pr[0][-1] == 1.0


def test_curves_of_undefined_counts_are_none() -> None:
    only_normal = rank_counts([], [0.0, 1.0])
    assert roc_curve(only_normal) is None
    assert precision_recall_curve(only_normal) is None
    assert roc_curve(rank_counts([1.0], [])) is None
