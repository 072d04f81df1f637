"""Batches of Ray Data, scored by a model that each worker loads once.

Nothing here imports Ray: a class is what ``ray.data.Dataset.map_batches`` wants, and numpy arrays are what it gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import AnodiffError, ConfigError, ModelFileError

if TYPE_CHECKING:
    from anodiff.data.preprocess import Prepared
    from anodiff.data.readers import RawImage
    from anodiff.integrations.arrays import ArrayModel

#: these are about all batches, never about one item
ENDING = (ConfigError, ModelFileError)
#: columns that a batch may have its inputs in, the first one that is there counts
INPUTS = ("image", "path")


class Finding(NamedTuple):
    """What is said of one item; NaN and None where it is not known, ``error`` "" where all is well."""

    score: float = float("nan")
    p_value: float = float("nan")
    is_anomalous: bool | None = None
    error: str = ""


class AnomalyPredictor:
    """Scores batches of images or volumes: a stateful callable for ``dataset.map_batches``.

    Args:
        model: path of a model file, the same on every worker; read here, once a worker.
        preset: of the detector; None is the recipe's.
        value_range: of ``image`` arrays, the values that mean black and white; None: those of their type, as for files.
        device, precision, network_batch, seed: see :class:`anodiff.AnomalyDetector`.

    Raises ModelFileError where there is no model file, ConfigError for a model of clips or an unknown preset.
    """

    def __init__(
        self,
        model: str | Path,
        preset: str | None = None,
        *,
        value_range: tuple[float, float] | None = None,
        device: str = "auto",
        precision: str = "auto",
        network_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        from anodiff.integrations.arrays import ArrayModel

        self._arrays: ArrayModel = ArrayModel(
            model, preset, value_range=value_range, device=device, precision=precision, network_batch=network_batch,
            seed=seed,
        )  # fmt: skip
        self._of_images = self._arrays.model.get().config.volume is None
        # A wrong model or preset is said when a worker starts, not with its first batch.
        _ = self._arrays.detector() if self._of_images else self._arrays.volume_detector()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the columns ``score``, ``p_value`` (NaN), ``is_anomalous`` (None where there is no threshold)
        and ``error`` ("" where all is well).

        ``image``: arrays (N, H, W) or (N, H, W, C), or N of unlike sizes, for models of images; ``path``: files of
        images, or volumes by the names that ``anodiff score`` takes. An item that cannot be used has an error and no
        score; the others are scored as if it were not there. Raises ConfigError for a batch with neither column, and
        for arrays where the model is of volumes.
        """
        name = next((name for name in INPUTS if name in batch), None)
        if name is None:
            raise ConfigError(f"batch: expected a column of {' or '.join(INPUTS)}, found {', '.join(batch) or 'none'}")
        found = self._of_arrays(batch[name]) if name == "image" else self._of_paths([str(each) for each in batch[name]])
        return {
            **batch,
            "score": np.array([each.score for each in found], dtype=np.float64),
            "p_value": np.array([each.p_value for each in found], dtype=np.float64),
            "is_anomalous": _objects([each.is_anomalous for each in found]),
            "error": _objects([each.error for each in found]),
        }

    def _of_arrays(self, arrays: Sequence[Any]) -> list[Finding]:
        if not self._of_images:
            raise ConfigError(
                "batch: expected a column path for a model of volumes, found image, whose place is unknown"
            )
        return self._images([partial(self._array, array, f"image {n}") for n, array in enumerate(arrays)])

    def _array(self, array: Any, name: str) -> RawImage:
        return self._arrays.raw(np.asarray(array), name)

    def _of_paths(self, paths: Sequence[str]) -> list[Finding]:
        from anodiff.data.readers import read_image
        from anodiff.data.volumes.inputs import looks_like_volume

        limit = self._arrays.model.get().config.preprocess.max_pixels
        flat = [n for n, path in enumerate(paths) if self._of_images and not looks_like_volume(path)]
        images = self._images([partial(read_image, paths[n], max_pixels=limit) for n in flat])
        found = dict(zip(flat, images, strict=True))
        return [found[n] if n in found else self._volume(path) for n, path in enumerate(paths)]

    def _images(self, sources: Sequence[Callable[[], RawImage]]) -> list[Finding]:
        """Scores images, which functions read; the usable ones at once."""
        preprocessor = self._arrays.model.get().scorable
        ready: dict[int, Prepared] = {}
        errors: dict[int, Finding] = {}
        for n, source in enumerate(sources):
            try:
                ready[n] = preprocessor(source())
            except ENDING:
                raise
            except Exception as error:
                errors[n] = _failed(error)
        scored = dict(zip(ready, self._scored(list(ready.values())), strict=True))
        return [errors[n] if n in errors else scored[n] for n in range(len(sources))]

    def _scored(self, ready: Sequence[Prepared]) -> list[Finding]:
        """Findings of prepared images; where they fail together each is tried alone, so that only the guilty one is
        lost."""
        import torch

        if not ready:
            return []
        detector = self._arrays.detector()
        try:
            result = detector(
                torch.stack([each.image for each in ready]), torch.stack([each.foreground for each in ready])
            )
        except ENDING:
            raise
        except Exception as error:
            return [_failed(error)] if len(ready) == 1 else [self._scored([each])[0] for each in ready]
        decided = result.is_anomalous
        return [
            _finding(float(result.scores[n]), float(result.p_values[n]), None if decided is None else bool(decided[n]))
            for n in range(len(ready))
        ]

    def _volume(self, path: str) -> Finding:
        from anodiff.data.volumes.read import read_volume

        try:
            detector = self._arrays.volume_detector()
            volume = read_volume(path)
            detector.doubts(volume)  # a modality that the model does not know has no score
            result = detector(detector.prepare(volume), volume)
        except ENDING:
            raise
        except Exception as error:
            return _failed(error)
        return _finding(result.score, result.p_value, result.is_anomalous)


def _finding(score: float, p_value: float | None, is_anomalous: bool | None) -> Finding:
    if not np.isfinite(score):
        return Finding(error=f"expected a finite score, found {score}; its intensities may overflow")
    return Finding(score, float("nan") if p_value is None else p_value, is_anomalous)


def _failed(error: Exception) -> Finding:
    """The error as one line; of an error that is not ours its kind comes first."""
    text = " ".join(str(error).split())
    return Finding(error=text if isinstance(error, AnodiffError) and text else f"{type(error).__name__}: {text}")


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """One object an item, also where all are alike; Arrow makes text, or booleans with nulls, of them."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
