"""Tuning: the law of levels where the ideal denoiser is known, honest bookkeeping, nothing changed for noise."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from anodiff.anomaly import AnomalyDetector, DetectorSettings
from anodiff.anomaly.planted import CLEAN, Normals, PlantedImages
from anodiff.anomaly.tuning import Tuning, _other_noise, level_grid, tune
from anodiff.anomaly.tuning_cache import ErrorCache
from anodiff.anomaly.tuning_measure import Measure, defined_mean, resampled_ap
from anodiff.anomaly.tuning_noise import TrainedNoise, families, slots_of
from anodiff.anomaly.tuning_search import EXCESS, Search
from anodiff.errors import ConfigError, DataError

SIDE = 20
BASE = DetectorSettings(
    noise="gaussian", noise_scale="unit", levels=(1.0,), antithetic=True, standardise="scalar", smooth_px=0.0
)


def spectrum() -> Tensor:
    """Power of stationary Gaussian images of deviation 0.3, falling with frequency, on noise of 0.1; (H, W)."""
    frequency = torch.fft.fftfreq(SIDE) * SIDE
    power = 1 / (1 + (frequency[:, None] ** 2 + frequency[None] ** 2) / 2) ** 2.5
    return power / power.mean() * 0.3**2 + 0.1**2


class WienerDenoiser(nn.Module):
    """The exact denoiser of those images: each frequency times power / (power + sigma^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", spectrum())

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        passed = self.power / (self.power + sigma.reshape(-1, 1, 1, 1) ** 2)
        return torch.fft.ifft2(torch.fft.fft2(x) * passed).real


def images(count: int, seed: int = 0, groups: int | None = None) -> Normals:
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    drawn = torch.fft.ifft2(torch.fft.fft2(noise) * spectrum().sqrt()).real
    return Normals(drawn, tuple(f"g{i % (groups or count)}" for i in range(count)))


@pytest.fixture(scope="module")
def toy() -> SimpleNamespace:
    return SimpleNamespace(denoiser=WienerDenoiser(), calibrations={})


def tuned(toy: Any, base: DetectorSettings = BASE, count: int = 32, **options: Any) -> Tuning:
    options = {"levels": [0.03, 0.2], "noises": [], "device": "cpu", "kinds": ["texture"], "nfe": 2} | options
    return tune(toy, images(count), base, **options)


@pytest.fixture(scope="module")
def fine(toy: Any) -> Tuning:
    """For fine texture."""
    return tuned(toy)


def test_low_frequencies_want_higher_levels_than_fine_texture(toy: Any, fine: Tuning) -> None:
    """The residual of the ideal denoiser passes H = s^2 / (p + s^2) of a frequency of power p, so a wave stands out of
    normal error by H / sqrt(mean p H^2): for a coarse one (large p) that is best at a high level s, for a fine one at a
    low one."""
    levels, power = (0.03, 0.2, 1.0), spectrum()
    best = {}
    for name, wave in (("coarse", (0, 1)), ("fine", (SIDE // 2, SIDE // 2))):
        passed = [s * s / (power + s * s) for s in levels]
        best[name] = int(np.argmax([float(h[wave] / (power * h * h).mean().sqrt()) for h in passed]))
    assert best["coarse"] > best["fine"]
    coarse = tuned(toy, kinds=["blob"])
    assert coarse.levels == fine.levels == levels
    assert np.argmax(coarse.level_curve["mean"]) > np.argmax(fine.level_curve["mean"])
    assert coarse.settings.levels > fine.settings.levels
    assert fine.settings.levels == (levels[best["fine"]],)


def test_the_choice_is_within_the_budget_and_no_worse_than_what_was(toy: Any) -> None:
    result = tuned(toy, nfe=4, kinds=["blob", "texture"])
    assert result.settings.nfe <= 4
    rows = {row.name: row for row in result.candidates}
    chosen = rows["chosen"]
    assert chosen.verdict == "kept"
    assert chosen.gain > chosen.gain_error
    assert chosen.ap == pytest.approx(np.mean(list(chosen.by_kind.values())))
    assert [nfe for nfe, _, _ in result.nfe_curve] == [2, 4]
    assert set(result.level_curve) == {"mean", "blob", "texture"}
    assert result.counts["normal_images"] + result.counts["fit_images"] == 32
    # every image once at every level, twice for the pair: the search itself asks the network nothing
    seen = 32 + result.counts["planted_images"]
    assert result.counts["network_calls"] == seen * len(result.levels) * 2
    assert json.loads(json.dumps(result.to_json()))["settings"]["levels"] == list(result.settings.levels)


def test_the_same_seed_gives_the_same_choice(toy: Any, fine: Tuning) -> None:
    assert tuned(toy, batch_size=3).to_json() == fine.to_json()


class Fixed:
    """A measure whose values and standard errors are given, by level and smoothing."""

    def __init__(self, values: dict[tuple[float, float], float], error: float) -> None:
        self.values, self.error = values, error
        self.cache = SimpleNamespace(size=(SIDE, SIDE), levels=lambda noise: (0.5, 1.0))

    def value(self, settings: DetectorSettings) -> float:
        return self.values[settings.levels[0], settings.smooth_px]

    def gain(self, ours: DetectorSettings, theirs: DetectorSettings) -> tuple[float, float]:
        return self.value(ours) - self.value(theirs), self.error


@pytest.mark.parametrize(
    ("reference", "level_alone", "smoothing_alone", "kept"),
    [
        (0.49, 0.40, 0.40, (1.0, 0.0)),  # the whole gains 0.01: no more than the standard error of 0.02
        (0.40, 0.42, 0.49, (1.0, 2.0)),  # the level adds 0.01 to the smoothing: it goes back, the smoothing stays
        (0.40, 0.49, 0.42, (0.5, 0.0)),
        (0.40, 0.45, 0.45, (0.5, 2.0)),  # each is worth 0.05
    ],
)
def test_what_does_not_earn_a_standard_error_goes_back(
    reference: float, level_alone: float, smoothing_alone: float, kept: tuple[float, float]
) -> None:
    values = {(1.0, 0.0): reference, (0.5, 0.0): level_alone, (1.0, 2.0): smoothing_alone, (0.5, 2.0): 0.5}
    search = Search(Fixed(values, 0.02), 2)  # type: ignore[arg-type]
    champion = BASE.model_copy(update={"levels": (0.5,), "smooth_px": 2.0})
    chosen, sentences = search.guarded(champion, BASE, "'default'")
    assert (chosen.levels[0], chosen.smooth_px) == kept
    assert ("'default' is kept" in sentences[0]) == (chosen == BASE)


def test_a_budget_below_the_present_settings_keeps_the_best_of_their_levels(toy: Any) -> None:
    base = BASE.model_copy(update={"levels": (0.03, 1.0, 3.0)})
    search = Search(Measure(small_cache(toy, base.levels, base), ["texture"], 0), 2)
    assert search.within_budget(base).levels == (0.03,)
    search.budget = 6
    assert search.within_budget(base) == base
    search.budget = 1
    with pytest.raises(ConfigError, match=r"nfe.*at least 2 calls.*found 1"):
        search.check(base)


def test_a_budget_below_the_preset_is_named_as_what_the_choice_is_held_against(toy: Any, fine: Tuning) -> None:
    base = BASE.model_copy(update={"levels": (0.03, 1.0, 3.0)})
    cut = tuned(toy, base, nfe=2)
    assert cut.present.nfe == 2
    assert cut.against == "'custom' cut to 2 calls"
    assert "'custom' cut to 2 calls" in cut.sentences[0]
    assert cut.settings != cut.present
    assert "present: 'custom' cut to 2 calls" in {row.name for row in cut.candidates}
    assert fine.against == "'custom'"
    assert "cut to" not in " ".join(fine.sentences)


CLEAN_BASE = BASE.model_copy(update={"noise": "none", "antithetic": False})


def test_families_for_a_model_of_one_level_are_an_error() -> None:
    auto_encoder = TrainedNoise("coarse", "published", one_level=True)
    with pytest.raises(ConfigError, match=r"noises: expected none to try for 'dae', .* found simplex"):
        families(["simplex"], "dae", CLEAN_BASE, auto_encoder)
    assert families(None, "dae", CLEAN_BASE, auto_encoder) == families([], "dae", CLEAN_BASE, auto_encoder) == []


def test_the_clean_image_and_the_noise_of_the_training_are_tried() -> None:
    white, coarse = TrainedNoise(), TrainedNoise("coarse", "published")
    assert families(None, "default", BASE, white) == ["simplex", "pyramid", "none"]
    assert families(None, "default", BASE, coarse) == ["coarse", "simplex", "pyramid", "none"]
    assert families(None, "default", CLEAN_BASE, white) == ["gaussian", "simplex", "pyramid"]
    assert families([], "default", BASE, coarse) == []
    chain = BASE.model_copy(update={"sampler": "ancestral", "steps": 5})
    assert "none" not in families(None, "custom", chain, white)
    assert slots_of("coarse", BASE, coarse) == {
        "noise": "coarse", "noise_scale": "published", "pairs": 1, "antithetic": True,
    }  # fmt: skip
    assert slots_of("none", BASE, white)["antithetic"] is False
    assert slots_of("gaussian", CLEAN_BASE, white)["antithetic"] is True
    assert slots_of("none", CLEAN_BASE, white)["noise_scale"] == CLEAN_BASE.noise_scale


class HoleFiller(nn.Module):
    """Knows a clean image by its small pixel differences: then it answers with nothing, else with what it was shown."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        rough = (x - x.roll(1, -1)).abs().mean(dim=(1, 2, 3), keepdim=True) > 0.5
        return torch.where(rough, x, torch.zeros_like(x))


def test_the_clean_image_is_chosen_where_it_shows_more_and_costs_one_call_a_level() -> None:
    model = SimpleNamespace(denoiser=HoleFiller(), calibrations={})
    base = BASE.model_copy(update={"levels": (3.0,), "standardise": "none"})
    found = tune(
        model, images(24), base, kinds=["blob"], levels=[1.5], noises=["none"], nfe=2, device="cpu", seed=1
    )  # fmt: skip
    assert (found.settings.noise, found.settings.antithetic) == ("none", False)
    assert found.settings.nfe <= 2
    assert "noise" in found.sentences[0]
    again = tune(model, images(24), found.settings, kinds=["blob"], levels=[1.5], noises=["gaussian"], device="cpu")
    assert again.settings.noise == "none"


class OneNoiseDenoiser(nn.Module):
    """Turns images over under Gaussian noise and gives their mean under pyramid noise, whose neighbours differ less."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        rough = (x - x.roll(1, -1)).abs().mean(dim=(1, 2, 3), keepdim=True) > 0.95 * sigma.reshape(-1, 1, 1, 1)
        return torch.where(rough, x.flip(-1), torch.zeros_like(x))


@pytest.mark.parametrize("present", ["gaussian", "pyramid"])
def test_another_noise_family_is_taken_where_it_shows_more(present: Any) -> None:
    model = SimpleNamespace(denoiser=OneNoiseDenoiser(), calibrations={})
    base = BASE.model_copy(update={"levels": (3.0,), "noise": present})
    cache = small_cache(model, (3.0,), base)
    other = "pyramid" if present == "gaussian" else "gaussian"
    found = _other_noise(Search(Measure(cache, ["blob"], 0), 2), base, other, (3.0,), quiet=True)
    assert (found.noise, found.noise_scale) == ("pyramid", "unit")


def small_cache(toy: Any, levels: tuple[float, ...], base: DetectorSettings = BASE) -> ErrorCache:
    fit = images(12, seed=1)
    planted = PlantedImages.of(images(8, seed=2), ["blob", "texture"], 0, base.polarity, fit.images)
    residuals = tuple(dict.fromkeys([base.residual, "signed", "squared", "absolute"]))
    cache = ErrorCache(toy, base, fit, planted, residuals, device="cpu")
    cache.compute(base.noise, levels)
    return cache


@pytest.mark.parametrize("polarity", ["both", "brighter", "darker"])
@pytest.mark.parametrize("residual", ["signed", "squared", "absolute"])
def test_stored_errors_give_the_maps_of_the_detector(toy: Any, polarity: Any, residual: Any) -> None:
    base = BASE.model_copy(update={"polarity": polarity, "levels": (0.1, 1.0), "smooth_px": 1.0})
    cache = small_cache(toy, (0.1, 1.0), base)
    limits = None if polarity == "both" else (-1.0, 2.0)
    settings = base.model_copy(update={"residual": residual, "fusion": "max", "limits": limits})
    detector = AnomalyDetector(toy, settings, device="cpu")
    planted, fit = cache.planted, cache.fit
    detector.fit(planted.images, planted.groups, standardise_on=fit.images, standardise_groups=[f"f{g}" for g in
                 fit.groups])  # fmt: skip
    count = planted.planted
    assert planted.kinds[count:] == (CLEAN,) * 8
    assert list(planted.kinds[:count]) == sorted(planted.kinds[:count])
    assert not planted.masks[count:].any()
    expected = detector(planted.images[:count]).maps.flatten()
    found = torch.from_numpy(cache.values(settings))
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max())
    scores = cache.scores(settings, [("topk", 0.1)])[("topk", 0.1)]
    assert scores.shape == (len(planted),)


def test_smoothing_before_the_mean_over_levels_is_the_same(toy: Any) -> None:
    cache = small_cache(toy, (0.1, 0.3, 1.0))
    settings = BASE.model_copy(update={"levels": (0.1, 1.0), "smooth_px": 1.5, "residual": "squared"})
    alone = cache.level_values(settings)
    assert np.allclose(alone[[0, 2]].mean(axis=0), cache.values(settings), rtol=1e-4, atol=1e-5)


def test_forward_selection_sees_limits_as_the_detector_does(toy: Any) -> None:
    settings = BASE.model_copy(update={"polarity": "brighter", "limits": (0.0, 1.0), "smooth_px": 1.5})
    measure = Measure(small_cache(toy, (0.1, 0.3, 1.0), settings), ["blob"], 0)
    path = Search(measure, 6).forward(settings)
    assert [len(step.levels) for step, _ in path] == [1, 2, 3]
    assert [value for _, value in path] == pytest.approx([measure.value(step) for step, _ in path], abs=1e-9)


@pytest.mark.parametrize(("standardise", "floor"), [("scalar", 0.0), ("map", 0.0), ("map", 1.4)])
def test_excess_and_scale_floors_are_measured_as_the_detector_does(toy: Any, standardise: str, floor: float) -> None:
    base = BASE.model_copy(update={"residual": "squared", "levels": (0.1, 1.0), "map_px": 2.0})
    cache = small_cache(toy, (0.1, 1.0), base)
    cache.values(base.model_copy(update={"standardise": standardise, "scale_floor": 0.5}))
    settings = base.model_copy(update={"standardise": standardise, "scale_floor": floor, "limits": EXCESS})
    detector = AnomalyDetector(toy, settings, device="cpu")
    planted, fit = cache.planted, cache.fit
    detector.fit(planted.images, planted.groups, standardise_on=fit.images, standardise_groups=[f"f{g}" for g in
                 fit.groups])  # fmt: skip
    expected = detector(planted.images[: planted.planted]).maps.flatten()
    found = torch.from_numpy(cache.values(settings))
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max())
    assert float(found.min()) == 0
    assert float((found == 0).float().mean()) > 0.3  # most squared errors are below their mean


def test_what_is_darker_is_not_cut_away_where_it_counts(toy: Any) -> None:
    search = Search(Measure(small_cache(toy, (0.1, 1.0)), ["texture"], 0), 4)
    offered = {
        (residual, polarity): [each.limits for each in search.variants(settings, "limits")]
        for residual in ("signed", "squared")
        for polarity in ("both", "brighter")
        for settings in [BASE.model_copy(update={"residual": residual, "polarity": polarity})]
    }
    assert offered.pop(("signed", "both")) == [None]
    assert all(limits == [None, EXCESS] for limits in offered.values())


def test_kinds_and_sizes_weigh_the_same(toy: Any) -> None:
    cache = small_cache(toy, (1.0,))
    planted, values = cache.planted, cache.values(BASE)
    images = np.split(values, cache.ends[:-1])
    masks = planted.masks[: planted.planted].flatten(1).numpy()
    aps = {}
    for kind in ("blob", "texture"):
        rows = sorted((n for n, name in enumerate(planted.kinds) if name == kind), key=lambda n: int(masks[n].sum()))
        classes = np.array_split(np.array(rows), 3)  # 8 images: 3 + 3 + 2 or 2 + 3 + 3
        if len(rows) == 8:
            classes = [np.array(rows[low:high]) for low, high in ((0, 2), (2, 5), (5, 8))]
        found = [
            average_precision_score(np.concatenate(masks[c]), np.concatenate([images[n] for n in c])) for c in classes
        ]
        aps[kind] = np.mean(found)
    measure = Measure(cache, ["blob", "texture"], 0)
    assert measure.by_kind(BASE) == pytest.approx(aps, abs=1e-6)
    assert measure.value(BASE) == pytest.approx(np.mean(list(aps.values())), abs=1e-6)
    assert np.nanmean(measure.draws(BASE)) == pytest.approx(measure.value(BASE), abs=0.1)
    pooled = Measure(cache, ["texture"], 0, sizes=1).value(BASE)
    rows = [n for n, name in enumerate(planted.kinds) if name == "texture"]
    expected = average_precision_score(np.concatenate(masks[rows]), np.concatenate([images[n] for n in rows]))
    assert pooled == pytest.approx(expected, abs=1e-6)


def test_a_resample_without_an_anomaly_of_some_size_counts_by_the_others(toy: Any) -> None:
    """Resamples of 8 groups, anew with scikit-learn: classes hold 2 or 3 groups, often none of which is drawn."""
    cache = small_cache(toy, (1.0,))
    measure = Measure(cache, ["blob", "texture"], 0)
    values, labels, weights = cache.values(BASE), cache.labels, measure._weights
    lacking, expected = 0, []
    for drawn in weights[:40]:
        of_kinds = []
        for cells in measure._pixels.values():
            aps = []
            for c in cells:
                weight = drawn[measure._pixel_group[c]]
                if (weight * labels[c]).sum():
                    aps.append(average_precision_score(labels[c], values[c], sample_weight=weight))
            lacking += len(aps) < len(cells)
            of_kinds.append(np.mean(aps))
        expected.append(np.mean(of_kinds))
    assert lacking
    found = measure.draws(BASE)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:40], expected, atol=0.01)
    nothing = np.array([np.nan, 1.0])
    np.testing.assert_array_equal(defined_mean([nothing, nothing]), nothing)


def test_resampled_ap_is_the_ap_of_the_repeated_groups() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.random(200) < 0.3, rng.integers(0, 5, 200)
    values = (np.round(rng.normal(size=200), 1) + labels).astype(np.float32)
    weights = rng.multinomial(5, np.full(5, 0.2), size=6)
    found = resampled_ap(labels, values, groups, weights)
    for drawn, ap in zip(weights, found, strict=True):
        rows = np.concatenate([np.flatnonzero(np.repeat(groups == g, 1)) for g in range(5) for _ in range(drawn[g])])
        assert ap == pytest.approx(average_precision_score(labels[rows], values[rows]))
    nothing = resampled_ap(labels, values, labels.astype(np.int64), np.array([[1, 0]]))
    assert np.isnan(nothing).all()  # only the group of the normal items was drawn


def test_binned_resamples_are_close_to_the_exact_ones() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < 0.1
    values = (rng.normal(size=20_000) + labels).astype(np.float32)
    found = resampled_ap(labels, values, np.zeros(20_000, dtype=np.int64), np.array([[1]]))[0]
    assert found == pytest.approx(average_precision_score(labels, values), abs=2e-3)


def test_the_grid_leaves_out_what_is_nearly_a_present_level() -> None:
    assert level_grid((1.0, 0.5), (0.1, 0.52, 1.1, 1.2)) == (0.1, 0.5, 1.0, 1.2)
    with pytest.raises(ConfigError, match="found 0"):
        level_grid((1.0,), (0.0,))


def test_too_few_normals_say_how_many_are_needed(toy: Any) -> None:
    few = "at least 8 normals of 4 groups .* 2 other groups"
    with pytest.raises(DataError, match=few):
        tune(toy, images(6), BASE, device="cpu")
    with pytest.raises(DataError, match=f"{few}.*of 2 groups"):
        tune(toy, images(32, groups=4), BASE, device="cpu")
    with pytest.raises(DataError, match="found 16 in both, 'g0' first"):
        tune(toy, images(16), BASE, fit=images(16, seed=1), device="cpu")
    flat = Normals(images(32).images, images(32).groups, torch.zeros(32, SIDE, SIDE, dtype=torch.bool))
    with pytest.raises(DataError, match="in which an anomaly can be seen"):
        tune(toy, flat, BASE, device="cpu")
    with pytest.raises(ConfigError, match="did you mean 'blob'"):
        tuned(toy, kinds=["blop"])
    with pytest.raises(ConfigError, match="did you mean 'pyramid'"):
        tuned(toy, noises=["piramid"])
