"""A tiny model with random weights, calibrated on images as other libraries bring them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


#: how the tiny models of volumes see them; one whose axes are resampled, one that is turned
VOLUMES: dict[str, dict[str, Any]] = {
    "patches": {"mode": "patches", "patch": [8, 8, 8], "orientation": "LPI", "spacing": [2.0, 0, 0]},
    "neighbours": {"neighbours": 1, "axes": [1, 2], "orientation": "PIR", "min_foreground": 0.05},
}
SIDES = (10, 9, 8)


def oblique() -> np.ndarray:
    """An affine with unlike spacings, turned about two axes, the first one running backwards."""
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_k = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_i = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_i @ about_k @ np.diag([-1.0, 1.5, 2.0])
    affine[:3, 3] = [-30.0, 12.5, 7.0]
    return affine


def ball(seed: int, shape: tuple[int, int, int] = SIDES) -> np.ndarray:
    """int16: a ball of noise around 300 in air around 0, with a brighter corner of its own."""
    rng = np.random.default_rng(seed)
    middle = (np.array(shape) - 1) / 2
    inside = ((np.indices(shape) - middle[:, None, None, None]) ** 2).sum(axis=0) < (0.45 * min(shape)) ** 2
    values = np.where(inside, 300 + 20 * rng.normal(size=shape), np.abs(5 * rng.normal(size=shape)))
    values[4:6, 3:5, 2:4] += 60
    return values.astype(np.int16)


def save_volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    import nibabel

    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


@dataclass(frozen=True)
class Scored:
    """What the scoring job wrote of a scan: its map, and its row of scores.csv."""

    model: Path
    scan: Path
    map: np.ndarray
    affine: np.ndarray
    row: dict[str, str]


def score_job(model: Path, scan: Path, output: Path) -> Scored:
    import nibabel

    from anodiff.pipelines import score

    with one_thread():
        score.run(model, [str(scan)], output, device="cpu", heatmaps=False, quiet=True)
    with (output / "scores.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    image = nibabel.load(output / "maps" / f"{row['id']}.nii.gz")
    return Scored(model, scan, np.asarray(image.dataobj), image.affine, row)


@pytest.fixture(scope="session", params=VOLUMES)
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """An oblique scan, scored by a model of volumes of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(volume=VOLUMES[request.param]).save(folder / "model.safetensors")
    scan = save_volume(folder / "scan.nii.gz", ball(0), oblique())
    return score_job(folder / "model.safetensors", scan, folder / "out")


@pytest.fixture
def anodiff() -> Callable[..., int]:
    """Runs the command line in this process; returns the exit code."""
    from anodiff.pipelines import cli

    return lambda *arguments: cli.main([str(argument) for argument in arguments])
