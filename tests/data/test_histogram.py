"""Histogram standardisation against numpy's own percentiles and interpolation, and its way through a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import AnodiffConfig, IntensityConfig, PreprocessConfig, VolumeConfig, parse_config
from anodiff.data.histogram import Curve, curves, standard_scale
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import RawImage
from anodiff.data.volumes.read import read_volume
from anodiff.data.volumes.slices import VolumeSlicer
from anodiff.errors import ConfigError, DataError, InputError
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.restoration.intensity import intensity_of
from anodiff.training.standard_scale import fit_images, fit_volumes
from anodiff.training.volumes import NormalPart

PERCENTAGES = (2.0, 25.0, 50.0, 75.0, 98.0)
STANDARD = (-1.0, -0.6, -0.1, 0.3, 1.0)
NYUL: dict[str, Any] = {"kind": "nyul", "low": 2, "high": 98, "landmarks": [25, 50, 75]}


def skewed(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 40.0, shape).astype(np.float32)


def raw(pixels: np.ndarray) -> RawImage:
    pixels = np.asarray(pixels, dtype=np.float32)
    return RawImage(pixels if pixels.ndim == 3 else pixels[:, :, None], 0.0, 255.0, "uint8", "scan.png")


def preprocessor(standard: tuple[tuple[float, ...], ...] | None = (STANDARD,), **settings: Any) -> Preprocessor:
    intensity = NYUL | ({} if standard is None else {"standard": standard})
    return Preprocessor(PreprocessConfig.model_validate({"size": (16, 12), "intensity": intensity} | settings))


def scale_by_hand(images: list[np.ndarray]) -> np.ndarray:
    rows = []
    for image in images:
        found = np.percentile(image.astype(np.float64), PERCENTAGES)
        rows.append(np.interp(found, [found[0], found[-1]], [-1, 1]))
    return np.mean(rows, axis=0)


def test_landmarks_go_to_the_standard_scale_and_what_lies_between_by_lines() -> None:
    pixels = skewed(16, 12)
    expected = np.interp(pixels, np.percentile(pixels.astype(np.float64), PERCENTAGES), STANDARD)
    np.testing.assert_allclose(preprocessor()(raw(pixels)).image[0].numpy(), expected, atol=1e-6)


def test_the_foreground_alone_has_landmarks_and_each_channel_its_own() -> None:
    pixels = skewed(16, 12, 2)
    pixels[:, :4] = 0
    other = (-1.0, 0.0, 0.1, 0.2, 1.0)
    settings = {"channels": 2, "foreground": "threshold", "foreground_threshold": 0.001}
    found = preprocessor((STANDARD, other), **settings)(raw(pixels))
    assert np.array_equal(found.foreground.numpy(), pixels.mean(axis=2) > 0)
    for channel, x in enumerate((STANDARD, other)):
        inside = pixels[:, 4:, channel].astype(np.float64)
        expected = np.interp(pixels[..., channel], np.percentile(inside, PERCENTAGES), x)
        np.testing.assert_allclose(found.image[channel].numpy(), expected, atol=1e-6)


def test_the_standard_scale_is_the_mean_of_landmarks_after_a_line() -> None:
    images = [
        skewed(16, 12, seed=seed) * gain + shift for seed, (gain, shift) in enumerate([(1, 0), (9, 30), (0.2, 5)])
    ]
    found = standard_scale([preprocessor(None).landmarks(raw(image)) for image in images])
    np.testing.assert_allclose(found, [scale_by_hand(images)], atol=1e-12)
    assert (found[0][0], found[0][-1]) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="at least one image"):
        standard_scale([])


def test_a_scanner_with_another_gain_and_gamma_gives_the_same_numbers() -> None:
    """What a rising change of intensities does to landmarks is undone at them: the point of the method."""
    pixels = skewed(64, 48) + 1
    settings = {"size": (64, 48)}
    ours, theirs = (preprocessor(**settings)(raw(each)).image.numpy() for each in (pixels, 40 * pixels**0.7))
    line = preprocessor(intensity={"kind": "percentile", "low": 2, "high": 98}, **settings)
    apart = np.abs(line(raw(pixels)).image.numpy() - line(raw(40 * pixels**0.7)).image.numpy()).max()
    assert np.abs(ours - theirs).max() < 0.25 * apart
    np.testing.assert_allclose(preprocessor(**settings)(raw(3 * pixels + 7)).image.numpy(), ours, atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        skewed(16, 12),
        np.round(skewed(16, 12) / 40),  # landmarks that lie on one value
        np.where(skewed(16, 12) > 60, 255.0, 0.0),  # two values
        np.pad(skewed(2, 12) + 1, ((0, 14), (0, 0))),  # nearly all of one value
    ],
)
def test_order_is_kept_and_the_ends_are_the_scales(pixels: np.ndarray) -> None:
    found = preprocessor()(raw(pixels))
    x = found.image.numpy().ravel()[np.argsort(pixels, axis=None, kind="stable")]
    assert (np.diff(x) >= 0).all()
    assert x[0] == -1
    assert x[-1] == 1
    assert np.isfinite(x).all()


def test_landmarks_on_one_value_count_as_one_in_the_middle() -> None:
    [curve] = curves(
        np.array([[0.0] * 10 + [5.0] * 80 + [9.0] * 10]), IntensityConfig(**NYUL, standard=(STANDARD,)), "x"
    )
    assert curve.stored.tolist() == [0.0, 5.0, 9.0]
    np.testing.assert_allclose(curve.x, [-1, (-0.6 + 0.3) / 2, 1])
    flat = ((-1.0, -0.2, -0.2, 0.3, 1.0),)
    [curve] = curves(np.arange(101.0)[None], IntensityConfig(**NYUL, standard=flat), "x")
    np.testing.assert_allclose(curve.stored, [2, (25 + 50) / 2, 75, 98])
    np.testing.assert_allclose(curve.back(curve.extended(np.arange(101.0))), np.arange(101.0), atol=1e-9)


def test_few_pixels_of_foreground_are_enough_and_a_constant_image_is_refused() -> None:
    pixels = np.zeros((16, 12))
    pixels[4, 4:7] = 10, 20, 30
    found = preprocessor(foreground="threshold", foreground_threshold=0.01)(raw(pixels))
    expected = np.interp([10, 20, 30], np.percentile([10.0, 20, 30], PERCENTAGES), STANDARD)
    np.testing.assert_allclose(found.image[0, 4, 4:7].numpy(), expected, atol=1e-6)
    for constant in (np.full((16, 12), 9.0), np.where(pixels == 20, 20.0, 0.0)):
        with pytest.raises(InputError, match=r"scan\.png: .*no spread"):
            preprocessor(foreground="threshold", foreground_threshold=0.01)(raw(constant))


def test_the_way_back_is_the_inverse_and_goes_on_beyond_the_ends() -> None:
    pixels, prepare = skewed(16, 12), preprocessor()
    way = intensity_of(raw(pixels), prepare)
    x = prepare(raw(pixels)).image.numpy()
    inside = np.abs(x[0]) < 1
    np.testing.assert_allclose(way.back(x)[..., 0][inside], pixels[inside], rtol=1e-5)
    points = np.percentile(pixels.astype(np.float64), PERCENTAGES)
    last = (points[4] - points[3]) / (STANDARD[4] - STANDARD[3])
    np.testing.assert_allclose(way.back(np.full((1, 1, 1), 1.5, np.float32)), points[4] + 0.5 * last, rtol=1e-6)
    first = (points[1] - points[0]) / (STANDARD[1] - STANDARD[0])
    np.testing.assert_allclose(way.zero, -1 - points[0] / first, rtol=1e-6)
    # a small deviation is that of two values apart
    at = np.array([[[-0.8, 0.0, 0.6]]], np.float32)
    apart = (way.back(at + np.float32(1e-3)) - way.back(at - np.float32(1e-3))) / 2
    np.testing.assert_allclose(way.spread_back(np.full_like(at, 1e-3), at), apart, rtol=1e-2)


def test_a_curve_agrees_with_numpy() -> None:
    curve = Curve(np.array([1.0, 2.0, 6.0]), np.array([-1.0, 0.5, 1.0]))
    at = np.linspace(1, 6, 23)
    np.testing.assert_allclose(curve.forward(at), np.interp(at, [1, 2, 6], [-1, 0.5, 1]))
    np.testing.assert_allclose(curve.back(curve.extended(np.linspace(-3, 9, 25))), np.linspace(-3, 9, 25), atol=1e-12)


@pytest.mark.parametrize(
    ("intensity", "message"),
    [
        (NYUL | {"landmarks": [50, 25]}, "must rise"),
        (NYUL | {"landmarks": [1, 50]}, "must rise"),
        (NYUL | {"standard": [[-1, 0, 1]]}, "rise from -1 to 1 in 5 numbers"),
        (NYUL | {"standard": [[-1, 0.5, 0.4, 0.6, 1]]}, "rise from -1 to 1"),
        (NYUL | {"standard": [[-0.9, 0.1, 0.4, 0.6, 1]]}, "rise from -1 to 1"),
        (NYUL | {"standard": [STANDARD, STANDARD]}, "one row a channel: expected 1, found 2"),
        ({"kind": "percentile", "landmarks": [50]}, "belong to kind nyul"),
        ({"kind": "robust", "clip": 5, "standard": [STANDARD]}, "belong to kind nyul"),
    ],
)
def test_mistakes_in_a_recipe_are_named(intensity: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "preprocess": {"intensity": intensity}})


def test_without_a_standard_scale_nothing_is_prepared() -> None:
    with pytest.raises(ConfigError, match="needs the standard scale"):
        preprocessor(None)(raw(skewed(16, 12)))


def recipe(tiny: dict[str, Any], **changes: Any) -> AnodiffConfig:
    return parse_config(tiny | {"preprocess": {"size": [16, 16], "intensity": NYUL}} | changes)


def test_it_is_fitted_on_training_images_and_comes_back_with_the_model(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    images = [np.clip(skewed(16, 16, seed=seed) * (0.5 + seed), 0, 255).astype(np.uint8) for seed in range(3)]
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for path, image in zip(paths, [*images, np.zeros_like(images[0])], strict=True):  # the last one without spread
        Image.fromarray(image).save(path)
    config = fit_images(recipe(tiny_recipe), [*map(str, paths), str(tmp_path / "absent.png")], quiet=True)
    assert config.preprocess.intensity.standard is not None
    np.testing.assert_allclose(config.preprocess.intensity.standard, [scale_by_hand(images)], atol=1e-12)
    assert fit_images(config, [], quiet=True) is config
    DiffusionModel(config, build_denoiser(config)).save(tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors")
    assert back.config == config
    assert torch.equal(back.prepare(paths[:3])[0], DiffusionModel(config, back.denoiser).prepare(paths[:3])[0])
    with pytest.raises(DataError, match="found none in 1"):
        fit_images(recipe(tiny_recipe), [str(paths[3])], quiet=True)


def test_volumes_are_fitted_whole_and_their_slices_are_cut_from_them(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    volumes = [skewed(16, 16, 5, seed=seed) for seed in range(2)]
    parts = []
    for n, values in enumerate(volumes):
        nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / f"{n}.nii")
        parts.append(NormalPart(str(tmp_path / f"{n}.nii"), str(n)))
    config = fit_volumes(recipe(tiny_recipe, volume={"orientation": "RAS"}), parts, quiet=True)
    standard = config.preprocess.intensity.standard
    assert standard is not None
    np.testing.assert_allclose(standard, [scale_by_hand(volumes)], atol=1e-12)
    assert config.volume is not None
    slicer, volume = VolumeSlicer(config.preprocess, config.volume), read_volume(parts[0].path)
    prepared = slicer.prepare(volume)
    expected = np.interp(volumes[0], np.percentile(volumes[0].astype(np.float64), PERCENTAGES), standard[0])
    np.testing.assert_allclose(prepared.image[0].numpy(), expected, atol=1e-6)
    for number, image in zip(range(5), slicer.cut(prepared, 2).images, strict=True):
        assert torch.equal(image[0], prepared.image[0, :, :, number].T)
    sliced = recipe(tiny_recipe, volume={"orientation": "RAS", "statistics": "slice"})
    with pytest.raises(ConfigError, match=r"expected volume\.statistics volume"):
        fit_volumes(sliced, parts, quiet=True)


def test_a_slice_of_a_volume_is_prepared_as_the_image_that_it_is(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """A model of images that meets a volume, and a volume of one slice with statistics of the whole."""
    values = np.clip(skewed(16, 16, 1), 0, 255).astype(np.uint8)
    nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "one.nii")
    config = recipe(tiny_recipe).model_copy(
        update={
            "preprocess": PreprocessConfig.model_validate(
                {"size": (16, 16), "intensity": NYUL | {"standard": [STANDARD]}}
            )
        }
    )
    image = Preprocessor(config.preprocess)(raw(values[:, :, 0].T)).image
    volume = read_volume(tmp_path / "one.nii")
    for statistics in ("slice", "volume"):
        slicer = VolumeSlicer(config.preprocess, VolumeConfig(orientation="RAS", statistics=statistics))
        assert torch.equal(slicer.cut(slicer.prepare(volume), 2, volume).images[0], image)
