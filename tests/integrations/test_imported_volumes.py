"""MONAI U-Nets of volumes, trained elsewhere: import, calibrate and score, against the network asked directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor
from monai.networks.nets import DiffusionModelUNet
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd
from torch import Tensor, nn

from anodiff.anomaly.volumes import VolumeDetector
from anodiff.config import parse_config
from anodiff.data.volumes.read import read_volume
from anodiff.diffusion import Denoiser, make_schedule
from anodiff.errors import InputError
from anodiff.integrations.export import export_onnx, export_torch
from anodiff.integrations.monai import AnomalyMapd
from anodiff.model import DiffusionModel, load
from anodiff.visualize.heatmap import HeatScale
from anodiff.visualize.show import VolumeViewer

from .conftest import VOLUMES, ball, oblique, save_volume, score_job

Run = Callable[..., int]
#: spatial dimensions, and slices that are seen at once
SHAPES = {"patches": (3, 1), "neighbours": (2, 3)}
#: of the 3-D one a grid no smaller than its window, as a U-Net of MONAI halves it without a rest only then
SECTIONS = {**VOLUMES, "patches": {**VOLUMES["patches"], "spacing": [0, 0, 1.8]}}
#: the first two are for the size of normal error
NORMALS = 7


class Direct(nn.Module):
    """The foreign network as it is called where it comes from."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.unet = network

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        out: Tensor = self.unet(x, timesteps=steps)
        return out


def arguments(kind: str) -> dict[str, Any]:
    dims, stack = SHAPES[kind]
    return {
        "spatial_dims": dims,
        "in_channels": stack,
        "out_channels": stack,
        "channels": [4, 8],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "num_head_channels": 4,
        "norm_num_groups": 4,
    }


def foreign(kind: str) -> nn.Module:
    torch.manual_seed(3)
    network = DiffusionModelUNet(**arguments(kind))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def recipe(kind: str) -> dict[str, Any]:
    return {
        "name": "foreign",
        "preset": "one-step",
        "polarity": "brighter",
        "preprocess": {"size": [16, 16], "intensity": {"kind": "robust", "clip": 5.0}, "foreground": "otsu"},
        "volume": SECTIONS[kind],
        "network": {"kind": "monai", "arguments": arguments(kind)},
        "diffusion": {"schedule": "vp-linear", "prediction": "eps", "noise_input": "timestep"},
        "engine": {"network_batch": 4},
    }


def imported(kind: str, folder: Path, anodiff: Run) -> Path:
    """A model file of a checkpoint's weights and a recipe."""
    torch.save({"epoch": 7, "state_dict": foreign(kind).state_dict()}, folder / "unet.pt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(kind)))
    path = folder / "imported.safetensors"
    assert anodiff("import", folder / "unet.pt", "--config", folder / "recipe.yaml", "--output", path) == 0
    return path


@pytest.mark.parametrize("kind", SHAPES)
def test_a_checkpoint_becomes_a_detector_of_volumes(anodiff: Run, tmp_path: Path, kind: str) -> None:
    raw, fitted = imported(kind, tmp_path, anodiff), tmp_path / "fitted.safetensors"
    lines = ["path,label,group,split"]
    for n in range(NORMALS):
        save_volume(tmp_path / f"sub-{n}_FLAIR.nii.gz", ball(n), oblique())
        lines.append(f"sub-{n}_FLAIR.nii.gz,0,p{n},{'train' if n < 2 else 'val'}")
    (tmp_path / "normals.csv").write_text("\n".join(lines) + "\n")
    words = (tmp_path / "normals.csv", "--rate", 0.2, "--device", "cpu", "--output", fitted)
    assert anodiff("calibrate", raw, *words) == 0
    ill = ball(20)
    ill[4:7, 4:6, 3:6] = 900
    job = score_job(fitted, save_volume(tmp_path / "ill.nii.gz", ill, oblique()), tmp_path / "out")

    config = parse_config(recipe(kind))
    denoiser = Denoiser(
        Direct(foreign(kind)), "eps", schedule=make_schedule("vp-linear"), noise_input="timestep",
        sigma_data=config.diffusion.sigma_data, clip=config.diffusion.clip,
    )  # fmt: skip
    direct = DiffusionModel(config, denoiser.eval(), calibrations=load(fitted).calibrations)
    detector = VolumeDetector(direct, "one-step", device="cpu")
    volume = read_volume(job.scan)
    prepared = detector.prepare(volume)
    result = detector(prepared, volume)
    np.testing.assert_allclose(job.map, prepared.back(result.map), rtol=1e-5, atol=1e-5)
    assert float(job.row["score"]) == pytest.approx(result.score, rel=1e-5)
    assert float(job.row["p_value"]) == pytest.approx(result.p_value)
    assert result.is_anomalous is not None
    assert job.row["is_anomalous"] == str(result.is_anomalous).lower()
    assert result.voxel_quantiles is not None
    viewer = VolumeViewer(result, prepared.image, None, None)
    assert viewer.scale == HeatScale.of_normals(result.voxel_quantiles)
    assert viewer.panels(**viewer.start()).keys() == {"image", "anomaly map"}

    loading = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS")])
    d = AnomalyMapd("image", fitted)(loading({"image": job.scan}))
    d = Invertd("image_anomaly", loading, orig_keys="image")(d)
    np.testing.assert_allclose(d["image_anomaly"][0], job.map, atol=1e-5)
    assert d["image_p_value"] == pytest.approx(result.p_value)
    assert d["image_anomalous"] == result.is_anomalous
    foreign_scan = MetaTensor(torch.from_numpy(ill.astype(np.float32))[None], meta={"filename_or_obj": "sub-9_ct.nii"})
    with pytest.raises(InputError, match=r"expected modality MR .*found CT"):
        AnomalyMapd("image", fitted)({"image": foreign_scan})


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("patches", "torch"),
        pytest.param("neighbours", "torch", marks=pytest.mark.slow),
        pytest.param("patches", "onnx", marks=pytest.mark.slow),
        pytest.param("neighbours", "onnx", marks=pytest.mark.slow),
    ],
)
def test_an_imported_network_is_exported_again(anodiff: Run, tmp_path: Path, kind: str, form: str) -> None:
    model = load(imported(kind, tmp_path, anodiff))
    network, steps = foreign(kind), torch.tensor([300.0, 20.0, 700.0])
    sigma = model.denoiser.schedule.sigmas[steps.long()].float()
    dims, stack = SHAPES[kind]
    x = torch.randn(3, stack, *([8] * 3 if dims == 3 else [16, 16]))
    level = sigma.reshape(-1, *[1] * (dims + 1))
    with torch.no_grad():  # the network sees the image of a variance-preserving process, x / sqrt(1 + sigma^2)
        expected = x - level * network(x / (1 + level**2).sqrt(), timesteps=steps)
    clip = model.config.diffusion.clip
    expected = expected if clip is None else expected.clamp(-clip, clip)
    if form == "torch":
        made = export_torch(model, tmp_path / "d")
        found = torch.export.load(tmp_path / "d").module()(x, sigma)
    else:
        pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
        onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
        made = export_onnx(model, tmp_path / "d")
        session = onnxruntime.InferenceSession(tmp_path / "d", providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": x.numpy(), "sigma": sigma.numpy()})[0])
    assert made.difference is not None
    assert made.difference <= 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_the_documented_recipe_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    (block,) = [each.partition("```")[0] for each in text.split("```yaml\n")[1:]]
    config = parse_config(yaml.safe_load(block))
    assert config.volume is not None
    assert (config.network_dims, config.volume.patch) == (3, (32, 32, 32))
    DiffusionModelUNet(**config.network.arguments)
