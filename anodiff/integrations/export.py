"""The denoiser of a model for other programs: an ONNX file, or a ``torch.export`` program.

Exported is D(x, sigma) with its preconditioning, for images of the model's grid and range in batches of any size.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anodiff.diffusion.denoiser import SMALLEST_SIGMA, Denoiser, preconditioning
from anodiff.errors import ConfigError
from anodiff.files import atomic_write

if TYPE_CHECKING:
    from anodiff.model import DiffusionModel

#: noise levels and rows at which an export is compared with the model
CHECKED_LEVELS = (0.05, 0.7, 3.0)
SEED = 0


@dataclass(frozen=True)
class Exported:
    """path: what was written; difference: largest |D - D'| on random images of three levels, None if not compared."""

    path: Path
    difference: float | None


class PlainDenoiser(nn.Module):
    """A :class:`Denoiser` as tensor operations alone, so that it can be traced: (x, sigma[, context]) -> x0.

    x (N, C, *S) float32 = x0 + sigma * n in the units of the [-1, 1] data; sigma (N,) float32; context (N, K, *S).
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.network = denoiser.network
        self.prediction, self.sigma_data, self.clip = denoiser.prediction, denoiser.sigma_data, denoiser.clip
        self.counted = denoiser.noise_input == "timestep"
        if self.counted:
            assert denoiser.schedule is not None
            self.register_buffer("table", denoiser.schedule.sigmas.double().log())

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        level = sigma.double()
        factors = preconditioning(self.prediction, level, self.sigma_data)
        c_skip, c_out, c_in = (factor.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for factor in factors)
        shown = c_in * x if context is None else torch.cat([c_in * x, context], dim=1)
        denoised = c_skip * x + c_out * self.network(shown, self._noise_condition(level).to(x.dtype))
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def _noise_condition(self, level: Tensor) -> Tensor:
        """As `Denoiser` has it; the position in the table is a sum of ramps, one an interval, without a search."""
        logarithm = level.clamp(min=SMALLEST_SIGMA).log()
        if not self.counted:
            return logarithm / 4
        table = self.get_buffer("table")
        ramps = (logarithm[:, None] - table[:-1]) / (table[1:] - table[:-1])
        return ramps.clamp(0, 1).sum(dim=1)


def export_torch(model: DiffusionModel, path: str | Path) -> Exported:
    """The denoiser as a ``torch.export`` program: ``torch.export.load(path).module()(x, sigma)``.

    Raises ConfigError for a network that cannot be traced, StorageError.
    """
    plain, inputs = _traceable(model)
    program = _program(plain, inputs)
    run = program.module()
    difference = _difference(model, lambda *given: run(*given))
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={"anodiff.json": json.dumps(facts(model))})
    return Exported(atomic_write(path, stream.getvalue()), difference)


def export_onnx(model: DiffusionModel, path: str | Path) -> Exported:
    """The denoiser as an ONNX file with inputs ``x``, ``sigma`` (and ``context``) and the output ``denoised``.

    It is compared with the model where onnxruntime is installed. Raises ConfigError for a network that cannot be
    traced, or without the extra ``[onnx]``; StorageError.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise ConfigError(f"--format onnx: expected the package {package}, found none; pip install anodiff[onnx]")
    plain, inputs = _traceable(model)
    program = _program(plain, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, dynamo=True, input_names=list(inputs), output_names=["denoised"], verbose=False
        )
    assert made is not None
    proto = made.model_proto
    for key, value in facts(model).items():
        proto.metadata_props.add(key=f"anodiff.{key}", value=json.dumps(value))
    content = proto.SerializeToString()
    difference = _difference(model, _session(content)) if find_spec("onnxruntime") is not None else None
    return Exported(atomic_write(path, content), difference)


def facts(model: DiffusionModel) -> dict[str, Any]:
    """What a user of an exported denoiser has to know, plain values."""
    config = model.config
    classes = {"classes": list(config.class_names), "label": "none: the estimate over all classes"}
    return {
        **(classes if config.class_names else {}),
        "name": config.name,
        "units": "images in [-1, 1] as preprocess makes them; sigma in the same units",
        "shape": list(_shape(model)),
        "context_channels": config.context_channels,
        "preprocess": config.preprocess.model_dump(mode="json"),
        "diffusion": config.diffusion.model_dump(mode="json"),
        **({} if config.volume is None else {"volume": config.volume.model_dump(mode="json")}),
    }


def _shape(model: DiffusionModel) -> tuple[int, ...]:
    """(C, *S) of the images that the network denoises."""
    config = model.config
    if config.network_dims == 3:
        assert config.volume is not None
        return config.network_channels, *config.volume.patch
    return config.network_channels, *config.preprocess.size


def _inputs(model: DiffusionModel, rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    channels, *size = _shape(model)
    levels = torch.tensor(CHECKED_LEVELS)[torch.arange(rows) % len(CHECKED_LEVELS)]
    noise = torch.randn(rows, channels, *size, generator=generator)
    inputs = {"x": levels.reshape(-1, *[1] * (len(size) + 1)) * noise, "sigma": levels}
    if model.config.context_channels:
        inputs["context"] = torch.rand(rows, model.config.context_channels, *size, generator=generator)
    return inputs


def _traceable(model: DiffusionModel) -> tuple[PlainDenoiser, dict[str, Tensor]]:
    return PlainDenoiser(model.denoiser).cpu().eval(), _inputs(model, 2)


def _program(plain: PlainDenoiser, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with torch.no_grad():
        try:
            return torch.export.export(
                plain, tuple(inputs.values()), dynamic_shapes={name: {0: batch} for name in inputs}
            )
        except Exception as error:
            detail = " ".join(str(error).split())[:200]
            raise ConfigError(f"export: expected a network that can be traced, found one that cannot ({detail})") from (
                error
            )


def _session(content: bytes) -> Any:
    """What runs an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


@torch.no_grad()
def _difference(model: DiffusionModel, run: Any) -> float:
    """Largest |D - D'| over a batch of another size than the traced one, and over a single row."""
    denoiser = model.denoiser.cpu().eval()
    worst = 0.0
    for rows in (3, 1):
        inputs = _inputs(model, rows)
        expected = denoiser(*inputs.values())
        worst = max(worst, float((run(*inputs.values()) - expected).abs().max()))
    return worst
