"""Thresholds that keep their false-alarm rate, p-values that agree with them, and a calibration that survives its
file."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
import torch

from anodiff.anomaly.calibration import (
    Calibration,
    alarms_allowed,
    calibrate,
    conformal_threshold,
    normals_needed,
    p_values,
    upper_quantiles,
)
from anodiff.anomaly.standardise import Granularity, Standardisation
from anodiff.errors import DataError

RATES = [0.01, 0.05, 0.1, 0.3, 1 / 3, 0.5, 0.07, 0.9]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [1, 2, 3, 9, 19, 20, 39, 99, 100, 199, 1000])
def test_threshold_is_the_conformal_quantile(rate: float, count: int) -> None:
    scores = torch.randperm(count).double()
    exact = Fraction(rate).limit_denominator(1000)
    k = math.ceil((count + 1) * (1 - exact))
    found = conformal_threshold(scores, rate)
    assert found == (None if k > count else float(scores.sort().values[k - 1]))
    assert alarms_allowed(rate, count) == count + 1 - k


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [5, 19, 20, 57, 100])
@pytest.mark.parametrize("distinct", [3, 1000])
def test_above_the_threshold_is_a_small_p_value_ties_included(rate: float, count: int, distinct: int) -> None:
    generator = torch.Generator().manual_seed(count)
    normal = torch.randint(0, distinct, (count,), generator=generator).double().sort().values
    tested = torch.cat([normal, normal + 0.5, torch.tensor([-1.0, distinct + 1.0])])
    threshold = conformal_threshold(normal, rate)
    small = p_values(tested, normal) <= rate
    assert small.tolist() == [threshold is not None and score > threshold for score in tested.tolist()]


def test_p_values_are_counted() -> None:
    normal = torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    found = p_values(torch.tensor([0.0, 1.0, 2.0, 2.5, 3.0, 4.0, math.nan, math.inf]), normal)
    expected = torch.tensor([5, 5, 4, 2, 2, 1, math.nan, 1], dtype=torch.float64) / 5
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("rate", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3), (1 / 3, 2), (0.5, 1), (0.9, 1)]
)
def test_normals_needed_is_the_fewest_that_suffice(rate: float, needed: int) -> None:
    assert normals_needed(rate) == needed
    assert conformal_threshold(torch.arange(needed), rate) is not None
    if needed > 1:
        assert conformal_threshold(torch.arange(needed - 1), rate) is None


def test_false_alarms_keep_to_the_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(20_000, 30, generator=generator, dtype=torch.float64)
    threshold = torch.tensor([conformal_threshold(row[1:], 0.1) for row in draws], dtype=torch.float64)
    found = float((draws[:, 0] > threshold).double().mean())
    assert found == pytest.approx(3 / 30, abs=4 * math.sqrt(0.1 * 0.9 / 20_000))


def test_quantiles_leave_the_stated_share_above() -> None:
    values = torch.randperm(1000).float()
    found = upper_quantiles(values, (0.5, 0.95, 0.99, 1.0))
    assert {share: int((values > value).sum()) for share, value in found.items()} == {
        0.5: 500,
        0.95: 50,
        0.99: 10,
        1.0: 0,
    }
    ties = torch.tensor([0.0] * 90 + [1.0] * 10)
    assert float((ties > upper_quantiles(ties, (0.95,))[0.95]).float().mean()) <= 0.05


def make(count: int = 40, rate: float = 0.05, unit: str = "image", groups: list[str] | None = None) -> Calibration:
    standardisation = Standardisation(
        torch.randn(2, 4, 5), torch.rand(2, 4, 5), Granularity("map", 2.0), {"scalar": -1.5}
    )
    return calibrate(
        torch.randn(count),
        groups or [str(i) for i in range(count)],
        torch.randn(999),
        preset="default",
        settings={"levels": [0.1, 0.2]},
        seed=4,
        rate=rate,
        unit=unit,
        standardisation=standardisation,
        counts={"threshold_images": count},
    )


def test_a_calibration_survives_json_and_tensors(tmp_path: object) -> None:
    from safetensors.torch import load, save

    ours = make()
    tensors = load(save(ours.to_tensors()))
    theirs = Calibration.from_parts(json.loads(json.dumps(ours.to_json())), tensors)
    assert theirs.to_json() == ours.to_json()
    assert theirs.pixel_threshold_fpr5 == ours.pixel_threshold_fpr5
    assert theirs.threshold == ours.threshold
    assert all(torch.equal(tensor, ours.to_tensors()[name]) for name, tensor in theirs.to_tensors().items())
    assert theirs.standardisation is not None
    assert ours.standardisation is not None
    assert theirs.standardisation.granularity == ours.standardisation.granularity


def test_a_calibration_without_standardisation_survives_too() -> None:
    ours = calibrate(
        torch.arange(30.0), ["a"] * 30, torch.randn(9), preset="anoddpm", settings={}, seed=0, rate=0.1, unit="image",
        standardisation=None, counts={},
    )  # fmt: skip
    theirs = Calibration.from_parts(json.loads(json.dumps(ours.to_json())), ours.to_tensors())
    assert theirs.standardisation is None
    assert theirs.to_json() == ours.to_json()


def test_too_few_normals_leave_p_values_and_say_how_many_are_needed() -> None:
    few = make(18)
    assert few.threshold is None
    assert few.message is not None
    assert "at least 19 normal images" in few.message
    assert "found 18" in few.message
    assert few.is_anomalous(torch.tensor([1e9])) is None
    assert float(few.p_values(torch.tensor([1e9]))) == pytest.approx(1 / 19)
    enough = make(19)
    assert enough.threshold is not None
    assert enough.message is None


def test_per_group_the_highest_image_counts() -> None:
    groups = [f"patient {i // 4}" for i in range(40)]
    found = make(40, rate=0.2, unit="group", groups=groups)
    assert found.scores.numel() == 10
    assert make(40, rate=0.05, unit="group", groups=groups).message == (
        "a false-alarm rate of 0.05 per group needs at least 19 normal groups for the threshold, found 10: "
        "scores have p-values but no threshold"
    )


def test_scores_that_are_not_finite_calibrate_nothing() -> None:
    with pytest.raises(DataError, match="found 1 that are not finite"):
        calibrate(
            torch.tensor([0.0, math.nan]), ["a", "b"], torch.zeros(1), preset="", settings={}, seed=0, rate=0.5,
            unit="image", standardisation=None, counts={},
        )  # fmt: skip
