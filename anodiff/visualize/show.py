"""A detection result to look at: a figure in a script, a slider over images and slices in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.visualize.heatmap import HeatScale, colourise, display_image, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from anodiff.anomaly.result import DetectionResult
    from anodiff.anomaly.volumes import VolumeResult

INCHES = 3.2
#: at most so many values are looked at for a scale of an uncalibrated result
VALUES = 1 << 20
#: percentiles of a volume's voxels that are black and white
WINDOW = (0.5, 99.5)


def show(result: DetectionResult, images: Tensor | None = None, scale: HeatScale | None = None) -> Any:
    """Image, reconstruction and map of each of N images, or of each slice along the last axis of N volumes.

    In a notebook with ipywidgets a widget with sliders; else a matplotlib figure, with sliders where there is more
    than one thing to see, shown where there is a screen. Where there is none nothing opens: save the figure that is
    returned.

    images: (N, C, *S) that the result is of, as the detector got them: the map is drawn over them. None shows it alone.
    scale: of the colours, the same for all; None takes that of the calibration (median of normal pixels dark, the 1 %
        pixel threshold in the middle), else one of the result's own values.

    Raises:
        ValueError: images of another number or size than the maps, or no image at all.
    """
    return Viewer(result, images, scale).shown()


def show_volume(
    result: VolumeResult, image: Tensor | None = None, axis: int | None = None, scale: HeatScale | None = None
) -> Any:
    """Image and map of one slice of a volume, with a slider over the slices; a widget or a figure, see :func:`show`.

    image: (C, I, J, K) on the model's grid, the ``image`` of the prepared volume: the map is drawn over it. None shows
        the map alone.
    axis: of the model's grid, across the slices. None takes that of the slice with the highest score.
    scale: of the colours. None takes that of the calibration, else one of the map's own values.

    Raises:
        ValueError: an image on another grid than the map, or no such axis.
    """
    return VolumeViewer(result, image, axis, scale).shown()


class Panels:
    """Pictures side by side of a place that is chosen, in a figure or a widget; what they are a subclass says.

    ranges: by name how many there are to choose from; what has only one is left out. start() is what is shown first, a
    number of each range; title(**place) one or two lines; panels(**place) pictures by their titles, uint8 (H, W) or
    (H, W, 3).
    """

    ranges: dict[str, int]
    start: Callable[[], dict[str, int]]
    title: Callable[..., str]
    panels: Callable[..., dict[str, NDArray[np.uint8]]]

    def shown(self) -> Any:
        """A widget in a notebook that has them, where there is something to choose; else a figure."""
        widgets = _widgets() if len(self.ranges) else None
        return self.figure() if widgets is None else self.widget(widgets)

    def figure(self) -> Figure:
        """A matplotlib figure with sliders, shown where the backend has a screen."""
        import matplotlib
        from matplotlib import pyplot
        from matplotlib.backends import BackendFilter, backend_registry
        from matplotlib.widgets import Slider

        at = self.start()
        panels = self.panels(**at)
        size = (INCHES * len(panels), INCHES + 0.4 * len(self.ranges))
        figure, grid = pyplot.subplots(1, len(panels), figsize=size, squeeze=False)
        axes = grid[0]
        pictures = [axis.imshow(panel, cmap="gray", vmin=0, vmax=255) for axis, panel in zip(axes, panels.values())]  # noqa: B905
        for axis, title in zip(axes, panels, strict=True):
            axis.set_title(title)
            axis.axis("off")
        title = self.title(**at)
        figure.suptitle(title, fontsize="medium")
        top = 0.82 - 0.05 * title.count("\n")
        figure.subplots_adjust(bottom=0.06 + 0.09 * len(self.ranges), top=top, left=0.02, right=0.98)

        def redraw(_: float) -> None:
            chosen = {name: int(slider.val) for name, slider in sliders.items()}
            for picture, panel in zip(pictures, self.panels(**chosen).values(), strict=True):
                picture.set_data(panel)
            figure.suptitle(self.title(**chosen), fontsize="medium")
            figure.canvas.draw_idle()

        sliders = {}
        for row, (name, length) in enumerate(self.ranges.items()):
            place = figure.add_axes((0.2, 0.03 + 0.08 * row, 0.6, 0.04))
            sliders[name] = Slider(place, name, 0, length - 1, valinit=at[name], valstep=1)
            sliders[name].on_changed(redraw)
        figure.anodiff_sliders = sliders  # type: ignore[attr-defined]  # a slider that nobody holds does not move
        if matplotlib.get_backend().lower() in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
            pyplot.show()
        return figure

    def widget(self, widgets: Any) -> Any:
        """Sliders and a picture for a notebook; ``widgets`` is the module ipywidgets."""
        at = self.start()
        picture = widgets.Image(format="png")
        sliders = {
            name: widgets.IntSlider(value=at[name], min=0, max=length - 1, description=name)
            for name, length in self.ranges.items()
        }

        def redraw(_: Any = None) -> None:
            picture.value = self.png(**{name: slider.value for name, slider in sliders.items()})

        for slider in sliders.values():
            slider.observe(redraw, names="value")
        redraw()
        return widgets.VBox([*sliders.values(), picture])

    def png(self, **at: int) -> bytes:
        """The panels of one place with their titles, as a PNG."""
        import io

        from matplotlib.figure import Figure

        panels = self.panels(**at)
        figure = Figure(figsize=(INCHES * len(panels), INCHES), layout="constrained")
        for axis, (title, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            axis.imshow(panel, cmap="gray", vmin=0, vmax=255)
            axis.set_title(title)
            axis.axis("off")
        figure.suptitle(self.title(**at), fontsize="medium")
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        return stream.getvalue()


class Viewer(Panels):
    """What is shown of each place: arguments as of :func:`show`; ranges: "image" and, of volumes, "slice"."""

    def __init__(self, result: DetectionResult, images: Tensor | None, scale: HeatScale | None) -> None:
        count, *size = result.maps.shape
        if not count:
            raise ValueError("show: expected a result of at least one image, found none")
        if images is not None and (len(images), *images.shape[2:]) != (count, *size):
            raise ValueError(f"show: expected {count} images of {tuple(size)}, found {tuple(images.shape)}")
        self.result, self.images = result, images
        self.scale = scale or scale_of(result)
        self.volumes = len(size) == 3
        ends = [float(each.amin()) for each in self._pictures] + [float(each.amax()) for each in self._pictures]
        self.black, self.white = min(ends), max(ends)
        sizes = {"image": count} | ({"slice": size[2]} if self.volumes else {})
        self.ranges = {name: length for name, length in sizes.items() if length > 1}

    @property
    def _pictures(self) -> list[Tensor]:
        return [self.result.reconstructions] if self.images is None else [self.images, self.result.reconstructions]

    def start(self) -> dict[str, int]:
        """What is shown first: the image with the highest score, the slice with its map's peak."""
        chosen = {"image": int(self.result.scores.argmax())}
        if self.volumes:
            chosen["slice"] = int(self.result.maps[chosen["image"]].flatten(0, 1).amax(dim=0).argmax())
        return {name: value for name, value in chosen.items() if name in self.ranges}

    def title(self, image: int = 0, slice: int = 0) -> str:
        """Score and decision of an image in one line."""
        result = self.result
        p_value = float(result.p_values[image])
        decided = None if result.is_anomalous is None else bool(result.is_anomalous[image])
        return _verdict(
            f"image {image}", float(result.scores[image]), p_value if np.isfinite(p_value) else None, decided
        )

    def panels(self, image: int = 0, slice: int = 0) -> dict[str, NDArray[np.uint8]]:
        """Pictures of one place by their titles, uint8 (H, W) or (H, W, 3)."""
        found = self._plane(self.result.maps[image], slice)
        made = display_image(self._channels(self.result.reconstructions[image], slice), self.black, self.white)
        if self.images is None:
            return {"reconstruction": made, "anomaly map": colourise(found, self.scale)}
        seen = display_image(self._channels(self.images[image], slice), self.black, self.white)
        return {"image": seen, "reconstruction": made, "anomaly map": overlay(seen, found, self.scale)}

    def _plane(self, values: Tensor, slice: int) -> NDArray[np.float32]:
        """(H, W), or a slice of (I, J, K) with j down and i across."""
        array: NDArray[np.float32] = values.detach().cpu().float().numpy()
        return array[:, :, slice].T if self.volumes else array

    def _channels(self, values: Tensor, slice: int) -> NDArray[np.float32]:
        """(H, W, C) of (C, *S)."""
        return np.stack([self._plane(channel, slice) for channel in values], axis=2)


class VolumeViewer(Panels):
    """What is shown of each slice of a volume: arguments as of :func:`show_volume`; ranges: "slice"."""

    def __init__(self, result: VolumeResult, image: Tensor | None, axis: int | None, scale: HeatScale | None) -> None:
        shape = result.map.shape
        if image is not None and (image.ndim != 4 or tuple(image.shape[1:]) != shape):
            grid = ", ".join(str(side) for side in shape)
            raise ValueError(f"show: expected an image (C, {grid}) on the map's grid, found {tuple(image.shape)}")
        if axis not in (None, 0, 1, 2):
            raise ValueError(f"show: expected the axis 0, 1 or 2, found {axis}")
        if axis is None:
            axis = max(result.slices, key=lambda each: each.score).axis if result.slices else 2
        self.result, self.axis = result, axis
        self.image = None if image is None else image.detach().cpu().float().numpy()
        values = torch.from_numpy(result.map[result.inside] if result.inside.any() else result.map)
        self.scale = scale or _scale(result.voxel_quantiles, values)
        self.black, self.white = 0.0, 1.0
        if self.image is not None:
            self.black, self.white = (float(end) for end in np.percentile(self.image, WINDOW))
        self.scores = {each.index: each for each in result.slices if each.axis == axis}
        self.ranges = {"slice": shape[axis]} if shape[axis] > 1 else {}

    def start(self) -> dict[str, int]:
        """The slice with the map's peak."""
        peak = int(np.moveaxis(self.result.map, self.axis, 0).reshape(len(self), -1).max(axis=1).argmax())
        return {"slice": peak} if self.ranges else {}

    def __len__(self) -> int:
        return int(self.result.map.shape[self.axis])

    def title(self, slice: int = 0) -> str:
        """Score and decision of the volume, and the score of the slice, in two lines."""
        result, found = self.result, self.scores.get(slice)
        text = _verdict("volume", float(result.score), result.p_value, result.is_anomalous)
        place = f"slice {slice} along {'ijk'[self.axis]}"
        if found is None:
            return f"{text}\n{place}"
        return f"{text}\n{_verdict(place, found.score, found.p_value, None)}"

    def panels(self, slice: int = 0) -> dict[str, NDArray[np.uint8]]:
        """Image and map over it, or the map alone, uint8 (H, W) or (H, W, 3); the later axis down, as on a screen."""
        found = np.take(self.result.map, slice, axis=self.axis).T
        if self.image is None:
            return {"anomaly map": colourise(found, self.scale)}
        planes = np.moveaxis(np.take(self.image, slice, axis=self.axis + 1), 0, 2).swapaxes(0, 1)
        seen = display_image(planes, self.black, self.white)
        return {"image": seen, "anomaly map": overlay(seen, found, self.scale)}


def _verdict(name: str, score: float, p_value: float | None, decided: bool | None) -> str:
    text = f"{name}: score {score:.3g}"
    if p_value is not None:
        text += f", p {p_value:.2g}"
    if decided is not None:
        text += ", anomalous" if decided else ", normal"
    return text


def scale_of(result: DetectionResult) -> HeatScale:
    """The calibration's colour scale; without one, from the median of all maps over their 99 % quantile."""
    return _scale(result.pixel_quantiles, result.maps)


def _scale(quantiles: dict[float, float] | None, maps: Tensor) -> HeatScale:
    if quantiles is not None:
        return HeatScale.of_normals(quantiles)
    values = maps.flatten().float().cpu()
    low, centre = torch.quantile(values[:: max(1, len(values) // VALUES)][:VALUES], torch.tensor([0.5, 0.99])).tolist()
    reach = centre if centre > low else low + 1.0
    return HeatScale(low, reach, reach + 2.0 * (reach - low), calibrated=False)


def _widgets() -> Any:
    """ipywidgets where it is installed and a notebook asks; else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets
