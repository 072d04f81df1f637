"""What normal images teach a detector: the size of normal error, the threshold of a stated false-alarm rate, p-values.

Everything is learnt from normals, in two group-disjoint parts (see :meth:`anodiff.anomaly.AnomalyDetector.fit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anodiff.anomaly.early_exit import EarlyExit
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.standardise import Granularity, Standardisation
from anodiff.errors import ConfigError, DataError

#: quantiles of normal foreground pixels that are stored; those at 0.95 and 0.99 are the pixel thresholds
PIXEL_QUANTILES = (0.5, 0.95, 0.99, 0.999, 1.0)


def check_promise(rate: float, unit: str) -> None:
    """Raises ConfigError for a false-alarm rate outside (0, 1), or a unit that it cannot be of."""
    if not 0 < rate < 1:
        raise ConfigError(f"rate: expected a false-alarm rate between 0 and 1, found {rate}")
    if unit not in ("image", "slice", "group"):
        raise ConfigError(f"unit: expected 'image', 'slice' or 'group', found {unit!r}")


def alarms_allowed(rate: float, count: int) -> int:
    """Largest m with m / (count + 1) <= rate, as floating-point p-values are compared with the rate."""
    m = math.floor(rate * (count + 1))
    if (m + 1) / (count + 1) <= rate:
        return m + 1
    return m if m / (count + 1) <= rate else m - 1


def normals_needed(rate: float) -> int:
    """Fewest normals whose conformal quantile at ``rate`` is finite: the smallest n with 1 / (n + 1) <= rate."""
    n = max(1, math.ceil(1.0 / rate) - 2)
    while alarms_allowed(rate, n) < 1:
        n += 1
    return n


def conformal_threshold(scores: Tensor, rate: float) -> float | None:
    """The k-th smallest of n normal scores, k = ceil((n + 1)(1 - rate)); None where k > n (methods 5.23).

    A new normal image, exchangeable with these, scores above it with probability at most ``rate``. For every score
    s, ties
    included: s > threshold exactly when :func:`p_values` of s is <= rate.
    """
    count = scores.numel()
    allowed = alarms_allowed(rate, count)
    if allowed < 1:
        return None
    return float(scores.sort().values[count - allowed])


def p_values(scores: Tensor, normal_scores: Tensor) -> Tensor:
    """p = (1 + #{normal scores >= s}) / (n + 1), float64, (N,); nan for a score that is not a number.

    ``normal_scores`` must be sorted ascending.
    """
    values = scores.double().cpu()
    above = normal_scores.numel() - torch.searchsorted(normal_scores, values, side="left")
    p = (1 + above).double() / (normal_scores.numel() + 1)
    return torch.where(values.isnan(), torch.full_like(p, torch.nan), p)


def upper_quantiles(values: Tensor, shares: Sequence[float]) -> dict[float, float]:
    """For each share the smallest of the values (n,) with at most ``1 - share`` of them strictly above it."""
    ordered = values.sort().values
    # A share such as 0.95 is not a binary fraction: without the slack, 0.95 * 100 could ask for the 96th value.
    return {share: float(ordered[max(1, math.ceil(share * ordered.numel() - 1e-6)) - 1]) for share in shares}


@dataclass(frozen=True)
class Calibration:
    """A detector's knowledge of normal images, kept in the model file.

    Attributes:
        preset, settings, seed: what was calibrated: the preset's name and all its slots (plain values); the noise seed.
        rate, unit: the false-alarm rate that the threshold promises, and per what: an "image", or a "group"
            (patient, clip) of images of which the highest counts.
        scores: normal scores (n,) float64, ascending, one a unit.
        threshold: anomalous is a score above it; None where there are too few normals for the rate, and ``message``
            says so.
        pixel_quantiles: values of the maps' normal foreground pixels at PIXEL_QUANTILES.
        standardisation: location and scale of normal error; None where the settings want none.
        counts: images and groups in each of the two parts.
        precision: of the network's arithmetic, "fp32" or "bf16"; None where it is not recorded (early files).
        preprocess: how the normals were prepared (plain values of the recipe's section); None where not recorded.
        early_exit: what lets clearly normal images leave early; None where none was asked for.
        windows: "window" and "overlap" of what the network saw of an image at a time; None where it saw all at once.
    """

    preset: str
    settings: dict[str, Any]
    seed: int
    rate: float
    unit: str
    scores: Tensor
    threshold: float | None
    message: str | None
    pixel_quantiles: dict[float, float]
    standardisation: Standardisation | None
    counts: dict[str, int] = field(default_factory=dict)
    precision: str | None = None
    preprocess: dict[str, Any] | None = None
    early_exit: EarlyExit | None = None
    windows: dict[str, Any] | None = None

    @property
    def pixel_threshold_fpr5(self) -> float:
        """Map value above which 5 % of normal foreground pixels lie (dice_at_fpr5)."""
        return self.pixel_quantiles[0.95]

    @property
    def pixel_threshold_fpr1(self) -> float:
        """Map value above which 1 % of normal foreground pixels lie (candidates, inpainting)."""
        return self.pixel_quantiles[0.99]

    def p_values(self, scores: Tensor) -> Tensor:
        """See :func:`p_values`."""
        return p_values(scores, self.scores)

    def is_anomalous(self, scores: Tensor) -> Tensor | None:
        """score > threshold, (N,) bool; None without a threshold."""
        return None if self.threshold is None else scores.double().cpu() > self.threshold

    def require_preprocess(self, found: Mapping[str, Any]) -> None:
        """Raises ConfigError where images are prepared otherwise (plain values ``found``) than the normals were.

        Every threshold and every map of normal error would then be about other images.
        """
        changed = [] if self.preprocess is None else preprocess_changes(self.preprocess, found)
        if changed:
            raise ConfigError(
                f"preset {self.preset!r}: expected images prepared as for its calibration, found {', '.join(changed)}; "
                "calibrate anew with these settings (anodiff calibrate)"
            )

    def precision_note(self, found: str) -> str | None:
        """A sentence where scores are computed in another precision than the calibration's; None where not."""
        if self.precision in (None, found):
            return None
        return (
            f"preset {self.preset!r}: calibrated in {self.precision} and scored in {found}, so p-values, decisions and "
            f"the false-alarm rate are only about right; --precision {self.precision} makes them exact"
        )

    def window_note(self, found: Mapping[str, Any] | None) -> str | None:
        """A sentence where images are scored in other windows than the normals were; None where not."""
        if self.windows == found:
            return None
        ours, theirs = (_windows_text(windows) for windows in (self.windows, found))
        return (
            f"preset {self.preset!r}: calibrated {ours} and scored {theirs}, so p-values, decisions and the false-"
            "alarm rate of images larger than a window are only about right; anodiff calibrate with the same "
            "engine.window and engine.overlap makes them exact"
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors of a calibration by name; with :meth:`to_json` its whole content."""
        tensors = {"scores": self.scores}
        if self.standardisation is not None:
            tensors["location"] = self.standardisation.location
            tensors["scale"] = self.standardisation.scale
        return tensors if self.early_exit is None else tensors | self.early_exit.to_tensors()

    def to_json(self) -> dict[str, Any]:
        """All that is not a tensor, as plain values."""
        chosen = self.standardisation
        # only where there is one, so that a calibration without it is written as it always was
        leaving = {} if self.early_exit is None else {"early_exit": self.early_exit.to_json()}
        windows = {} if self.windows is None else {"windows": self.windows}
        return {
            **leaving,
            **windows,
            "preset": self.preset,
            "settings": self.settings,
            "seed": self.seed,
            "rate": self.rate,
            "unit": self.unit,
            "threshold": self.threshold,
            "message": self.message,
            "pixel_quantiles": [[share, value] for share, value in self.pixel_quantiles.items()],
            "granularity": None if chosen is None else [chosen.granularity.kind, chosen.granularity.width],
            "log_likelihoods": {} if chosen is None else chosen.log_likelihoods,
            "counts": self.counts,
            "precision": self.precision,
            "preprocess": self.preprocess,
        }

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
        """The inverse of :meth:`to_json` and :meth:`to_tensors`. Raises KeyError for parts that lack something."""
        standardisation = None
        if values["granularity"] is not None:
            kind, width = values["granularity"]
            standardisation = Standardisation(
                tensors["location"], tensors["scale"], Granularity(kind, width), dict(values["log_likelihoods"])
            )
        leaving = values.get("early_exit")
        return cls(
            early_exit=None if leaving is None else EarlyExit.from_parts(leaving, tensors),
            preset=values["preset"],
            settings=dict(values["settings"]),
            seed=values["seed"],
            rate=values["rate"],
            unit=values["unit"],
            scores=tensors["scores"],
            threshold=values["threshold"],
            message=values["message"],
            pixel_quantiles=dict(values["pixel_quantiles"]),
            standardisation=standardisation,
            counts=dict(values["counts"]),
            precision=values.get("precision"),
            preprocess=values.get("preprocess"),
            windows=values.get("windows"),
        )


def _windows_text(windows: Mapping[str, Any] | None) -> str:
    if windows is None:
        return "on whole images"
    sides = "x".join(map(str, windows["window"]))
    return f"in windows of {sides} with an overlap of {windows['overlap']:g}"


def whole_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a calibration; slots that are newer than it have their defaults."""
    return {**DetectorSettings().to_json(), **settings}


def settings_changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the slots in which two settings differ."""
    return sorted(slot for slot in ours.keys() | theirs.keys() if ours.get(slot) != theirs.get(slot))


#: keys of the preprocessing that decide which images are read, not what values they get
FREE_PREPROCESS = ("max_pixels",)


def preprocess_changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "preprocess") -> list[str]:
    """What differs between two preprocessings, as "preprocess.key was a, is b"."""
    found: list[str] = []
    for key in sorted((before.keys() | now.keys()) - set(FREE_PREPROCESS)):
        old, new, name = before.get(key), now.get(key), f"{prefix}.{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += preprocess_changes(old, new, name)
        elif old != new:
            found.append(f"{name} was {old}, is {new}")
    return found


def calibrate(
    scores: Tensor,
    groups: Sequence[str],
    pixels: Tensor,
    *,
    preset: str,
    settings: dict[str, Any],
    seed: int,
    rate: float,
    unit: str,
    standardisation: Standardisation | None,
    counts: dict[str, int],
    precision: str | None = None,
    preprocess: dict[str, Any] | None = None,
    windows: dict[str, Any] | None = None,
) -> Calibration:
    """Threshold, p-values and pixel thresholds from the threshold part's scores (n,) and foreground pixel values.

    Raises:
        DataError: a score that is not finite.
    """
    values = scores.double().cpu()
    if not bool(values.isfinite().all()):
        wrong = int((~values.isfinite()).sum())
        raise DataError(f"calibration: expected finite scores of the normal images, found {wrong} that are not finite")
    if unit == "group":
        highest: dict[str, float] = {}
        for group, value in zip(groups, values.tolist(), strict=True):
            highest[group] = max(value, highest.get(group, -math.inf))
        values = torch.tensor(list(highest.values()), dtype=torch.float64)
    ordered = values.sort().values
    threshold = conformal_threshold(ordered, rate)
    message = None
    if threshold is None:
        message = (
            f"a false-alarm rate of {rate:g} per {unit} needs at least {normals_needed(rate)} normal {unit}s for the "
            f"threshold, found {len(ordered)}: scores have p-values but no threshold"
        )
    return Calibration(
        preset=preset,
        settings=settings,
        seed=seed,
        rate=rate,
        unit=unit,
        scores=ordered,
        threshold=threshold,
        message=message,
        pixel_quantiles=upper_quantiles(pixels, PIXEL_QUANTILES),
        standardisation=standardisation,
        counts=counts,
        precision=precision,
        preprocess=preprocess,
        windows=windows,
    )
