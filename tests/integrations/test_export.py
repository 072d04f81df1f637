"""Exported denoisers give what the model's own gives, in batches of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anodiff.diffusion import Denoiser, make_schedule
from anodiff.errors import ConfigError
from anodiff.integrations.export import PlainDenoiser, export_onnx, export_torch
from anodiff.model import DiffusionModel

from .conftest import VOLUMES, tiny_model

STEPS = {"schedule": "vp-linear", "prediction": "eps", "noise_input": "timestep", "clip": 1.0}
SMALL = {"channels": [4, 8], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 4}
#: (C, *S) of what the network of a model of volumes sees: patches, and slices with one neighbour on each side
SEEN = {"patches": (1, 8, 8, 8), "neighbours": (3, 16, 16)}
CLIPS = {"video": {"mode": "predict", "past": 3}, "preprocess": {"size": [16, 16]}}


def batch(rows: int, channels: int = 1) -> tuple[Tensor, ...]:
    sigma = torch.linspace(0.01, 4, rows)
    return sigma.reshape(-1, 1, 1, 1) * torch.randn(rows, channels, 16, 16), sigma


def own(model: DiffusionModel, *given: Tensor) -> Tensor:
    with torch.no_grad():
        return model.denoiser(*given)


class Told(torch.nn.Module):
    """A network that says what it was told of the noise level, and is given."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x[:, :1] * 0.5 + c_noise.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
@pytest.mark.parametrize("noise_input", ["log_sigma", "timestep"])
@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "additive"])
def test_the_traceable_form_is_the_denoiser(prediction: str, noise_input: str, name: str) -> None:
    denoiser = Denoiser(
        Told(), prediction, sigma_data=0.3, schedule=make_schedule(name), noise_input=noise_input, clip=50.0
    ).eval()
    sigma = torch.cat([torch.logspace(-6, 5, 300), torch.zeros(1), denoiser.schedule.sigmas[::97].float()])
    x = torch.randn(len(sigma), 1, 2, 2)
    torch.testing.assert_close(PlainDenoiser(denoiser)(x, sigma), denoiser(x, sigma), rtol=1e-5, atol=1e-4)
    context = torch.randn(len(sigma), 2, 2, 2)
    torch.testing.assert_close(
        PlainDenoiser(denoiser)(x, sigma, context), denoiser(x, sigma, context), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("sections", [{}, CLIPS], ids=["images", "clips"])
def test_a_torch_program_gives_the_same(tmp_path: Path, sections: dict[str, Any]) -> None:
    model = tiny_model(**sections)
    made = export_torch(model, tmp_path / "d.pt2")
    assert made.difference is not None
    assert made.difference < 1e-5
    extra = {"anodiff.json": ""}
    program = torch.export.load(tmp_path / "d.pt2", extra_files=extra)
    assert json.loads(extra["anodiff.json"])["shape"] == [1, 16, 16]
    for rows in (1, 5):
        given = batch(rows)
        if sections:
            given = (*given, torch.rand(rows, 3, 16, 16))
        torch.testing.assert_close(program.module()(*given), own(model, *given), atol=1e-5, rtol=1e-5)


def test_an_onnx_file_gives_the_same_to_a_ten_thousandth(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    model = tiny_model(diffusion=STEPS)
    made = export_onnx(model, tmp_path / "d.onnx")
    assert made.difference is not None
    assert made.difference <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["x", "sigma"]
    assert [given.name for given in session.get_outputs()] == ["denoised"]
    for rows in (1, 7):
        x, sigma = batch(rows)
        (found,) = session.run(None, {"x": x.numpy(), "sigma": sigma.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), own(model, x, sigma), atol=1e-4, rtol=0)
    proto = onnx.load(tmp_path / "d.onnx")
    onnx.checker.check_model(proto)
    told = {each.key: json.loads(each.value) for each in proto.metadata_props if each.key.startswith("anodiff.")}
    assert told["anodiff.diffusion"]["prediction"] == "eps"


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("patches", "torch"),
        ("patches", "onnx"),
        ("neighbours", "torch"),
        pytest.param("neighbours", "onnx", marks=pytest.mark.slow),
    ],
)
def test_models_of_volumes_are_exported_for_what_they_see(tmp_path: Path, kind: str, form: str) -> None:
    model = tiny_model(volume=VOLUMES[kind], network=SMALL)
    shape, sigma = SEEN[kind], torch.tensor([0.02, 0.5, 3.0])
    x = sigma.reshape(-1, *[1] * len(shape)) * torch.randn(3, *shape)
    if form == "torch":
        made, extra = export_torch(model, tmp_path / "d"), {"anodiff.json": ""}
        found = torch.export.load(tmp_path / "d", extra_files=extra).module()(x, sigma)
        told = json.loads(extra["anodiff.json"])
    else:
        onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
        pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
        onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
        made = export_onnx(model, tmp_path / "d")
        session = onnxruntime.InferenceSession(tmp_path / "d", providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": x.numpy(), "sigma": sigma.numpy()})[0])
        properties = onnx.load(tmp_path / "d").metadata_props
        told = {each.key.removeprefix("anodiff."): json.loads(each.value) for each in properties}
    assert made.difference is not None
    assert made.difference <= 1e-4
    torch.testing.assert_close(found, own(model, x, sigma), atol=1e-4, rtol=0)
    assert told["shape"] == list(shape)
    assert told["volume"]["neighbours"] == VOLUMES[kind].get("neighbours", 0)
    assert told["volume"]["orientation"] == VOLUMES[kind]["orientation"]


def test_a_network_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    model = tiny_model()
    model.denoiser.network = Branching()
    with pytest.raises(ConfigError, match="can be traced"):
        export_torch(model, tmp_path / "d.pt2")
    assert not list(tmp_path.iterdir())
