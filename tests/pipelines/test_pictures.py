"""Pictures: one window for input and reconstruction, one colour scale a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anodiff.config import PreprocessConfig
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage
from anodiff.pipelines import pictures


def raw(shape: tuple[int, int], high: float = 255.0) -> RawImage:
    ramp = np.linspace(0.1 * high, 0.9 * high, shape[0] * shape[1], dtype=np.float32).reshape(*shape, 1)
    return RawImage(np.round(ramp), 0.0, high, "uint8" if high == 255 else "uint16")


@pytest.mark.parametrize("kind", ["unit_range", "percentile", "zscore", "robust"])
def test_a_perfect_reconstruction_looks_like_its_input(kind: str) -> None:
    config = PreprocessConfig.model_validate(
        {"size": [32, 32], "resize": "stretch", "intensity": {"kind": kind, "clip": 5.0}}
    )
    image = raw((32, 32), 65535.0)
    prepared = Preprocessor(config)(image)
    shown = pictures.display_input(image, prepared.geometry, config)
    back = pictures.display_reconstruction(prepared.image, prepared, config)
    assert np.abs(shown.astype(int) - back.astype(int)).max() <= 2


def test_8_bit_images_are_shown_as_they_are() -> None:
    config = PreprocessConfig(size=(16, 16))
    image = raw((20, 24))
    shown = pictures.display_input(image, Preprocessor(config)(image).geometry, config)
    assert np.array_equal(shown, image.pixels[..., 0].astype(np.uint8))


def test_large_images_are_shown_smaller_and_padding_is_cut() -> None:
    config = PreprocessConfig(size=(16, 16))
    image = raw((1500, 3000))
    prepared = Preprocessor(config)(image)
    assert pictures.display_input(image, prepared.geometry, config).shape == (512, 1024)
    assert pictures.display_reconstruction(prepared.image, prepared, config).shape == (8, 16)


def calibration(quantiles: dict[float, float]) -> Any:
    return SimpleNamespace(pixel_quantiles=quantiles)


def test_the_scale_is_the_calibrations() -> None:
    scale = pictures.calibrated_scale(calibration({0.5: 0.1, 0.95: 1.0, 0.99: 2.0, 0.999: 5.0, 1.0: 9.0}))
    assert scale is not None
    assert (scale.low, scale.centre, scale.calibrated) == (0.1, 2.0, True)
    assert pictures.calibrated_scale(None) is None


def test_flat_normals_still_give_a_scale() -> None:
    scale = pictures.calibrated_scale(calibration({0.5: 0.0, 0.95: 0.0, 0.99: 0.0, 0.999: 0.0, 1.0: 0.0}))
    assert scale is not None
    assert scale.low < scale.centre < scale.high


def test_a_raw_run_has_one_scale_from_all_its_maps() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.random((16, 16), dtype=np.float32) * gain for gain in (1, 2, 3)]
    rows = [{"map_spread": pictures.map_spread(values)} for values in maps]
    scale = pictures.raw_scale(rows)
    assert scale is not None
    assert not scale.calibrated
    assert scale.high == max(float(values.max()) for values in maps)
    assert scale.low == pytest.approx(float(np.median(maps[1])))
    assert pictures.raw_scale([{"status": "failed"}]) is None
    flat = pictures.raw_scale([{"map_spread": pictures.map_spread(np.zeros((4, 4), np.float32))}])
    assert flat is not None
    assert torch.isfinite(torch.tensor([flat.low, flat.centre, flat.high])).all()
