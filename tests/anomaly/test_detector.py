"""The detector's promises: the same score in every batch, honest calibration, a stated cost, and lesions found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from anodiff.anomaly import PRESETS, AnomalyDetector, Calibration, DetectorSettings
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.standardise import Moments, fit_standardisation
from anodiff.config import PreprocessConfig
from anodiff.errors import ConfigError, DataError, InputError

Normals = Callable[[int, int], Tensor]
Lesioned = Callable[[int, int, float], tuple[Tensor, Tensor]]


def auroc(scores: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels.flatten().numpy(), scores.flatten().numpy()))


def detector(model: Any, preset: Any = "default", **options: Any) -> AnomalyDetector:
    return AnomalyDetector(model, preset, **{"device": "cpu", "precision": "fp32", **options})


SMALL = DetectorSettings(levels=(0.5, 1.5), antithetic=True, smooth_px=1.0)
VARIANTS = {
    "default": {},
    "squared": {"residual": "squared", "fusion": "harmonic", "standardise": "scalar"},
    "ssim": {"residual": "ssim", "standardise": "rows", "reduction": "mean"},
    "features": {"residual": "features", "levels": (1.0,)},
    "ancestral": {"sampler": "ancestral", "steps": 3, "noise": "simplex", "standardise": "none", "grid": "log"},
    "boxes": {"where": "boxes", "noise": "pyramid", "pairs": 2, "levels": (1.0,)},
}


def check_bits(ours: AnomalyDetector, images: Tensor, foreground: Tensor, sizes: tuple[int, ...]) -> None:
    """All results are bit-equal in batches of these sizes, shuffled."""
    together = ours(images, foreground)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    for size in sizes:
        for chosen in order.split(size):
            alone = ours(images[chosen], foreground[chosen])
            for name in ("scores", "p_values", "maps", "reconstructions"):
                assert torch.equal(getattr(alone, name), getattr(together, name)[chosen]), name


def recipe(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(preprocess=PreprocessConfig.model_validate({"channels": 1, **changes}))


def test_a_preset_takes_its_own_calibration_where_another_has_the_same_settings(model: Any, normals: Normals) -> None:
    model.config = SimpleNamespace(presets={"tuned": {"base": "one-step"}})
    for name, rate in (("one-step", 0.2), ("tuned", 0.1)):
        fitted = detector(model, name).fit(normals(24, 0), rate=rate).calibration
        model.calibrations = {**model.calibrations, name: fitted}
    for name, rate in (("one-step", 0.2), ("tuned", 0.1)):
        found = detector(model, name).calibration
        assert found is not None
        assert (found.preset, found.rate) == (name, rate)


def test_a_calibration_knows_its_preprocessing_and_precision(model: Any, normals: Normals) -> None:
    model.config = recipe(size=(16, 16))
    with pytest.raises(InputError, match=r"expected 1 channel\(s\), found 2"):
        detector(model, SMALL).fit(normals(24, 0).repeat(1, 2, 1, 1))
    fitted = detector(model, SMALL).fit(normals(24, 0), rate=0.2)
    model.calibrations = {"custom": fitted.calibration}
    assert fitted.calibration is not None
    assert fitted.calibration.precision == "fp32"
    assert fitted.notes == detector(model, SMALL).notes == ()
    model.config = recipe(size=(16, 16), max_pixels=5)  # which files are read, not what they become
    detector(model, SMALL)(normals(1, 1))
    (note,) = detector(model, SMALL, precision="bf16").notes
    assert "calibrated in fp32 and scored in bf16" in note
    for change, named in [
        ({"channel": 1}, "preprocess.channel was None, is 1"),
        ({"intensity": {"kind": "zscore"}}, "preprocess.intensity.kind was unit_range, is zscore"),
        ({"foreground": "otsu"}, "preprocess.foreground was none, is otsu"),
        ({"value_range": (0, 10)}, "preprocess.value_range was None"),
        ({"size": (16, 8)}, "preprocess.size was"),
    ]:
        model.config = recipe(**{"size": (16, 16), **change})
        other = detector(model, SMALL)
        with pytest.raises(ConfigError, match=f"{named}.*calibrate anew"):
            other(normals(1, 1))
        other.fit(normals(24, 0), rate=0.2)(normals(1, 1))


def test_fitting_in_any_batch_gives_the_same_bits(
    model: Any, normals: Normals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anodiff.anomaly.normals.PIXELS_KEPT", 3000)  # only every third pixel is kept
    found = [detector(model, SMALL).fit(normals(40, 0), rate=0.2, batch_size=size).calibration for size in (1, 7, None)]
    for other in found[1:]:
        assert other is not None
        assert found[0] is not None
        assert other.to_json() == found[0].to_json()
        for name, tensor in other.to_tensors().items():
            assert torch.equal(tensor, found[0].to_tensors()[name]), name


def some_images(*counts: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(n, 1, 19, 23, generator=generator) * 2 - 1 for n in counts)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_score_has_the_same_bits_whatever_the_batch(
    variant: str, convolutional_denoiser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DetectorSettings(**{**SMALL.model_dump(), **VARIANTS[variant]})
    model = SimpleNamespace(denoiser=convolutional_denoiser(), calibrations={})
    normals, images = some_images(12, 32 if variant == "default" else 9)
    ours = detector(model, settings, network_batch=5).fit(normals, rate=0.2)
    # Small enough that a batch of 32 is worked through in several goes, and one of 7 in another cut.
    monkeypatch.setattr("anodiff.anomaly.detector.VOXELS_AT_ONCE", 20_000)
    check_bits(ours, images, images[:, 0] > -0.4, (1, 7, 32))


def test_the_default_preset_does_not_even_trust_the_place_in_the_batch(convolutional_denoiser: Any) -> None:
    """Its 16 rows an image fill the network's batch, so each row keeps its place there."""
    model = SimpleNamespace(denoiser=convolutional_denoiser(smooth=True), calibrations={})
    normals, images = some_images(12, 9)
    check_bits(detector(model).fit(normals, rate=0.2), images, images[:, 0] > -0.4, (1, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_keeps_the_promise_and_agrees_with_the_cpu(variant: str, convolutional_denoiser: Any) -> None:
    settings = DetectorSettings(**{**SMALL.model_dump(), **VARIANTS[variant]})
    normals, images = some_images(12, 9)
    scores = []
    for device in ("cuda", "cpu"):
        model = SimpleNamespace(denoiser=convolutional_denoiser(), calibrations={})
        ours = detector(model, settings, device=device, network_batch=5).fit(normals, rate=0.2)
        check_bits(ours, images, images[:, 0] > -0.4, (1, 4))
        scores.append(ours(images).scores)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_the_internal_batch_changes_no_more_than_rounding(convolutional_denoiser: Any) -> None:
    images = torch.rand(9, 1, 19, 23, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scores = []
    for network_batch in (1, 4, 16):
        model = SimpleNamespace(denoiser=convolutional_denoiser(), calibrations={})
        scores.append(detector(model, SMALL, network_batch=network_batch)(images).scores)
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(scores[2], scores[0], rtol=1e-4, atol=0)


def test_the_seed_changes_the_noise_and_nothing_else_does(convolutional_denoiser: Any, normals: Normals) -> None:
    model = SimpleNamespace(denoiser=convolutional_denoiser(), calibrations={})
    images = normals(4, 0)
    same = [detector(model, SMALL, seed=3)(images).scores for _ in range(2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(detector(model, SMALL, seed=4)(images).scores, same[0])


#: those that look with the network's own encoder have their tests in test_refinement.py, on a network that has one
WITHOUT_FEATURES = [name for name, settings in PRESETS.items() if not settings.residual.startswith("features")]


@pytest.mark.parametrize("name", WITHOUT_FEATURES)
def test_presets_cost_what_they_state(name: str, model: Any, normals: Normals) -> None:
    ours = detector(model, name)
    result = ours(normals(3, 0))
    assert result.nfe == PRESETS[name].nfe
    assert ours.denoiser.calls == 3 * result.nfe


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_cost_what_they_state(variant: str, convolutional_denoiser: Any) -> None:
    settings = DetectorSettings(**{**SMALL.model_dump(), **VARIANTS[variant]})
    ours = detector(SimpleNamespace(denoiser=convolutional_denoiser(), calibrations={}), settings)
    assert ours.denoiser.calls == 0
    result = ours(torch.rand(5, 1, 16, 17))
    assert ours.denoiser.calls == 5 * result.nfe


@pytest.mark.parametrize("name", ["default", "multilevel", "one-step"])
def test_lesions_are_found(name: str, model: Any, normals: Normals, lesioned: Lesioned) -> None:
    ours = detector(model, name).fit(normals(60, 0), rate=0.1)
    images, masks = lesioned(30, 100, 0.4)
    healthy = normals(30, 200)
    result, normal = ours(images), ours(healthy)
    labels = torch.cat([torch.zeros(30), torch.ones(30)])
    assert auroc(torch.cat([normal.scores, result.scores]), labels) > 0.95
    assert auroc(result.maps, masks) > 0.9
    assert result.is_anomalous is not None
    assert result.is_anomalous.float().mean() > 0.8


@pytest.mark.parametrize(("polarity", "contrast"), [("brighter", 0.4), ("darker", -0.4)])
def test_polarity_is_obeyed(polarity: str, contrast: float, model: Any, normals: Normals, lesioned: Lesioned) -> None:
    model.config = SimpleNamespace(polarity=polarity)
    ours = detector(model).fit(normals(60, 0), rate=0.1)
    images, masks = lesioned(20, 5, contrast)
    assert auroc(ours(images).maps, masks) > 0.95
    opposite, masks = lesioned(20, 5, -contrast)
    assert auroc(ours(opposite).maps, masks) < 0.05
    assert float(ours(opposite).maps.min()) < -0.5


def test_the_reconstruction_looks_normal(model: Any, anatomy: Tensor, lesioned: Lesioned) -> None:
    images, masks = lesioned(10, 0, 0.6)
    result = detector(model)(images)
    gap = (result.reconstructions - anatomy).abs()[:, 0]
    assert gap[masks].mean() < 0.1
    assert result.reconstructions.shape == images.shape


def test_false_alarms_keep_to_the_rate(model: Any, normals: Normals) -> None:
    ours = detector(model, "one-step").fit(normals(398, 0), rate=0.1)
    result = ours(normals(1000, 1))
    assert result.is_anomalous is not None
    found = float(result.is_anomalous.float().mean())
    assert found == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 1000 + 0.09 / 200))
    assert ours.calibration is not None
    above = float((result.maps > ours.calibration.pixel_threshold_fpr5).float().mean())
    assert above == pytest.approx(0.05, abs=0.01)
    assert float((result.maps > ours.calibration.pixel_threshold_fpr1).float().mean()) == pytest.approx(0.01, abs=0.004)


def test_anomalous_is_a_p_value_below_the_rate(model: Any, normals: Normals, lesioned: Lesioned) -> None:
    ours = detector(model, "one-step").fit(normals(80, 0), rate=0.1)
    result = ours(torch.cat([normals(40, 1), lesioned(40, 2, 0.3)[0]]))
    assert result.is_anomalous is not None
    assert result.threshold is not None
    assert torch.equal(result.is_anomalous, result.p_values <= 0.1)
    assert torch.equal(result.is_anomalous, result.scores > result.threshold)
    assert 0 < int(result.is_anomalous.sum()) < 80


def test_the_two_parts_of_a_calibration_share_no_group(model: Any, normals: Normals) -> None:
    images = normals(60, 0)
    groups = [f"patient {i % 12}" for i in range(60)]
    ours = detector(model, SMALL).fit(images, groups, rate=0.2)
    calibration = ours.calibration
    assert calibration is not None
    assert calibration.standardisation is not None
    parts = torch.tensor(assign_parts(groups, [1.0, 1.0], 0))
    fitting, threshold = images[parts == 0], images[parts == 1]
    assert torch.equal(calibration.scores.float(), ours(threshold).scores.sort().values)
    moments = Moments.empty(2, images.shape[2:])
    moments.add(ours.errors(fitting, ours.reconstruct(fitting)))
    width = calibration.standardisation.granularity.width
    kind = calibration.standardisation.granularity.kind
    expected = fit_standardisation([moments], kind, width, SMALL.scale_floor)
    torch.testing.assert_close(calibration.standardisation.location, expected.location)
    torch.testing.assert_close(calibration.standardisation.scale, expected.scale)
    assert calibration.counts == {
        "standardise_images": len(fitting),
        "standardise_groups": 6,
        "threshold_images": len(threshold),
        "threshold_groups": 6,
    }


def test_a_part_of_its_own_for_the_standardisation(model: Any, normals: Normals) -> None:
    ours = detector(model, SMALL).fit(
        normals(30, 0), ["a"] * 30, rate=0.1, standardise_on=normals(40, 1), standardise_groups=["b", "c"] * 20
    )
    assert ours.calibration is not None
    assert torch.equal(ours.calibration.scores.float(), ours(normals(30, 0)).scores.sort().values)
    with pytest.raises(DataError, match="1 in both, 'a' first"):
        ours.fit(normals(30, 0), ["a"] * 30, standardise_on=normals(4, 1), standardise_groups=["a", "b"] * 2)


def test_fitting_does_not_depend_on_the_order_of_the_normals(model: Any, normals: Normals) -> None:
    images = normals(40, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one, other = (detector(model, SMALL).fit(x, rate=0.1).calibration for x in (images, images[order]))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)


def test_copies_of_an_image_stay_in_one_part(model: Any, normals: Normals) -> None:
    images = normals(10, 0).repeat(2, 1, 1, 1)
    ours = detector(model, SMALL).fit(images, rate=0.2)
    assert ours.calibration is not None
    counts = ours.calibration.counts
    assert counts["standardise_images"] == 2 * counts["standardise_groups"]
    assert counts["threshold_images"] == 2 * counts["threshold_groups"]


def test_too_few_normals_give_p_values_and_a_sentence(model: Any, normals: Normals) -> None:
    ours = detector(model, SMALL).fit(normals(20, 0), rate=0.05)
    result = ours(normals(3, 1))
    assert result.threshold is None
    assert result.is_anomalous is None
    assert result.p_values.isfinite().all()
    assert "at least 19 normal images" in result.notes[0]


def test_without_calibration_scores_are_raw_and_say_so(model: Any, normals: Normals) -> None:
    result = detector(model)(normals(3, 0))
    assert result.p_values.isnan().all()
    assert result.is_anomalous is None
    assert result.threshold is None
    assert result.scores.isfinite().all()
    assert result.notes == (
        "preset 'default': the model is not calibrated for it, so scores are raw, without p-value or threshold",
    )


def test_a_stored_calibration_serves_exactly_its_settings(model: Any, normals: Normals) -> None:
    fitted = detector(model).fit(normals(60, 0), rate=0.1)
    kept = fitted.calibration
    assert kept is not None
    model.calibrations["default"] = Calibration.from_parts(json.loads(json.dumps(kept.to_json())), kept.to_tensors())
    images = normals(5, 1)
    again, before = detector(model)(images), fitted(images)
    assert torch.equal(again.scores, before.scores)
    assert torch.equal(again.p_values, before.p_values)
    assert again.threshold == before.threshold
    model.config = SimpleNamespace(presets={"default": {"smooth_px": 1.0, "topk": 0.1}})
    other = detector(model)(images)
    assert other.p_values.isnan().all()
    assert "other settings (smooth_px, topk)" in other.notes[0]


def test_the_foreground_limits_score_statistics_and_thresholds(model: Any, normals: Normals) -> None:
    images = normals(60, 0)
    foreground = torch.zeros(60, 24, 24, dtype=torch.bool)
    foreground[:, 6:18, 6:18] = True
    ours = detector(model, SMALL).fit(images, foreground=foreground, rate=0.1)
    errors = torch.randn(2, 4, 24, 24)
    loud = torch.where(foreground[:4], errors, torch.full_like(errors, 50.0))
    maps = ours.maps(loud, foreground[:4])
    assert torch.equal(maps, ours.maps(errors, foreground[:4]))
    assert (maps[:, 0, 0] == 0).all()
    blind = detector(model, SMALL.model_copy(update={"foreground": False}))
    assert not torch.equal(blind.maps(loud, foreground[:4]), blind.maps(errors, foreground[:4]))


def test_volumes_are_scored(gaussian_denoiser: Any) -> None:
    mean = torch.zeros(1, 8, 9, 10)
    model = SimpleNamespace(denoiser=gaussian_denoiser(mean, 0.1), calibrations={})
    volumes = 0.1 * torch.randn(44, 1, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    ours = detector(model, SMALL).fit(volumes[:40], rate=0.1)
    lesion = volumes[40:].clone()
    lesion[:2, :, 2:6, 2:6, 2:6] += 0.5
    result = ours(lesion)
    assert result.maps.shape == (4, 8, 9, 10)
    assert result.is_anomalous is not None
    assert result.is_anomalous.tolist()[:2] == [True, True]


def test_progress_counts_every_normal_once(model: Any, normals: Normals) -> None:
    done: list[int] = []
    detector(model, SMALL).fit(normals(30, 0), rate=0.1, progress=done.append)
    assert sum(done) == 30


def test_unusable_input_is_named(model: Any, normals: Normals) -> None:
    ours = detector(model, SMALL)
    broken = normals(3, 0)
    broken[1, 0, 2, 2] = math.nan
    with pytest.raises(InputError, match="NaN or infinity in image 1"):
        ours(broken)
    with pytest.raises(InputError, match=r"found shape \(24, 24\)"):
        ours(broken[0, 0])
    with pytest.raises(InputError, match="foreground"):
        ours(normals(2, 0), torch.ones(2, 8, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="expected at least one image, found none"):
        ours(normals(2, 0)[:0])
    mapped = detector(model, SMALL.model_copy(update={"standardise": "map"})).fit(normals(30, 0), rate=0.1)
    with pytest.raises(InputError, match=r"size \(24, 24\) that the model is calibrated for, found \(16, 16\)"):
        mapped(normals(2, 0)[..., :16, :16])


def test_calibration_needs_normals_of_two_groups(model: Any, normals: Normals) -> None:
    ours = detector(model, SMALL)
    with pytest.raises(DataError, match="found none"):
        ours.fit(normals(3, 0)[:0])
    with pytest.raises(DataError, match="at least 2 groups"):
        ours.fit(normals(3, 0), ["a"] * 3)
    with pytest.raises(DataError, match="one group an image"):
        ours.fit(normals(3, 0), ["a", "b"])
    with pytest.raises(ConfigError, match="rate"):
        ours.fit(normals(3, 0), rate=1.5)
    with pytest.raises(ConfigError, match="unit"):
        ours.fit(normals(3, 0), unit="volume")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), r"floating-point intensities in \[-1, 1\], found torch.uint8"),
        (torch.full((1, 1, 16, 16), 255.0), r"intensities in \[-1, 1\].*found 255; model\.prepare"),
        ([], r"expected a tensor .* found list; model\.prepare"),
    ],
)
def test_images_out_of_range_or_of_another_type_are_refused(images: object, message: str) -> None:
    network = torch.nn.Identity()
    detector = AnomalyDetector(
        SimpleNamespace(denoiser=network, calibrations={}, config=None), "one-step", device="cpu"
    )
    with pytest.raises(InputError, match=message):
        detector(images)  # type: ignore[arg-type]
