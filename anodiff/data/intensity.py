"""Intensity statistics of an image or a volume, and the line value = offset + scale x that they make."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import InputError

#: third quartile of the standard normal distribution
NORMAL_QUARTILE = 0.6744897501960817
#: what the statistics of each kind are called where there is no spread in them
SPREADS = {"percentile": "percentiles", "robust": "quartiles", "zscore": "standard deviation"}


class IntensitySettings(Protocol):
    """What is read of ``anodiff.config.IntensityConfig`` and ``anodiff.data.volumes.preprocess.VolumeIntensity``."""

    @property
    def kind(self) -> str: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def spread(self) -> str: ...
    @property
    def landmarks(self) -> tuple[float, ...]: ...
    @property
    def standard(self) -> tuple[tuple[float, ...], ...] | None: ...


def statistics(values: np.ndarray, settings: IntensitySettings, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers a channel (C,) of foreground values (C, N), by ``settings.kind``.

    ``percentile``: the ``low`` and the ``high`` one; ``robust``: median and deviation, see :func:`robust_moments`;
    ``zscore``: mean and standard deviation. Raises InputError, naming ``path``, where a channel has no spread.
    """
    if settings.kind == "percentile":
        low, high = np.percentile(values, [settings.low, settings.high], axis=1)
        _check_spread(path, float((high - low).min()), settings.kind)
        return low, high
    if settings.kind == "robust":
        centre, spread = robust_moments(values, settings.spread)
    else:
        centre, spread = values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64)
    _check_spread(path, float(spread.min()), settings.kind)
    return centre, spread


def line(values: np.ndarray, settings: IntensitySettings, path: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offset and scale (C,) float64 of stored value = offset + scale x, x being what the model sees.

    As :func:`statistics` otherwise.
    """
    first, second = statistics(values, settings, path)
    if settings.kind == "percentile":
        return (second + first).astype(np.float64) / 2, (second - first).astype(np.float64) / 2
    return first, second * float(settings.clip or 1) if settings.kind == "robust" else second


def limit(settings: IntensitySettings) -> float | None:
    """Where x is clipped, on both sides; None where it is not."""
    return settings.clip if settings.kind == "zscore" else 1.0


def robust_moments(values: np.ndarray, spread: str = "both") -> tuple[np.ndarray, np.ndarray]:
    """Median and deviation of each row of ``values`` (C, N), the deviation estimated from quartiles.

    Of the distance from the first to the third quartile (``both``), from the first to the median (``lower``) or from
    the median to the third (``upper``), divided by what it is for a standard normal distribution.
    """
    first, centre, third = np.percentile(values.astype(np.float64), [25, 50, 75], axis=1)
    distance = {"both": (third - first) / 2, "lower": centre - first, "upper": third - centre}[spread]
    return centre, distance / NORMAL_QUARTILE


def _check_spread(path: str, spread: float, kind: str) -> None:
    if not spread > 0:
        raise InputError(
            f"{path}: expected intensities that differ inside the foreground, found no spread ({SPREADS[kind]})"
        )
