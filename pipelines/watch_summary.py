"""What a watch saw, counted: for summary.json and for the reader."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from anodiff.anomaly.event_rule import HourlyRate, footage


@dataclass
class WatchSummary:
    """What was seen.

    Attributes:
        frames: read. scored, dropped (no time), unscored (too little past, or left out by the recipe's frame
            rate), waiting (when it ended).
        gaps, gap_seconds: times when the source was away, and how long.
        events: begun (excursions, where the rule has no threshold). seconds: of the source, gaps not counted.
        worst_delay: seconds from reading a frame to deciding on it.
        asked: of the false alarms an hour that the rule allows.
        broken: a sentence where the source broke off. interrupted: by Ctrl-C.
    """

    frames: int = 0
    scored: int = 0
    dropped: int = 0
    unscored: int = 0
    waiting: int = 0
    gaps: int = 0
    gap_seconds: float = 0.0
    events: int = 0
    seconds: float = 0.0
    worst_delay: float = 0.0
    asked: float | None = None
    broken: str | None = None
    interrupted: bool = False

    @property
    def events_per_hour(self) -> HourlyRate | None:
        """With its interval: on footage known to be normal these are the false alarms."""
        return HourlyRate.of(self.events, self.seconds / 3600) if self.seconds > 0 else None

    def sentences(self) -> list[str]:
        """For the reader."""
        said = [
            f"{self.frames} frames in {footage(self.seconds / 3600)}: {self.scored} scored, {self.dropped} dropped for "
            f"lack of time, {self.unscored} without score, {self.waiting} waiting at the end; {self.gaps} gaps of "
            f"{self.gap_seconds:.1f} s in all; worst delay {self.worst_delay:.2f} s"
        ]
        rate = self.events_per_hour
        if rate is not None:
            if self.asked is None:
                said.append(
                    f"excursions above what is usual: {rate.sentence()}; none is called an event, as there is no "
                    "threshold to judge them by"
                )
            else:
                said.append(f"events: {rate.sentence()}; the threshold is for {self.asked:g} false alarms an hour")
        return [*said, *([self.broken] if self.broken else [])]

    def to_json(self) -> dict[str, Any]:
        """Plain values, the rate with its interval; null without any time."""
        rate = self.events_per_hour
        return {**asdict(self), "events_per_hour": None if rate is None else asdict(rate)}
