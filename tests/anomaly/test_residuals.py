"""Residuals: worked values, polarity, SSIM against scikit-image, cosine distance against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anodiff.anomaly.residuals import apply_polarity, feature_residual, residual, ssim_residual

IMAGE = torch.tensor([0.5, -0.5, 0.0]).reshape(1, 1, 1, 3)
RECONSTRUCTION = torch.tensor([0.3, 0.1, 0.0]).reshape(1, 1, 1, 3)


@pytest.mark.parametrize(
    ("kind", "polarity", "expected"),
    [
        ("signed", "both", (0.2, -0.6, 0.0)),
        ("signed", "brighter", (0.2, -0.6, 0.0)),
        ("signed", "darker", (-0.2, 0.6, 0.0)),
        ("absolute", "both", (0.2, 0.6, 0.0)),
        ("absolute", "brighter", (0.2, 0.0, 0.0)),
        ("absolute", "darker", (0.0, 0.6, 0.0)),
        ("squared", "both", (0.04, 0.36, 0.0)),
        ("squared", "brighter", (0.04, 0.0, 0.0)),
        ("squared", "darker", (0.0, 0.36, 0.0)),
    ],
)
def test_worked_values(kind: str, polarity: str, expected: tuple[float, ...]) -> None:
    found = residual(IMAGE, RECONSTRUCTION, kind, polarity)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected).reshape(1, 1, 3))


def test_channels_are_averaged_after_the_error_is_taken() -> None:
    image = torch.tensor([0.4, -0.4]).reshape(1, 2, 1, 1)
    zero = torch.zeros_like(image)
    assert float(residual(image, zero, "signed")) == 0.0
    assert float(residual(image, zero, "absolute")) == pytest.approx(0.4)
    assert float(residual(image, zero, "absolute", "brighter")) == pytest.approx(0.2)


def test_only_a_signed_map_of_both_polarities_becomes_a_magnitude() -> None:
    maps = torch.tensor([[[-2.0, 1.0]]])
    assert torch.equal(apply_polarity(maps, "signed", "both"), maps.abs())
    assert torch.equal(apply_polarity(maps, "signed", "brighter"), maps)
    assert torch.equal(apply_polarity(maps, "absolute", "both"), maps)


def test_ssim_is_that_of_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 2, 24, 31))
    r = np.clip(x + 0.2 * rng.normal(size=x.shape), -1, 1)
    expected = [
        np.mean(
            [
                1
                - structural_similarity(
                    a, b, data_range=2, gaussian_weights=True, use_sample_covariance=False, full=True
                )[1]
                for a, b in zip(image, other, strict=True)
            ],
            axis=0,
        )
        for image, other in zip(x, r, strict=True)
    ]
    np.testing.assert_allclose(ssim_residual(torch.tensor(x), torch.tensor(r)).numpy(), expected, atol=1e-9)


def test_ssim_of_an_image_with_itself_is_no_error() -> None:
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    assert ssim_residual(x, x).abs().max() < 1e-4


def test_feature_distance_is_the_sum_of_cosine_distances() -> None:
    ours = [torch.randn(2, 8, 16, 12), torch.randn(2, 5, 8, 6)]
    theirs = [torch.randn(2, 8, 16, 12), torch.randn(2, 5, 8, 6)]
    distances = [(1 - F.cosine_similarity(a, b, dim=1))[:, None] for a, b in zip(ours, theirs, strict=True)]
    expected = sum(F.interpolate(d, (16, 12), mode="bilinear", align_corners=False) for d in distances)
    torch.testing.assert_close(feature_residual(ours, theirs, (16, 12))[:, None], expected, atol=1e-5, rtol=1e-5)


def test_feature_distance_of_dead_features_is_finite() -> None:
    dead = [torch.zeros(1, 4, 8, 8)]
    assert feature_residual(dead, dead, (8, 8)).isfinite().all()


def test_what_cannot_be_computed_is_named() -> None:
    with pytest.raises(ValueError, match="features"):
        residual(IMAGE, RECONSTRUCTION, "features")
    with pytest.raises(ValueError, match="'cubed'"):
        residual(IMAGE, RECONSTRUCTION, "cubed")  # type: ignore[arg-type]
