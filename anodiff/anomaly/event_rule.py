"""What normal footage teaches about events: how scores are smoothed, two levels, and false alarms an hour.

An *excursion* is a stretch of time in which the smoothed score is above ``low``; pauses of at most ``close_gap_s`` are
bridged, and what is shorter than ``min_duration_s`` does not count. An *event* is an excursion whose peak is above
``high``. ``low`` is what a small share of normal frames exceeds. ``high`` comes from the peaks of normal excursions:
with H hours of normals, of which n excursions have exchangeable peaks, a peak above the k-th largest is to be expected
(n / H) k / (n + 1) < k / H times in a new hour, so k = floor(rate H) keeps the stated rate, and rate H >= 1 is needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anodiff.anomaly.temporal import Floats
from anodiff.errors import ConfigError

#: of the recipe: the rate of false alarms that is asked for
RATE_KEY = "video.false_alarms_per_hour"
#: with less footage than this, in hours, a count is not told as so many an hour
LEAST_HOURS = 1 / 60


def footage(hours: float) -> str:
    """A length of footage for the reader: in hours, below one in minutes, below a minute in seconds."""
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{hours * 60:.3g} min" if hours >= LEAST_HOURS else f"{hours * 3600:.3g} s"


@dataclass(frozen=True)
class EventSettings:
    """How scores become events; times in seconds.

    Attributes:
        smooth_s: standard deviation of the Gaussian over time; 0 = none.
        causal: smooth with the past alone, as live use must.
        low_share: share of normal frames whose smoothed score is above ``low``.
        min_duration_s: an excursion from its first to its last frame lasts at least so long.
        close_gap_s: excursions with at most so much time between them are one.
        max_gap_s: where more than this is missing between two frames, nothing is smoothed across and an event ends.

    Raises:
        ConfigError: out of range.
    """

    smooth_s: float = 0.5
    causal: bool = False
    low_share: float = 0.05
    min_duration_s: float = 0.0
    close_gap_s: float = 1.0
    max_gap_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("smooth_s", "min_duration_s", "close_gap_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected seconds of at least 0, found {getattr(self, name)}")
        if not 0 < self.max_gap_s < math.inf:
            raise ConfigError(f"max_gap_s: expected seconds above 0, found {self.max_gap_s}")
        if not 0 < self.low_share < 1:
            raise ConfigError(f"low_share: expected a share between 0 and 1, found {self.low_share}")


@dataclass(frozen=True)
class HourlyRate:
    """``count`` events in ``hours``: per hour, with the exact 95 % interval of a Poisson rate (Garwood 1936).

    Events come in bursts, which widens the truth: the interval is a lower bound of the doubt.
    """

    count: int
    hours: float
    per_hour: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, hours: float) -> HourlyRate:
        """The estimate of a count; raises ValueError without any time."""
        from scipy.stats import chi2

        if hours <= 0:
            raise ValueError(f"expected hours above 0, found {hours}")
        low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
        high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
        return cls(count, hours, count / hours, low / hours, high / hours)

    def sentence(self) -> str:
        """For the reader; with less than a minute of footage the count alone, as no rate follows from it."""
        if self.hours < LEAST_HOURS:
            return f"{self.count} in {footage(self.hours)}"
        return (
            f"{self.count} in {footage(self.hours)}, {self.per_hour:.3g} an hour "
            f"(95 % interval {self.low:.3g} to {self.high:.3g})"
        )


@dataclass(frozen=True)
class EventRule:
    """What normal footage taught; see the module.

    Attributes:
        settings: how scores are smoothed and excursions made.
        rate: false alarms an hour that the threshold promises.
        low: the level that bounds an excursion.
        high: the level that makes it an event; None where there are too few hours, and ``message`` says so.
        hours: of normals.
        peaks: (n,) of normal excursions, ascending.
        message: a sentence, or None.
    """

    settings: EventSettings
    rate: float
    low: float
    high: float | None
    hours: float
    peaks: Floats
    message: str | None = None

    def at_rate(self, rate: float) -> EventRule:
        """The same normals with the threshold of another rate. Raises ConfigError for a rate that is not above 0."""
        if not 0 < rate < math.inf:
            raise ConfigError(f"false alarms an hour: expected a number above 0, found {rate}")
        allowed = int(np.floor(rate * self.hours * (1 + 1e-9)))
        if allowed < 1:
            message = (
                f"a rate of {rate:g} false alarms an hour needs at least {footage(1 / rate)} of normal footage, found "
                f"{footage(self.hours)}: excursions have p-values but no threshold; the lowest rate that can be asked "
                f"of these is {self.lowest_rate:g} an hour (--set {RATE_KEY}={self.lowest_rate:g})"
            )
            return dataclasses.replace(self, rate=rate, high=None, message=message)
        high = self.low if allowed > self.peaks.size else float(self.peaks[-allowed])
        return dataclasses.replace(self, rate=rate, high=high, message=None)

    @property
    def lowest_rate(self) -> float:
        """The lowest rate that so many hours of normals can keep, rounded up to three digits."""
        exact = 1 / self.hours
        digit = 10.0 ** (math.floor(math.log10(exact)) - 2)
        return float(f"{math.ceil(exact / digit * (1 - 1e-10)) * digit:.3g}")

    @property
    def enter(self) -> float:
        """The level an excursion must exceed to be listed: ``high``, or ``low`` without a threshold."""
        return self.low if self.high is None else self.high

    @property
    def on_normals(self) -> HourlyRate:
        """How many of the normals' own excursions are above the threshold (of all, without one)."""
        return HourlyRate.of(int(np.count_nonzero(self.peaks > self.enter)), self.hours)

    def as_high(self, peak: float) -> int:
        """Number of normal excursions with a peak of at least this."""
        return int(self.peaks.size - np.searchsorted(self.peaks, peak, side="left"))

    def p_value(self, peak: float) -> float:
        """(1 + #{normal peaks >= peak}) / (n + 1)."""
        return (1 + self.as_high(peak)) / (self.peaks.size + 1)

    def false_alarms_per_hour(self, peak: float) -> float:
        """(1 + #{normal peaks >= peak}) / hours: at most ``rate`` exactly when the peak is above ``high``."""
        return (1 + self.as_high(peak)) / self.hours

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "peaks": self.peaks.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EventRule:
        """The inverse of `to_json`. Raises KeyError or TypeError for parts that lack something."""
        peaks = np.asarray(values["peaks"], dtype=np.float64)
        return cls(**{**values, "settings": EventSettings(**values["settings"]), "peaks": peaks})
