"""Arrays of other libraries, scored and restored as files are: intensities as stored in, on their own grid out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.data.foreground import given
from anodiff.data.foreground import with_given as image_with_given
from anodiff.data.preprocess import Geometry, Preprocessor, resize, select_channels
from anodiff.data.readers import RawImage
from anodiff.data.volumes.modality import modality_of_name
from anodiff.data.volumes.read import Foreground as Given
from anodiff.data.volumes.read import with_given
from anodiff.data.volumes.volume import Volume, check_affine, finite_values, is_ranged, value_range
from anodiff.errors import ConfigError, InputError
from anodiff.integrations.lazy import LazyModel

if TYPE_CHECKING:
    from anodiff.anomaly import AnomalyDetector
    from anodiff.anomaly.volumes import VolumeDetector
    from anodiff.model import DiffusionModel
    from anodiff.restoration import Restored, Restorer
    from anodiff.restoration.batches import Batch

#: share of a pixel of the model's grid from which a missing part makes it missing
MISSING_SHARE = 1e-3
Range = tuple[float, float]


@dataclass(frozen=True)
class ArrayScore:
    """What a detector says of one array: map (H, W) or (I, J, K) float32 on its grid, larger = more anomalous.

    p_value: None without a calibration; is_anomalous: None without a threshold; remarks: sentences on a volume.
    """

    map: NDArray[np.float32]
    score: float
    p_value: float | None
    is_anomalous: bool | None
    remarks: tuple[str, ...] = ()


class ArrayModel:
    """What the integrations share: a lazily read model, and detectors and restorers made of it once a process.

    Args:
        model: path of a model file.
        preset: None is that of the model's recipe.
        value_range: the values that mean black and white; None: those of the array's type, as for files.
        device, precision, network_batch, seed: see :class:`anodiff.anomaly.AnomalyDetector`.

    It pickles as these arguments, and threads may share it. Raises ModelFileError where there is no model file.
    """

    def __init__(
        self,
        model: str | Path,
        preset: str | None = None,
        *,
        value_range: Range | None = None,
        device: str = "auto",
        precision: str = "auto",
        network_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError(f"value_range: expected [low, high] with low below high, found {list(value_range)}")
        self.model = LazyModel(model)
        self.preset, self.value_range = preset, value_range
        self.options: dict[str, Any] = {"device": device, "precision": precision, "seed": seed}
        self.network_batch = network_batch
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_made")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def detector(self) -> AnomalyDetector:
        """For images. Raises ConfigError for a model of anything else, or an unknown preset."""

        def make(model: DiffusionModel) -> AnomalyDetector:
            from anodiff.anomaly import AnomalyDetector

            _of_images(model)
            return AnomalyDetector(
                model, self.preset or model.config.preset, network_batch=self.network_batch, **self.options
            )

        return self._once("images", make)

    def volume_detector(self) -> VolumeDetector:
        """For volumes. Raises ConfigError for a model of clips, or an unknown preset."""

        def make(model: DiffusionModel) -> VolumeDetector:
            from anodiff.anomaly.volumes import VolumeDetector

            if model.config.video is not None:
                raise ConfigError(f"{self.model.path}: expected a model of images or volumes, found one of clips")
            return VolumeDetector(
                model, self.preset or model.config.preset, network_batch=self.network_batch, **self.options
            )

        return self._once("volumes", make)

    def restorer(self, steps: int, *, of_volumes: bool = False) -> Restorer:
        """With chains of ``steps`` steps, for images or volumes. Raises ConfigError for a model of anything else."""
        model = self.model.get()
        if model.config.video is not None or not of_volumes:
            _of_images(model, slices=True)

        def make(model: DiffusionModel) -> Restorer:
            from anodiff.restoration import Restorer

            return Restorer(model, steps=steps, network_batch=self.network_batch, **self.options)

        return self._once(f"restorer {steps}", make)

    def _once(self, name: str, make: Any) -> Any:
        with self._lock:
            if name not in self._made:
                self._made[name] = make(self.model.get())
            return self._made[name]

    def images(
        self, arrays: Sequence[np.ndarray], batch_size: int = 16, foregrounds: Sequence[Given] = ()
    ) -> list[ArrayScore]:
        """Score images of one size, (H, W) or (H, W, C) each; ``foregrounds``: of each, see `denoise`; none: estimated.

        Raises InputError for one that cannot be used.
        """
        detector, preprocessor = self.detector(), self.model.get().scorable
        found: list[ArrayScore] = []
        for start in range(0, len(arrays), batch_size):
            part = enumerate(arrays[start : start + batch_size], start)
            ready = [
                preprocessor(self.raw(array, f"image {n}", foregrounds[n] if len(foregrounds) else None))
                for n, array in part
            ]
            result = detector(
                torch.stack([each.image for each in ready]), torch.stack([each.foreground for each in ready])
            )
            for n, each in enumerate(ready):
                known = detector.calibration is not None
                found.append(
                    ArrayScore(
                        preprocessor.back(result.maps[n], each.geometry),
                        float(result.scores[n]),
                        float(result.p_values[n]) if known else None,
                        None if result.is_anomalous is None else bool(result.is_anomalous[n]),
                    )
                )
        return found

    def volume(
        self,
        data: np.ndarray,
        affine: np.ndarray,
        name: str = "volume",
        *,
        units: str = "mm",
        path: str = "",
        foreground: Given = None,
    ) -> ArrayScore:
        """Score a volume (C, I, J, K), see :meth:`to_volume`; ``foreground`` (I, J, K) or a file, None: estimated.

        Raises InputError where it cannot be used.
        """
        detector = self.volume_detector()
        volume = with_given(self.to_volume(data, affine, name, units=units, path=path), foreground)
        remarks = (*volume.remarks, *detector.doubts(volume))
        prepared = detector.prepare(volume)
        result = detector(prepared, volume)
        if not np.isfinite(result.score):
            raise InputError(f"{name}: expected a finite score, found {result.score}; its intensities may overflow")
        return ArrayScore(
            prepared.back(result.map),
            float(result.score),
            result.p_value,
            result.is_anomalous,
            (*remarks, *result.remarks),
        )

    def to_volume(
        self, data: np.ndarray, affine: np.ndarray, name: str = "volume", *, units: str = "mm", path: str = ""
    ) -> Volume:
        """An array (C, I, J, K) with its affine (4, 4) to RAS+ coordinates as a decoded file would be.

        units: of the affine, as of `Volume`. path: the file it comes from, whose name may say its modality. NaN and
        infinity count as outside, as those of files do. Raises InputError where it is no volume.
        """
        if data.ndim != 4 or 0 in data.shape:
            raise InputError(f"{name}: expected a volume (C, I, J, K), found the shape {data.shape}")
        values, valid, remarks = finite_values(_numbers(data, name), name)
        low, high, ranged = self._range(values, data.dtype)
        return Volume(
            values,
            check_affine(affine, name),
            low,
            high,
            "uint8" if ranged else str(data.dtype),
            name,
            "stack",
            units=units,
            ranged=ranged,
            modality=modality_of_name(path),
            valid=valid,
            remarks=remarks,
        )

    def denoise_volume(self, volume: Volume, sigma: float | None, *, axis: int | None = None) -> NDArray[np.float32]:
        """A volume (C, I, J, K) without its noise, as ``anodiff denoise`` gives it; sigma None estimates the level.

        axis: of the model's grid, across the slices of a model of such; None is the recipe's. Raises InputError for a
        volume that cannot be used, ConfigError for an axis where the model sees volumes whole.
        """
        restorer = self.restorer(steps=1, of_volumes=True)

        def task(batch: Batch) -> tuple[Restored, None]:
            return restorer.denoise(batch.images, sigma, foreground=batch.foreground), None

        return self._restored_volume(volume, None, task, axis, average=True)

    def inpaint_volume(
        self,
        volume: Volume,
        mask: NDArray[np.bool_],
        *,
        solver: str | None = None,
        steps: int = 32,
        axis: int | None = None,
    ) -> NDArray[np.float32]:
        """A volume (C, I, J, K) filled in where the mask (I, J, K) is True, as ``anodiff inpaint`` gives it.

        All other voxels are kept bit for bit. axis, and errors: see :meth:`denoise_volume`, and ConfigError for an
        unknown solver.
        """
        restorer = self.restorer(steps, of_volumes=True)
        if mask.shape != volume.shape:
            raise InputError(f"{volume.path}: expected a mask of {volume.shape}, found {mask.shape}")

        def task(batch: Batch) -> tuple[Restored, None]:
            assert batch.masks is not None
            return restorer.inpaint(batch.images, batch.masks, solver=solver), None

        return self._restored_volume(volume, mask, task, axis, average=False)

    def _restored_volume(
        self, volume: Volume, hole: NDArray[np.bool_] | None, task: Any, axis: int | None, average: bool
    ) -> NDArray[np.float32]:
        from anodiff.anomaly.volumes import PLAIN
        from anodiff.restoration.volumes import VolumeRestorer

        config = self.model.get().config
        section = config.volume or PLAIN
        if axis is not None:
            if section.mode == "patches":
                raise ConfigError(f"axis: expected none for a model that sees volumes whole, found {axis}")
            section = section.model_copy(update={"axes": (axis,)})
        restorer = VolumeRestorer(config.preprocess, section, task, average=average)
        return restorer.back(restorer(restorer.load(volume, hole))).values

    def denoise(
        self, array: np.ndarray, sigma: float | None, name: str = "image", *, foreground: Given = None
    ) -> NDArray[np.float32]:
        """An image (H, W, C) without its noise, in its own values and on its own grid; sigma None estimates the level.

        foreground: (H, W), or a file; None: estimated. Raises InputError for one that cannot be used.
        """

        def task(restorer: Restorer, image: torch.Tensor, inside: torch.Tensor, _: Geometry) -> Restored:
            return restorer.denoise(image, sigma, foreground=inside)

        return self._restored(self.raw(array, name, foreground), task, steps=1)

    def inpaint(
        self,
        array: np.ndarray,
        mask: np.ndarray,
        *,
        solver: str | None = None,
        steps: int = 32,
        name: str = "image",
        foreground: Given = None,
    ) -> NDArray[np.float32]:
        """An image (H, W, C) filled in where the mask (H, W) is True; what it holds there is not looked at.

        All other pixels are kept bit for bit. foreground, and errors: see :meth:`denoise`, and ConfigError for an
        unknown solver.
        """
        from anodiff.restoration.intensity import without

        raw = self.raw(array, name, foreground)
        if mask.shape != raw.pixels.shape[:2]:
            raise InputError(f"{name}: expected a mask of {raw.pixels.shape[:2]}, found {mask.shape}")

        def task(restorer: Restorer, image: torch.Tensor, _: torch.Tensor, geometry: Geometry) -> Restored:
            return restorer.inpaint(image, _model_mask(mask, geometry)[None], solver=solver)

        filled = self._restored(without(raw, mask), task, steps)
        config = self.model.get().config.preprocess
        return np.where(mask[:, :, None], filled, select_channels(raw, config.channels, config.channel))

    def _restored(self, raw: RawImage, task: Any, steps: int) -> NDArray[np.float32]:
        from anodiff.restoration.intensity import intensity_of

        preprocessor = Preprocessor(self.model.get().config.preprocess, any_size=True)
        restorer = self.restorer(steps)
        ready = preprocessor(raw)
        restored = task(restorer, ready.image[None], ready.foreground[None], ready.geometry)
        return intensity_of(raw, preprocessor).back(preprocessor.back(restored.images[0], ready.geometry))

    def raw(self, array: np.ndarray, name: str, foreground: Given = None) -> RawImage:
        """An array (H, W) or (H, W, C) as a decoded file would be, with the foreground (H, W) that it is given.

        Raises InputError where it is no image, or the foreground none of it.
        """
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise InputError(f"{name}: expected an image (H, W) or (H, W, C), found the shape {array.shape}")
        values, (low, high), ranged = self._values(array, name)
        pixels = values if values.ndim == 3 else values[:, :, None]
        # A known range is that of the stored type: uint8 says so.
        raw = RawImage(pixels, low, high, "uint8" if ranged else str(array.dtype), name)
        if foreground is None:
            return raw
        if not isinstance(foreground, np.ndarray):
            return image_with_given(raw, foreground, max_pixels=self.model.get().config.preprocess.max_pixels)
        try:
            return given(raw, foreground)
        except ValueError as error:
            raise InputError(f"{name}: its foreground cannot be used: {error}") from None

    def _values(self, array: np.ndarray, name: str) -> tuple[NDArray[np.float32], Range, bool]:
        """float32 values, what means black and white, and whether that is known rather than seen."""
        values = _numbers(array, name)
        if not np.isfinite(values).all():
            raise InputError(f"{name}: expected finite values, found NaN or infinity")
        low, high, ranged = self._range(values, array.dtype)
        return values, (low, high), ranged

    def _range(self, values: NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[float, float, bool]:
        if self.value_range is not None:
            return float(self.value_range[0]), float(self.value_range[1]), True
        return *value_range(values, dtype), is_ranged(dtype)


def _numbers(array: np.ndarray, name: str) -> NDArray[np.float32]:
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: expected numbers, found {array.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _of_images(model: DiffusionModel, slices: bool = False) -> None:
    """Raises ConfigError for a model of anything but images; ``slices``: but single slices, which are images too."""
    config = model.config
    if slices and config.volume is not None and config.volume.mode == "slices" and not config.volume.neighbours:
        return
    if config.volume is not None or config.video is not None:
        kind = "volumes" if config.volume is not None else "clips"
        raise ConfigError(f"{model.path}: expected a model of 2-D images, found one of {kind}")


def _model_mask(mask: np.ndarray, geometry: Geometry) -> torch.Tensor:
    """A mask (H, W) on the model's grid: True where any missing pixel comes in, in the padding as at its border."""
    top, left, height, width = geometry.box
    inner = resize(mask.astype(np.float32), (height, width)) >= MISSING_SHARE
    margin = ((top, geometry.model[0] - top - height), (left, geometry.model[1] - left - width))
    return torch.from_numpy(np.pad(inner, margin, mode="edge"))
