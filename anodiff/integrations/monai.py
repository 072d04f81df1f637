"""anodiff in MONAI pipelines: dictionary transforms and an inferer. MetaTensor in, MetaTensor out.

A map lies on the grid of the image it was made from and keeps its meta data and record of applied transforms, so that
``Invertd`` takes it back through all that was done to the image before.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import TransformBackends, ensure_tuple_rep
from torch import Tensor

from anodiff.errors import ConfigError, InputError
from anodiff.integrations.arrays import ArrayModel, ArrayScore

Range = tuple[float, float]


class _Reader:
    """Tensors (C, *S) as the arrays of `ArrayModel`, and its arrays as tensors like them.

    rows_first: 2-D tensors are (C, rows, columns); MONAI's own PNG reader gives (C, columns, rows).
    """

    def __init__(self, model: ArrayModel, rows_first: bool) -> None:
        self.model, self.rows_first = model, rows_first

    def score(self, image: Tensor, name: str) -> ArrayScore:
        """Map and score of one image or volume, the map in the tensor's own order."""
        array = _array(image, name)
        if array.ndim == 4:
            affine = image.affine.cpu().numpy() if isinstance(image, MetaTensor) else np.eye(4)
            return self.model.volume(array, affine, name)
        (found,) = self.model.images([self.to_pixels(array)])
        return ArrayScore(
            found.map if self.rows_first else np.ascontiguousarray(found.map.T),
            found.score,
            found.p_value,
            found.is_anomalous,
        )

    def to_pixels(self, array: np.ndarray, of_volume: bool = False) -> np.ndarray:
        """(C, H, W) or (C, W, H) -> (H, W, C); the later axis of a volume's slice runs down, as when it is scored."""
        return array.transpose(1, 2, 0) if self.rows_first and not of_volume else array.transpose(2, 1, 0)

    def from_pixels(self, pixels: np.ndarray, of_volume: bool = False) -> np.ndarray:
        """The way back."""
        return pixels.transpose(2, 0, 1) if self.rows_first and not of_volume else pixels.transpose(2, 1, 0)


class _DiffusionTransform(MapTransform):
    """What the transforms share; picklable, and read in each worker when first used."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - as MONAI's transforms have it

    def __init__(
        self,
        keys: KeysCollection,
        model: str | Path,
        *,
        preset: str | None = None,
        value_range: Range | None = None,
        rows_first: bool = True,
        device: str = "cpu",
        precision: str = "auto",
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        arrays = ArrayModel(model, preset, value_range=value_range, device=device, precision=precision, seed=seed)
        self.reader = _Reader(arrays, rows_first)


class AnomalyMapd(_DiffusionTransform):
    """Adds the anomaly map of each key, and its score; the image itself stays as it is.

    ``d[key + "_anomaly"]``: (1, *S) float32 on the grid of ``d[key]``, larger = more anomalous, with its meta data and
    applied operations. ``d[key + "_score"]``: float, higher = more anomalous. Where the model is calibrated for images
    of this kind, ``d[key + "_p_value"]``: float and, where that gives a threshold, ``d[key + "_anomalous"]``: bool.

    Args:
        keys: of images (C, H, W) or volumes (C, I, J, K), intensities as stored: the model prepares them itself, as it
            does for files. Volumes are turned by the affine of the MetaTensor (RAS+ mm).
        model: path of a model file.
        preset: of the detector; None is the recipe's.
        value_range: the values that mean black and white, as loaders forget the type that a file had.
        rows_first: 2-D images are (C, rows, columns); False for those of LoadImaged, which gives columns first unless
            it is told ``reverse_indexing=False``.
        device: "cpu" in workers of a DataLoader; "auto" or "cuda" where the transform runs in the main process.
        precision, seed: see :class:`anodiff.AnomalyDetector`.

    Raises:
        ModelFileError: no model file. When called also InputError for an image that cannot be used, and ConfigError
            for a model of something else.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            found = self.reader.score(d[key], str(key))
            d[f"{key}_anomaly"] = like(d[key], found.map[None])
            d[f"{key}_score"] = found.score
            if found.p_value is not None:
                d[f"{key}_p_value"] = found.p_value
            if found.is_anomalous is not None:
                d[f"{key}_anomalous"] = found.is_anomalous
        return d


class DenoiseDiffusiond(_DiffusionTransform):
    """Takes the noise off images (C, H, W), in their own values and on their own grid; of volumes slice by slice.

    sigma: its level in units of the model's [-1, 1]; None estimates that of each image or slice.
    axis: along which volumes (C, I, J, K) are cut, 0, 1 or 2. Slices are taken as they lie, the later of their axes
        down: ``Orientationd(axcodes="LPI")`` before makes them look as on a screen.

    Other arguments and errors: see :class:`AnomalyMapd`; a model of 2-D images is needed.
    """

    def __init__(
        self, keys: KeysCollection, model: str | Path, *, sigma: float | None = None, axis: int = 2, **options: Any
    ) -> None:
        super().__init__(keys, model, **options)
        if sigma is not None and not sigma > 0:
            raise ConfigError(f"sigma: expected a positive noise level, found {sigma}")
        self.sigma, self.axis = sigma, _axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            array = _array(d[key], str(key))
            volume = array.ndim == 4
            # A constant slice has no noise, and no intensities to be brought to the model's range.
            clean = [
                self._clean(each, volume, str(key)) if each.min() < each.max() else each
                for each in _slices(array, self.axis)
            ]
            d[key] = like(d[key], _joined(clean, self.axis, volume))
        return d

    def _clean(self, image: np.ndarray, of_volume: bool, name: str) -> np.ndarray:
        clean = self.reader.model.denoise(self.reader.to_pixels(image, of_volume), self.sigma, name)
        return self.reader.from_pixels(clean, of_volume)


class InpaintDiffusiond(_DiffusionTransform):
    """Fills images (C, H, W) in where a mask says so, with what the model expects there; of volumes slice by slice.

    mask_keys: of masks (1, *S) or (*S) beside each key, other than 0 = to be filled. What the image holds there is not
        looked at; all else is kept bit for bit.
    solver, steps: see :meth:`anodiff.Restorer.inpaint`; solver None is its default.
    axis: see :class:`DenoiseDiffusiond`.

    Other arguments and errors: see :class:`AnomalyMapd`; a model of 2-D images is needed.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_keys: KeysCollection,
        model: str | Path,
        *,
        solver: str | None = None,
        steps: int = 32,
        axis: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(keys, model, **options)
        self.mask_keys = ensure_tuple_rep(mask_keys, len(self.keys))
        self.solver, self.steps, self.axis = solver, steps, _axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, mask_key in self.key_iterator(d, self.mask_keys):
            name = str(key)
            array, mask = _array(d[key], name), np.asarray(torch.as_tensor(d[mask_key]).cpu()) != 0
            if mask.shape not in (array.shape[1:], (1, *array.shape[1:])):
                raise InputError(f"{mask_key}: expected a mask of {array.shape[1:]} like {name}, found {mask.shape}")
            masks = _slices(mask.reshape(1, *array.shape[1:]), self.axis)
            volume = array.ndim == 4
            filled = [
                self._filled(each, missing, volume, name) if missing.any() else each
                for each, missing in zip(_slices(array, self.axis), masks, strict=True)
            ]
            d[key] = like(d[key], _joined(filled, self.axis, volume))
        return d

    def _filled(self, image: np.ndarray, missing: np.ndarray, of_volume: bool, name: str) -> np.ndarray:
        reader = self.reader
        pixels, hole = reader.to_pixels(image, of_volume), reader.to_pixels(missing, of_volume)[:, :, 0]
        filled = reader.model.inpaint(pixels, hole, solver=self.solver, steps=self.steps, name=name)
        return reader.from_pixels(filled, of_volume)


class AnomalyInferer(Inferer):
    """A MONAI inferer that returns anomaly maps, and on request scores.

    ``inferer(batch)`` of (N, C, *S), intensities as stored, is (N, 1, *S) float32 on the batch's device; with
    ``scores=True`` a pair with the scores (N,) float32, higher = more anomalous.

    Args: see :class:`AnomalyMapd`; ``device`` is where the model runs.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        preset: str | None = None,
        value_range: Range | None = None,
        rows_first: bool = True,
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        scores: bool = False,
    ) -> None:
        super().__init__()
        arrays = ArrayModel(model, preset, value_range=value_range, device=device, precision=precision, seed=seed)
        self.reader, self.scores = _Reader(arrays, rows_first), scores

    def __call__(
        self, inputs: Tensor, network: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Maps of a batch. ``network`` and what follows are MONAI's signature: the model file brings its own.

        Raises InputError for an image that cannot be used, ConfigError for a model of something else.
        """
        found = [self.reader.score(image, f"image {n}") for n, image in enumerate(inputs)]
        stacked = np.stack([each.map[None] for each in found]) if found else np.zeros((0, 1, *inputs.shape[2:]))
        maps = like(inputs, stacked)
        if not self.scores:
            return maps
        return maps, torch.tensor([each.score for each in found], dtype=torch.float32, device=inputs.device)


def like(image: Tensor | np.ndarray, values: np.ndarray) -> MetaTensor:
    """float32 values on the device of ``image``, with its meta data and record of applied operations."""
    device = image.device if isinstance(image, Tensor) else "cpu"
    found = torch.from_numpy(np.array(values, dtype=np.float32)).to(device)
    if not isinstance(image, MetaTensor):
        return MetaTensor(found)
    made = MetaTensor(found, meta=deepcopy(image.meta), applied_operations=deepcopy(image.applied_operations))
    made.is_batch = image.is_batch
    return made


def _array(image: Tensor | np.ndarray, name: str) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim not in (3, 4):
        raise InputError(f"{name}: expected a tensor (C, H, W) or (C, I, J, K), found the shape {array.shape}")
    return array


def _axis(axis: int) -> int:
    if axis not in (0, 1, 2):
        raise ConfigError(f"axis: expected 0, 1 or 2, found {axis}")
    return axis


def _slices(array: np.ndarray, axis: int) -> list[np.ndarray]:
    """The image itself, or the slices (C, *, *) of a volume (C, I, J, K)."""
    return [array] if array.ndim == 3 else list(np.moveaxis(array, axis + 1, 0))


def _joined(slices: list[np.ndarray], axis: int, of_volume: bool) -> np.ndarray:
    return np.stack(slices, axis=axis + 1) if of_volume else slices[0]
