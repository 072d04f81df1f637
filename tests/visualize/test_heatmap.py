"""Heatmaps: one scale for all images, the threshold in the middle, normal dark, nothing stretched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anodiff.errors import StorageError
from anodiff.visualize import HeatScale, colourise, display_image, overlay, render_heatmap, save_heatmap
from anodiff.visualize.heatmap import colour_table, mask_outline, opacity_table

SCALE = HeatScale(0.0, 2.0, 6.0)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative luminance (WCAG 2), an independent measure of how light a colour looks."""
    values = np.asarray(rgb, float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_low_centre_high_are_zero_half_one_and_beyond_is_clamped() -> None:
    values = [-9.0, 0.0, 1.0, 2.0, 4.0, 6.0, 99.0, np.nan]
    assert SCALE.position(values) == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 0])
    assert SCALE.index(values).tolist() == [0, 0, 64, 127, 191, 255, 255, 0]


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0.01, 1e3), st.floats(0.01, 1e3), st.floats(-1e6, 1e6))
def test_index_is_in_the_upper_half_exactly_above_the_threshold(
    centre: float, below: float, above: float, value: float
) -> None:
    scale = HeatScale(centre - below, centre, centre + above)
    index = int(scale.index(value))
    assert (index >= 128) == (value > centre)
    assert abs(index / 255 - float(scale.position(value))) < 0.0085


def test_float32_and_float64_maps_look_alike() -> None:
    values = np.random.default_rng(0).normal(2, 2, 5000)
    assert np.mean(SCALE.index(values) != SCALE.index(values.astype(np.float32))) < 0.001


def test_a_value_has_one_colour_whatever_else_is_in_the_map() -> None:
    quiet, loud = np.full((8, 8), 1.0), np.full((8, 8), 1.0)
    loud[0, 0] = 1000.0
    assert np.array_equal(colourise(quiet, SCALE)[1:], colourise(loud, SCALE)[1:])


def test_normal_is_dark_and_lightness_only_rises() -> None:
    light = _luminance(colour_table())
    assert (np.diff(light) >= -1e-4).all()
    assert light[0] < 0.005
    assert light[:128].max() < 0.08
    assert light[-1] > 0.8
    assert (np.diff(opacity_table()) >= 0).all()


def test_no_step_of_the_scale_is_a_jump() -> None:
    steps = np.abs(np.diff(colour_table().astype(int), axis=0)).max(1)
    assert steps.max() <= 12


def test_around_puts_the_threshold_in_the_middle() -> None:
    scale = HeatScale.around(1.0, 3.0)
    assert (scale.low, scale.centre, scale.high) == (1.0, 3.0, 7.0)
    assert scale.calibrated


@pytest.mark.parametrize("ends", [(0, 0, 1), (0, 1, 1), (2, 1, 3), (0, np.nan, 1), (0, 1, np.inf)])
def test_impossible_scales_are_refused(ends: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="heat scale needs"):
        HeatScale(*ends)


def test_overlay_leaves_normal_places_alone_and_covers_anomalous_ones() -> None:
    image = np.random.default_rng(0).integers(0, 255, (10, 12), dtype=np.uint8)
    values = np.zeros((10, 12))
    values[3:6, 3:6] = 6.0
    mixed = overlay(image, values, SCALE, opacity=1.0)
    normal = values == 0
    assert mixed.shape == (10, 12, 3)
    assert np.array_equal(mixed[normal], np.repeat(image[..., None], 3, 2)[normal])
    assert np.array_equal(mixed[~normal], np.broadcast_to(colour_table()[255], (9, 3)))
    assert np.array_equal(overlay(image, values, SCALE, opacity=0.0), np.repeat(image[..., None], 3, 2))


def test_overlay_takes_colour_and_refuses_what_does_not_fit() -> None:
    rgb = np.zeros((4, 5, 3), np.uint8)
    assert overlay(rgb, np.zeros((4, 5)), SCALE).shape == (4, 5, 3)
    assert overlay(rgb[..., :1], np.zeros((4, 5)), SCALE).shape == (4, 5, 3)
    with pytest.raises(ValueError, match="one size"):
        overlay(rgb, np.zeros((5, 4)), SCALE)
    with pytest.raises(ValueError, match="uint8"):
        overlay(rgb.astype(float), np.zeros((4, 5)), SCALE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_display_image_windows_any_number_type(dtype: type) -> None:
    ramp: np.ndarray = np.linspace(0, 200, 400).reshape(20, 20).astype(dtype)
    shown = display_image(ramp)
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown.ravel().astype(int)) >= 0).all()
    assert display_image(ramp, 0, 255)[0, 0] == 0
    assert display_image(ramp, 0, 255)[-1, -1] == 200


def test_display_image_of_odd_input() -> None:
    assert display_image(np.full((4, 4), 7.0)).max() == 0
    assert display_image(np.zeros((4, 4, 3))).shape == (4, 4, 3)
    assert display_image(np.zeros((4, 4, 5))).shape == (4, 4)
    broken = display_image(np.array([[0.0, 1.0], [np.nan, np.inf]]), 0, 1)
    assert broken.tolist() == [[0, 255], [0, 255]]


def _bar(picture: Image.Image) -> np.ndarray:
    """The rows of the picture that show the colour bar."""
    pixels = np.array(picture)[:, -110:]
    wanted = colour_table()[::16]
    found = (pixels[:, :, None, :] == wanted[None, None]).all(-1).any(0).all(1)
    assert found.any(), "no column shows the whole scale"
    return pixels[:, np.flatnonzero(found)[0] + 3]


def test_the_scale_is_drawn_and_is_the_same_for_every_image() -> None:
    image = np.zeros((64, 64), np.uint8)
    bars = [_bar(render_heatmap(image, np.full((64, 64), value), SCALE)) for value in (0.0, 5.0, 500.0)]
    assert np.array_equal(bars[0], bars[1])
    assert np.array_equal(bars[0], bars[2])
    red = _luminance(bars[0])
    assert red[: len(red) // 2].max() > red[len(red) // 2 + 40 :].max()


def test_an_uncalibrated_scale_names_no_threshold() -> None:
    image, values = np.zeros((64, 64), np.uint8), np.zeros((64, 64))
    plain = render_heatmap(image, values, HeatScale(0.0, 2.0, 6.0, calibrated=False))
    assert np.any(np.array(plain) != np.array(render_heatmap(image, values, SCALE)))


@pytest.mark.parametrize("shape", [(16, 16), (128, 96), (40, 200), (1100, 1040)])
def test_save_heatmap_writes_a_png_of_any_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "naïve name 脳.png"
    mask = np.zeros(shape, bool)
    mask[2:8, 2:8] = True
    save_heatmap(path, np.full(shape, 90, np.uint8), np.zeros(shape), SCALE, mask)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width < 4000
        assert (np.array(picture) == (64, 224, 208)).all(-1).any()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        save_heatmap(tmp_path / "no" / "x.png", np.zeros((8, 8), np.uint8), np.zeros((8, 8)), SCALE)


def test_mask_outline_is_the_inner_border() -> None:
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    outline = mask_outline(mask)
    assert outline.sum() == 16
    assert not outline[2:5, 2:5].any()
    assert mask_outline(np.ones((3, 3), bool)).sum() == 8
