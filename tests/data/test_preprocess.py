"""Geometry there and back, intensities, foreground and channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from anodiff.config import IntensityConfig, PreprocessConfig
from anodiff.data.preprocess import Preprocessor, clean_foreground, erode, otsu_threshold, resize
from anodiff.data.readers import RawImage, _to_raw
from anodiff.errors import InputError


def raw_image(pixels: np.ndarray, low: float = 0, high: float = 255) -> RawImage:
    pixels = np.asarray(pixels, dtype=np.float32)
    return RawImage(pixels if pixels.ndim == 3 else pixels[:, :, None], low, high, "uint8", "scan.png")


def preprocessor(**settings: Any) -> Preprocessor:
    intensity = IntensityConfig(**settings.pop("intensity", {}))
    return Preprocessor(PreprocessConfig(intensity=intensity, **settings))


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float32)


def test_equal_size_is_bit_exact_both_ways() -> None:
    pixels = texture(24, 40)
    prepared = preprocessor(size=(24, 40))(raw_image(pixels))
    expected = (pixels.astype(np.float64) / 255 * 2 - 1)[None]
    np.testing.assert_allclose(prepared.image.numpy(), expected, atol=2e-7)
    values = np.random.default_rng(1).standard_normal((24, 40)).astype(np.float32)
    back = preprocessor(size=(24, 40)).back(torch.from_numpy(values), prepared.geometry)
    assert back.tobytes() == values.tobytes()
    assert prepared.foreground.all()
    assert prepared.image.dtype == torch.float32
    assert prepared.foreground.dtype == torch.bool


def test_unit_range_reaches_both_ends() -> None:
    pixels = np.zeros((16, 16))
    pixels[3, 4] = 65535
    image = preprocessor(size=(16, 16))(raw_image(pixels, 0, 65535)).image
    assert image.min() == -1
    assert image.max() == 1


@pytest.mark.parametrize("mode", ["pad", "stretch"])
@pytest.mark.parametrize("native", [(50, 90), (90, 50), (17, 31), (200, 200), (64, 64), (24, 200)])
def test_a_linear_ramp_survives_the_way_there_and_back(mode: str, native: tuple[int, int]) -> None:
    """Bilinear resampling with aligned pixel centres reproduces a plane, away from the borders where it is clamped."""
    height, width = native
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 130, width))
    prepare = preprocessor(size=(64, 64), resize=mode)
    prepared = prepare(raw_image(ramp))
    back = (prepare.back(prepared.image[0], prepared.geometry) + 1) / 2 * 255
    assert back.shape == native
    # Up to the middle of the second model pixel the border has a say.
    margin = [
        2 + round(1.5 * max(1, side / size)) for side, size in zip(native, prepared.geometry.box[2:], strict=True)
    ]
    inner = tuple(slice(m, -m) for m in margin)
    np.testing.assert_allclose(back[inner], ramp[inner], atol=1.0)


@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_a_spot_returns_to_its_place(mode: str) -> None:
    prepare = preprocessor(size=(64, 64), resize=mode)
    for native, place in (((100, 160), (31, 120)), ((40, 30), (10, 22)), ((64, 128), (5, 99))):
        rows, columns = np.mgrid[: native[0], : native[1]]
        spot = 255 * np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / 18)
        prepared = prepare(raw_image(spot))
        back = prepare.back(prepared.image[0], prepared.geometry) + 1
        weight = back.clip(0.2) - 0.2
        centre = (rows * weight).sum() / weight.sum(), (columns * weight).sum() / weight.sum()
        np.testing.assert_allclose(centre, place, atol=0.35)


def test_padding_keeps_the_aspect_and_is_no_foreground() -> None:
    prepare = preprocessor(size=(64, 64))
    prepared = prepare(raw_image(texture(30, 60)))
    assert prepared.geometry.box == (16, 0, 32, 64)
    assert prepared.foreground.sum() == 32 * 64
    assert not prepared.foreground[:16].any()
    assert not prepared.foreground[48:].any()
    # The border is repeated, so that padding makes no edge of its own.
    assert torch.equal(prepared.image[:, 0], prepared.image[:, 16])
    assert torch.equal(prepared.image[:, 63], prepared.image[:, 47])


def test_nothing_is_resized_where_the_recipe_says_so() -> None:
    pixels = texture(30, 47)
    settings = PreprocessConfig(size=(32, 32), resize="none")
    prepare = Preprocessor(settings, any_size=True)
    prepared = prepare(raw_image(pixels))
    np.testing.assert_allclose(prepared.image[0].numpy(), pixels / 255 * 2 - 1, atol=2e-7)
    assert prepared.foreground.all()
    assert prepare.back(prepared.image, prepared.geometry).tobytes() == prepared.image.numpy().tobytes()
    with pytest.raises(InputError, match=r"scan\.png: expected 32x32 pixels, .* found 47x30"):
        Preprocessor(settings)(raw_image(pixels))
    assert Preprocessor(settings)(raw_image(texture(32, 32))).image.shape == (1, 32, 32)


def test_back_takes_channels_and_refuses_another_grid() -> None:
    prepare = preprocessor(size=(32, 32), channels=3)
    prepared = prepare(raw_image(texture(20, 44)))
    assert prepare.back(prepared.image, prepared.geometry).shape == (3, 20, 44)
    with pytest.raises(ValueError, match="32, 32"):
        prepare.back(torch.zeros(20, 44), prepared.geometry)


def test_shrinking_averages_instead_of_picking() -> None:
    """A one-pixel checkerboard is grey when halved; point sampling would leave it black or white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255.0
    small = resize(board.astype(np.float32), (32, 32))
    np.testing.assert_allclose(small[2:-2, 2:-2], 127.5, atol=1)


def test_percentiles_of_the_foreground_become_the_ends() -> None:
    pixels = texture(40, 40)
    pixels[:, :20] = 0
    pixels[:, 20:] = pixels[:, 20:].clip(40)
    prepared = preprocessor(
        size=(40, 40),
        foreground="threshold",
        foreground_threshold=0.1,
        intensity={"kind": "percentile", "low": 5, "high": 90},
    )(raw_image(pixels))
    low, high = np.percentile(pixels[:, 20:], [5, 90])
    expected = ((pixels - low) / (high - low) * 2 - 1).clip(-1, 1)
    np.testing.assert_allclose(prepared.image[0].numpy(), expected, atol=1e-5)


def test_zscore_standardises_the_foreground() -> None:
    pixels = texture(40, 40)
    prepared = preprocessor(size=(40, 40), intensity={"kind": "zscore"})(raw_image(pixels))
    assert abs(float(prepared.image.mean())) < 1e-5
    assert abs(float(prepared.image.std(correction=0)) - 1) < 1e-5
    clipped = preprocessor(size=(40, 40), intensity={"kind": "zscore", "clip": 1.0})(raw_image(pixels))
    assert clipped.image.abs().max() == 1


@pytest.mark.parametrize("spread", ["both", "lower", "upper"])
def test_robust_scale_is_the_deviation_of_normal_values_and_their_median_is_zero(spread: str) -> None:
    pixels = np.random.default_rng(1).normal(100, 12, (200, 200)).astype(np.float32)
    settings = {"kind": "robust", "clip": 5.0, "spread": spread}
    image = preprocessor(size=(200, 200), intensity=settings)(raw_image(pixels)).image
    assert abs(float(image.median())) < 1e-4
    assert float(image.std()) == pytest.approx(1 / 5, rel=0.02)
    assert float(image.abs().max()) <= 1


def test_a_bright_lesion_does_not_move_the_lower_spread() -> None:
    pixels = np.random.default_rng(2).normal(100, 12, (100, 100)).astype(np.float32)
    lesion = pixels.copy()
    lesion[30:70, 30:70] += 80  # 16 % of the image
    clean, found = {}, {}
    for spread in ("both", "lower"):
        prepare = preprocessor(size=(100, 100), intensity={"kind": "robust", "clip": 5.0, "spread": spread})
        clean[spread] = float(prepare(raw_image(pixels)).image[0, :30].std())
        found[spread] = float(prepare(raw_image(lesion)).image[0, :30].std())
    assert found["lower"] == pytest.approx(clean["lower"], rel=0.2)
    assert abs(found["both"] - clean["both"]) > 1.5 * abs(found["lower"] - clean["lower"])


def test_intensities_do_not_depend_on_gain_where_they_should_not() -> None:
    pixels = texture(40, 40)
    for kind, clip in (("percentile", None), ("zscore", None), ("robust", 5.0)):
        prepare = preprocessor(size=(32, 32), intensity={"kind": kind, "clip": clip})
        one, other = prepare(raw_image(pixels)), prepare(raw_image(pixels * 0.25 + 30))
        np.testing.assert_allclose(one.image.numpy(), other.image.numpy(), atol=1e-4)


def test_no_spread_in_the_foreground_is_an_input_error() -> None:
    pixels = np.zeros((32, 32))
    pixels[8:24, 8:24] = 200
    for kind, clip in (("percentile", None), ("zscore", None), ("robust", 5.0)):
        prepare = preprocessor(size=(32, 32), foreground="threshold", intensity={"kind": kind, "clip": clip})
        with pytest.raises(InputError, match=r"scan\.png: expected intensities that differ"):
            prepare(raw_image(pixels))


@pytest.mark.parametrize("kind", ["otsu", "threshold"])
def test_foreground_fills_holes_and_drops_specks(kind: str) -> None:
    rows, columns = np.mgrid[:64, :64]
    disc = np.hypot(rows - 32, columns - 32) < 22
    hole = np.hypot(rows - 30, columns - 34) < 6
    pixels = np.where(disc & ~hole, 180.0, 3.0)
    pixels[1, 1] = 180
    prepared = preprocessor(size=(64, 64), foreground=kind)(raw_image(pixels))
    np.testing.assert_array_equal(prepared.foreground.numpy(), disc)


def test_two_large_parts_both_stay() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:18, 2:18] = mask[22:38, 22:38] = True
    np.testing.assert_array_equal(clean_foreground(mask), mask)


def test_empty_foreground_is_the_whole_image() -> None:
    prepared = preprocessor(size=(32, 32), foreground="threshold", foreground_threshold=0.9)(
        raw_image(texture(32, 32) / 4)
    )
    assert prepared.foreground.all()


def test_otsu_equals_scikit_image() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(20, 5, 4000), rng.normal(120, 25, 3000)]).reshape(70, 100)
    ours, theirs = otsu_threshold(values), threshold_otsu(values)
    # skimage names the centre of the last bin below, we its upper edge; the classes are the same.
    assert abs(ours - theirs) <= np.ptp(values) / 256
    assert ((values > ours) == (values > theirs)).mean() > 0.999


def test_channels_that_fit_in_one_way_only() -> None:
    grey = texture(16, 16)
    colour = np.stack([texture(16, 16, seed) for seed in range(3)], axis=-1)
    one, three = preprocessor(size=(16, 16)), preprocessor(size=(16, 16), channels=3)
    as_rgb = one(raw_image(np.repeat(grey[:, :, None], 3, axis=2)))
    assert torch.equal(as_rgb.image, one(raw_image(grey)).image)
    repeated = three(raw_image(grey)).image
    assert repeated.shape == (3, 16, 16)
    assert torch.equal(repeated[0], repeated[2])
    picked = preprocessor(size=(16, 16), channel=1)(raw_image(colour))
    assert torch.equal(picked.image, one(raw_image(colour[:, :, 1])).image)


@pytest.mark.parametrize(
    ("found", "settings", "message"),
    [
        (3, {}, r"expected 1 channel\(s\), found 3 of different colours \(preprocess\.channel"),
        (2, {}, r"expected 1 channel\(s\), found 2"),
        (4, {"channels": 3}, r"expected 3 channel\(s\), found 4"),
        (1, {"channels": 2}, r"expected 2 channel\(s\), found 1"),
        (1, {"channel": 1}, r"expected a channel number 1 \(from 0\), found 1 channel"),
    ],
)
def test_wrong_channel_count(found: int, settings: dict[str, int], message: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, found))
    with pytest.raises(InputError, match=rf"scan\.png: {message}"):
        preprocessor(size=(16, 16), **settings)(raw_image(pixels))


def ranged(values: np.ndarray, **settings: Any) -> np.ndarray:
    """A stored array as the preprocessor sees it after `read_image`, at its own size."""
    raw = _to_raw(values, values.dtype, "scan.npy")
    return preprocessor(size=values.shape, **settings)(raw).image[0].numpy()


@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "int32"])
def test_values_of_unknown_range_are_refused_with_a_way_out(kind: str) -> None:
    values = (texture(16, 16) * 8 - 900).astype(kind)
    message = rf"scan\.npy: expected {kind} values in \[0, 1\].* found -?\d+ to \d+; .*robust"
    with pytest.raises(InputError, match=message) as caught:
        ranged(values)
    assert "preprocess.value_range: [low, high]" in str(caught.value)
    assert "\n" not in str(caught.value)
    expected = np.clip((values.astype(np.float64) + 1000) / 2000 * 2 - 1, -1, 1)
    np.testing.assert_allclose(ranged(values, value_range=(-1000, 1000)), expected, atol=1e-6)
    for kinds in ({"kind": "robust", "clip": 5.0}, {"kind": "percentile"}, {"kind": "zscore"}):
        raw = _to_raw(values, values.dtype, "scan.npy")
        Preprocessor(PreprocessConfig(size=(16, 16), intensity=IntensityConfig.model_validate(kinds)))(raw)


def test_a_given_range_applies_to_every_type_and_a_known_one_needs_none() -> None:
    grey = texture(16, 16).astype(np.uint8)
    np.testing.assert_allclose(ranged(grey), grey / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(ranged(grey, value_range=(0, 510)), grey / 255 - 1, atol=1e-6)
    np.testing.assert_allclose(ranged(grey.astype(np.float32) / 255), grey / 127.5 - 1, atol=1e-6)
    # Two images of one scanner keep their difference in brightness, which a range of their own would take away.
    dim, bright = (ranged(grey.astype(np.float32) * gain, value_range=(0, 1000)) for gain in (1, 3))
    np.testing.assert_allclose(bright + 1, 3 * (dim + 1), atol=1e-5)


def test_the_given_range_is_that_of_the_foreground_threshold_too() -> None:
    values = np.full((16, 16), 30.0, np.float32)
    values[4:12, 4:12] = 200
    raw = _to_raw(values, values.dtype, "scan.npy")
    found = preprocessor(size=(16, 16), value_range=(0, 1000), foreground="threshold", foreground_threshold=0.1)(raw)
    assert int(found.foreground.sum()) == 64


def test_any_object_with_the_fields_will_do() -> None:
    settings = SimpleNamespace(
        channels=1,
        channel=None,
        size=(16, 16),
        resize="stretch",
        value_range=None,
        foreground="none",
        foreground_threshold=0.05,
        foreground_erode_px=0,
        intensity=SimpleNamespace(kind="unit_range", low=0.5, high=99.5, clip=None, spread="both"),
    )
    assert Preprocessor(settings)(raw_image(texture(20, 30))).image.shape == (1, 16, 16)


def test_eroding_takes_the_rim_and_never_everything() -> None:
    mask = np.zeros((20, 24), dtype=bool)
    mask[4:16, 5:19] = True
    assert np.array_equal(erode(mask, 0), mask)
    expected = np.zeros_like(mask)
    expected[7:13, 8:16] = True
    assert np.array_equal(erode(mask, 3), expected)
    assert np.array_equal(erode(mask, 9), mask)
    whole = np.ones((8, 8), dtype=bool)
    assert np.array_equal(erode(whole, 2), whole)


def test_eroding_changes_the_foreground_and_no_pixel() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((40, 40, 1), dtype=np.float32)
    pixels[8:32, 8:32] = rng.uniform(100, 200, (24, 24, 1))
    raw = raw_image(pixels)
    for kind in ("unit_range", "percentile", "zscore", "robust"):
        settings = {"size": (40, 40), "foreground": "threshold", "intensity": {"kind": kind, "clip": 5.0}}
        one = preprocessor(**settings)(raw)
        two = preprocessor(**{**settings, "foreground_erode_px": 2})(raw)
        assert torch.equal(one.image, two.image)
        assert int(one.foreground.sum()) == 24 * 24
        assert int(two.foreground.sum()) == 20 * 20
