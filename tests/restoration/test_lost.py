"""What a model does not see of an image: counted against numbers that are planted, and sides against nibabel's axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anodiff.config import PreprocessConfig
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage
from anodiff.data.volumes.geometry import Grid, plan
from anodiff.restoration.intensity import intensity_of
from anodiff.restoration.lost import Lost, lost_of, volume_sides


def found(pixels: np.ndarray, **settings: Any) -> Lost:
    """What is lost of float pixels (H, W) on a model's grid of 16x16."""
    preprocessor = Preprocessor(PreprocessConfig(size=(16, 16), **settings))
    image = RawImage(pixels[:, :, None].astype(np.float32), 0.0, float(pixels.max()), "float32", "x")
    raw = preprocessor.ranged(image)
    return lost_of(raw, preprocessor(raw), intensity_of(raw, preprocessor), preprocessor)


@pytest.mark.parametrize("kind", ["unit_range", "percentile", "robust", "nyul", "zscore", "zscore clip"])
def test_values_outside_the_range_are_counted(kind: str) -> None:
    """16 of 256 pixels at 1000 where the others are spread evenly from 0 to 100."""
    pixels = np.linspace(0, 100, 256).reshape(16, 16)
    pixels.flat[100:116] = 1000
    changes: dict[str, Any] = {"intensity": {"kind": kind.split()[0], "low": 1, "high": 90, "clip": 4}}
    expected = 16 / 256
    values = pixels.ravel()
    if kind == "unit_range":
        changes = {"value_range": (0.0, 100.0)}
    elif kind in ("percentile", "nyul"):
        low, high = np.percentile(values, [1, 90])
        expected = ((values < low) | (values > high)).mean()
    elif kind == "zscore":
        changes["intensity"]["clip"], expected = None, 0.0
    elif kind == "zscore clip":
        changes["intensity"]["clip"] = 2.0
    if kind == "nyul":
        changes["intensity"] |= {"landmarks": (50,), "standard": ((-1.0, 0.0, 1.0),)}
    assert found(pixels, foreground="none", **changes).clipped == pytest.approx(expected)


def test_only_the_foreground_counts_and_saturated_pixels_do_not() -> None:
    pixels = np.full((16, 16), 10.0)
    pixels[:4, :8] = 255
    assert found(pixels, foreground="none", value_range=(0.0, 255.0)).clipped == 0
    given = found(pixels, foreground="threshold", foreground_threshold=0.5, value_range=(0.0, 200.0))
    assert given.clipped == 1


@pytest.mark.parametrize(
    ("shape", "resize", "model", "shrink"),
    [((32, 16), "pad", (16, 8), 2.0), ((32, 16), "stretch", (16, 16), 2.0), ((8, 8), "pad", (16, 16), 0.5)],
)
def test_sides_are_those_that_pixels_fill(
    shape: tuple[int, int], resize: str, model: tuple[int, int], shrink: float
) -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, shape)
    lost = found(pixels, foreground="none", resize=resize, value_range=(0.0, 1.0))
    assert (lost.native, lost.model, lost.shrink) == (shape, model, shrink)


def test_sides_of_volumes_are_along_the_axes_of_the_file() -> None:
    """Stored as (S, A, R): 2 mm along R halves the last side; slices along A that are shrunk halve R and S again."""
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = affine[3, 3] = 1
    way = plan(Grid((12, 20, 16), affine), "RAS", (2.0, 0.0, 0.0), (30, 30, 30))
    assert volume_sides(way, {}) == (12, 20, 8)
    assert volume_sides(way, {1: (0.5, 0.5)}) == (6, 20, 4)
    # slices along A have R across and S down; those along S have R across and A down
    assert volume_sides(way, {1: (0.5, 1.0), 2: (0.25, 1.0)}) == (6, 5, 8)
