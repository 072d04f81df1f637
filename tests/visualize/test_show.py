"""What is shown is the result: same places, one scale, a slider for what there is more than one of."""

from __future__ import annotations

import io
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

from anodiff.anomaly.result import DetectionResult
from anodiff.visualize import show as module
from anodiff.visualize.heatmap import HeatScale, colourise, overlay
from anodiff.visualize.show import Viewer, scale_of, show

QUANTILES = {0.5: 0.1, 0.95: 0.8, 0.99: 1.0, 0.999: 1.7}


def result(*size: int, count: int = 3, calibrated: bool = True) -> DetectionResult:
    maps = torch.rand(count, *size)
    maps.flatten(1)[1:2, 7] = 5.0
    return DetectionResult(
        maps=maps,
        scores=maps.flatten(1).amax(1),
        p_values=torch.full((count,), 0.04 if calibrated else torch.nan, dtype=torch.float64),
        is_anomalous=torch.tensor([False, True, False][:count]) if calibrated else None,
        reconstructions=torch.rand(count, 1, *size) * 2 - 1,
        threshold=1.0 if calibrated else None,
        nfe=1,
        pixel_quantiles=QUANTILES if calibrated else None,
    )


@pytest.fixture(autouse=True)
def closed() -> None:
    pyplot.close("all")


def test_panels_are_image_reconstruction_and_map_on_one_scale() -> None:
    found = result(6, 8)
    images = torch.rand(3, 1, 6, 8) * 2 - 1
    panels = Viewer(found, images, None).panels(1)
    assert list(panels) == ["image", "reconstruction", "anomaly map"]
    scale = HeatScale.around(0.1, 1.0)
    np.testing.assert_array_equal(panels["anomaly map"], overlay(panels["image"], found.maps[1].numpy(), scale))
    black = float(min(images.min(), found.reconstructions.min()))
    white = float(max(images.max(), found.reconstructions.max()))
    expected = (found.reconstructions[1, 0].numpy() - black) / (white - black) * 255
    np.testing.assert_allclose(panels["reconstruction"], expected, atol=1)
    alone = Viewer(found, None, None).panels(1)
    np.testing.assert_array_equal(alone["anomaly map"], colourise(found.maps[1].numpy(), scale))


def test_a_slice_lies_as_on_a_screen() -> None:
    found = result(4, 5, 6)
    viewer = Viewer(found, None, None)
    assert viewer.ranges == {"image": 3, "slice": 6}
    panel = viewer.panels(2, 3)["anomaly map"]
    np.testing.assert_array_equal(panel, colourise(found.maps[2, :, :, 3].numpy().T, viewer.scale))
    assert viewer.start() == {"image": 1, "slice": 7 % 6}


def test_without_calibration_the_scale_is_of_all_images() -> None:
    found = result(16, 16, calibrated=False)
    scale = scale_of(found)
    assert not scale.calibrated
    np.testing.assert_allclose([scale.low, scale.centre], np.quantile(found.maps, [0.5, 0.99]), rtol=1e-5)
    flat = DetectionResult(**{**vars(found), "maps": torch.zeros(3, 4, 4)})
    assert scale_of(flat).low == 0


def test_titles_say_what_was_decided() -> None:
    assert Viewer(result(6, 8), None, None).title(1).endswith("score 5, p 0.04, anomalous")
    assert Viewer(result(6, 8), None, None).title(0).endswith("normal")
    assert "p " not in Viewer(result(6, 8, calibrated=False), None, None).title(0)


def test_a_script_gets_a_figure_whose_sliders_move_it() -> None:
    found = result(4, 5, 6)
    figure = found.show()
    assert isinstance(figure, Figure)
    assert set(figure.anodiff_sliders) == {"image", "slice"}
    figure.anodiff_sliders["image"].set_val(0)
    figure.anodiff_sliders["slice"].set_val(2)
    viewer = Viewer(found, None, None)
    shown = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(shown, viewer.panels(0, 2)["anomaly map"])
    assert figure.get_suptitle() == viewer.title(0)
    assert not found_one().anodiff_sliders


def found_one() -> Figure:
    return result(6, 8, count=1).show(torch.zeros(1, 1, 6, 8))


class Widget:
    """As much of an ipywidgets widget as is used."""

    def __init__(self, children: object = None, **values: object) -> None:
        self.children, self.watchers = children, []
        vars(self).update(values)

    def observe(self, watcher: object, names: str) -> None:
        assert names == "value"
        self.watchers.append(watcher)

    def move(self, value: int) -> None:
        self.value = value
        for watcher in self.watchers:
            watcher({"new": value})


def test_a_notebook_gets_sliders(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(Image=Widget, IntSlider=Widget, VBox=Widget)
    monkeypatch.setattr(module, "_widgets", lambda: fake)
    slider, picture = show(result(6, 8), torch.zeros(3, 1, 6, 8)).children
    assert (slider.value, slider.min, slider.max, slider.description) == (1, 0, 2, "image")
    before = picture.value
    slider.move(0)
    assert picture.value != before
    assert Image.open(io.BytesIO(picture.value)).size[0] > 600
    assert isinstance(show(result(6, 8, count=1)), Figure)


def test_widgets_are_for_kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace()
    monkeypatch.setitem(module.sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(module.sys.modules, "ipywidgets", SimpleNamespace(name="widgets"))
    assert module._widgets() is None
    shell.kernel = object()
    assert module._widgets().name == "widgets"
    monkeypatch.setitem(module.sys.modules, "ipywidgets", None)
    assert module._widgets() is None


def test_images_of_another_result_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 images of \(6, 8\), found \(3, 1, 8, 6\)"):
        show(result(6, 8), torch.zeros(3, 1, 8, 6))
    with pytest.raises(ValueError, match="at least one image"):
        show(result(6, 8, count=0, calibrated=False))
