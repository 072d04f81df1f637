"""Early exit: who stays has the same bits, who leaves was never sent on, and the stated error holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anodiff.anomaly import AnomalyDetector, Calibration, DetectorSettings
from anodiff.anomaly.early_exit import EarlyExit, Ladder, losses_allowed, trials_needed, upper_bound
from anodiff.anomaly.noising import reconstruct
from anodiff.diffusion import image_keys
from anodiff.errors import ConfigError, DataError

THREE = DetectorSettings(levels=(0.5, 1.5, 0.2), antithetic=True, smooth_px=1.0)


def detector(model: Any, preset: Any = THREE, **options: Any) -> AnomalyDetector:
    return AnomalyDetector(model, preset, **{"device": "cpu", "precision": "fp32", **options})


def at_most(lost: int, trials: int, share: float) -> float:
    """Probability of so few losses, or fewer, summed term by term."""
    terms = (math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(lost + 1))
    return math.fsum(terms)


def test_the_bound_is_the_share_under_which_so_few_losses_have_5_percent() -> None:
    for lost, trials in ((0, 20), (3, 59), (10, 40)):
        assert at_most(lost, trials, upper_bound(lost, trials)) == pytest.approx(0.05, abs=1e-9)
    assert upper_bound(4, 4) == 1.0


def test_the_trials_needed_and_the_losses_allowed_are_those_of_a_search() -> None:
    for error in (0.01, 0.05, 0.3):
        needed = trials_needed(error)
        assert (1 - error) ** needed <= 0.05 < (1 - error) ** (needed - 1)
        for trials in (needed - 1, needed, 3 * needed):
            possible = [lost for lost in range(trials) if at_most(lost, trials, error) <= 0.05]
            assert losses_allowed(error, trials) == max(possible, default=-1)


def test_the_largest_threshold_within_the_bound_keeps_the_confidence() -> None:
    """First-stage scores of found anomalies uniform: the true loss of a threshold is the threshold itself."""
    rng = np.random.default_rng(0)
    for error, trials in ((0.1, 60), (0.05, 200)):
        scores = np.sort(rng.random((4000, trials)), axis=1)
        broken = (scores[:, losses_allowed(error, trials)] > error).mean()
        assert broken < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
        assert broken > 0.01  # not a bound that gives away more than it must


def test_a_ladder_interpolates_and_goes_on_with_slope_one() -> None:
    before, after = torch.tensor([0.0, 1.0, 1.0, 3.0]).double(), torch.tensor([2.0, 2.5, 3.0, 9.0]).double()
    values = torch.linspace(-1, 4, 101)
    found = Ladder(before, after)(values.reshape(101, 1))[:, 0]
    inside = (values > 0) & (values < 3) & (values != 1)
    expected = np.interp(values[inside].numpy(), [0.0, 1.0 - 1e-9, 1.0, 3.0], [2.0, 2.5, 3.0, 9.0])
    np.testing.assert_allclose(found[inside].numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(found[values < 0], values[values < 0] + 2)
    torch.testing.assert_close(found[values > 3], values[values > 3] + 6)
    assert bool((found.diff() >= 0).all())


@pytest.mark.parametrize("slots", [{}, {"antithetic": False, "sampler": "ddim", "steps": 3}])
def test_a_level_alone_has_the_bits_that_it_has_among_all(slots: dict[str, Any], convolutional_denoiser: Any) -> None:
    chosen = DetectorSettings(**{**THREE.model_dump(), "noise": "gaussian", "noise_scale": "unit", **slots})
    images = torch.rand(3, 1, 9, 8) * 2 - 1
    denoiser = convolutional_denoiser()

    def told(x: Tensor, sigma: Tensor) -> Tensor:
        levels = torch.as_tensor(sigma).float().expand(len(x))
        return torch.cat([denoiser(row[None], level[None]) for row, level in zip(x, levels, strict=True)])

    with torch.no_grad():
        whole, some = (reconstruct(told, images, image_keys(images, 0), chosen, None, k) for k in (None, [2, 0]))
    assert torch.equal(some, whole[[2, 0]])


@pytest.fixture
def halfway(convolutional_denoiser: Any) -> tuple[Any, Tensor, Tensor]:
    """A model whose exit lets about half of its images leave; these images and their foreground."""
    generator = torch.Generator().manual_seed(0)
    normals, images = (torch.rand(n, 1, 19, 23, generator=generator) * 2 - 1 for n in (24, 17))
    model = SimpleNamespace(denoiser=convolutional_denoiser(), calibrations={})
    fitted = detector(model, network_batch=5).fit(normals, rate=0.2)
    inside = images[:, 0] > -0.4
    errors = fitted.errors(images, fitted.reconstruct(images, [1]))
    scores = fitted.scores(fitted.maps(errors, inside, 1), inside).double().sort().values
    ladder = Ladder(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.0, 0.5]).double())
    leaving = EarlyExit(1, float(scores[8]), 0.1, 0.95, 30, 0, 0.095, 0.5, ladder, ladder)
    assert fitted.calibration is not None
    model.calibrations = {"custom": replace(fitted.calibration, early_exit=leaving)}
    return model, images, inside


def test_who_stays_has_the_same_bits_and_who_leaves_is_not_sent_on(halfway: tuple[Any, Tensor, Tensor]) -> None:
    model, images, inside = halfway
    whole = detector(model, network_batch=5)(images, inside)
    ours = detector(model, network_batch=5, early_exit=True)
    result = ours(images, inside)
    assert (whole.left_early, whole.calls) == (None, None)
    left = result.left_early
    assert left is not None
    assert result.calls is not None
    assert int(left.sum()) == 8
    for name in ("scores", "p_values", "maps", "reconstructions", "is_anomalous"):
        assert torch.equal(getattr(result, name)[~left], getattr(whole, name)[~left]), name
        assert not torch.equal(getattr(result, name)[left], getattr(whole, name)[left]) or name == "is_anomalous"
    assert result.calls.tolist() == [2 if gone else 6 for gone in left.tolist()]
    assert ours.denoiser.calls == int(result.calls.sum())


def test_the_bits_do_not_depend_on_the_batch(
    halfway: tuple[Any, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, inside = halfway
    ours = detector(model, network_batch=5, early_exit=True)
    together = ours(images, inside)
    monkeypatch.setattr("anodiff.anomaly.detector.VOXELS_AT_ONCE", 20_000)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    for size in (1, 7, 17):
        for chosen in order.split(size):
            alone = ours(images[chosen], inside[chosen])
            for name in ("scores", "p_values", "maps", "reconstructions", "left_early", "calls"):
                assert torch.equal(getattr(alone, name), getattr(together, name)[chosen]), name


@pytest.fixture
def fitted(model: Any, normals: Any) -> tuple[Any, Tensor]:
    """A model of Gaussian normals with an exit at an error of 10 %, and the normals that set the threshold."""
    held = normals(44, 0)
    ours = detector(model).fit(held, rate=0.1, standardise_on=normals(16, 1), early_exit=0.1)
    model.calibrations = {"custom": ours.calibration}
    return model, held


def test_the_fit_is_what_the_detector_then_does(fitted: tuple[Any, Tensor], normals: Any) -> None:
    model, held = fitted
    leaving = model.calibrations["custom"].early_exit
    assert leaving.trials >= trials_needed(0.1)
    assert leaving.bound == upper_bound(leaving.lost, leaving.trials) <= 0.1
    result = detector(model, early_exit=True)(held)
    assert result.left_early is not None
    assert float(result.left_early.float().mean()) == pytest.approx(leaving.left)
    assert 0.1 < leaving.left <= 40 / 44  # never who is a false alarm of the first stage itself


def test_what_left_is_normal_on_the_scale_of_the_preset(fitted: tuple[Any, Tensor], normals: Any) -> None:
    model, held = fitted
    whole, ours = detector(model), detector(model, early_exit=True)
    new = normals(60, 9)
    result = ours(new)
    left = result.left_early
    assert left is not None
    assert result.is_anomalous is not None
    assert result.threshold is not None
    assert bool(left.any())
    assert not bool(result.is_anomalous[left].any())
    assert float(result.scores[left].max()) <= result.threshold
    assert float(result.p_values[left].min()) > 0.1
    # false alarms can only become fewer
    assert bool((~result.is_anomalous | whole(new).is_anomalous).all())
    # the calibration's own normals: as large a share lies below the score as below the whole preset's
    again, full = ours(held), whole(held).scores.double()
    for score, gone in zip(again.scores.double(), again.left_early, strict=True):
        if gone:
            assert bool((full - score).abs().min() < 1e-6)


def test_lesions_that_the_preset_finds_stay(fitted: tuple[Any, Tensor], lesioned: Any) -> None:
    model, _ = fitted
    images, _ = lesioned(40, 3, 0.6)
    whole, result = detector(model)(images), detector(model, early_exit=True)(images)
    assert whole.is_anomalous is not None
    assert result.is_anomalous is not None
    found = int(whole.is_anomalous.sum())
    assert found > 30
    assert int((whole.is_anomalous & ~result.is_anomalous).sum()) <= 0.1 * found


def test_a_calibration_with_an_exit_comes_back_from_its_parts(fitted: tuple[Any, Tensor]) -> None:
    known = fitted[0].calibrations["custom"]
    back = Calibration.from_parts(json.loads(json.dumps(known.to_json())), known.to_tensors())
    assert back.to_json() == known.to_json()
    for name, tensor in known.to_tensors().items():
        assert torch.equal(back.to_tensors()[name], tensor), name
    without = replace(known, early_exit=None)
    assert "early_exit" not in without.to_json()
    assert not any(name.startswith("exit") for name in without.to_tensors())
    assert Calibration.from_parts(without.to_json(), without.to_tensors()).early_exit is None


def test_fitting_does_not_depend_on_the_batch(model: Any, normals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anodiff.anomaly.exit_fitting.PIXELS_KEPT", 3000)
    options = {"rate": 0.2, "standardise_on": normals(8, 1), "early_exit": 0.3}
    known = [detector(model).fit(normals(20, 0), batch_size=size, **options).calibration for size in (3, None)]
    first, second = (found.to_json() | found.to_tensors() for found in known if found is not None)
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, Tensor) else value == second[name]
        assert same, name


def test_with_groups_one_anomaly_a_group_is_counted(model: Any, normals: Any) -> None:
    groups = [f"p{n // 4}" for n in range(80)]
    ours = detector(model).fit(
        normals(80, 0), groups, rate=0.2, unit="group", standardise_on=normals(8, 1), early_exit=0.3
    )
    assert ours.calibration is not None
    assert ours.calibration.early_exit is not None
    assert trials_needed(0.3) <= ours.calibration.early_exit.trials <= 20


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"levels": (1.0,)}, "several levels.*found one level"),
        ({"fusion": "images"}, "fusion 'images'"),
        ({"residual": "features"}, "residual 'features'"),
        ({"trajectory": "shared", "sampler": "ddim", "steps": 4}, "trajectory 'shared'"),
    ],
)
def test_a_preset_without_a_first_stage_is_refused(
    slots: dict[str, Any], message: str, model: Any, normals: Any
) -> None:
    chosen = DetectorSettings(**{**THREE.model_dump(), **slots})
    with pytest.raises(ConfigError, match=message):
        detector(model, chosen).fit(normals(10, 0), rate=0.2, early_exit=0.1)
    assert not model.denoiser.inputs  # before any work


def test_a_new_calibration_brings_its_own_exit_or_none(fitted: tuple[Any, Tensor], normals: Any) -> None:
    model, held = fitted
    assert detector(model).early_exit is None
    ours = detector(model, early_exit=True)
    before = ours.early_exit
    assert before is model.calibrations["custom"].early_exit
    ours.fit(normals(44, 5), rate=0.2, standardise_on=normals(16, 6), early_exit=0.2)
    assert ours.calibration is not None
    assert ours.early_exit is ours.calibration.early_exit
    assert ours.early_exit != before
    ours.fit(normals(44, 5), rate=0.2, standardise_on=normals(16, 6))
    assert ours.early_exit is None
    assert ours(held).left_early is None


def test_too_few_normals_are_told_how_many_are_needed(model: Any, normals: Any) -> None:
    plain = DetectorSettings(**{**THREE.model_dump(), "standardise": "none"})
    with pytest.raises(DataError, match=r"an error of 0.01 needs at least 299 normal images .* found 40"):
        detector(model, plain).fit(normals(40, 0), rate=0.2, early_exit=0.01)
    with pytest.raises(DataError, match=r"an error of 0.01 needs at least 299 normal images .* found 40"):
        detector(model).fit(normals(40, 0), rate=0.2, standardise_on=normals(8, 1), early_exit=0.01)
    assert not model.denoiser.inputs
    with pytest.raises(DataError, match=r"a false-alarm rate of 0.01 per image needs at least 99"):
        detector(model).fit(normals(40, 0), rate=0.01, standardise_on=normals(8, 1), early_exit=0.3)
    with pytest.raises(ConfigError, match="error between 0 and 1, found 0"):
        detector(model).fit(normals(40, 0), rate=0.2, standardise_on=normals(8, 1), early_exit=0.0)


def test_finds_that_are_too_few_are_told_what_they_support(
    model: Any, normals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anodiff.anomaly.exit_fitting._found", lambda *_: [1.0] * 9)
    with pytest.raises(DataError, match=r"needs 29 normal images .* found 9 in 40 .* support 0.28 and more"):
        detector(model).fit(normals(40, 0), rate=0.2, standardise_on=normals(8, 1), early_exit=0.1)


def test_a_failed_fit_leaves_the_calibration_as_it_was(
    fitted: tuple[Any, Tensor], normals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = fitted
    ours, fresh = detector(model, early_exit=True), detector(model, THREE.model_copy(update={"smooth_px": 2.0}))
    before, scores = ours.calibration, ours(held[:4]).scores
    monkeypatch.setattr("anodiff.anomaly.exit_fitting._found", lambda *_: [1.0] * 9)
    for each in (ours, fresh):
        with pytest.raises(DataError, match=r"an error of 0\.1 needs"):
            each.fit(normals(40, 7), rate=0.2, standardise_on=normals(8, 1), early_exit=0.1)
    assert before is not None
    assert ours.calibration is before
    assert ours.early_exit is before.early_exit
    assert torch.equal(ours(held[:4]).scores, scores)
    assert fresh.calibration is None


def test_a_model_that_knows_no_exit_says_how_to_learn_one(model: Any, normals: Any) -> None:
    model.calibrations = {"custom": detector(model).fit(normals(20, 0), rate=0.2).calibration}
    with pytest.raises(ConfigError, match=r"preset 'custom', found one without; anodiff calibrate .* --early-exit"):
        detector(model, early_exit=True)
