"""The model file: what goes in comes out, and nothing but a whole anodiff file is ever loaded."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import anodiff
from anodiff.anomaly.calibration import Calibration
from anodiff.anomaly.standardise import Granularity, Standardisation
from anodiff.config import parse_config
from anodiff.data.seen import SeenImages
from anodiff.errors import ModelFileError
from anodiff.model import DiffusionModel, build_denoiser, digest, load


@pytest.fixture
def model(tiny_recipe: dict[str, Any]) -> DiffusionModel:
    config = parse_config(tiny_recipe)
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return DiffusionModel(config, denoiser.eval(), provenance={"data": "made up", "images_seen": 3})


def calibration() -> Calibration:
    return Calibration(
        preset="default",
        settings={"levels": [0.5, 1.0]},
        seed=7,
        rate=0.05,
        unit="image",
        scores=torch.linspace(0, 1, 30, dtype=torch.float64),
        threshold=0.9,
        message=None,
        pixel_quantiles={0.5: 0.1, 0.95: 0.2, 0.99: 0.3, 0.999: 0.4, 1.0: 0.5},
        standardisation=Standardisation(
            torch.rand(2, 16, 16), torch.rand(2, 16, 16), Granularity("map", 2.0), {"a": -1.5}
        ),
        counts={"threshold": 30},
    )


def test_seen_images_and_how_a_calibration_was_made_travel_along(model: DiffusionModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    prepared = model.config.preprocess.model_dump(mode="json")
    model.calibrations["default"] = replace(calibration(), precision="bf16", preprocess=prepared)
    model.seen = SeenImages.of([7, 2**64 - 1, 7, 0])
    model.save(path)
    back = load(path)
    assert back.seen is not None
    assert back.seen.hashes.tolist() == [0, 7, 2**64 - 1]
    assert [back.seen.contains(value) for value in (0, 7, 8, 2**64 - 1)] == [True, True, False, True]
    assert back.calibrations["default"].precision == "bf16"
    assert back.calibrations["default"].preprocess == prepared


def test_files_from_before_these_were_recorded_still_load(model: DiffusionModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model.calibrations["default"] = calibration()
    model.save(path)

    def age(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del header["calibrations"]["default"]["precision"], header["calibrations"]["default"]["preprocess"]
        del header["config"]["preprocess"]["value_range"]
        header["digest"] = digest(tensors, header)

    rewrite(path, age)
    back = load(path)
    assert back.seen is None
    assert back.calibrations["default"].precision is None
    # No command could calibrate for another preprocessing then, so it is known: the file's own.
    assert back.calibrations["default"].preprocess == back.config.preprocess.model_dump(mode="json")


def test_round_trip_keeps_everything(model: DiffusionModel, tmp_path: Path) -> None:
    prepared = model.config.preprocess.model_dump(mode="json")
    model.calibrations["default"] = replace(calibration(), preprocess=prepared)
    path = tmp_path / "model.safetensors"
    model.save(path)
    back = anodiff.load(path)
    assert back.config == model.config
    assert back.provenance == model.provenance
    assert back.parameters == model.parameters
    x, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 2.0])
    assert torch.equal(back.denoiser(x, sigma), model.denoiser(x, sigma))
    mine, theirs = calibration(), back.calibrations["default"]
    assert theirs.to_json() == model.calibrations["default"].to_json()
    assert torch.equal(theirs.scores, mine.scores)
    assert theirs.standardisation is not None
    assert theirs.standardisation.location.shape == (2, 16, 16)


def test_header_is_json_with_a_version(model: DiffusionModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["anodiff"])
    assert header["format_version"] == 1
    assert header["config"]["name"] == "tiny"


def test_saving_twice_gives_the_same_bytes(model: DiffusionModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        model.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("cut", [0, 5, 100, 2000, -1])
def test_truncated_file_is_refused(model: DiffusionModel, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.safetensors"
    model.save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelFileError, match=r"m\.safetensors: expected .*(empty|damaged)"):
        load(path)


def test_flipped_bit_in_a_weight_is_refused(model: DiffusionModel, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model.save(path)
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelFileError, match="damaged"):
        load(path)


def test_changed_threshold_in_the_header_is_refused(model: DiffusionModel, tmp_path: Path) -> None:
    model.calibrations["default"] = calibration()
    path = tmp_path / "m.safetensors"
    model.save(path)
    rewrite(path, lambda header, tensors: header["calibrations"]["default"].update(threshold=0.1))
    with pytest.raises(ModelFileError, match="damaged"):
        load(path)


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "evil.safetensors", tmp_path / "was_run"
    path.write_bytes(pickle.dumps(Bomb(mark), protocol=protocol))
    with pytest.raises(ModelFileError, match=r"evil\.safetensors: expected .* found a pickle.*anodiff import"):
        load(path)
    assert not mark.exists()


def test_torch_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ModelFileError, match="found a pickle"):
        load(tmp_path / "x.pt")


def test_foreign_missing_and_folder_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="another program"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="no such file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match="found a folder"):
        load(tmp_path)


def rewrite(path: Path, change: Any) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["anodiff"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"anodiff": json.dumps(header)})


def test_other_version_and_missing_weight_are_named(model: DiffusionModel, tmp_path: Path) -> None:
    from anodiff.model import digest

    path = tmp_path / "m.safetensors"
    model.save(path)
    rewrite(path, lambda header, tensors: header.update(format_version=99))
    with pytest.raises(ModelFileError, match="expected model format version 1, found 99"):
        load(path)

    def drop(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del tensors["weights.outlet.weight"]
        header["digest"] = digest(tensors, header)

    model.save(path)
    rewrite(path, drop)
    with pytest.raises(ModelFileError, match=r"found 1 that do not fit, the first 'outlet\.weight'"):
        load(path)


@pytest.mark.parametrize("kind", ["monai", "diffusers"])
def test_foreign_networks_are_built_from_their_arguments(tiny_recipe: dict[str, Any], kind: str) -> None:
    arguments: dict[str, dict[str, Any]] = {
        "monai": {
            "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [8, 16],
            "attention_levels": [False, True], "num_res_blocks": 1, "num_head_channels": 8, "norm_num_groups": 4,
        },
        "diffusers": {
            "sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8,
        },
    }  # fmt: skip
    if kind == "diffusers":
        pytest.importorskip("diffusers", reason="diffusers is a development dependency")
    recipe = {
        **tiny_recipe,
        "network": {"kind": kind, "arguments": arguments[kind]},
        "diffusion": {"prediction": "eps", "schedule": "vp-linear", "noise_input": "timestep"},
    }
    denoiser = build_denoiser(parse_config(recipe)).eval()
    assert denoiser(torch.randn(2, 1, 16, 16), torch.tensor([0.5, 1.0])).shape == (2, 1, 16, 16)
