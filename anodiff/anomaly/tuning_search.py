"""The search of a tuning: uphill from the present settings, and back where a change earns no standard error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from anodiff.anomaly.presets import change
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.tuning_grid import SCALE_FLOORS, smoothings
from anodiff.anomaly.tuning_measure import Measure, mean
from anodiff.anomaly.tuning_noise import SLOTS as NOISE_SLOTS
from anodiff.errors import ConfigError

FUSIONS = ("mean", "sqrt-mean", "max", "harmonic")
STANDARDISES = ("auto", "map", "scalar", "none")
#: less error than normal is no evidence: where normal error is skewed, most pixels have less than its mean, and a
#: background without any error would stand above them
EXCESS = (0.0, None)
#: times round the slots, at most
SWEEPS = 2
#: slots that go back to their present value unless they earn more than a standard error, in this order
SLOTS = ("fusion", "standardise", "scale_floor", "limits", "noise", "smooth_px", "residual", "levels")

Path = list[tuple[DetectorSettings, float]]


class Search:
    """Candidates with at most ``budget`` network calls an image; of equal ones the first, the present one, is taken."""

    def __init__(self, measure: Measure, budget: int) -> None:
        self.measure, self.cache, self.budget = measure, measure.cache, budget

    def affordable(self, settings: DetectorSettings) -> bool:
        """Whether an image costs no more calls than the budget."""
        return settings.nfe_for(self.cache.size) <= self.budget

    def check(self, settings: DetectorSettings) -> None:
        """Raises ConfigError where the budget does not pay for one level."""
        needed = with_slots(settings, {"levels": settings.levels[:1]}).nfe_for(self.cache.size)
        if needed > self.budget:
            raise ConfigError(f"nfe: expected at least {needed} calls, those of one level, found {self.budget}")

    def best_of(self, settings: Iterable[DetectorSettings]) -> DetectorSettings:
        """The first of the best."""
        return max(settings, key=self.measure.value)

    def options(self, slot: str) -> Sequence[Any]:
        """The values that a slot may take."""
        if slot == "smooth_px":
            return smoothings(self.cache.size)
        options: dict[str, Sequence[Any]] = {
            "residual": self.cache.residuals,
            "fusion": FUSIONS,
            "standardise": STANDARDISES,
            "scale_floor": SCALE_FLOORS,
            "limits": (None, EXCESS),
        }
        return options[slot]

    def variants(self, settings: DetectorSettings, slot: str) -> list[DetectorSettings]:
        """The settings with each value of a slot; the same only once."""
        if slot == "fusion" and len(settings.levels) == 1:
            return []
        if slot == "scale_floor" and settings.standardise == "none":
            return []
        if slot == "limits" and settings.residual == "signed" and settings.polarity == "both":
            # there a negative value is evidence of its own
            return [with_slots(settings, {slot: None})]
        return [with_slots(settings, {slot: value}) for value in self.options(slot)]

    def within_budget(self, present: DetectorSettings) -> DetectorSettings:
        """The present settings, with the best of their own levels where all of them cost too much."""
        return present if self.affordable(present) else _end_of(self.forward(present, present.levels))

    def forward(self, settings: DetectorSettings, levels: Sequence[float] | None = None) -> Path:
        """Forward selection of levels: from none, add the one that helps most, until the budget is spent.

        Returns settings and value after each step. The budget must pay for one level, see :meth:`check`. Limits cut
        the mean of the levels, which no level alone tells: with them the levels are found without, a tenth of the
        work, and what they are worth is measured with.
        """
        if settings.limits is not None and settings.fusion == "mean":
            free = self.forward(with_slots(settings, {"limits": None}), levels)
            steps = [with_slots(step, {"limits": settings.limits}) for step, _ in free]
            return [(step, self.measure.value(step)) for step in steps]
        left = sorted(set(self.cache.levels(settings.noise) if levels is None else levels))
        alone = self.cache.level_values(settings) if settings.fusion == "mean" else None
        known = self.cache.levels(settings.noise)
        taken: tuple[float, ...] = ()
        path: Path = []
        while left:
            trials = [with_slots(settings, {"levels": tuple(sorted((*taken, level)))}) for level in left]
            if not self.affordable(trials[0]):
                break
            if alone is None:
                values = [self.measure.value(trial) for trial in trials]
            else:
                rows = [[known.index(level) for level in trial.levels] for trial in trials]
                values = [mean(self.measure.of_levels(settings, alone[row])) for row in rows]
            best = int(np.argmax(values))
            taken = trials[best].levels
            left = [level for level in left if level not in taken]
            path.append((trials[best], values[best]))
        return path

    def uphill(self, start: DetectorSettings) -> DetectorSettings:
        """The best settings that changing one slot at a time leads to."""
        best = start
        for _ in range(SWEEPS):
            before = best
            best = self.best_of([best, *self.variants(best, "smooth_px")])
            best = self.best_of([best, _end_of(self.forward(best))])
            for slot in ("smooth_px", "fusion", "standardise", "scale_floor", "limits"):
                best = self.best_of([best, *self.variants(best, slot)])
            if best == before:
                break
        return best

    def guarded(
        self, champion: DetectorSettings, reference: DetectorSettings, against: str
    ) -> tuple[DetectorSettings, list[str]]:
        """The champion less what does not earn a standard error, and why in words; the reference where nothing does.

        ``against`` is the reference in words, such as "'default' cut to 4 calls".
        """
        measure = self.measure
        gain, error = measure.gain(champion, reference)
        found = (
            f"The best settings found show planted anomalies with a pixel AP of {measure.value(champion):.3f}, "
            f"{gain:+.3f} ± {error:.3f} from the {measure.value(reference):.3f} of {against}."
        )
        if not gain > error:
            return reference, [f"{found} That is no more than a standard error, so {against} is kept."]
        chosen = champion
        back = []
        for slot in SLOTS:
            if getattr(chosen, slot) == getattr(reference, slot):
                continue
            returned = with_slots(chosen, slot_of(reference, slot))
            loss, error = measure.gain(champion, returned)
            if self.affordable(returned) and loss <= error:
                chosen = returned
                back.append(slot)
        kept = [slot for slot in SLOTS if getattr(chosen, slot) != getattr(reference, slot)]
        sentences = [f"{found} Changed: {', '.join(kept)}."]
        if back:
            sentences.append(f"Back to {against}, as the difference is within a standard error: {', '.join(back)}.")
        return chosen, sentences


def with_slots(settings: DetectorSettings, slots: dict[str, Any]) -> DetectorSettings:
    """A copy with some slots set otherwise, validated."""
    return change(settings, slots, "tune")


def slot_of(settings: DetectorSettings, slot: str) -> dict[str, Any]:
    """A slot with what belongs to it."""
    return {name: getattr(settings, name) for name in {"noise": NOISE_SLOTS}.get(slot, (slot,))}


def _end_of(path: Path) -> DetectorSettings:
    """The best step of a path."""
    return max(path, key=lambda step: step[1])[0]
