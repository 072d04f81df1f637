"""What `anodiff likelihood` does with each image: read -> bits per dimension and their parts -> a row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.preprocess import Prepared
from anodiff.data.readers import read_image
from anodiff.diffusion import image_keys, sample_noise
from anodiff.diffusion.likelihood import Likelihood, continuous_bound, discrete_bound, flow_likelihood
from anodiff.engine.store import Item
from anodiff.errors import ConfigError
from anodiff.model import DiffusionModel
from anodiff.restoration.gradients import GradientDenoiser
from anodiff.restoration.intensity import intensity_of
from anodiff.visualize.heatmap import display_image

Estimate = Literal["continuous", "discrete", "flow"]


@dataclass(frozen=True)
class Settings:
    """How the likelihood is estimated; see ``anodiff likelihood --help`` for the options."""

    estimate: Estimate
    levels: int
    solver: str
    probes: int | str
    low: float
    high: float
    bin_width: float
    seed: int


@dataclass(frozen=True)
class Read:
    """One image; width: of its bins in the model's units (C,), None for real numbers; edges: its type ends at -1, 1."""

    prepared: Prepared
    width: NDArray[np.float64] | None
    edges: bool
    data: str


@dataclass(frozen=True)
class Measured:
    """One image: bits a dimension and their parts, what they are stated for, and the nats a dimension of each level."""

    bits: float
    parts: dict[str, float]
    data: str
    bin_width: float
    terms: list[float]
    sigmas: list[float]
    nfe: int
    seconds: float


class LikelihoodJob:
    """read -> Read, compute -> Measured, write -> the row of results.csv; see `anodiff.engine.loop.Job`."""

    def __init__(self, model: DiffusionModel, denoiser: GradientDenoiser, settings: Settings) -> None:
        self.model, self.denoiser, self.settings = model, denoiser, settings
        self.preprocessor = model.preprocessor

    def read(self, item: Item) -> Read:
        """One image from disk, on the model's grid, and what its values are; InputError where it cannot be used."""
        config = self.model.config.preprocess
        raw = self.preprocessor.ranged(read_image(item.path, max_pixels=config.max_pixels))
        prepared = self.preprocessor(raw)
        if raw.dtype.startswith("float"):
            return Read(prepared, None, False, raw.dtype)
        width = 1 / intensity_of(raw, self.preprocessor).scale
        return Read(prepared, width, config.intensity.kind == "unit_range", raw.dtype)

    def compute(self, batch: list[Read]) -> Sequence[Measured]:
        """All of one kind of data together, in batches of the one internal shape."""
        found: dict[int, Measured] = {}
        for binned, edges in sorted({(each.width is not None, each.edges) for each in batch}):
            chosen = [i for i, each in enumerate(batch) if (each.width is not None, each.edges) == (binned, edges)]
            size = self.denoiser.network_batch
            for start in range(0, len(chosen), size):
                piece = chosen[start : start + size]
                filled = [batch[i] for i in (piece + piece[-1:] * size)[:size]]  # copies: one shape, the same bits
                began = time.monotonic()
                images = torch.stack([each.prepared.image for each in filled])
                widths = torch.stack([torch.as_tensor(each.width) for each in filled]) if binned else None
                likelihood = self.estimate(images, widths, edges)
                seconds = (time.monotonic() - began) / len(piece)
                for row, i in enumerate(piece):
                    found[i] = self._measured(likelihood, row, batch[i], seconds)
        return [found[i] for i in range(len(batch))]

    def estimate(self, images: Tensor, widths: Tensor | None, edges: bool) -> Likelihood:
        """-log p of images (N, C, H, W), by the estimate that was asked for."""
        settings, denoiser = self.settings, self.denoiser
        x = images.to(denoiser.device)
        keys = image_keys(images, settings.seed).to(denoiser.device)
        shape = tuple(x.shape[1:])

        def noise(draw: int) -> Tensor:
            return sample_noise("gaussian", keys, shape, draw=draw)

        shared: dict[str, Any] = {
            "preserving": self.model.schedule.is_variance_preserving,
            "width": None if widths is None else widths.to(denoiser.device),
            "edges": edges,
        }
        with torch.no_grad():
            if settings.estimate == "discrete":
                learned = denoiser.with_variance if self.model.config.diffusion.variance == "learned" else None
                return discrete_bound(denoiser, x, self.discrete_levels(), noise, learned=learned, **shared)
            span = (settings.low, settings.high, settings.levels, noise)
            if settings.estimate == "continuous":
                return continuous_bound(denoiser, x, *span, **shared)
            return flow_likelihood(
                denoiser, x, *span, method=settings.solver, probes=settings.probes,
                sigma_data=self.model.config.diffusion.sigma_data, **shared,
            )  # fmt: skip

    def discrete_levels(self) -> Tensor:
        """The levels of the schedule that the network was trained on, thinned to the number asked for."""
        table = self.model.schedule.sigmas
        table = table[(table >= self.settings.low) & (table <= self.settings.high)]
        if len(table) < 2:
            raise ConfigError(
                f"--estimate discrete: expected a schedule with at least 2 levels from {self.settings.low:.4g} to "
                f"{self.settings.high:.4g}, where the model was trained, found {len(table)}"
            )
        count = min(self.settings.levels, len(table))
        return table[torch.linspace(0, len(table) - 1, count, dtype=torch.float64).round().long()]

    def write(self, item: Item, computed: Measured) -> dict[str, Any]:
        """The row; no file."""
        return {
            "bits_per_dim": computed.bits,
            **computed.parts,
            "data": computed.data,
            "bin_width": computed.bin_width,
            "nfe": computed.nfe,
            "seconds": computed.seconds,
            "terms": computed.terms,
            "sigmas": computed.sigmas,
        }

    def picture(self, item: Item) -> Callable[[], tuple[None, NDArray[np.uint8]]]:
        """What the model saw of an input, read when it is shown."""

        def read() -> tuple[None, NDArray[np.uint8]]:
            return None, display_image(self.read(item).prepared.image.permute(1, 2, 0).numpy(), -1.0, 1.0)

        return read

    def _measured(self, likelihood: Likelihood, row: int, read: Read, seconds: float) -> Measured:
        unit = likelihood.dims * math.log(2)
        offset = 0.0 if read.width is not None else -math.log2(self.settings.bin_width)
        parts = {name: float(getattr(likelihood, name)[row]) / unit for name in ("prior", "chain", "reconstruction")}
        parts["reconstruction"] += offset
        return Measured(
            bits=sum(parts.values()),
            parts=parts,
            data=read.data,
            bin_width=self.settings.bin_width if read.width is None else float(read.width.mean()),
            terms=(likelihood.terms[row] / likelihood.dims).tolist(),
            sigmas=likelihood.sigmas.tolist(),
            nfe=likelihood.calls,
            seconds=seconds,
        )
