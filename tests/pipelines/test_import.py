"""anodiff import: foreign weights give the foreign network's own outputs, and nothing of theirs is executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import anodiff as library

Run = Callable[..., int]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "monai": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [8, 16],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 4,
    },
    "diffusers": {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
}


def foreign(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    if kind == "monai":
        from monai.networks.nets import DiffusionModelUNet

        network = DiffusionModelUNet(**ARGUMENTS[kind])
    else:
        pytest.importorskip("diffusers", reason="diffusers is a development dependency")
        from diffusers import UNet2DModel

        network = UNet2DModel(**ARGUMENTS[kind])
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def recipe(folder: Path, kind: str, **changes: Any) -> Path:
    values = {
        "name": "foreign",
        "preset": "one-step",
        "preprocess": {"size": [16, 16]},
        "network": {"kind": kind, "arguments": {**ARGUMENTS.get(kind, {}), **changes}},
        "diffusion": {"schedule": "vp-linear", "prediction": "eps", "noise_input": "timestep"},
        "engine": {"network_batch": 4},
    }
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("kind", ["monai", "diffusers"])
@pytest.mark.parametrize("nesting", ["plain", "wrapped", "safetensors"])
def test_the_imported_network_is_the_foreign_one(anodiff: Run, tmp_path: Path, kind: str, nesting: str) -> None:
    network = foreign(kind)
    weights: Any = network.state_dict()
    source = tmp_path / ("w.safetensors" if nesting == "safetensors" else "w.pt")
    if nesting == "safetensors":
        save_file(weights, source)
    elif nesting == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, source)
    else:
        torch.save(weights, source)
    output = tmp_path / "model.safetensors"
    assert anodiff("import", source, "--config", recipe(tmp_path, kind), "--output", output) == 0
    model = library.load(output)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([10.0, 400.0])
    with torch.no_grad():
        out = network(x, timesteps=t) if kind == "monai" else network(x, t).sample
        assert torch.equal(model.denoiser.network(x, t), out)
    assert model.provenance["imported_from"] == source.name
    assert model.calibrations == {}


def test_an_imported_model_can_be_calibrated_and_scores(anodiff: Run, world: Any, tmp_path: Path) -> None:
    torch.save(foreign("monai").state_dict(), tmp_path / "w.pt")
    raw, fitted = tmp_path / "raw.safetensors", tmp_path / "fitted.safetensors"
    assert anodiff("import", tmp_path / "w.pt", "--config", recipe(tmp_path, "monai"), "--output", raw) == 0
    assert anodiff("calibrate", raw, world.data, "--output", fitted) == 0
    assert anodiff("score", fitted, world.data / "test" / "good", "--output", tmp_path / "out") == 0
    assert all(row["p_value"] for row in world.read_table(tmp_path / "out" / "scores.csv"))


@pytest.mark.parametrize("volume", [{"mode": "patches", "patch": [8, 8, 8]}, {"mode": "slices", "neighbours": 1}])
def test_networks_of_volumes_are_imported_too(anodiff: Run, tmp_path: Path, volume: dict[str, Any]) -> None:
    from monai.networks.nets import DiffusionModelUNet

    channels, dims = (1, 3) if volume["mode"] == "patches" else (3, 2)
    changes = {"spatial_dims": dims, "in_channels": channels, "out_channels": channels}
    torch.manual_seed(1)
    network = DiffusionModelUNet(**{**ARGUMENTS["monai"], **changes}).eval()
    torch.nn.init.normal_(network.out[-1].conv.weight)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    path = recipe(tmp_path, "monai", **changes)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "volume": volume}))
    output = tmp_path / "model.safetensors"
    assert anodiff("import", tmp_path / "w.pt", "--config", path, "--output", output) == 0
    x, t = torch.randn(2, channels, *[8] * dims), torch.tensor([10.0, 400.0])
    with torch.no_grad():
        assert torch.equal(library.load(output).denoiser.network(x, t), network(x, timesteps=t))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_mistakes_are_named(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = foreign("monai").state_dict()
    torch.save(weights, "good.pt")
    torch.save({name: value for name, value in weights.items() if "out" not in name}, "part.pt")
    torch.save({"epoch": 3}, "none.pt")
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": weights, "callbacks": Evil()}, "evil2.pt")
    Path("cut.pt").write_bytes(Path("good.pt").read_bytes()[:3000])
    Path("folder").mkdir()
    good = recipe(tmp_path, "monai")
    for source, config, words in [
        ("part.pt", good, "is missing"),
        ("none.pt", good, "found no tensor"),
        ("evil.pt", good, "pickle"),
        ("evil2.pt", good, "pickle"),
        ("cut.pt", good, "cut.pt"),
        ("folder", good, "diffusion_pytorch_model.safetensors"),
        ("gone.pt", good, "no such file"),
        ("good.pt", "brain_flair", "monai or diffusers"),
        ("good.pt", recipe(tmp_path, "monai", channels=[8, 24]), "do not fit"),
    ]:
        assert anodiff("import", source, "--config", config, "--output", "out.safetensors") == 2, source
        assert words in capfd.readouterr().err, source
        assert not Path("out.safetensors").exists()
    assert not Path("executed").exists()
