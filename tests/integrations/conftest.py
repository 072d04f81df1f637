"""A tiny model with random weights, calibrated on images as other libraries bring them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "polarity": "brighter",
    "preset": "one-step",
    "preprocess": {
        "size": [16, 16],
        "intensity": {"kind": "robust", "clip": 5.0},
        "foreground": "otsu",
    },
    "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
    "engine": {"network_batch": 4},
}


def pictures(count: int, seed: int = 0, lesion: bool = False) -> np.ndarray:
    """Smooth discs (N, 20, 24) float32 of about 0..200 with noise, on request with a bright spot at (7, 14)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:20, :24]
    disc = np.hypot(y - 9.5, x - 11.5) < 9
    phase = rng.uniform(0, 1, (count, 1, 1))
    values = disc * (90 + 20 * np.sin(x / 4 + phase)) + rng.normal(0, 4, (count, 20, 24)).clip(-9, 9) + 10
    return (values + 90 * lesion * (np.hypot(y - 7, x - 14) < 3)).astype(np.float32)


def tiny_model(**sections: Any) -> DiffusionModel:
    """A model whose zero layers are filled, so that its output depends on all of its input."""
    torch.manual_seed(0)
    config = parse_config({**RECIPE, **sections})
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return DiffusionModel(config, denoiser.eval())


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def raw_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file without calibration."""
    path = tmp_path_factory.mktemp("raw") / "raw.safetensors"
    tiny_model().save(path)
    return path


@pytest.fixture(scope="session")
def model_file(raw_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file calibrated for its recipe's preset on 48 images."""
    from anodiff.anomaly import AnomalyDetector
    from anodiff.integrations.arrays import ArrayModel

    arrays = ArrayModel(raw_model, device="cpu")
    model = arrays.model.get()
    ready = [model.preprocessor(arrays.raw(image, "image")) for image in pictures(48)]
    detector = AnomalyDetector(model, "one-step", device="cpu")
    images, inside = (torch.stack([getattr(each, name) for each in ready]) for name in ("image", "foreground"))
    with one_thread():
        detector.fit(images, foreground=inside)
    assert detector.calibration is not None
    model.calibrations["one-step"] = detector.calibration
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model.save(path)
    return path
