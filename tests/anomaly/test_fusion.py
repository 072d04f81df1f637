"""Fusion of levels: worked values, signs, and what each rule promises."""

from __future__ import annotations

import pytest
import torch

from anodiff.anomaly.fusion import fuse


def levels(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("fusion", "values", "expected"),
    [
        ("mean", (1.0, 4.0, -2.0), 1.0),
        ("sqrt-mean", (1.0, 9.0), 4.0),
        ("sqrt-mean", (-1.0, -9.0), -4.0),
        ("sqrt-mean", (4.0, -4.0), 0.0),
        ("max", (1.0, -5.0, 3.0), -5.0),
        ("harmonic", (2.0, 6.0), 3.0),
        ("harmonic", (-2.0, -6.0), -3.0),
        ("harmonic", (5.0, 0.0), 0.0),
        ("harmonic", (5.0, -5.0), 0.0),
    ],
)
def test_worked_values(fusion: str, values: tuple[float, ...], expected: float) -> None:
    assert float(fuse(levels(*values), fusion)) == pytest.approx(expected, abs=2e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", ["mean", "sqrt-mean", "max", "harmonic"])
def test_equal_levels_fuse_to_themselves_and_signs_mirror(fusion: str) -> None:
    error = torch.randn(3, 5, 5)
    same = torch.stack([error, error, error])
    torch.testing.assert_close(fuse(same, fusion), error, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    several = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(fuse(-several, fusion), -fuse(several, fusion))  # type: ignore[arg-type]


def test_one_loud_level_counts_less_in_the_mean_of_roots() -> None:
    loud, agreed = levels(16.0, 0.0, 0.0, 0.0), levels(4.0, 4.0, 4.0, 4.0)
    assert float(fuse(loud, "mean")) == float(fuse(agreed, "mean"))
    assert float(fuse(loud, "sqrt-mean")) < float(fuse(agreed, "sqrt-mean"))


def test_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="'median'"):
        fuse(levels(1.0), "median")  # type: ignore[arg-type]


def test_limits_cut_the_fused_map_not_the_levels() -> None:
    found = fuse(levels(9.0, -3.0), "mean", (0.0, 4.0))
    assert float(found) == 3.0
    assert float(fuse(levels(9.0, 9.0), "mean", (0.0, 4.0))) == 4.0
    assert float(fuse(levels(-9.0, 1.0), "mean", (0.0, 4.0))) == 0.0
