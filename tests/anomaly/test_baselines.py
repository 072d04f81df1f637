"""Baselines: against numpy, scipy and scikit-learn, and strong enough to be worth beating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from anodiff.anomaly.baselines import (
    BlurResidual,
    IntensityZScore,
    PCAResidual,
    RawIntensity,
    _unexplained,
    standard_baselines,
)
from anodiff.errors import DataError

Normals = Callable[[int, int], Tensor]
Lesioned = Callable[[int, int, float], tuple[Tensor, Tensor]]


def auroc(maps: Tensor, masks: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(masks.flatten().numpy(), maps.flatten().numpy()))


def test_raw_intensity_is_the_image_or_its_distance_from_the_normal_mean(normals: Normals) -> None:
    images = normals(6, 0)
    bright, dark, both = (RawIntensity(p).fit(images).maps(images) for p in ("brighter", "darker", "both"))  # type: ignore[arg-type]
    torch.testing.assert_close(bright, (images - images.mean())[:, 0])
    torch.testing.assert_close(dark, -bright)
    torch.testing.assert_close(both, bright.abs())


def test_blur_residual_is_scipys(normals: Normals) -> None:
    image = normals(1, 0)
    expected = image[0, 0].numpy() - ndimage.gaussian_filter(image[0, 0].double().numpy(), 3.0)
    found = BlurResidual("brighter", blur_px=3.0).fit(image).maps(image)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_intensity_z_score_is_a_local_z_score(normals: Normals) -> None:
    images, fresh = normals(400, 0), normals(20, 1)
    maps = IntensityZScore("brighter", scale_floor=0.0).fit(images).maps(fresh)
    expected = (fresh - images.mean(0)) / 0.1
    assert float((maps - expected[:, 0]).abs().mean()) < 0.15
    assert float(maps.std()) == pytest.approx(1.0, abs=0.05)


def test_pca_leaves_what_scikit_learn_leaves(normals: Normals) -> None:
    from sklearn.decomposition import PCA

    images, fresh = normals(50, 0), normals(5, 1)
    ours = PCAResidual("brighter", components=7).fit(images)
    theirs = PCA(7, svd_solver="full").fit(images.flatten(1).double().numpy())
    flat = fresh.flatten(1).double().numpy()
    expected = flat - theirs.inverse_transform(theirs.transform(flat))
    np.testing.assert_allclose(_unexplained(fresh, *ours.model_).flatten(1).numpy(), expected, atol=1e-4)


def test_pca_errors_are_standardised_by_errors_of_unseen_normals(normals: Normals) -> None:
    """With as many components as images its own images leave no error at all; new ones must still have spread 1."""
    ours = PCAResidual("brighter", components=30, scale_floor=0.0).fit(normals(40, 0))
    assert float(ours.maps(normals(40, 1)).std()) == pytest.approx(1.0, abs=0.1)


def test_pca_of_more_components_than_images_is_all_of_them(normals: Normals) -> None:
    assert PCAResidual("both", components=100).fit(normals(8, 0)).maps(normals(2, 1)).isfinite().all()


@pytest.mark.parametrize(("polarity", "contrast"), [("brighter", 0.4), ("darker", -0.4), ("both", 0.4), ("both", -0.4)])
def test_lesions_are_found(polarity: Any, contrast: float, normals: Normals, lesioned: Lesioned) -> None:
    images, masks = lesioned(20, 7, contrast)
    fitted = [b.fit(normals(60, 0)) for b in standard_baselines(polarity, 1.0)]
    found = {b.name: auroc(b.maps(images), masks) for b in fitted}
    assert found["intensity z-score"] > 0.95
    assert found["PCA(30) residual"] > 0.95
    assert list(found) == ["raw intensity", "blur residual", "intensity z-score", "PCA(30) residual"]


def test_wrong_texture_is_found_by_magnitude_before_smoothing(normals: Normals) -> None:
    images, masks = normals(20, 9), torch.zeros(20, 24, 24, dtype=torch.bool)
    masks[:, 8:16, 8:16] = True
    images[:, 0][masks] += 0.25 * torch.randn(int(masks.sum()), generator=torch.Generator().manual_seed(0))
    first, after = (
        auroc(IntensityZScore("both", 2.0, magnitude_first=m).fit(normals(60, 0)).maps(images), masks)
        for m in (True, False)
    )
    assert first > max(0.9, after)


def test_the_foreground_limits_what_is_learnt(normals: Normals, lesioned: Lesioned) -> None:
    images = normals(40, 0)
    foreground = torch.zeros(40, 24, 24, dtype=torch.bool)
    foreground[:, 4:20, 4:20] = True
    wild = torch.where(foreground[:, None], images, 20 * torch.rand(images.shape))
    for ours, theirs in zip(standard_baselines("both", 1.0), standard_baselines("both", 1.0), strict=True):
        if "PCA" in ours.name:
            continue
        fitted, reference = ours.fit(wild, foreground=foreground), theirs.fit(images, foreground=foreground)
        maps, expected = (b.maps(images[:4], foreground[:4]) for b in (fitted, reference))
        torch.testing.assert_close(maps, expected)


def test_scores_are_reduced_as_the_detectors(normals: Normals) -> None:
    ours = RawIntensity("brighter").fit(normals(4, 0))
    maps = ours.maps(normals(4, 1))
    torch.testing.assert_close(ours.scores(maps, reduction="max"), maps.flatten(1).amax(1))
    assert (ours.scores(maps) <= ours.scores(maps, reduction="max")).all()


def test_one_normal_image_is_too_few(normals: Normals) -> None:
    for baseline in (IntensityZScore("both"), PCAResidual("both"), RawIntensity("both")):
        with pytest.raises(DataError, match="at least 2 normal images"):
            baseline.fit(normals(1, 0))
