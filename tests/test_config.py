"""Recipes: every shipped one is valid, every mistake is one sentence that names the key and the nearest right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anodiff.config import AnodiffConfig, apply_overrides, load_config, parse_config, shipped_configs
from anodiff.errors import ConfigError
from anodiff.model import build_denoiser


def test_shipped_recipes_are_valid_and_open_with_their_command() -> None:
    shipped = shipped_configs()
    assert "brain_flair" in shipped
    for name, path in shipped.items():
        config = load_config(name)
        assert config.name == name
        assert path.read_text().startswith(f"# anodiff train {name} "), (
            f"{path} must open with the command that runs it"
        )
        build_denoiser(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "trainig": {}}, r"r\.yaml: unknown key 'trainig'; did you mean 'training'\?"),
        ({"name": "x", "training": {"lrr": 1}}, r"unknown key 'training\.lrr'; did you mean 'training\.lr'\?"),
        ({"name": "x", "training": {"zzz": 1}}, r"unknown key 'training\.zzz'; known here: images, "),
        ({"name": "x", "lr": 1e-3}, r"unknown key 'lr'; did you mean 'training\.lr'\?"),
        (
            {"name": "x", "preprocess": {"intensity": {"kindd": "zscore"}}},
            r"unknown key 'preprocess\.intensity\.kindd'; did you mean 'preprocess\.intensity\.kind'\?",
        ),
        (
            {"name": "x", "diffusion": {"sgima": {"mean": 1}}},
            r"unknown key 'diffusion\.sgima'; did you mean 'diffusion\.sigma'\?",
        ),
        ({"name": "x", "diffusion": {"sigma": {"meen": 1}}}, r"did you mean 'diffusion\.sigma\.mean'\?"),
        ({"name": "x", "preprocess": {"value_range": [3, 3]}}, r"value_range must be \[low, high\]"),
        ({"name": "x", "training": {"lr": -1}}, r"at 'training\.lr' .*greater than 0 \(found -1\)"),
        (
            {"name": "x", "network": {"channels": [8, 16]}},
            r"attention needs one entry per resolution: expected 2, found 3",
        ),
        ({"name": "x", "polarity": "up"}, r"at 'polarity' .*'both', 'brighter' or 'darker' \(found 'up'\)"),
        ({"name": "x", "preprocess": {"size": [4, 64]}}, r"at 'preprocess\.size\.0' .*\(found 4\)"),
        (
            {"name": "x", "augment": {"crop": [64, 64], "shift_px": 4}},
            r"at 'augment' a crop is at a random place already: expected shift_px 0, found 4",
        ),
        (
            {"name": "x", "augment": {"crop": [64, 160]}},
            r"must fit in preprocess\.size \[128, 128\], found \[64, 160\]",
        ),
        (
            {"name": "x", "augment": {"transpose": True, "crop": [64, 32]}},
            r"augment\.transpose needs a square image or crop, found \[64, 32\]",
        ),
        (
            {"name": "x", "preprocess": {"resize": "none"}, "volume": {}},
            r"preprocess\.resize none are of models of 2-D images",
        ),
        ({"name": "x", "calibration": {"rate": 1.5}}, r"at 'calibration\.rate' .*\(found 1\.5\)"),
        ({}, r"the key 'name' is missing"),
        ([1], r"expected a mapping of keys to values, found list"),
    ],
)
def test_one_sentence_names_the_mistake(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(values, "r.yaml")
    assert "\n" not in str(caught.value)


def test_every_group_refuses_unknown_keys() -> None:
    for group in AnodiffConfig.model_fields:
        if group in ("name", "description", "polarity", "preset", "presets"):
            continue
        with pytest.raises(ConfigError, match=f"unknown key '{group}.no_such_key'"):
            parse_config({"name": "x", group: {"no_such_key": 1}})


def test_overrides_reach_nested_keys_and_leave_the_rest() -> None:
    values = {"name": "x", "training": {"lr": 1e-3, "images": 10}}
    changed = parse_config(apply_overrides(values, ["training.lr=2e-4", "network.channels=[8, 16, 24]"]))
    assert changed.training.lr == pytest.approx(2e-4)
    assert changed.training.images == 10
    assert changed.network.channels == (8, 16, 24)
    assert values["training"]["lr"] == 1e-3  # type: ignore[index]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainig.lr=1e-3", "training"),
        ("training.lrr=1e-3", "training.lr"),
        ("batch_size=8", "training.batch_size"),
        ("diffusion.sigma.meen=1", "diffusion.sigma.mean"),
        ("preprocess.intensity.spred=lower", "preprocess.intensity.spread"),
        ("enginenetwork_batch=3", "engine.network_batch"),
    ],
)
def test_a_misspelt_override_names_the_nearest_key(tmp_path: Path, override: str, meant: str) -> None:
    (tmp_path / "r.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        load_config(tmp_path / "r.yaml", [override])


@pytest.mark.parametrize("override", ["training.lr", "=3", "name.sub=3", "training.lr=[1"])
def test_bad_overrides_are_named(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"name": "x"}, [override])


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'brain_flair'\?"):
        load_config("brain_flare")


def test_unreadable_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(ConfigError, match=r"broken\.yaml: expected a readable YAML file"):
        load_config(path)


def test_yaml_cannot_name_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['echo broken > /dev/null']")
    with pytest.raises(ConfigError, match="expected a readable YAML file"):
        load_config(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"conditioning": {"classes": ["healthy"]}}, "conditioning.classes"),
        ({"conditioning": {"classes": ["healthy", "Healthy "]}}, "classes must have names that differ"),
        ({"conditioning": {"classes": ["healthy", ""]}}, "classes must have names that differ"),
        ({"conditioning": {"normal": "good"}}, "normal must be one of the classes healthy, diseased, found 'good'"),
        ({"conditioning": {"drop": 0}}, "conditioning.drop"),
        ({"conditioning": {}, "volume": {}}, "expected no volume and no video"),
        ({"conditioning": {}, "network": {"kind": "monai"}}, "conditioning needs network.kind unet or dit"),
        ({"conditioning": {"clases": ["a", "b"]}}, "did you mean 'conditioning.classes'"),
    ],
)
def test_classes_are_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"name": "x", **values})


def test_the_normal_class_is_the_first_unless_named() -> None:
    config = parse_config({"name": "x", "conditioning": {"classes": ["sick", "well"], "normal": "well"}})
    assert config.conditioning is not None
    assert (config.class_names, config.conditioning.normal_index) == (("sick", "well"), 1)
    assert parse_config({"name": "x"}).class_names == ()
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"augment": {"crop": [64, 64]}}, "augment.crop shows parts of it"),
        ({"engine": {"window": [64, 64]}}, "engine.window shows parts of it"),
        ({"volume": {"mode": "patches"}}, "volume.mode patches shows parts of it"),
        ({"network": {"kind": "dit", "position": True}}, "network.position is of network.kind unet, found dit"),
    ],
)
def test_places_are_of_whole_images(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"name": "x", "network": {"position": True}, **values})
    without = {**values, "network": {**values.get("network", {}), "position": False}}
    assert not parse_config({"name": "x", **without}).network.position
