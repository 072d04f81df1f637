"""The standard scale of histogram standardisation, found on training data before anything is learnt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from anodiff.config import AnodiffConfig
from anodiff.data.histogram import standard_scale
from anodiff.engine.progress import Progress
from anodiff.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from anodiff.training.normal_parts import NormalPart

Part = TypeVar("Part")


def is_missing(config: AnodiffConfig) -> bool:
    """Whether a recipe wants a standard scale and brings none of its own."""
    return config.preprocess.intensity.kind == "nyul" and config.preprocess.intensity.standard is None


def with_scale(config: AnodiffConfig, landmarks: Sequence[np.ndarray]) -> AnodiffConfig:
    """The recipe with the standard scale of these images' landmarks (C, K) each."""
    prepared = config.preprocess
    intensity = prepared.intensity.model_copy(update={"standard": standard_scale(landmarks)})
    return config.model_copy(update={"preprocess": prepared.model_copy(update={"intensity": intensity})})


def fit_images(
    config: AnodiffConfig, paths: Sequence[str], quiet: bool = False, foregrounds: Sequence[str] = ()
) -> AnodiffConfig:
    """The recipe with the standard scale of image files, where it is missing; else as it is.

    foregrounds: the file of each image's, "" where it is estimated.
    Images that cannot be read, or without spread, do not count. Raises DataError where none is left.
    """
    from anodiff.data.preprocess import Preprocessor
    from anodiff.training.reading import read_raw

    if not is_missing(config):
        return config
    preprocessor = Preprocessor(config.preprocess)
    beside = dict(zip(paths, foregrounds, strict=True)) if foregrounds else {}

    def landmarks(path: str) -> np.ndarray:
        return preprocessor.landmarks(read_raw(path, beside.get(path, ""), config.preprocess.max_pixels))

    with ThreadPoolExecutor(config.engine.workers) as pool:
        return with_scale(config, _all(paths, lambda path: pool.submit(landmarks, path).result, "images", quiet))


def fit_volumes(config: AnodiffConfig, parts: Sequence[NormalPart], quiet: bool = False) -> AnodiffConfig:
    """The recipe with the standard scale of volumes' whole foregrounds, where it is missing; else as it is.

    Of a volume with a lesion the lesion counts too, as it will in scoring. Raises DataError where no volume can be
    used, ConfigError for intensities that are of each slice.
    """
    from anodiff.data.volumes.preprocess import VolumePreprocessor
    from anodiff.data.volumes.read import read_given
    from anodiff.data.volumes.slices import select_channels, volume_settings

    if not is_missing(config):
        return config
    assert config.volume is not None
    if config.volume.statistics == "slice":
        raise ConfigError(
            "preprocess.intensity: kind nyul takes landmarks of whole volumes: expected volume.statistics volume, "
            "found slice"
        )
    prepared, preprocessor = config.preprocess, VolumePreprocessor(volume_settings(config.preprocess, config.volume))

    def landmarks(part: NormalPart) -> np.ndarray:
        volume = read_given(part.path, part.foreground)
        return preprocessor.landmarks(select_channels(volume, prepared.channels, prepared.channel))

    return with_scale(config, _all(parts, lambda part: lambda: landmarks(part), "volumes", quiet))


def _all(
    parts: Iterable[Part], begin: Callable[[Part], Callable[[], np.ndarray]], what: str, quiet: bool
) -> list[np.ndarray]:
    """The landmarks of all that can be read, in order; ``begin`` starts reading one and gives what waits for it."""
    waiting = [begin(part) for part in parts]
    found, failed = [], ""
    with Progress(len(waiting), what, "standard scale", quiet=quiet) as progress:
        for wait in waiting:
            try:
                found.append(wait())
            except InputError as error:
                failed = failed or str(error)
            progress.update(1)
    if not found:
        raise DataError(f"standard scale: expected {what} that can be read, found none in {len(waiting)} ({failed})")
    return found
