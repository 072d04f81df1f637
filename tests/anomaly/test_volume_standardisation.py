"""Spatial calibration of whole volumes: the size of normal error at each voxel and level, in numpy by hand."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.volume_fitting import NormalVolume, fit_volumes
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.config import parse_config
from anodiff.data.volumes.geometry import Grid, plan
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.volume import Volume
from anodiff.errors import ConfigError

SHAPE = (8, 9, 7)
LEVELS = (0.5, 1.5)
FLOOR = 0.2


class Shrink(nn.Module):
    """D = x / (1 + sigma^2)."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def scan(number: int) -> Volume:
    """Voxels that are louder and larger towards the far corner."""
    place = np.indices(SHAPE).sum(axis=0) / sum(SHAPE)
    values = np.random.default_rng(number).normal(0.3 * place, 0.05 + 0.2 * place).clip(-1, 1)
    return Volume(values[None].astype(np.float32), np.eye(4), -1.0, 1.0, "float32", f"v{number}", "nifti")


def foreground(number: int) -> np.ndarray:
    """All but a rim, a corner that is in no volume, and a plane that is in every other one."""
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    inside[:4, :5, :4] = False
    inside[6] &= number % 2 == 0
    return inside


class Ready(VolumeDetector):
    """Takes volumes as they are."""

    def prepare(self, volume: Volume) -> PreparedVolume:
        inside = torch.from_numpy(foreground(int(volume.path[1:])))
        return PreparedVolume(torch.from_numpy(volume.data), inside, plan(Grid(SHAPE, np.eye(4)), None))


def detector(**slots: Any) -> Ready:
    recipe = {"name": "m", "preprocess": {"size": [12, 12]},
              "volume": {"orientation": None, "mode": "patches", "patch": [8, 9, 7], "size": list(SHAPE),
                         "min_foreground": 0.0}}  # fmt: skip
    settings = DetectorSettings(
        noise="none", noise_scale="unit", levels=LEVELS, residual="absolute", standardise="map", scale_floor=FLOOR,
        fusion="mean", smooth_px=0.0, reduction="mean", **slots,
    )  # fmt: skip
    model = SimpleNamespace(config=parse_config(recipe), denoiser=Shrink(), calibrations={})
    return Ready(model, settings, device="cpu", precision="fp32", network_batch=2)


def normals(start: int, count: int) -> list[NormalVolume]:
    return [NormalVolume(partial(scan, start + n), f"p{start + n}") for n in range(count)]


def errors(number: int) -> np.ndarray:
    """|x - D(x)| of each level, (L, I, J, K) float64: without noise D sees the volume itself."""
    values = scan(number).data[0].astype(np.float64)
    return np.stack([np.abs(values) * sigma**2 / (1 + sigma**2) for sigma in LEVELS])


def around(values: np.ndarray, width: float) -> np.ndarray:
    return values if width == 0 else ndimage.gaussian_filter(values, width, mode="reflect", truncate=4.0)


def by_hand(numbers: range, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale (L, I, J, K) of the errors of normal foreground voxels around each voxel."""
    inside = np.stack([foreground(n) for n in numbers]).astype(np.float64)
    seen = np.stack([errors(n) for n in numbers])  # (N, L, I, J, K)
    count = around(inside.sum(axis=0), width)
    locations, scales = [], []
    for level in range(len(LEVELS)):
        every = seen[:, level][inside > 0]
        known = count > 0.5
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(known, around((seen[:, level] * inside).sum(axis=0), width) / count, every.mean())
            squares = (inside * (seen[:, level] - mean) ** 2).sum(axis=0)
            variance = np.where(known, around(squares, width) / count, every.var())
        locations.append(mean)
        scales.append(np.sqrt(variance + (FLOOR * every.std()) ** 2))
    return np.stack(locations), np.stack(scales)


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_every_voxel_and_level_has_the_location_and_scale_of_numpy(width: float) -> None:
    found = detector(map_px=width)
    calibration, failed = fit_volumes(found, normals(0, 5), normals(100, 7))
    assert failed == ()
    fitted = calibration.standardisation
    assert fitted is not None
    assert (fitted.granularity.kind, fitted.granularity.width) == ("map", width)
    location, scale = by_hand(range(100, 107), width)
    assert fitted.location.shape == fitted.scale.shape == (len(LEVELS), *SHAPE)
    np.testing.assert_allclose(fitted.location.numpy(), location, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(fitted.scale.numpy(), scale, rtol=2e-5, atol=1e-7)
    # it is a map: normal error is far larger in some places than in others
    inside = foreground(100)
    assert scale[0][inside].max() > 1.5 * scale[0][inside].min()
    # and where no normal ever was, the overall numbers stand
    nowhere = ~np.any([foreground(n) for n in range(100, 107)], axis=0)
    if width == 0:
        assert len(np.unique(fitted.scale.numpy()[0][nowhere])) == 1
    # the map of another volume is the mean over levels of its standardised errors
    result = found(found.prepare(scan(200)), scan(200))
    expected = ((errors(200) - location) / scale).mean(axis=0)
    inside = foreground(200)
    assert np.array_equal(result.inside, inside)
    np.testing.assert_allclose(result.map[inside], expected[inside], rtol=1e-4, atol=1e-5)
    assert result.score == pytest.approx(expected[inside].mean(), rel=1e-4)


def test_levels_are_not_pooled() -> None:
    """Both levels' errors of a place differ by a factor; so do their maps, and no other way."""
    found = detector(map_px=1.0)
    calibration, _ = fit_volumes(found, normals(0, 3), normals(100, 4))
    assert calibration.standardisation is not None
    factor = (1.5**2 / (1 + 1.5**2)) / (0.5**2 / (1 + 0.5**2))
    for statistic in (calibration.standardisation.location, calibration.standardisation.scale):
        torch.testing.assert_close(statistic[1], factor * statistic[0], rtol=1e-4, atol=1e-7)


def test_a_map_needs_one_size() -> None:
    found = detector(map_px=1.0)
    found.config = found.config.model_copy(update={"size": None})
    with pytest.raises(ConfigError, match="needs volumes of one size"):
        fit_volumes(found, normals(0, 3), normals(100, 4))
