"""Dice against direct counting, and the oracle against every threshold tried in turn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from anodiff.metrics import dice_at_threshold, iou_at_threshold, max_dice, oracle_f1, oracle_max_dice, rank_counts


def _pixels(decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    mask = rng.random((20, 30)) < 0.1
    return mask, np.round(rng.normal(size=mask.shape) + 1.5 * mask, decimals)


@pytest.mark.parametrize("threshold", [-5.0, 0.0, 1.0, 2.0, 9.0])
def test_dice_is_f1_of_strictly_above(threshold: float) -> None:
    mask, scores = _pixels(1)
    expected = f1_score(mask.ravel(), (scores > threshold).ravel(), zero_division=0.0)
    assert dice_at_threshold(mask, scores, threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [-5.0, 0.0, 1.0, 9.0])
def test_iou_is_the_jaccard_score_of_strictly_above(threshold: float) -> None:
    mask, scores = _pixels(1)
    expected = jaccard_score(mask.ravel(), (scores > threshold).ravel(), zero_division=0.0)
    assert iou_at_threshold(mask, scores, threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_oracle_is_the_best_of_all_thresholds(decimals: int) -> None:
    mask, scores = _pixels(decimals)
    tried = [2 * (mask & (scores >= t)).sum() / (mask.sum() + (scores >= t).sum()) for t in np.unique(scores)]
    assert oracle_max_dice(mask, scores) == oracle_f1(mask, scores) == pytest.approx(max(tried), abs=1e-12)
    best = max_dice(rank_counts(scores[mask], scores[~mask]))
    assert best is not None
    assert f1_score(mask.ravel(), (scores >= best[1]).ravel()) == pytest.approx(best[0], abs=1e-12)


def test_undefined_without_anomalous_pixels() -> None:
    empty = np.zeros((4, 4), bool)
    assert dice_at_threshold(empty, np.ones((4, 4)), 0.5) is None
    assert iou_at_threshold(empty, np.ones((4, 4)), 0.5) is None
    assert oracle_max_dice(empty, np.ones((4, 4))) is None
    assert max_dice(rank_counts([], [1.0])) is None


def test_nothing_above_the_threshold_is_a_real_zero() -> None:
    mask, scores = _pixels(3)
    assert dice_at_threshold(mask, scores, float(scores.max())) == 0.0


def test_constant_map_predicts_everything() -> None:
    mask, _ = _pixels(3)
    share = mask.mean()
    assert oracle_max_dice(mask, np.zeros(mask.shape)) == pytest.approx(2 * share / (1 + share))
