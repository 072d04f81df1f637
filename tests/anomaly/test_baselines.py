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

from anodiff.anomaly import baseline_choice, baselines, tuning_grid
from anodiff.anomaly.baseline_choice import FORMS, Finish, Trials, choose_map, choose_reduction, planted_folds
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
    monkeypatch.setattr(baseline_choice, "PLANTED_NORMALS", 4)
    monkeypatch.setattr(tuning_grid, "SMOOTHINGS", (0.0, 1.0, 2.5))
    monkeypatch.setattr(baselines, "SCALE_FLOORS", (0.0, 0.35, 1.0))


def auroc(maps: Tensor, masks: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(masks.flatten().numpy(), maps.flatten().numpy()))


#: nothing is smoothed, and nothing is chosen
BARE = Finish()
SMOOTH = Finish(smooth_px=1.0)


def test_raw_intensity_is_the_image_or_its_distance_from_the_normal_mean(normals: Normals) -> None:
    images = normals(6, 0)
    bright, dark, both = (RawIntensity(p, BARE).fit(images).maps(images) for p in ("brighter", "darker", "both"))  # type: ignore[arg-type]
    torch.testing.assert_close(bright, (images - images.mean())[:, 0])
    torch.testing.assert_close(dark, -bright)
    torch.testing.assert_close(both, bright.abs())


def test_blur_residual_is_scipys(normals: Normals) -> None:
    image = normals(1, 0)
    expected = image[0, 0].numpy() - ndimage.gaussian_filter(image[0, 0].double().numpy(), 3.0)
    found = BlurResidual("brighter", BARE, blur_px=3.0).fit(image.expand(2, -1, -1, -1)).maps(image)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_intensity_z_score_is_a_local_z_score(normals: Normals) -> None:
    images, fresh = normals(400, 0), normals(20, 1)
    maps = IntensityZScore("brighter", BARE, scale_floor=0.0).fit(images).maps(fresh)
    expected = (fresh - images.mean(0)) / 0.1
    assert float((maps - expected[:, 0]).abs().mean()) < 0.15
    assert float(maps.std()) == pytest.approx(1.0, abs=0.05)


def test_pca_leaves_what_scikit_learn_leaves(normals: Normals) -> None:
    from sklearn.decomposition import PCA

    images, fresh = normals(50, 0), normals(5, 1)
    ours = PCAResidual("brighter", BARE, scale_floor=0.0, components=7).fit(images)
    theirs = PCA(7, svd_solver="full").fit(images.flatten(1).double().numpy())
    flat = fresh.flatten(1).double().numpy()
    expected = flat - theirs.inverse_transform(theirs.transform(flat))
    np.testing.assert_allclose(_unexplained(fresh, *ours.model_)[0].flatten(1).numpy(), expected, atol=1e-4)


def test_pca_errors_are_standardised_by_errors_of_unseen_normals(normals: Normals) -> None:
    """With as many components as images its own images leave no error at all; new ones must still have spread 1."""
    ours = PCAResidual("brighter", BARE, components=30, scale_floor=0.0).fit(normals(40, 0))
    assert float(ours.maps(normals(40, 1)).std()) == pytest.approx(1.0, abs=0.1)


def test_pca_of_more_components_than_images_is_all_of_them(normals: Normals) -> None:
    assert (
        PCAResidual("both", BARE, scale_floor=0.0, components=100)
        .fit(normals(8, 0))
        .maps(normals(2, 1))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(("polarity", "contrast"), [("brighter", 0.4), ("darker", -0.4), ("both", 0.4), ("both", -0.4)])
def test_lesions_are_found(polarity: Any, contrast: float, normals: Normals, lesioned: Lesioned) -> None:
    images, masks = lesioned(20, 7, contrast)
    fitted = [b.fit(normals(60, 0)) for b in standard_baselines(polarity)]
    found = {b.name: auroc(b.maps(images), masks) for b in fitted}
    assert found["intensity z-score"] > 0.95
    assert found["PCA(30) residual"] > 0.95
    assert list(found) == ["raw intensity", "blur residual", "intensity z-score", "PCA(30) residual"]


def test_wrong_texture_is_found_by_magnitude_before_smoothing(normals: Normals) -> None:
    images, masks = normals(20, 9), torch.zeros(20, 24, 24, dtype=torch.bool)
    masks[:, 8:16, 8:16] = True
    images[:, 0][masks] += 0.25 * torch.randn(int(masks.sum()), generator=torch.Generator().manual_seed(0))
    first, after = (
        auroc(IntensityZScore("both", Finish(form=form, smooth_px=2.0)).fit(normals(60, 0)).maps(images), masks)
        for form in ("absolute", "signed")
    )
    assert first > max(0.9, after)


def test_the_foreground_limits_what_is_learnt(normals: Normals, lesioned: Lesioned) -> None:
    images = normals(40, 0)
    foreground = torch.zeros(40, 24, 24, dtype=torch.bool)
    foreground[:, 4:20, 4:20] = True
    wild = torch.where(foreground[:, None], images, 20 * torch.rand(images.shape))
    for ours, theirs in zip(*[standard_baselines("both", SMOOTH) for _ in range(2)], strict=True):
        if "PCA" in ours.name:
            continue
        fitted, reference = ours.fit(wild, foreground=foreground), theirs.fit(images, foreground=foreground)
        maps, expected = (b.maps(images[:4], foreground[:4]) for b in (fitted, reference))
        torch.testing.assert_close(maps, expected)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Trials]:
    """The trials of every baseline that is fitted."""
    kept: list[Trials] = []
    made = Trials.__post_init__
    monkeypatch.setattr(Trials, "__post_init__", lambda self: (made(self), kept.append(self)))
    return kept


def test_planted_anomalies_are_measured_on_held_out_groups(
    normals: Normals, seen: list[Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The precision of one floor, anew with numpy, scipy and scikit-learn."""
    monkeypatch.setattr(baseline_choice, "PLANTED_NORMALS", 12)
    images, floor = normals(24, 0), 0.35
    fitted = IntensityZScore("brighter", SMOOTH).fit(images)
    found = seen[0].pixel_ap(SMOOTH, floor)
    parts = _folds(24, None)
    assert len(found) == len(seen[0].planted) == 4
    for fold, planted in enumerate(seen[0].planted):
        others = images[parts != fold, 0].double().numpy()
        blur = partial(ndimage.gaussian_filter, sigma=fitted.standardisation_.granularity.width)  # type: ignore[union-attr]
        mean = blur(others.mean(0))
        variance = blur((others**2).mean(0) - 2 * mean * others.mean(0) + mean**2)
        scale = np.sqrt(variance + (floor * others.std()) ** 2)
        z = (planted.images[: planted.planted, 0].double().numpy() - mean) / scale
        maps = ndimage.gaussian_filter(z, (0.0, 1.0, 1.0))
        expected = []
        for kind in dict.fromkeys(planted.kinds[: planted.planted]):
            rows = [n for n, name in enumerate(planted.kinds) if name == kind]
            rows.sort(key=lambda n: int(planted.masks[n].sum()))
            for cell in np.array_split(np.array(rows), 3):
                expected.append(average_precision_score(planted.masks[cell].numpy().ravel(), maps[cell].ravel()))
        assert found[fold] == pytest.approx(np.mean(expected), abs=1e-4)
        clean = planted.images[planted.planted :]
        own = {tuple(image.flatten().tolist()) for image in images[parts == fold]}
        assert {tuple(image.flatten().tolist()) for image in clean} <= own


def test_the_image_precision_is_that_of_planted_against_clean_images(normals: Normals, seen: list[Trials]) -> None:
    finish = Finish("absolute", smooth_px=1.0, reduction="max")
    fitted = PCAResidual("both", finish, components=3).fit(normals(24, 0))
    trials, expected = seen[0], []
    for planted, errors in zip(trials.planted, trials.errors(fitted.scale_floor_), strict=True):
        maps = ndimage.gaussian_filter(errors.abs().double().numpy().mean(0), (0.0, 1.0, 1.0))
        scores, kinds = maps.reshape(len(maps), -1).max(1), np.array(planted.kinds)
        expected += [
            average_precision_score(kinds[rows] == kind, scores[rows])
            for kind in dict.fromkeys(planted.kinds[: planted.planted])
            for rows in [np.isin(kinds, (kind, ""))]
        ]
    found, draws = trials.image_ap(finish, fitted.scale_floor_)
    assert found == pytest.approx(np.mean(expected), abs=1e-6)
    # resamples are of these very images: their mean is near, and they do vary
    assert 0 < abs(draws.mean() - found) < 2 * draws.std()


def test_each_baseline_takes_the_best_of_the_grid(normals: Normals, seen: list[Trials]) -> None:
    fitted = IntensityZScore("both", scale_floor=0.35).fit(normals(24, 0))
    trials, chosen = seen[0], fitted.finish_
    widths = (0.0, 1.0, 2.5)  # an eighth of 24 px is 3
    ours = np.mean(trials.pixel_ap(chosen, 0.35))
    assert ours == max(np.mean(trials.pixel_ap(Finish(form, None, w), 0.35)) for form in FORMS for w in (0.75, *widths))
    others = [Finish(chosen.form, None, chosen.smooth_px, "mean"), Finish(chosen.form, None, chosen.smooth_px, "max")]
    (best, draws), compared = trials.image_ap(chosen, 0.35), [trials.image_ap(each, 0.35) for each in others]
    assert all(ap - best <= (other - draws).std(ddof=1) for ap, other in compared)
    told = fitted.settings()
    assert (told["form"], told["smooth_px"], told["scale_floor"]) == (chosen.form, chosen.smooth_px, 0.35)
    assert told["planted_ap"] == pytest.approx(ours)


class Fixed:
    """Trials whose values are given by form, width and limits; of reductions by name."""

    planted = (type("Planted", (), {"images": torch.zeros(1, 1, 32, 32)}),)

    def __init__(self, best: Finish, noise: float = 0.0) -> None:
        self.best, self.noise = best, noise

    def pixel_ap(self, finish: Finish, floor: float) -> list[float]:
        alike = (finish.form == self.best.form, finish.smooth_px == self.best.smooth_px)
        return [0.1 + 0.2 * sum(alike) + 0.05 * (finish.limits == self.best.limits)]

    def image_ap(self, finish: Finish, floor: float) -> tuple[float, np.ndarray]:
        ap = 0.5 + 0.2 * (finish.reduction == self.best.reduction)
        return ap, ap + self.noise * np.array([-1.0, 1.0]) * (finish.reduction == self.best.reduction)


def test_limits_are_offered_and_the_rest_is_found_wherever_it_is() -> None:
    limits = (0.0, 4.0)
    for best in (Finish("absolute", limits, 2.5, "mean"), Finish("squared", None, 0.0, "max"), Finish("signed", None)):
        trials: Any = Fixed(best)
        found = choose_map(trials, Finish(smooth_px=1.0), 0.0, limits, FORMS)
        assert (found.form, found.smooth_px, found.limits) == (best.form, best.smooth_px, best.limits)
        assert choose_reduction(trials, found, 0.0).reduction == best.reduction
    assert choose_map(trials, Finish(smooth_px=1.0), 0.0, limits, ("signed",)).form == "signed"


def test_a_reduction_must_earn_a_standard_error() -> None:
    start, best = Finish(), Finish(reduction="mean")
    # a gain of 0.2; two draws a distance d to either side of it have a standard deviation of d * sqrt(2)
    for noise, taken in ((0.14, best), (0.15, start)):
        trials: Any = Fixed(best, noise)
        assert choose_reduction(trials, start, 0.0).reduction == taken.reduction


def test_a_map_is_clamped_before_it_is_smoothed_and_channels_may_cancel() -> None:
    errors = torch.zeros(2, 1, 9, 9)
    errors[0, 0, 4, 4], errors[1, 0, 4, 4] = 9.0, -3.0
    expected = ndimage.gaussian_filter(np.where(np.arange(81).reshape(9, 9) == 40, 2.0, 0.0), 1.0, truncate=4.0)
    found = Finish("signed", (-2.0, 2.0), 1.0).maps(errors, "both")[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    peaks = {form: float(Finish(form).maps(errors, "both").max()) for form in FORMS}
    assert peaks == {"signed": 3.0, "squared": 45.0, "absolute": 6.0}
    assert float(Finish("absolute").maps(errors, "darker").max()) == 1.5


def test_widths_follow_the_size_of_the_image(normals: Normals) -> None:
    few = normals(4, 0)
    assert BlurResidual("both", BARE).fit(few).settings()["blur_px"] == 1.5  # 8 px of 128
    assert RawIntensity("both").fit(few, ["one"] * 4).finish_.smooth_px == 0.75  # 4 px of 128


def test_nothing_depends_on_what_lies_outside_the_foreground(normals: Normals) -> None:
    images, parts = normals(8, 0), _folds(8, None)
    foreground = torch.zeros(8, 24, 24, dtype=torch.bool)
    foreground[:, 4:20, 4:20] = True
    wild = torch.where(foreground[:, None], images, 9.0)
    for own, other in zip(
        *(planted_folds(each, parts, foreground, "brighter", [0, 1]) for each in (images, wild)), strict=True
    ):
        assert own.masks.any()
        assert torch.equal(own.masks, other.masks)
        inside = foreground[:1].expand(len(own), -1, -1)
        assert torch.equal(own.images[:, 0][inside], other.images[:, 0][inside])
        assert bool((other.images[:, 0][~inside] == 9.0).all())
        assert not own.masks[~inside].any()


@pytest.mark.parametrize("make", [IntensityZScore, PCAResidual])
def test_a_given_scale_floor_is_taken(make: Any, normals: Normals) -> None:
    assert make("brighter", SMOOTH, scale_floor=0.7).fit(normals(8, 0)).scale_floor_ == 0.7


@pytest.mark.parametrize("make", [IntensityZScore, PCAResidual])
def test_a_scale_floor_is_taken_where_quiet_places_mislead(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loud on the left, quiet on the right: there the faintest rim of a change outshouts every lesion on the left."""
    monkeypatch.setattr(baseline_choice, "PLANTED_NORMALS", 8)
    deviation = torch.full((24, 24), 0.002)
    deviation[:, :12] = 0.5
    images = deviation * torch.randn(60, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert make("brighter", SMOOTH).fit(images).scale_floor_ == 0.35


def test_the_rule_takes_the_smallest_floor_that_shows_the_planted_as_well(
    normals: Normals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where precision does not depend on the floor, none is taken; where one is clearly best, that one."""
    images = normals(16, 0)
    monkeypatch.setattr(baseline_choice, "average_precision", lambda labels, scores: 0.5)
    assert IntensityZScore("both").fit(images).scale_floor_ == 0.0

    def best_at(best: float) -> Any:
        return lambda self, finish, floor: [0.5 - abs(floor - best) + 0.001 * k for k in range(4)]

    for floor in (0.35, 1.0):
        monkeypatch.setattr(Trials, "pixel_ap", best_at(floor))
        assert IntensityZScore("both").fit(images).scale_floor_ == floor


def test_a_single_group_gets_the_usual_floor(normals: Normals) -> None:
    assert IntensityZScore("both").fit(normals(6, 0), ["patient"] * 6).scale_floor_ == SCALE_FLOOR


def test_a_foreground_in_one_fold_only_leaves_nothing_to_choose_on(normals: Normals) -> None:
    """Without that fold there is no tissue to learn from, as where there is no fold to hold out."""
    foreground = torch.zeros(6, 24, 24, dtype=torch.bool)
    foreground[0] = True
    for baseline in standard_baselines("both"):
        fitted = baseline.fit(normals(6, 0), foreground=foreground)
        assert fitted.planted_ap_ is None
        assert fitted.finish_ == Finish.usual((24, 24))
        assert fitted.maps(normals(2, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "size", "channels", "widest"),
    [(PCAResidual, (28, 28), 1, 2.5), (IntensityZScore, (12, 12), 3, 1.0), (PCAResidual, (8, 8, 8), 1, 1.0)],
)
def test_every_size_of_image_is_chosen_on(make: Any, size: Any, channels: int, widest: float) -> None:
    """MNIST's 28 px, colour, volumes: the widest smoothing leaves something of each."""
    images = 0.2 * torch.randn(6, channels, *size, generator=torch.Generator().manual_seed(0))
    fitted = make("brighter", limits=(0.0, 4.0)).fit(images)
    assert 0 < fitted.settings()["planted_ap"] <= 1
    assert 0 <= fitted.finish_.smooth_px <= widest
    assert fitted.scores(fitted.maps(images)).isfinite().all()


def test_scores_are_reduced_as_the_detectors(normals: Normals) -> None:
    highest, top = (RawIntensity("brighter", Finish(reduction=r)).fit(normals(4, 0)) for r in ("max", "topk"))  # type: ignore[arg-type]
    maps = highest.maps(normals(4, 1))
    torch.testing.assert_close(highest.scores(maps), maps.flatten(1).amax(1))
    assert (top.scores(maps) <= highest.scores(maps)).all()


def test_one_normal_image_is_too_few(normals: Normals) -> None:
    for baseline in (IntensityZScore("both"), PCAResidual("both"), RawIntensity("both")):
        with pytest.raises(DataError, match="at least 2 normal images"):
            baseline.fit(normals(1, 0))
