"""cDDPM and mDDPM by their formulas: what the denoiser is given, and what is made of its answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.noising import reconstruct
from anodiff.anomaly.presets import PRESETS, preset, resolve
from anodiff.anomaly.settings import DetectorSettings, Harmonise
from anodiff.anomaly.tuning import tune
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.config import AnodiffConfig, load_config, parse_config
from anodiff.data.volumes.volume import Volume
from anodiff.diffusion import image_keys, sample_noise
from anodiff.engine.inference import InferenceDenoiser
from anodiff.engine.windows import WindowDenoiser
from anodiff.errors import ConfigError
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.restoration import Restorer
from anodiff.training import Trainer

IMAGES = torch.rand(3, 1, 12, 10) * 2 - 1
KEYS = image_keys(IMAGES, 0)


class Told(torch.nn.Module):
    """A denoiser whose answer is a sum of what it is shown and what it is given, so that neither can be mixed up."""

    sees_image = True

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        level = torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1))
        return 0.01 * x / level + 0.5 * context + 0.001 * level

    def features(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        return [torch.cat([x, x.square()], dim=1)]


def by_hand(images: Tensor, keys: Tensor) -> Tensor:
    """The mean over steps 250, 500 and 750 of one-step answers, in float64."""
    found = []
    for level, sigma in enumerate(PRESETS["cddpm"].levels):
        noise = sample_noise("simplex", keys, tuple(images.shape[1:]), level=level, scale="published").double()
        x = images.double() + sigma * noise
        found.append(0.01 * x / sigma + 0.5 * images.double() + 0.001 * sigma)
    return torch.stack(found).mean(dim=0)


@pytest.mark.parametrize("batch", [2, 16])
def test_cddpm_compares_the_mean_image_of_three_levels_given_the_input(batch: int) -> None:
    settings = preset("cddpm", noise_scale="published")
    detector = AnomalyDetector(SimpleNamespace(denoiser=Told()), settings, device="cpu", network_batch=batch)
    result = detector(IMAGES)
    expected = by_hand(IMAGES, KEYS)
    torch.testing.assert_close(result.reconstructions.double(), expected, atol=1e-6, rtol=1e-5)
    maps = (IMAGES.double() - expected).abs().mean(dim=1)
    torch.testing.assert_close(result.maps.double(), maps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(result.scores.double(), maps.mean(dim=(1, 2)), atol=1e-6, rtol=1e-5)
    assert (settings.nfe, settings.reconstructions, settings.error_maps) == (3, 1, 1)
    # the mean image's error is not the mean of the levels' errors
    levels = AnomalyDetector(
        SimpleNamespace(denoiser=Told()), settings.model_copy(update={"fusion": "mean"}), device="cpu"
    )(IMAGES)
    assert not torch.allclose(levels.maps, result.maps, atol=1e-4)


@pytest.mark.parametrize(
    "slots",
    [
        {"levels": (0.5, 2.0), "antithetic": True, "pairs": 2},
        {"levels": (1.0,), "where": "boxes"},
        {"levels": (1.0, 0.5), "sampler": "ddim", "steps": 3},
        {"levels": (1.0,), "sampler": "ancestral", "steps": 3, "where": "boxes"},
        {"levels": (1.0,), "sampler": "ddim", "steps": 4, "guidance": 0.5},
        {
            "levels": (1.0,),
            "sampler": "ddim",
            "steps": 4,
            "refine": Harmonise(at=(0.3,)),
            "residual": "features-relative",
            "fusion": "harmonic",
        },
    ],
)
def test_every_way_of_noising_gives_each_row_its_own_image(slots: dict[str, Any]) -> None:
    """A denoiser that answers with what it is given: so does the reconstruction, for every image."""

    class Answers(Told):
        def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            return context

    run = InferenceDenoiser(Answers(), "cpu", network_batch=4)
    settings = DetectorSettings(**{"noise": "gaussian", "noise_scale": "unit", **slots})
    out = reconstruct(run, IMAGES, KEYS, settings)
    for level in out:
        torch.testing.assert_close(level, IMAGES, atol=1e-5, rtol=1e-5)


def recipe(tiny: dict[str, Any], **extra: Any) -> AnodiffConfig:
    diffusion = tiny["diffusion"] | {"given": "image"}
    network = tiny["network"] | {"code": 6}
    return parse_config(tiny | {"diffusion": diffusion, "network": network, "preset": "cddpm"} | extra)


def model(config: AnodiffConfig) -> DiffusionModel:
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return DiffusionModel(config, denoiser)


def test_a_model_that_is_told_of_the_image_scores_and_does_nothing_else(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    config = recipe(tiny_recipe)
    made = model(config)
    made.save(tmp_path / "m.safetensors")
    made = load(tmp_path / "m.safetensors")
    images = torch.rand(5, 1, 16, 16) * 2 - 1
    detector = AnomalyDetector(made, config.preset, device="cpu")
    together = detector(images)
    alone = detector(images[3:4])
    assert torch.equal(together.maps[3], alone.maps[0])
    for name in ("one-step", "pddpm", "ddad-features"):
        assert AnomalyDetector(made, name, device="cpu")(images).maps.isfinite().all()
    changed = made.denoiser(images, 1.0, images.flip(-1) * 0.3)
    assert not torch.allclose(changed, made.denoiser(images, 1.0, images))
    with pytest.raises(ConfigError, match=r"diffusion\.given image"):
        made.denoiser(images, 1.0)
    with pytest.raises(ConfigError, match="detects anomalies"):
        Restorer(made, device="cpu")
    with pytest.raises(ConfigError, match="one error map a level"):
        tune(made, images, base="cddpm", device="cpu")


def test_training_gives_the_noise_free_image(tiny_recipe: dict[str, Any]) -> None:
    config = recipe(tiny_recipe)
    images = torch.rand(16, 1, 16, 16) * 2 - 1
    trainer = Trainer(config, images, images[:4], device=torch.device("cpu"), precision="fp32")
    seen: list[Tensor] = []
    trainer.averaged.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    trainer.validate()
    assert torch.equal(torch.cat(seen)[:, 1:], images[:4])
    before = trainer.denoiser.network.encoder.outlet.weight.clone()  # type: ignore[union-attr]
    losses = [float(trainer.step()) for _ in range(6)]
    assert np.isfinite(losses).all()
    assert not torch.equal(before, trainer.denoiser.network.encoder.outlet.weight)  # type: ignore[union-attr]


def volume(*size: int) -> Volume:
    data = np.random.default_rng(0).uniform(20, 200, (1, *size)).astype(np.float32)
    return Volume(data, np.eye(4), 0.0, 255.0, "uint8", "scan.nii", "nifti", ranged=True)


def test_volumes_in_patches_and_with_neighbours_are_given_theirs(tiny_recipe: dict[str, Any]) -> None:
    patches = recipe(tiny_recipe, volume={"mode": "patches", "patch": [8, 8, 8], "orientation": None})
    detector = VolumeDetector(model(patches), device="cpu", preset="cddpm")
    scan = volume(12, 10, 8)
    found = detector(detector.prepare(scan), scan)
    assert found.map.shape == (12, 10, 8)
    assert np.isfinite(found.map).all()
    sliced = recipe(tiny_recipe, volume={"neighbours": 1, "orientation": None})
    assert sliced.context_channels == 3
    detector = VolumeDetector(model(sliced), device="cpu", preset="cddpm")
    assert np.isfinite(detector(detector.prepare(scan), scan).map).all()


def test_a_window_is_given_its_own_part() -> None:
    class Answers(Told):
        def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            return context

    windows = WindowDenoiser(InferenceDenoiser(Answers(), "cpu", network_batch=2), (8, 8))
    assert windows.sees_image
    settings = preset("cddpm", noise_scale="unit")
    torch.testing.assert_close(reconstruct(windows, IMAGES, KEYS, settings)[0], IMAGES, atol=1e-5, rtol=1e-5)


def test_recipes_train_what_their_presets_score() -> None:
    conditioned, masked = load_config("brain_flair_cddpm"), load_config("brain_flair_mddpm")
    assert (conditioned.preset, conditioned.diffusion.given, conditioned.network.code) == ("cddpm", "image", 128)
    assert (masked.preset, masked.diffusion.mask, masked.diffusion.noise_where) == ("mddpm", "frequency", "box")
    for config in (conditioned, masked):
        _, settings = resolve(config.preset, config)
        trained = config.diffusion
        assert (settings.noise, settings.noise_scale) == (trained.noise, trained.noise_scale)
        assert trained.prediction == "x0"
    # scored alike, trained otherwise
    assert PRESETS["mddpm"] == PRESETS["pddpm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"kind": "monai"}}, "network.kind unet or dit, found network.kind monai"),
        ({"video": {}}, "is for images and volumes"),
    ],
)
def test_who_cannot_be_told_of_an_image_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "diffusion": {"given": "image"}} | changes)


def test_levels_that_are_averaged_as_images_are_not_refined() -> None:
    with pytest.raises(ConfigError, match="expected no refine"):
        preset("thor-features", fusion="images")
