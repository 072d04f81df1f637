"""Baselines: against numpy, scipy and scikit-learn, and strong enough to be worth beating."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score
from torch import Tensor

from anodiff.anomaly import baselines
from anodiff.anomaly.baselines import (
    BlurResidual,
    IntensityZScore,
    PCAResidual,
    RawIntensity,
    _folds,
    _unexplained,
    standard_baselines,
)
from anodiff.anomaly.standardise import SCALE_FLOOR
from anodiff.errors import DataError

Normals = Callable[[int, int], Tensor]
Lesioned = Callable[[int, int, float], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _few_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "PLANTED_IMAGES", 40)
    monkeypatch.setattr(baselines, "SCALE_FLOORS", (0.0, 0.35, 1.0))


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


def test_planted_anomalies_are_measured_on_held_out_groups(normals: Normals) -> None:
    """The precision of one floor, anew with numpy, scipy and scikit-learn."""
    images, floor = normals(24, 0), 0.35
    seen: list[Any] = []
    fitted = IntensityZScore("brighter", 1.0)
    shown = fitted._shown
    fitted._shown = lambda *given: seen.append((given, shown(*given))) or seen[-1][1]  # type: ignore[method-assign, func-returns-value]
    fitted.fit(images)
    (_, trials, chosen, _), found = next(each for each in seen if each[0][3] == floor)
    parts = _folds(24, None)
    for fold, trial in enumerate(trials):
        others = images[parts != fold, 0].double().numpy()
        blur = partial(ndimage.gaussian_filter, sigma=chosen.granularity.width)
        mean = blur(others.mean(0))
        variance = blur((others**2).mean(0) - 2 * mean * others.mean(0) + mean**2)
        scale = np.sqrt(variance + (floor * others.std()) ** 2)
        z = (trial.errors[0].double().numpy() - mean) / scale
        maps = ndimage.gaussian_filter(z, (0.0, 1.0, 1.0))
        expected = average_precision_score(trial.masks.numpy().ravel(), maps.ravel())
        assert found[fold] == pytest.approx(expected, abs=1e-4)
        unchanged = torch.where(trial.masks, 0.0, trial.errors[0] - images[parts == fold, 0])
        assert float((unchanged == 0).float().mean()) > 0.8


@pytest.mark.parametrize("make", [IntensityZScore, PCAResidual])
def test_a_given_scale_floor_is_taken(make: Any, normals: Normals) -> None:
    assert make("brighter", 1.0, scale_floor=0.7).fit(normals(8, 0)).scale_floor_ == 0.7


@pytest.mark.parametrize("make", [IntensityZScore, PCAResidual])
def test_a_scale_floor_is_taken_where_quiet_places_mislead(make: Any) -> None:
    """Loud on the left, quiet on the right: there the faintest rim of a change outshouts every lesion on the left."""
    deviation = torch.full((24, 24), 0.02)
    deviation[:, :12] = 0.5
    images = deviation * torch.randn(60, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert make("brighter", 1.0).fit(images).scale_floor_ == 0.35


def test_the_rule_takes_the_smallest_floor_that_shows_the_planted_as_well(
    normals: Normals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where precision does not depend on the floor, none is taken; where one is clearly best, that one."""
    images = normals(16, 0)
    monkeypatch.setattr(baselines, "average_precision", lambda labels, scores: 0.5)
    assert IntensityZScore("both").fit(images).scale_floor_ == 0.0

    def best_at(floor: float) -> Any:
        def shown(self: Any, folds: Any, trials: Any, chosen: Any, tried: float) -> list[float]:
            return [0.5 - abs(tried - floor) + 0.001 * k for k in range(4)]

        return shown

    for floor in (0.35, 1.0):
        monkeypatch.setattr(baselines.Baseline, "_shown", best_at(floor))
        assert IntensityZScore("both").fit(images).scale_floor_ == floor


def test_a_single_group_gets_the_usual_floor(normals: Normals) -> None:
    assert IntensityZScore("both").fit(normals(6, 0), ["patient"] * 6).scale_floor_ == SCALE_FLOOR


def test_scores_are_reduced_as_the_detectors(normals: Normals) -> None:
    ours = RawIntensity("brighter").fit(normals(4, 0))
    maps = ours.maps(normals(4, 1))
    torch.testing.assert_close(ours.scores(maps, reduction="max"), maps.flatten(1).amax(1))
    assert (ours.scores(maps) <= ours.scores(maps, reduction="max")).all()


def test_one_normal_image_is_too_few(normals: Normals) -> None:
    for baseline in (IntensityZScore("both"), PCAResidual("both"), RawIntensity("both")):
        with pytest.raises(DataError, match="at least 2 normal images"):
            baseline.fit(normals(1, 0))
