"""A volume's result is shown slice by slice: the map's own place and scale, over the image that was scored."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

from anodiff.anomaly.volumes import SliceScore, VolumeResult
from anodiff.visualize import show as module
from anodiff.visualize.heatmap import HeatScale, colourise, overlay
from anodiff.visualize.show import VolumeViewer, show_volume

from .test_show import QUANTILES, Widget

SHAPE = (4, 5, 6)


def result(calibrated: bool = True) -> VolumeResult:
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    values[1, 3, 4] = 5.0
    slices = tuple(SliceScore(2, n, float(values[:, :, n].max()), 0.5 if calibrated else None) for n in range(1, 6))
    return VolumeResult(
        values,
        np.ones(SHAPE, dtype=bool),
        5.0,
        0.04 if calibrated else None,
        True if calibrated else None,
        slices,
        7,
        voxel_quantiles=QUANTILES if calibrated else None,
    )


@pytest.fixture(autouse=True)
def closed() -> None:
    pyplot.close("all")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_slice_is_the_map_over_the_image_on_the_calibration_s_scale(axis: int) -> None:
    found, image = result(), torch.rand(1, *SHAPE)
    viewer = VolumeViewer(found, image, axis, None)
    assert viewer.ranges == {"slice": SHAPE[axis]}
    assert viewer.start() == {"slice": (1, 3, 4)[axis]}
    panels = viewer.panels(2)
    assert list(panels) == ["image", "anomaly map"]
    low, high = np.percentile(image.numpy(), (0.5, 99.5))
    plane = np.moveaxis(image[0].numpy(), axis, 0)[2].T
    np.testing.assert_allclose(panels["image"], ((plane - low) / (high - low)).clip(0, 1) * 255, atol=0.51)
    values = np.moveaxis(found.map, axis, 0)[2].T
    scale = HeatScale.of_normals(QUANTILES)
    np.testing.assert_array_equal(panels["anomaly map"], overlay(panels["image"], values, scale))
    alone = VolumeViewer(found, None, axis, None).panels(2)
    assert list(alone) == ["anomaly map"]
    np.testing.assert_array_equal(alone["anomaly map"], colourise(values, scale))


def test_the_axis_is_that_of_the_loudest_slice_unless_one_is_named() -> None:
    found = result()
    louder = VolumeResult(**{**vars(found), "slices": (*found.slices, SliceScore(1, 0, 9.0, None))})
    assert VolumeViewer(louder, None, None, None).axis == 1
    assert VolumeViewer(found, None, None, None).axis == 2
    assert VolumeViewer(VolumeResult(**{**vars(found), "slices": ()}), None, None, None).axis == 2


def test_titles_say_what_was_decided_and_how_loud_the_slice_is() -> None:
    viewer = VolumeViewer(result(), None, 2, None)
    assert viewer.title(4) == "volume: score 5, p 0.04, anomalous\nslice 4 along k: score 5, p 0.5"
    assert viewer.title(0) == "volume: score 5, p 0.04, anomalous\nslice 0 along k"
    assert VolumeViewer(result(calibrated=False), None, 2, None).title(4).startswith("volume: score 5\n")


def test_without_a_calibration_the_scale_is_of_the_foreground() -> None:
    found = result(calibrated=False)
    inside = found.map < np.quantile(found.map, 0.5)
    scale = VolumeViewer(VolumeResult(**{**vars(found), "inside": inside}), None, 2, None).scale
    assert not scale.calibrated
    np.testing.assert_allclose([scale.low, scale.centre], np.quantile(found.map[inside], [0.5, 0.99]), rtol=1e-5)


def test_a_script_gets_a_figure_whose_slider_moves_it() -> None:
    found, image = result(), torch.rand(3, *SHAPE)
    figure = found.show(image)
    assert isinstance(figure, Figure)
    assert set(figure.anodiff_sliders) == {"slice"}
    figure.anodiff_sliders["slice"].set_val(1)
    viewer = VolumeViewer(found, image, None, None)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), viewer.panels(1)["anomaly map"])
    assert figure.get_suptitle() == viewer.title(1)
    assert isinstance(found.show(), Figure)


def test_a_notebook_gets_a_slider(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(Image=Widget, IntSlider=Widget, VBox=Widget)
    monkeypatch.setattr(module, "_widgets", lambda: fake)
    slider, picture = result().show(torch.rand(1, *SHAPE), axis=0).children
    assert (slider.value, slider.min, slider.max, slider.description) == (1, 0, 3, "slice")
    before = picture.value
    slider.move(0)
    assert picture.value != before


def test_images_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an image \(C, 4, 5, 6\) on the map's grid, found \(1, 6, 5, 4\)"):
        show_volume(result(), torch.zeros(1, 6, 5, 4))
    with pytest.raises(ValueError, match="axis 0, 1 or 2"):
        show_volume(result(), axis=3)
