from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from anodiff.data.volumes.preprocess import (
    VolumeIntensity,
    VolumePreprocessor,
    VolumeSettings,
    clean_foreground,
    erode_mm,
    window_limits,
)
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError

SHAPE = (12, 14, 10)
BALL = ((np.indices(SHAPE) - np.array([6, 7, 5])[:, None, None, None]) ** 2).sum(axis=0) <= 16
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def _volume(seed: int = 0, **changes: Any) -> Volume:
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    data = np.where(BALL, 100 + 10 * noise, noise).astype(np.float32)[None]
    volume = Volume(data, AFFINE, float(data.min()), float(data.max()), "float32", "scan.nii", "nifti")
    return replace(volume, **changes)


def _prepare(volume: Volume, **settings: Any) -> Any:
    return VolumePreprocessor(VolumeSettings(**{"orientation": None, **settings}))(volume)


def test_foreground_is_the_filled_largest_component() -> None:
    hollow = BALL.copy()
    hollow[6, 7, 5] = False
    hollow[0, 0, 0] = hollow[11, 13, 9] = True
    assert np.array_equal(clean_foreground(hollow), BALL)
    ring = np.zeros((5, 5, 1), dtype=bool)
    ring[1:4, 1:4] = True
    holed = ring.copy()
    holed[2, 2, 0] = False
    assert np.array_equal(clean_foreground(holed), ring)
    assert np.array_equal(_prepare(_volume()).foreground.numpy(), BALL)


def test_erosion_in_steps_and_in_millimetres() -> None:
    in_steps = _prepare(_volume(), foreground_erode_px=1).foreground.numpy()
    assert np.array_equal(in_steps, ndimage.binary_erosion(BALL))
    outside = np.argwhere(~BALL) * np.array([1.0, 1.0, 2.0])
    keep = np.zeros(SHAPE, dtype=bool)
    for place in np.argwhere(BALL):
        keep[tuple(place)] = np.sqrt(((outside - place * np.array([1.0, 1.0, 2.0])) ** 2).sum(axis=1)).min() > 1.5
    assert np.array_equal(_prepare(_volume(), foreground_erode_mm=1.5).foreground.numpy(), keep)
    cut = np.ones(SHAPE, dtype=bool)
    cut[0] = False
    assert erode_mm(cut, 1.0, np.ones(3))[2:].all()


@pytest.mark.parametrize("kind", ["percentile", "zscore", "robust", "window", "unit_range"])
def test_intensities_are_of_the_volume(kind: Any) -> None:
    """Closed forms over the whole foreground: no slice has statistics of its own."""
    volume = _volume()
    intensity = VolumeIntensity(kind, low=2, high=98, clip=4.0, window=(90.0, 120.0))
    image = _prepare(volume, intensity=intensity, value_range=(-50.0, 200.0)).image.numpy()[0]
    data = volume.data[0].astype(np.float64)
    values = data[BALL]
    first, middle, third = np.percentile(values, [25, 50, 75])
    low, high = np.percentile(values, [2, 98])
    expected = {
        "percentile": np.clip(2 * (data - low) / (high - low) - 1, -1, 1),
        "zscore": np.clip((data - values.mean()) / values.std(), -4, 4),
        "robust": np.clip((data - middle) / (4 * (third - first) / 1.3489795003921634), -1, 1),
        "window": np.clip((data - 105) / 15, -1, 1),
        "unit_range": np.clip(2 * (data + 50) / 250 - 1, -1, 1),
    }[kind]
    assert np.allclose(image, expected, atol=1e-5)


def test_window_limits() -> None:
    assert window_limits(40, 80) == (0, 80)
    with pytest.raises(ValueError, match="width"):
        window_limits(40, 0)
    with pytest.raises(ValueError, match="low below high"):
        VolumeIntensity("window")
    with pytest.raises(ValueError, match="unknown intensity"):
        VolumeIntensity("histogram")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="robust needs clip"):
        VolumeIntensity("robust", clip=None)


def test_invalid_voxels_are_no_foreground() -> None:
    valid = np.ones(SHAPE, dtype=bool)
    valid[:, :, :5] = False
    prepared = _prepare(_volume(valid=valid))
    assert np.array_equal(prepared.foreground.numpy(), BALL & valid)


def test_the_range_must_be_known_where_it_is_used() -> None:
    with pytest.raises(InputError, match=r"scan\.nii: expected values in \[0, 1\] or a value_range"):
        _prepare(_volume(), intensity=VolumeIntensity("unit_range"))
    with pytest.raises(InputError, match="value_range"):
        _prepare(_volume(), foreground="threshold")
    ranged = _prepare(_volume(ranged=True), foreground="threshold", foreground_threshold=0.5)
    assert np.array_equal(ranged.foreground.numpy(), BALL)
    flat = _volume()
    flat.data[0][BALL] = 100
    for kind in ("robust", "zscore", "percentile"):
        with pytest.raises(InputError, match="no spread"):
            _prepare(flat, intensity=VolumeIntensity(kind))  # type: ignore[arg-type]


def test_size_about_the_foreground_and_back() -> None:
    moved = np.roll(_volume().data, (1, -3, -1), axis=(1, 2, 3))
    volume = _volume(data=moved)
    prepared = _prepare(volume, orientation="LPS", size=(9, 9, 9), crop_to_foreground=True)
    assert prepared.image.shape == (1, 9, 9, 9)
    assert prepared.foreground.sum() == BALL.sum()
    marks = torch.zeros(1, 9, 9, 9)
    marks[0, 4, 4, 4] = 1
    place = np.unravel_index(prepared.back(marks)[0].argmax(), SHAPE)
    assert place == (7, 4, 4)
    padded = _prepare(volume, size=(20, 20, 20))
    assert not (padded.foreground.numpy() & ~padded.plan.covered()).any()
    assert np.array_equal(padded.back(padded.image[0]), _prepare(volume).image.numpy()[0])


def test_colour_channels_keep_their_own_statistics() -> None:
    volume = _volume()
    both = replace(volume, data=np.concatenate([volume.data, 3 * volume.data + 7]))
    image = _prepare(both, intensity=VolumeIntensity("zscore")).image
    assert torch.allclose(image[0], image[1], atol=1e-4)
