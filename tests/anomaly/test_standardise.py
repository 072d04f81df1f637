"""Standardisation: moments against numpy, and a granularity that normals choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anodiff.anomaly.standardise import (
    Granularity,
    Moments,
    Standardisation,
    fit_granularity,
    fit_standardisation,
    log_likelihood,
)
from anodiff.engine.memory import peak_bytes

H, W = 32, 40


def folds_of(errors: Tensor, count: int = 8, foreground: Tensor | None = None) -> list[Moments]:
    """Moments of every count-th image; errors (L, N, H, W)."""
    folds = []
    for k in range(count):
        moments = Moments.empty(errors.shape[0], errors.shape[2:])
        moments.add(errors[:, k::count], None if foreground is None else foreground[k::count])
        folds.append(moments)
    return folds


def aligned_anatomy(images: int, generator: torch.Generator) -> Tensor:
    """Errors whose mean and spread depend on the place, as at the edges of aligned anatomy."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    ring = torch.exp(-40 * ((x**2 + y**2).sqrt() - 0.6) ** 2)
    return 0.2 * ring + (0.02 + 0.3 * ring) * torch.randn(2, images, H, W, generator=generator)


def sparse_motion(images: int, generator: torch.Generator) -> Tensor:
    """Errors of one small thing that moves anywhere over a still scene, and leaves it on one side to enter on the
    other."""
    thing = torch.zeros(H, W)
    thing[:4, :4] = 1.0
    shifts = torch.randint(0, H * W, (images, 2), generator=generator).tolist()
    moved = torch.stack([thing.roll((down, right), (0, 1)) for down, right in shifts])
    return 0.01 * torch.randn(2, images, H, W, generator=generator) + moved


def depth_bands(images: int, generator: torch.Generator) -> Tensor:
    """The same, seen in perspective: near things (low in the image) move more."""
    return sparse_motion(images, generator) * torch.linspace(0.05, 1.0, H)[:, None] ** 2


def test_moments_of_all_places_are_numpys_and_hold_one_map_at_a_time() -> None:
    rng = np.random.default_rng(0)
    every, found = [], Moments.empty(8, (1, 1))
    for size in ((60, 70), (33, 81)):
        errors, inside = rng.normal(1, 2, (8, 2, *size)).astype(np.float32), rng.random((2, *size)) < 0.7
        found.add_anywhere(torch.from_numpy(errors), torch.from_numpy(inside))
        every.append(errors[:, inside])
    whole = rng.normal(size=(8, 1, 12, 5)).astype(np.float32)
    found.add_anywhere(torch.from_numpy(whole))
    values = np.concatenate([*every, whole.reshape(8, -1)], axis=1).astype(np.float64)
    assert float(found.count) == values.shape[1]
    np.testing.assert_allclose(found.total.flatten().numpy(), values.sum(1), rtol=1e-12)
    np.testing.assert_allclose(found.square.flatten().numpy(), (values**2).sum(1), rtol=1e-12)
    errors = torch.randn(8, 2, 64, 64)
    assert peak_bytes(lambda: found.add_anywhere(errors, errors[0] > 0)) < 4 * 8 * 64 * 64


def test_per_pixel_moments_are_numpys() -> None:
    errors = torch.randn(3, 50, 6, 7) * torch.rand(3, 1, 6, 7) + torch.randn(3, 1, 6, 7)
    moments = Moments.sum_of(folds_of(errors))
    location, scale = fit_granularity(moments, Granularity("map", 0.0), scale_floor=0.0)
    np.testing.assert_allclose(location.numpy(), errors.double().numpy().mean(1), rtol=1e-9)
    np.testing.assert_allclose(scale.numpy(), errors.double().numpy().std(1), rtol=1e-6)


def test_rows_and_scalar_pool_what_they_name() -> None:
    errors = (torch.randn(1, 400, 64, 8) * torch.linspace(1, 3, 64)[:, None]).double() + 2.0
    moments = Moments.sum_of(folds_of(errors))
    location, scale = fit_granularity(moments, Granularity("scalar"), scale_floor=0.0)
    assert float(location) == pytest.approx(float(errors.mean()))
    assert float(scale) == pytest.approx(float(errors.std(correction=0)))
    location, scale = fit_granularity(moments, Granularity("rows", 2.0), scale_floor=0.0)
    assert location.shape == scale.shape == (1, 64, 1)
    np.testing.assert_allclose(scale[0, 4:-4, 0], torch.linspace(1, 3, 64)[4:-4], rtol=0.05)


def test_only_the_foreground_counts_and_unseen_places_take_the_overall_scale() -> None:
    errors = torch.randn(1, 40, 16, 16)
    foreground = torch.zeros(40, 16, 16, dtype=torch.bool)
    foreground[:, :, :6] = True
    loud = torch.where(foreground, errors, torch.full_like(errors, 1e3))
    moments = Moments.sum_of(folds_of(loud, foreground=foreground))
    location, scale = fit_granularity(moments, Granularity("map", 1.0), scale_floor=0.0)
    inside = errors[foreground.expand_as(errors)].double()
    assert float(scale[0, 8, 15]) == pytest.approx(float(inside.std(correction=0)))
    assert float(location[0, 8, 15]) == pytest.approx(float(inside.mean()))
    assert scale.max() < 1.5


def test_the_floor_is_added_in_quadrature() -> None:
    moments = Moments.sum_of(folds_of(aligned_anatomy(60, torch.Generator().manual_seed(0))))
    _, pure = fit_granularity(moments, Granularity("map", 2.0), scale_floor=0.0)
    _, overall = fit_granularity(moments, Granularity("scalar"), scale_floor=0.0)
    _, floored = fit_granularity(moments, Granularity("map", 2.0), scale_floor=0.5)
    torch.testing.assert_close(floored**2, pure**2 + (0.5 * overall) ** 2)


def test_log_likelihood_is_that_of_the_normal_distribution() -> None:
    errors = torch.randn(2, 30, 5, 6, dtype=torch.float64)
    location, scale = torch.randn(2, 5, 6, dtype=torch.float64), 0.5 + torch.rand(2, 5, 6, dtype=torch.float64)
    expected = torch.distributions.Normal(location[:, None], scale[:, None]).log_prob(errors).mean()
    assert log_likelihood(Moments.sum_of(folds_of(errors)), location, scale) == pytest.approx(float(expected))


@pytest.mark.parametrize("scale_floor", [0.0, 0.35])
def test_aligned_anatomy_chooses_a_map(scale_floor: float) -> None:
    errors = aligned_anatomy(60, torch.Generator().manual_seed(1))
    fitted = fit_standardisation(folds_of(errors), "auto", scale_floor=scale_floor)
    assert fitted.granularity.kind == "map"
    assert fitted.location.shape == (2, H, W)


@pytest.mark.parametrize("scale_floor", [0.0, 0.35])
def test_sparse_motion_chooses_something_coarser(scale_floor: float) -> None:
    errors = sparse_motion(60, torch.Generator().manual_seed(2))
    fitted = fit_standardisation(folds_of(errors), "auto", scale_floor=scale_floor)
    assert fitted.granularity.kind in ("rows", "scalar")


def test_sparse_motion_in_perspective_chooses_bands() -> None:
    errors = depth_bands(60, torch.Generator().manual_seed(3))
    fitted = fit_standardisation(folds_of(errors), "auto", scale_floor=0.0)
    assert fitted.granularity.kind == "rows"


def test_more_normals_support_a_finer_map() -> None:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 1, 4, 5, generator=generator)
    spread = 0.5 + torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear")[0, 0]
    few, many = (
        fit_standardisation(folds_of(spread * torch.randn(1, n, H, W, generator=generator)), "map", scale_floor=0.0)
        for n in (8, 800)
    )
    assert many.granularity.width < few.granularity.width


def test_standardised_normals_have_mean_0_and_spread_1() -> None:
    generator = torch.Generator().manual_seed(5)
    fitted = fit_standardisation(folds_of(aligned_anatomy(200, generator)), "map", map_px=0.0, scale_floor=0.0)
    fresh = fitted(aligned_anatomy(200, generator))
    assert fresh.mean(1).abs().max() < 0.5
    assert float(fresh.std()) == pytest.approx(1.0, abs=0.05)


def test_what_is_asked_for_is_used_without_a_choice() -> None:
    errors = sparse_motion(20, torch.Generator().manual_seed(6))
    assert fit_standardisation(folds_of(errors), "map", map_px=3.0).granularity == Granularity("map", 3.0)
    assert fit_standardisation(folds_of(errors), "scalar").granularity.kind == "scalar"
    assert fit_standardisation(folds_of(errors), "rows").granularity.kind == "rows"


def test_one_fold_tests_no_choice_and_takes_the_coarsest() -> None:
    errors = aligned_anatomy(20, torch.Generator().manual_seed(7))
    fitted = fit_standardisation(folds_of(errors, 1), "auto")
    assert fitted.granularity.kind == "scalar"
    assert fitted.log_likelihoods == {}


def test_constant_errors_do_not_divide_by_zero() -> None:
    fitted = fit_standardisation(folds_of(torch.zeros(1, 8, H, W)), "map", scale_floor=0.0)
    assert fitted(torch.zeros(1, 2, H, W)).isfinite().all()


def test_volumes_have_maps_too() -> None:
    errors = torch.randn(1, 12, 6, 7, 8) * torch.linspace(1, 9, 8)
    fitted = fit_standardisation(folds_of(errors), "auto")
    assert fitted.granularity.kind == "map"
    assert isinstance(fitted, Standardisation)
    assert fitted(errors).shape == errors.shape


def test_none_is_not_a_standardisation() -> None:
    with pytest.raises(ValueError, match="none"):
        fit_standardisation(folds_of(torch.zeros(1, 8, H, W)), "none")
