"""A given foreground of a 2-D image: its statistics, the model's grid, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.config import PreprocessConfig
from anodiff.data.foreground import nearest, with_given
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import read_image
from anodiff.errors import InputError


def files(folder: Path, size: tuple[int, int] = (12, 10)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 250, size, dtype=np.uint8)
    mask = np.zeros(size, dtype=np.uint8)
    mask[3:7, 2:9] = 255
    Image.fromarray(values).save(folder / "x.png")
    Image.fromarray(mask).save(folder / "m.png")
    return values, mask > 0


@pytest.mark.parametrize("foreground", ["otsu", "given"])
def test_percentiles_are_of_what_is_inside(tmp_path: Path, foreground: str) -> None:
    values, mask = files(tmp_path)
    settings = PreprocessConfig(
        size=(12, 12), intensity={"kind": "percentile", "low": 10, "high": 80}, foreground=foreground
    )
    raw = with_given(read_image(tmp_path / "x.png"), tmp_path / "m.png")
    prepared = Preprocessor(settings)(raw)
    low, high = np.percentile(values[mask].astype(np.float64), (10, 80))
    expected = np.clip((values - low) / (high - low) * 2 - 1, -1, 1)
    np.testing.assert_allclose(prepared.image[0, :, 1:11].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(prepared.foreground[:, 1:11].numpy(), mask)
    assert not prepared.foreground[:, [0, 11]].any()


def test_the_nearest_pixel(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((9, 15)) < 0.5
    size = (5, 7)
    at = [np.floor((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, mask.shape, strict=True)]
    np.testing.assert_array_equal(nearest(mask, size), mask[np.ix_(*at)])
    assert nearest(mask, mask.shape) is mask


def test_what_cannot_be_used_is_refused_with_both_names(tmp_path: Path) -> None:
    _, mask = files(tmp_path)
    raw = read_image(tmp_path / "x.png")
    assert with_given(raw, "") is raw
    Image.fromarray(mask[:-1]).save(tmp_path / "short.png")
    Image.fromarray(mask & False).save(tmp_path / "empty.png")
    for name, match in (("short.png", "found 10x11"), ("empty.png", "found an empty one"), ("no.png", "no.png")):
        with pytest.raises(InputError, match=match) as error:
            with_given(raw, tmp_path / name)
        assert "x.png" in str(error.value)
        assert name in str(error.value)
    with pytest.raises(InputError, match=r"x\.png: expected a foreground mask, which this model needs"):
        Preprocessor(PreprocessConfig(size=(12, 12), foreground="given"))(raw)
    mask[:] = False
    mask[1, 1] = True
    Image.fromarray(mask).save(tmp_path / "dot.png")
    with pytest.raises(InputError, match=r"no pixel left \(of 1\)"):
        Preprocessor(PreprocessConfig(size=(8, 8)))(with_given(raw, tmp_path / "dot.png"))
