"""Presets are what their papers say, adapted by a recipe, and a misspelt name or slot is put right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.noising import sigma_grid
from anodiff.anomaly.presets import PRESETS, preset, resolve, training_note
from anodiff.anomaly.settings import DetectorSettings, Harmonise, Stitch
from anodiff.config import load_config, parse_config
from anodiff.diffusion import make_schedule
from anodiff.errors import ConfigError


def test_the_promised_presets_exist_with_their_cost() -> None:
    assert {name: settings.nfe for name, settings in PRESETS.items()} == {
        "default": 16,
        "anoddpm": 250,
        "multilevel": 6,
        "one-step": 2,
        "dae": 1,
        "pddpm": 4,
        "mddpm": 4,
        "cddpm": 3,
        "autoddpm-features": 200 + 50 * 5 + 2 + 2,  # both chains; the encoder on (x, r) for the mask and for the map
        "thor-features": 350 + 1 + 3 + 1 + 7,  # a chain; the encoder on x and three estimates, then on x and seven
        "ddad-features": 10 + 2,
    }


def test_published_start_levels_are_those_of_the_linear_schedule() -> None:
    schedule = make_schedule("vp-linear", 1000)
    assert round(float(schedule.t_of(PRESETS["anoddpm"].levels[0]))) == 250
    assert round(float(schedule.t_of(PRESETS["pddpm"].levels[0]))) == 500
    assert round(float(schedule.t_of(PRESETS["ddad-features"].levels[0]))) == 250
    assert [round(float(schedule.t_of(level))) for level in PRESETS["cddpm"].levels] == [250, 500, 750]
    assert round(float(schedule.t_of(PRESETS["mddpm"].levels[0]))) == 500


def test_refined_presets_turn_at_the_published_steps_and_walk_each_of_them() -> None:
    schedule = make_schedule("vp-linear", 1000)
    for name, start in {"autoddpm-features": 200, "thor-features": 350}.items():
        settings = PRESETS[name]
        grid = sigma_grid(settings, settings.levels[0], schedule)
        assert torch.equal(grid[:-1], schedule.sigmas[:start].flip(0))
    thor, auto = PRESETS["thor-features"].refine, PRESETS["autoddpm-features"].refine
    assert isinstance(thor, Harmonise)
    assert isinstance(auto, Stitch)
    assert [round(float(schedule.t_of(level))) for level in thor.at] == [300, 150, 50]
    assert [round(float(schedule.t_of(level))) for level in thor.levels] == [300, 250, 200, 150, 100, 50]
    assert (round(float(schedule.t_of(auto.level))), auto.steps, auto.repeats) == (50, 50, 5)


def test_settings_of_an_earlier_version_are_those_with_todays_defaults() -> None:
    """A calibration that was written before a slot existed still belongs to its preset."""
    name, settings = resolve("one-step")
    written = settings.to_json()
    for newer in ("guidance", "refine"):
        del written[newer]
    earlier = SimpleNamespace(settings=written, message="", precision_note=lambda _: "")
    model = SimpleNamespace(denoiser=torch.nn.Identity(), calibrations={name: earlier})
    assert AnomalyDetector(model, name, device="cpu").calibration is earlier
    written["smooth_px"] = 1.0
    assert AnomalyDetector(model, name, device="cpu").calibration is None


def test_slots_can_be_set_otherwise_and_are_checked_as_a_whole() -> None:
    assert preset("default", smooth_px=1.5).smooth_px == 1.5
    with pytest.raises(ConfigError, match="name a sampler"):
        preset("one-step", steps=3)
    with pytest.raises(ConfigError, match=r"topk.*found 2"):
        preset("one-step", topk=2)


def test_misspelt_names_are_put_right() -> None:
    with pytest.raises(ConfigError, match="did you mean 'anoddpm'"):
        preset("anodpm")
    with pytest.raises(ConfigError, match="unknown slot 'smooth_pixels'; did you mean 'smooth_px'"):
        preset("default", smooth_pixels=2)


def recipe(**values: object) -> SimpleNamespace:
    diffusion = SimpleNamespace(noise="simplex", noise_scale="published")
    return SimpleNamespace(**({"polarity": "brighter", "presets": {}, "diffusion": diffusion} | values))


def test_a_recipe_declares_polarity_for_every_preset() -> None:
    for name in PRESETS:
        assert resolve(name, recipe())[1].polarity == "brighter"


def test_a_recipe_sets_slots_of_one_preset_only() -> None:
    config = recipe(presets={"default": {"smooth_px": 9.0, "polarity": "darker"}})
    assert resolve("default", config)[1].smooth_px == 9.0
    assert resolve("default", config)[1].polarity == "darker"
    assert resolve("one-step", config)[1].smooth_px == PRESETS["one-step"].smooth_px


def test_noise_follows_the_training() -> None:
    _, settings = resolve("default", recipe())
    assert (settings.noise, settings.noise_scale) == ("simplex", "published")
    _, settings = resolve("anoddpm", recipe())
    assert (settings.noise, settings.noise_scale) == ("simplex", "published")
    gaussian = SimpleNamespace(noise="gaussian", noise_scale="published")
    _, settings = resolve("anoddpm", recipe(diffusion=gaussian))
    assert (settings.noise, settings.noise_scale) == ("simplex", "unit")
    _, settings = resolve("default", None)
    assert (settings.noise, settings.noise_scale) == ("gaussian", "unit")


def test_an_auto_encoder_is_shown_the_clean_image_at_the_level_of_its_recipe() -> None:
    trained = load_config("brain_flair_dae")
    assert trained.preset == "dae"
    _, settings = resolve("dae", trained)
    assert (settings.noise, settings.levels) == ("none", (trained.diffusion.sigma.value,))
    assert settings.polarity == "brighter"


def test_settings_as_such_are_taken_as_they_are() -> None:
    given = DetectorSettings(noise="pyramid", noise_scale="unit", polarity="darker")
    assert resolve(given, recipe()) == ("custom", given)


def test_a_residual_without_a_sign_cannot_serve_a_declared_polarity() -> None:
    with pytest.raises(ConfigError, match="no sign"):
        resolve("default", recipe(presets={"default": {"residual": "ssim"}}))


def test_a_recipe_may_bring_a_preset_of_its_own_that_starts_from_another() -> None:
    config = recipe(presets={"tuned": {"base": "one-step", "smooth_px": 9.0}, "tunde": {"smooth_px": 1.0}})
    name, settings = resolve("tuned", config)
    assert name == "tuned"
    assert settings == resolve("one-step", config)[1].model_copy(update={"smooth_px": 9.0})
    with pytest.raises(ConfigError, match="unknown preset 'tunde'; did you mean 'tuned'"):
        resolve("tunde", config)  # a misspelt name says no base
    with pytest.raises(ConfigError, match="unknown preset 'nothing'"):
        resolve("tuned", recipe(presets={"tuned": {"base": "nothing"}}))
    with pytest.raises(ConfigError, match="unknown slot 'base'"):
        resolve("default", recipe(presets={"default": {"base": "one-step"}}))


def test_a_base_brings_what_the_recipe_says_of_it_and_may_have_a_base_itself() -> None:
    presets = {
        "one-step": {"smooth_px": 7.0, "topk": 0.25},
        "mine": {"base": "one-step", "smooth_px": 9.0},
        "finer": {"base": "mine", "topk": 0.5},
    }
    settings = resolve("finer", recipe(presets=presets))[1]
    assert (settings.levels, settings.smooth_px, settings.topk) == (PRESETS["one-step"].levels, 9.0, 0.5)
    with pytest.raises(ConfigError, match="found 'a' again"):
        resolve("a", recipe(presets={"a": {"base": "b"}, "b": {"base": "a"}}))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("cddpm", {"given": "image"}, "diffusion.given image, found nothing"),
        ("mddpm", {"mask": "pixels"}, "diffusion.mask frequency or pixels, found none"),
        ("pddpm", {"noise_where": "box"}, "diffusion.noise_where box, found all"),
    ],
)
def test_a_method_whose_training_a_model_did_not_have_is_named(name: str, changes: dict[str, str], said: str) -> None:
    plain, own = (parse_config({"name": "x", "diffusion": values}) for values in ({}, changes))
    assert said in str(training_note(name, plain))
    assert training_note(name, own) is None
    assert training_note("one-step", plain) is training_note(name) is training_note(PRESETS[name], plain) is None
    # also where the recipe calls it otherwise
    derived = plain.model_copy(update={"presets": {"ours": {"base": name, "smooth_px": 2.0}}})
    assert "preset 'ours'" in str(training_note("ours", derived))
    denoiser = torch.nn.Identity()
    notes = [AnomalyDetector(SimpleNamespace(denoiser=denoiser, config=each), name, device="cpu").notes
             for each in (plain, own)]  # fmt: skip
    assert notes[0] == (training_note(name, plain), *notes[1])
