"""The way back of intensities inverts what the preprocessor did, and files keep their type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anodiff.config import PreprocessConfig
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage, read_image
from anodiff.restoration.intensity import background_of, intensity_of, without
from anodiff.restoration.output import like_file, png_pixels, read_values, write_image

KINDS: dict[str, dict[str, Any]] = {
    "unit_range": {"kind": "unit_range"},
    "percentile": {"kind": "percentile", "low": 2, "high": 98},
    "zscore": {"kind": "zscore"},
    "clipped zscore": {"kind": "zscore", "clip": 2},
    "robust": {"kind": "robust", "clip": 4, "spread": "lower"},
}


def picture(dtype: str = "uint8", channels: int = 1, size: tuple[int, int] = (24, 20)) -> RawImage:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y - size[0] / 2, x - size[1] / 2) < 9
    top = {"uint8": 255, "uint16": 4000, "float32": 1, "bool": 1}[dtype]
    values = disc[..., None] * rng.uniform(0.3, 1, (*size, channels)) * top
    values = values if dtype == "float32" else np.rint(values)
    high = {"uint8": 255.0, "uint16": 65535.0}.get(dtype, 1.0)
    return RawImage(values.astype(np.float32), 0.0, high, dtype, "x")


def pillow_resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreground", ["none", "otsu"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 20), (16, 16)], ids=["same size", "resized"])
def test_the_way_back_inverts_the_preprocessor(
    kind: str, foreground: str, channels: int, size: tuple[int, int]
) -> None:
    settings = PreprocessConfig.model_validate(
        {"channels": channels, "size": size, "intensity": KINDS[kind], "foreground": foreground}
    )
    preprocessor = Preprocessor(settings)
    raw = picture(channels=channels)
    prepared = preprocessor(raw)
    limit = settings.intensity.clip if "zscore" in kind else 1
    top, left, height, width = prepared.geometry.box
    values = prepared.image.numpy()[:, top : top + height, left : left + width]
    back = np.moveaxis(intensity_of(raw, preprocessor).back(values), 2, 0)
    expected = np.stack([pillow_resized(raw.pixels[..., c], (height, width)) for c in range(channels)])
    inside = np.abs(values) < (limit or np.inf) * 0.999
    assert inside.mean() > 0.2
    np.testing.assert_allclose(back[inside], expected[inside], atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreground", ["otsu", "threshold"])
def test_what_a_hole_holds_decides_nothing(kind: str, foreground: str) -> None:
    settings = PreprocessConfig.model_validate(
        {"channels": 1, "size": (16, 16), "intensity": KINDS[kind], "foreground": foreground}
    )
    raw, hole = picture("float32"), np.zeros((24, 20), dtype=bool)
    hole[8:16, 0:9] = True
    found = []
    for value in (0.0, 40.0):
        pixels = np.where(hole[..., None], np.float32(value), raw.pixels)
        high = float(max(1.0, pixels.max()))
        blind = without(RawImage(pixels, 0.0, high, "float32", "x"), hole)
        np.testing.assert_array_equal(blind.pixels[~hole], raw.pixels[~hole])
        found.append((Preprocessor(settings)(blind), intensity_of(blind, Preprocessor(settings))))
    (first, one), (second, two) = found
    assert bool((first.image == second.image).all())
    assert bool((first.foreground == second.foreground).all())
    np.testing.assert_array_equal(one.scale, two.scale)
    np.testing.assert_array_equal(one.offset, two.offset)


def test_the_background_is_neither_eroded_nor_padding() -> None:
    settings = PreprocessConfig.model_validate(
        {"channels": 1, "size": (32, 24), "foreground": "threshold", "foreground_erode_px": 2}
    )
    raw = picture("uint8", size=(24, 24))
    preprocessor = Preprocessor(settings)
    background, prepared = background_of(raw, preprocessor), preprocessor(raw)
    assert not background[:4].any()
    assert not background[-4:].any()
    np.testing.assert_array_equal(background[4:28], raw.pixels[..., 0] <= settings.foreground_threshold * 255)
    assert (~background[4:28]).sum() > int(prepared.foreground.sum())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
def test_a_file_keeps_its_values(dtype: str, tmp_path: Path) -> None:
    raw = picture(dtype)
    (tmp_path / "images").mkdir()
    name = write_image(tmp_path, "a", like_file(raw.pixels, raw), dtype)
    assert name.endswith(".npy" if dtype == "float32" else ".png")
    stored = read_values(tmp_path / name)
    np.testing.assert_array_equal(stored, raw.pixels * (255 if dtype == "bool" else 1))
    if dtype == "uint16":
        assert read_image(tmp_path / name).dtype == "uint16"


def test_values_that_a_type_cannot_hold_are_clipped_and_rounded() -> None:
    raw = picture("uint8")
    pixels = np.array([[[-3.0], [12.6]], [[300.0], [255.4]]], dtype=np.float32)
    np.testing.assert_array_equal(like_file(pixels, raw)[..., 0], [[0, 13], [255, 255]])
    np.testing.assert_array_equal(like_file(np.repeat(pixels, 3, 2), raw)[..., 0], [[0, 13], [255, 255]])
    assert png_pixels(np.zeros((4, 4, 3), dtype=np.float32), "uint16") is None


def test_colour_pngs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    raw = picture("uint8", 3)
    name = write_image(tmp_path, "c", raw.pixels, "uint8")
    with Image.open(tmp_path / name) as found:
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), raw.pixels)
