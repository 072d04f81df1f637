"""Chains that look at their own intermediate result, against the papers' formulas written out on their own scale."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.fusion import fuse
from anodiff.anomaly.noising import reconstruct
from anodiff.anomaly.perceptual import FeatureDistance
from anodiff.anomaly.presets import preset
from anodiff.anomaly.refinement import guided, harmonised, stitched
from anodiff.anomaly.settings import DetectorSettings, Harmonise, Stitch
from anodiff.anomaly.tuning import tune
from anodiff.anomaly.tuning_cache import Normals
from anodiff.diffusion import image_keys, make_schedule, sample_ancestral, step_grid
from anodiff.errors import ConfigError

IMAGES = torch.rand(2, 1, 16, 16, dtype=torch.float64) * 2 - 1
VP = make_schedule("vp-linear")


class Denoiser:
    """Shrinks to a smooth mean image, more where there is more noise; its features are the image and its edges."""

    def __init__(self) -> None:
        self.mean = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(1, 1, 1, 16)
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.calls += len(x)
        level = torch.as_tensor(sigma, dtype=torch.float64) ** 2
        return (0.09 * x + level * self.mean) / (0.09 + level)

    def features(self, x: Tensor, sigma: float) -> list[Tensor]:
        self.calls += len(x)
        return [torch.cat([x, x.roll(1, -1), x - x.roll(1, -2), torch.ones_like(x)], dim=1)]


def noise_of(draw: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw)
    return torch.randn(IMAGES.shape, generator=generator, dtype=torch.float64)


def alpha_bar(sigma: float) -> float:
    return 1.0 / (1.0 + sigma * sigma)


def test_guidance_is_ddads() -> None:
    denoiser, weight, target = Denoiser(), 3.0, IMAGES
    for sigma in (0.05, 0.7, 2.5):
        a = alpha_bar(sigma)
        x = IMAGES.flip(-1) + sigma * noise_of(1)
        eps = (x - denoiser(x, sigma)) / sigma
        x_t = a**0.5 * x
        y_t = a**0.5 * target + (1 - a) ** 0.5 * eps
        changed = eps - (1 - a) ** 0.5 * weight * (y_t - x_t)
        expected = (x_t - (1 - a) ** 0.5 * changed) / a**0.5
        found = guided(denoiser, target, weight)(x, torch.tensor(sigma, dtype=torch.float64))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    rows = guided(denoiser, target, weight)(IMAGES, torch.tensor([0.05, 0.7]).reshape(2, 1, 1, 1))
    assert not torch.allclose(rows[0], guided(denoiser, target, weight)(IMAGES, torch.tensor(0.7))[0])


def numpy_relative(image: Tensor, other: Tensor) -> np.ndarray:
    """THOR's A of one image by its formula."""
    distance = FeatureDistance(Denoiser(), image[None])
    product = distance(other[None])[0].numpy() * (image - other).abs().mean(0).numpy()
    return product / product.max()


def test_harmonising_is_thors() -> None:
    """The published chain: DDPM on x_t, x0' = M x0 + (1 - M) x at t in `at`, noised again with the first noise."""
    steps, at, looks = 12, (8, 3), (10, 6)
    sigmas = VP.sigmas[[10 * t for t in range(steps)]].tolist()  # sigma of step t = 1 .. 12, t counts from 1
    settings = Harmonise(at=[sigmas[t - 1] for t in at], looks=[sigmas[t - 1] for t in looks], side=5)
    grid = torch.tensor([*reversed(sigmas), 0.0], dtype=torch.float64)
    denoiser = Denoiser()
    found = harmonised(denoiser, denoiser, IMAGES, grid, noise_of, "ancestral", {}, settings)

    bars = [1.0, *(alpha_bar(s) for s in sigmas)]
    first = noise_of(0)
    x = bars[steps] ** 0.5 * IMAGES + (1 - bars[steps]) ** 0.5 * first
    kept = []
    for i, t in enumerate(range(steps, 0, -1)):
        a, before = bars[t], bars[t - 1]
        beta = 1 - a / before
        x0 = denoiser(x / a**0.5, sigmas[t - 1])
        mean = before**0.5 * beta / (1 - a) * x0 + (a / before) ** 0.5 * (1 - before) / (1 - a) * x
        x = mean + (beta * (1 - before) / (1 - a)) ** 0.5 * noise_of(i + 1)
        if t in at or t in looks:
            kept.append(x0)
        if t in at:
            masks = []
            for image, estimate in zip(IMAGES, x0, strict=True):
                relative = numpy_relative(image, estimate)
                closed = ndimage.grey_closing(relative, size=(5, 5), mode="nearest")
                masks.append((ndimage.grey_dilation(closed, size=(5, 5), mode="nearest") + relative) / 2)
            m = torch.from_numpy(np.stack(masks))[:, None]
            x = before**0.5 * (m * x0 + (1 - m) * IMAGES) + (1 - before) ** 0.5 * first
    expected = torch.stack([*kept, x])
    assert found.shape == (5, *IMAGES.shape)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_thors_map_is_the_harmonic_mean_of_its_looks() -> None:
    settings = preset("thor-features", steps=7)
    detector = AnomalyDetector(model_of(), settings, device="cpu", network_batch=4)
    images = IMAGES.float()
    reconstructions = detector.reconstruct(images)
    assert len(reconstructions) == settings.reconstructions == 7
    errors = detector.errors(images, reconstructions)
    positive = errors.double().numpy() + 1e-3
    expected = len(positive) / (1 / positive).sum(0) - 1e-3
    np.testing.assert_allclose(detector.maps(errors), expected.clip(0), atol=1e-6)
    assert torch.equal(detector.maps(errors), fuse(errors, "harmonic"))
    assert float(errors.amax()) == pytest.approx(1.0, abs=1e-4)


def test_stitching_is_autoddpms() -> None:
    """Known = q(x; t - 1) outside the mask, unknown = reverse(x_t) inside, R repeats, on the scale of x_t."""
    settings = Stitch(level=float(VP.sigmas[49]), steps=5, repeats=3, share=0.2, side=3)
    grid = step_grid(VP, 50, settings.steps)
    first = IMAGES.flip(-1)
    denoiser = Denoiser()
    found = stitched(denoiser, denoiser, IMAGES, first, grid, noise_of, settings)

    soft = FeatureDistance(denoiser, IMAGES).soft_mask(first).numpy()
    above = np.stack([m > np.percentile(m, 80, method="inverted_cdf") for m in soft])
    mask = torch.from_numpy(np.stack([ndimage.binary_dilation(m, np.ones((3, 3))) for m in above]))[:, None]
    bars = [alpha_bar(float(s)) for s in grid]
    x = bars[0] ** 0.5 * first + (1 - bars[0]) ** 0.5 * noise_of(0)
    draw = 1
    for i, (a, before) in enumerate(pairwise(bars)):
        beta = 1 - a / before
        for repeat in range(3):
            x0 = denoiser(x / a**0.5, float(grid[i]))
            mean = before**0.5 * beta / (1 - a) * x0 + (a / before) ** 0.5 * (1 - before) / (1 - a) * x
            unknown = mean + (beta * (1 - before) / (1 - a)) ** 0.5 * noise_of(draw)
            known = before**0.5 * IMAGES + (1 - before) ** 0.5 * noise_of(draw + 1)
            x = torch.where(mask, unknown, known)
            if repeat < 2:
                x = (1 - beta) ** 0.5 * x + beta**0.5 * noise_of(draw + 2)
            draw += 3
    torch.testing.assert_close(found, x, atol=1e-9, rtol=1e-9)
    assert torch.equal(found[~mask], IMAGES[~mask])
    assert 0.15 < float(mask.double().mean()) < 0.9


def test_autoddpms_map_is_the_second_error_times_the_first_mask() -> None:
    settings = small("autoddpm-features")
    detector = AnomalyDetector(model_of(), settings, device="cpu", network_batch=4)
    images = IMAGES.float()
    first, second = detector.reconstruct(images)
    mask = FeatureDistance(detector.denoiser, images).soft_mask(first)
    expected = mask * (images - second).abs().mean(1)
    result = detector(images)
    torch.testing.assert_close(result.maps, expected)
    torch.testing.assert_close(result.scores, expected.flatten(1).mean(1))
    assert torch.equal(result.reconstructions, second)


def small(name: str) -> DetectorSettings:
    """A preset with chains short enough for a test."""
    if name == "autoddpm-features":
        return preset(name, steps=6, refine={"kind": "stitch", "level": 0.1728, "steps": 4, "repeats": 2})
    return preset(name, steps=7 if name == "thor-features" else 4)


class Network(torch.nn.Module):
    """A fixed random denoiser with features, for 2-D and 3-D."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        convolution = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.inner, self.outer = convolution(1, 6, 3, padding=1), convolution(6, 1, 3, padding=1)

    def features(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        return [self.inner(x).relu()]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.outer(self.inner(x / 2).relu())


def model_of(dims: int = 2) -> SimpleNamespace:
    return SimpleNamespace(denoiser=Network(dims), calibrations={})


@pytest.mark.parametrize("name", ["autoddpm-features", "thor-features", "ddad-features"])
@pytest.mark.parametrize("dims", [2, 3])
def test_each_preset_costs_what_it_says_whatever_the_batch(name: str, dims: int) -> None:
    settings = small(name)
    detector = AnomalyDetector(model_of(dims), settings, device="cpu", network_batch=4)
    images = torch.rand(3, 1, *[16 if dims == 2 else 8] * dims) * 2 - 1
    together = detector(images)
    assert detector.denoiser.calls == 3 * settings.nfe == 3 * together.nfe
    alone = detector(images[1:2])
    assert torch.equal(alone.maps[0], together.maps[1])
    assert torch.equal(alone.scores[0], together.scores[1])
    assert together.maps.std() > 0


def test_distances_are_brought_to_one_scale_on_normals() -> None:
    settings = small("ddad-features")
    detector = AnomalyDetector(model_of(), settings, device="cpu", network_batch=4)
    normals = torch.rand(24, 1, 16, 16) * 2 - 1
    detector.fit(normals)
    assert detector.calibration is not None
    standardisation = detector.calibration.standardisation
    assert standardisation is not None
    assert standardisation.scale.shape == (2, 1, 1)
    raw = detector.errors(normals, detector.reconstruct(normals))
    z = standardisation(raw)
    assert float(z.mean()) == pytest.approx(0, abs=0.2)
    spread = z.flatten(1).std(dim=1) * (1 + settings.scale_floor**2) ** 0.5
    torch.testing.assert_close(spread, torch.ones(2), atol=0.2, rtol=0)


def test_a_guided_chain_stays_nearer_to_its_input() -> None:
    keys = image_keys(IMAGES.float())
    gaps = []
    for guidance in (0.0, 1.0, 2.0):
        settings = preset("ddad-features", guidance=guidance, noise="gaussian", noise_scale="unit")
        out = reconstruct(Denoiser(), IMAGES.float(), keys, settings)[0]
        gaps.append(float((out - IMAGES).abs().mean()))
    assert gaps[0] > gaps[1] > gaps[2]


def test_without_difference_nothing_is_harmonised_or_filled_in() -> None:
    """A denoiser that knows the image gives it back, and no region of it is anomalous."""

    class Knowing(Denoiser):
        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return IMAGES

    grid = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    knowing = Knowing()
    kept = harmonised(knowing, knowing, IMAGES, grid, noise_of, "ancestral", {}, Harmonise(at=[0.5]))
    torch.testing.assert_close(kept, IMAGES.expand_as(kept))
    start = IMAGES + noise_of(0)
    first = sample_ancestral(knowing, start, grid, noise_of)
    again = stitched(knowing, knowing, IMAGES, first, grid, noise_of, Stitch(level=1.0, steps=3))
    torch.testing.assert_close(again, IMAGES)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"sampler": "one-step", "steps": 1}, "refine belongs to a chain"),
        ({"levels": (1.5, 2.0)}, "1 level"),
        ({"pairs": 2}, "1 level and 1 draw"),
        ({"refine": None, "guidance": 1.0, "sampler": "one-step", "steps": 1}, "guidance pulls a chain"),
        ({"levels": (1.0,)}, "at most at the level 1, found 1.2339"),
        ({"residual": "features-stitched"}, "belong together"),
        ({"refine": {"kind": "harmonise", "at": [1.0], "side": 4}}, "odd side"),
        ({"refine": {"kind": "anneal"}}, "refine"),
    ],
)
def test_slots_that_contradict_each_other_are_refused(slots: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preset("thor-features", **slots)


def test_plain_values_bring_the_settings_back() -> None:
    for name in ("autoddpm-features", "thor-features", "ddad-features"):
        chosen = preset(name)
        assert DetectorSettings(**chosen.to_json()) == chosen


def test_tuning_refuses_what_it_has_no_arithmetic_for() -> None:
    normals = Normals(torch.zeros(4, 1, 16, 16), tuple("abcd"))
    for name in ("autoddpm-features", "thor-features", "ddad-features"):
        with pytest.raises(ConfigError, match="one error map a level"):
            tune(model_of(), normals, name)
