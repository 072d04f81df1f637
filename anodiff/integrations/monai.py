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
from monai.utils import MetaKeys, SpaceKeys, TransformBackends, ensure_tuple_rep
from torch import Tensor

from anodiff.data.volumes.read import Foreground as Given
from anodiff.data.volumes.read import with_given
from anodiff.data.volumes.volume import Volume
from anodiff.errors import ConfigError, InputError
from anodiff.integrations.arrays import ArrayModel, ArrayScore

Range = tuple[float, float]
#: affines of an image and its foreground agree to this
SAME_PLACE = 1e-2
#: spatial units of a NIfTI header that are not mm
UNITS = {1: "meter", 3: "micron"}


class _Reader:
    """Tensors (C, *S) as the arrays of `ArrayModel`, and its arrays as tensors like them.

    rows_first: 2-D tensors are (C, rows, columns); MONAI's own PNG reader gives (C, columns, rows).
    """

    def __init__(self, model: ArrayModel, rows_first: bool) -> None:
        self.model, self.rows_first = model, rows_first

    def score(self, image: Tensor, name: str, foreground: Given = None) -> ArrayScore:
        """Map and score of one image or volume, the map in the tensor's own order; foreground: see `_foreground`."""
        array = _array(image, name)
        if array.ndim == 4:
            return self.model.volume(array, name=name, foreground=foreground, **_place(image, name))
        (found,) = self.model.images([self.to_pixels(array)], foregrounds=[self.pixels_inside(foreground)])
        return ArrayScore(
            found.map if self.rows_first else np.ascontiguousarray(found.map.T),
            found.score,
            found.p_value,
            found.is_anomalous,
        )

    def volume(self, image: Tensor, name: str, foreground: Given = None) -> Volume:
        """A tensor (C, I, J, K) as a decoded volume."""
        return with_given(self.model.to_volume(_array(image, name), name=name, **_place(image, name)), foreground)

    def pixels_inside(self, foreground: Given) -> Given:
        """A foreground (H, W) or (W, H) -> (H, W); a file shows it upright."""
        return foreground.T if isinstance(foreground, np.ndarray) and not self.rows_first else foreground

    def check_given(self, foreground: Given, name: str, how: str) -> None:
        """Raises InputError where the model needs a foreground and there is none; ``how`` one is given here."""
        if foreground is None and self.model.model.get().config.preprocess.foreground == "given":
            raise InputError(
                f"{name}: expected a foreground mask, which this model needs (preprocess.foreground: given), found "
                f"none ({how} names it)"
            )

    def to_pixels(self, array: np.ndarray) -> np.ndarray:
        """(C, H, W) or (C, W, H) -> (H, W, C)."""
        return array.transpose(1, 2, 0) if self.rows_first else array.transpose(2, 1, 0)

    def from_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The way back."""
        return pixels.transpose(2, 0, 1) if self.rows_first else pixels.transpose(2, 1, 0)


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
        foreground_key: KeysCollection | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.foreground_keys = ensure_tuple_rep(foreground_key, len(self.keys))
        arrays = ArrayModel(model, preset, value_range=value_range, device=device, precision=precision, seed=seed)
        self.reader = _Reader(arrays, rows_first)

    def given(self, d: Mapping[Hashable, Any], key: Hashable, beside: Hashable | None) -> Given:
        """The foreground of ``d[key]`` under ``beside``. Raises InputError where it cannot be used or is missing."""
        mask = None if beside is None else d[beside]
        found = None if mask is None else _foreground(d[key], mask, str(key), str(beside))
        self.reader.check_given(found, str(key), "foreground_key" if beside is None else f"the key {beside}")
        return found


class AnomalyMapd(_DiffusionTransform):
    """Adds the anomaly map of each key, and its score; the image itself stays as it is.

    ``d[key + "_anomaly"]``: (1, *S) float32 on the grid of ``d[key]``, larger = more anomalous, with its meta data and
    applied operations. ``d[key + "_score"]``: float, higher = more anomalous. Where the model is calibrated for images
    of this kind, ``d[key + "_p_value"]``: float and, where that gives a threshold, ``d[key + "_anomalous"]``: bool. Of
    volumes ``d[key + "_remarks"]``: str, what is to be said of it, mostly nothing.

    Args:
        keys: of images (C, H, W) or volumes (C, I, J, K), intensities as stored: the model prepares them itself, as it
            does for files. Volumes are turned by the affine of the MetaTensor; a plain tensor counts as RAS+, 1 mm.
        model: path of a model file.
        preset: of the detector; None is the recipe's.
        value_range: the values that mean black and white, as loaders forget the type that a file had.
        rows_first: 2-D images are (C, rows, columns); False for those of LoadImaged, which gives columns first unless
            it is told ``reverse_indexing=False``.
        device: "cpu" in workers of a DataLoader; "auto" or "cuda" where the transform runs in the main process.
        precision, seed: see :class:`anodiff.AnomalyDetector`.
        foreground_key: of the given foreground (brain mask) of each key, (1, *S) or (*S) on its grid, other than 0 =
            inside, or the path of its file; one for all keys, or one each. None, or "" for a path: as the model
            estimates it.

    Raises:
        ModelFileError: no model file. When called also InputError for an image or foreground that cannot be used, and
            ConfigError for a model of something else.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, beside in self.key_iterator(d, self.foreground_keys):
            found = self.reader.score(d[key], str(key), self.given(d, key, beside))
            d[f"{key}_anomaly"] = like(d[key], found.map[None])
            d[f"{key}_score"] = found.score
            if d[key].ndim == 4:
                d[f"{key}_remarks"] = "; ".join(found.remarks)
            if found.p_value is not None:
                d[f"{key}_p_value"] = found.p_value
            if found.is_anomalous is not None:
                d[f"{key}_anomalous"] = found.is_anomalous
        return d


class DenoiseDiffusiond(_DiffusionTransform):
    """Takes the noise off images (C, H, W) and volumes (C, I, J, K), in their own values and on their own grid.

    What it gives is what ``anodiff denoise`` writes: a model of 3-D patches sees a volume whole, one of slices each
    slice with its neighbours, one of 2-D images each slice as an image.

    sigma: its level in units of the model's [-1, 1]; None estimates that of each image, volume or slice.
    axis: across the slices of a volume, 0, 1 or 2 of the model's grid (of 2-D models that of LPI: 2 is axial); None
        takes the recipe's, and the mean of several. Not for a model of 3-D patches.

    Other arguments and errors: see :class:`AnomalyMapd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        model: str | Path,
        *,
        sigma: float | None = None,
        axis: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(keys, model, **options)
        if sigma is not None and not sigma > 0:
            raise ConfigError(f"sigma: expected a positive noise level, found {sigma}")
        self.sigma, self.axis = sigma, _axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, beside in self.key_iterator(d, self.foreground_keys):
            d[key] = like(d[key], self._clean(d[key], str(key), self.given(d, key, beside)))
        return d

    def _clean(self, image: Tensor, name: str, foreground: Given) -> np.ndarray:
        reader, array = self.reader, _array(image, name)
        if array.ndim == 4:
            return reader.model.denoise_volume(reader.volume(image, name, foreground), self.sigma, axis=self.axis)
        inside = reader.pixels_inside(foreground)
        return reader.from_pixels(reader.model.denoise(reader.to_pixels(array), self.sigma, name, foreground=inside))


class InpaintDiffusiond(_DiffusionTransform):
    """Fills images (C, H, W) and volumes (C, I, J, K) in where a mask says so, with what the model expects there.

    What it gives is what ``anodiff inpaint`` writes; models meet volumes as in :class:`DenoiseDiffusiond`.

    mask_keys: of masks (1, *S) or (*S) beside each key, other than 0 = to be filled. What the image holds there is not
        looked at; all else is kept bit for bit.
    solver, steps: see :meth:`anodiff.Restorer.inpaint`; solver None is its default.
    axis: see :class:`DenoiseDiffusiond`; None takes the recipe's first.

    Other arguments and errors: see :class:`AnomalyMapd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_keys: KeysCollection,
        model: str | Path,
        *,
        solver: str | None = None,
        steps: int = 32,
        axis: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(keys, model, **options)
        self.mask_keys = ensure_tuple_rep(mask_keys, len(self.keys))
        self.solver, self.steps, self.axis = solver, steps, _axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, mask_key, beside in self.key_iterator(d, self.mask_keys, self.foreground_keys):
            name, image = str(key), d[key]
            shape = tuple(image.shape[1:])
            mask = np.asarray(torch.as_tensor(d[mask_key]).cpu()) != 0
            if mask.shape not in (shape, (1, *shape)):
                raise InputError(f"{mask_key}: expected a mask of {shape} like {name}, found {mask.shape}")
            d[key] = like(image, self._filled(image, mask.reshape(shape), name, self.given(d, key, beside)))
        return d

    def _filled(self, image: Tensor, missing: np.ndarray, name: str, foreground: Given) -> np.ndarray:
        reader, array = self.reader, _array(image, name)
        options: dict[str, Any] = {"solver": self.solver, "steps": self.steps}
        if array.ndim == 4:
            volume = reader.volume(image, name, foreground)
            return reader.model.inpaint_volume(volume, missing, axis=self.axis, **options)
        hole = missing if reader.rows_first else missing.T
        options["foreground"] = reader.pixels_inside(foreground)
        return reader.from_pixels(reader.model.inpaint(reader.to_pixels(array), hole, name=name, **options))


class AnomalyInferer(Inferer):
    """A MONAI inferer that returns anomaly maps, and on request scores.

    ``inferer(batch)`` of (N, C, *S), intensities as stored, is (N, 1, *S) float32 on the batch's device; with
    ``scores=True`` a pair with the scores (N,) float32, higher = more anomalous. ``foreground=`` (N, 1, *S) or (N, *S)
    is given with a batch: what is inside of each image, other than 0; without it, as the model estimates it.

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
        self, inputs: Tensor, network: Any = None, *args: Any, foreground: Tensor | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Maps of a batch. ``network`` and what follows are MONAI's signature: the model file brings its own.

        Raises InputError for an image or foreground that cannot be used, ConfigError for a model of something else.
        """
        if foreground is not None and len(foreground) != len(inputs):
            raise InputError(f"foreground: expected one for each of {len(inputs)} images, found {len(foreground)}")
        found = []
        for n, image in enumerate(inputs):
            name = f"image {n}"
            inside = None if foreground is None else _foreground(image, foreground[n], name, f"foreground {n}")
            self.reader.check_given(inside, name, "the argument foreground")
            found.append(self.reader.score(image, name, inside))
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
    made = MetaTensor(found)
    # Set and not passed on: of a batch whose places differ the constructor cannot tell which affine is meant.
    made.meta, made.applied_operations = deepcopy(image.meta), deepcopy(image.applied_operations)
    made.is_batch = image.is_batch
    return made


def _array(image: Tensor | np.ndarray, name: str) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim not in (3, 4):
        raise InputError(f"{name}: expected a tensor (C, H, W) or (C, I, J, K), found the shape {array.shape}")
    return array


def _place(image: Tensor | np.ndarray, name: str) -> dict[str, Any]:
    """Where a volume lies and what file it is from, as far as its meta data say: by the names of `to_volume`."""
    if not isinstance(image, MetaTensor):
        return {"affine": np.eye(4)}
    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    if affine.shape != (4, 4):
        raise InputError(f"{name}: expected an affine of 4 x 4 for a volume, found one of {affine.shape}")
    if image.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    # The NIfTI field that a reader keeps: spatial unit in its lower three bits.
    unit = int(image.meta.get("xyzt_units", 0)) & 7
    return {"affine": affine, "units": UNITS.get(unit, "mm"), "path": str(image.meta.get("filename_or_obj", ""))}


def _foreground(image: Tensor, mask: Tensor | str | Path, name: str, mask_name: str) -> Given:
    """bool (*S) of a mask (1, *S) or (*S), or the path of its file, None for an empty one.

    Raises InputError for another size or place, and where nothing is inside; of files whoever reads them does.
    """
    if isinstance(mask, str | Path):
        return mask or None
    found = np.asarray(torch.as_tensor(mask).cpu()) != 0
    size = tuple(image.shape[1:])
    if found.shape not in (size, (1, *size)):
        raise InputError(f"{mask_name}: expected a foreground of {size} like {name}, found {found.shape}")
    if not found.any():
        raise InputError(f"{mask_name}: expected a foreground of {name} with something inside, found an empty one")
    if isinstance(image, MetaTensor) and isinstance(mask, MetaTensor) and image.ndim == 4:
        far = np.abs(image.affine.cpu().numpy() - mask.affine.cpu().numpy()).max()
        if far > SAME_PLACE:
            raise InputError(f"{mask_name}: expected a foreground at the place of {name}, found one {far:.3g} away")
    return found.reshape(size)


def _axis(axis: int | None) -> int | None:
    if axis not in (None, 0, 1, 2):
        raise ConfigError(f"axis: expected 0, 1 or 2, found {axis}")
    return axis
