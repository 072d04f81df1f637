"""A diffusion anomaly detector as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from anodiff.errors import AnodiffError
from anodiff.integrations.arrays import ArrayModel, ArrayScore

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration


class DiffusionAnomalyDetector(OutlierMixin, BaseEstimator):
    """Outliers among images, by what a diffusion model of normal images cannot reproduce.

    The model is trained beforehand (``anodiff train``); ``fit`` calibrates it on normal images. ``X`` holds images of
    one size, intensities as stored: (N, H, W), (N, H, W, C), or rows (N, H W C) folded by ``image_shape``; without
    it a row is an image of one line.

    Parameters
    ----------
    model : path of a model file of 2-D images.
    preset : of the detector; None is the recipe's.
    rate : false-alarm rate of the threshold, of normal images.
    image_shape : (H, W) or (H, W, C) of images that come as rows.
    value_range : the values that mean black and white; None: those of the array's type, as for files.
    prefit : the model file's own calibration is used; ``fit`` only looks at the shape of ``X``, and need not be called.
    device, precision, batch_size, random_state : where and how it is computed; the seed of the noise.

    Attributes
    ----------
    calibration_ : what was fitted. offset_ : minus the threshold; NaN where there are too few normals for the rate.
    model_digest_ : of the content of the model file; a pickle holds it and the path, and finds another file out.
    n_features_in_ : pixels of an image, all channels together.

    Errors are ValueErrors, as usual in scikit-learn; those of the model file are ModelFileErrors.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        preset: str | None = None,
        rate: float = 0.05,
        image_shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        prefit: bool = False,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 16,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.preset = preset
        self.rate = rate
        self.image_shape = image_shape
        self.value_range = value_range
        self.prefit = prefit
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return self.prefit or hasattr(self, "calibration_")

    def fit(self, X: ArrayLike, y: object = None, groups: Sequence[object] | None = None) -> DiffusionAnomalyDetector:
        """Calibrate on normal images; ``y`` is ignored. ``groups``: the patient or part of each, kept together.

        Raises ValueError where the images cannot be used, or are too few to be divided.
        """
        images = self._images(X, reset=True)
        if self.prefit:
            self._own_calibration()
            return self
        self._arrays = self._array_model()
        self.model_digest_ = self._arrays.model.digest
        try:
            detector = self._arrays.detector()
            preprocessor = self._arrays.model.get().scorable
            ready = [preprocessor(self._arrays.raw(image, f"image {n}")) for n, image in enumerate(images)]
            detector.fit(
                torch.stack([each.image for each in ready]),
                groups=groups,
                foreground=torch.stack([each.foreground for each in ready]),
                rate=self.rate,
                batch_size=self.batch_size,
            )
        except AnodiffError as error:
            raise ValueError(_for_sklearn(error, len(images))) from error
        assert detector.calibration is not None
        self.calibration_: Calibration = detector.calibration
        self.offset_ = _offset(self.calibration_)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores (N,), higher = more normal: minus those of :class:`anodiff.AnomalyDetector`."""
        return -np.array([found.score for found in self._found(X)], dtype=np.float64)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores less ``offset_``: negative for outliers. Raises ValueError where there is no threshold."""
        scores = self.score_samples(X)
        if np.isnan(self.offset_):
            raise ValueError(
                f"decision_function: expected enough normals for a threshold at rate {self.rate:g}; "
                f"{self.calibration_.message}"
            )
        return scores - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """1 for inliers, -1 for outliers, whose false-alarm rate is ``rate``. Raises ValueError without a threshold."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def anomaly_maps(self, X: ArrayLike) -> NDArray[np.float32]:
        """Maps (N, H, W) on the images' own grid, larger = more anomalous."""
        return np.stack([found.map for found in self._found(X)])

    def p_values(self, X: ArrayLike) -> NDArray[np.float64]:
        """How rare an image as loud as each is among normals, (N,) in (0, 1]."""
        return np.array([found.p_value for found in self._found(X)], dtype=np.float64)

    def _found(self, X: ArrayLike) -> list[ArrayScore]:
        check_is_fitted(self)
        images = self._images(X, reset=not hasattr(self, "n_features_in_"))
        if self.prefit:
            self._own_calibration()
        try:
            # A pickle holds the path of the model: its detector is made anew, for the calibration that was fitted.
            self._arrays.detector().calibration = self.calibration_
            return self._arrays.images(images, self.batch_size)
        except AnodiffError as error:
            raise ValueError(_for_sklearn(error, len(images))) from error

    def _own_calibration(self) -> None:
        """Takes over the calibration of the model file. Raises NotFittedError where it has none for the preset."""
        if hasattr(self, "calibration_"):
            return
        self._arrays = self._array_model()
        self.model_digest_ = self._arrays.model.digest
        detector = self._arrays.detector()
        if detector.calibration is None:
            raise NotFittedError(detector.notes[0])
        self.calibration_ = detector.calibration
        self.offset_ = _offset(self.calibration_)

    def _array_model(self) -> ArrayModel:
        if self.model is None:
            raise ValueError("model: expected the path of a model file, found None")
        return ArrayModel(
            self.model,
            self.preset,
            value_range=self.value_range,
            device=self.device,
            precision=self.precision,
            seed=self.random_state,
        )

    def _images(self, X: ArrayLike, reset: bool) -> list[NDArray[Any]]:
        """Images (H, W) or (H, W, C) of X, validated as scikit-learn has it."""
        ndim = X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim
        if ndim <= 2:
            rows = validate_data(self, X, reset=reset, dtype="numeric")
            shape = (1, rows.shape[1]) if self.image_shape is None else tuple(self.image_shape)
            if rows.shape[1] != int(np.prod(shape)):
                raise ValueError(f"X: expected rows of {int(np.prod(shape))} pixels for {shape}, found {rows.shape[1]}")
            return list(rows.reshape(len(rows), *shape))
        images = check_array(X, allow_nd=True, dtype="numeric", estimator=self)
        if images.ndim > 4:
            raise ValueError(f"X: expected images (N, H, W) or (N, H, W, C), found an array of shape {images.shape}")
        pixels = int(np.prod(images.shape[1:]))
        if reset:
            self.n_features_in_ = pixels
        elif pixels != self.n_features_in_:
            raise ValueError(f"X: expected images of {self.n_features_in_} pixels as in fit, found {pixels}")
        return list(images)


def _offset(calibration: Calibration) -> float:
    return float("nan") if calibration.threshold is None else -float(calibration.threshold)


def _for_sklearn(error: AnodiffError, samples: int) -> str:
    """The error, with the number of samples where there is only one, as scikit-learn's users look for it."""
    return f"{error} (n_samples = 1)" if samples == 1 else str(error)
