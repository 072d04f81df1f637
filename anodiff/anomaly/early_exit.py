"""Early exit: an image that its first level shows to be normal is not asked about at the others, at a stated error.

The first stage is one level of the preset, with its own standardisation, smoothing and reduction. An image whose
first-stage score lies below the exit threshold leaves: it is called normal, and the other levels never see it.

The error is what is lost by that: the share, among anomalous images that the whole preset calls anomalous, of those
that leave. It is counted on anomalies planted in held-out normals, one image a normal, and bounded from above by
Clopper and Pearson (1934). The loss grows with the threshold, so the largest threshold whose bound is within the
stated error keeps the bound's confidence without any correction for having looked at many (risk-controlling
prediction sets, Bates et al. 2021, theorem 1). The level is chosen on other normals beforehand, for the same
reason. How it is fitted: :mod:`anodiff.anomaly.exit_fitting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anodiff.anomaly.settings import DetectorSettings
from anodiff.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anodiff.anomaly.detector import AnomalyDetector

#: of the upper bound of the error
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ladder:
    """An increasing map: ``before`` (K,) ascending goes to ``after`` (K,), straight between, slope 1 beyond."""

    before: Tensor
    after: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Values of any shape on the other scale, in their own precision."""
        before, after = self.before.to(values.device), self.after.to(values.device)
        flat = values.double()
        above = torch.searchsorted(before, flat.contiguous(), right=True)
        low, high = (above - 1).clamp(min=0), above.clamp(max=len(before) - 1)
        width = before[high] - before[low]
        share = torch.where(width > 0, (flat - before[low]) / width.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        inside = after[low] + share * (after[high] - after[low])
        outside = after[low] + flat - before[low]
        return torch.where((above == 0) | (above == len(before)), outside, inside).to(values.dtype)


@dataclass(frozen=True)
class EarlyExit:
    """What a calibration knows of leaving early.

    Attributes:
        level: number of the first stage's level among the preset's.
        threshold: of the first-stage score; an image below it leaves.
        error, confidence: at most this share of found anomalies is lost, with this confidence.
        trials, lost: anomalies that the whole preset finds, one a normal; those of them that leave.
        bound: upper limit of the error at that confidence, at most ``error``.
        left: share of the normals (of the threshold part) that leave.
        scores, pixels: from the first stage's scores and map values to those of the whole preset of which as large a
            share of normals lies below.
    """

    level: int
    threshold: float
    error: float
    confidence: float
    trials: int
    lost: int
    bound: float
    left: float
    scores: Ladder
    pixels: Ladder

    @property
    def sentence(self) -> str:
        """The promise, for a reader."""
        return (
            f"early exit: stated error {self.error:.3g}; of {self.trials} planted anomalies that the whole preset "
            f"finds {self.lost} leave, below {self.bound:.3g} with {self.confidence:.0%} confidence; "
            f"{self.left:.0%} of normals leave"
        )

    def to_json(self) -> dict[str, Any]:
        """All but the tensors, as plain values."""
        ladders = ("scores", "pixels")
        return {name: value for name, value in vars(self).items() if name not in ladders}

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {
            "exit_scores": torch.stack([self.scores.before, self.scores.after]),
            "exit_pixels": torch.stack([self.pixels.before, self.pixels.after]),
        }

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EarlyExit:
        """The inverse of :meth:`to_json` and :meth:`to_tensors`."""
        scores, pixels = (Ladder(*tensors[name].unbind(0)) for name in ("exit_scores", "exit_pixels"))
        return cls(**values, scores=scores, pixels=pixels)


def upper_bound(lost: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """Largest share under which so few losses, or fewer, still happen with probability 1 - confidence.

    Clopper and Pearson (1934), one-sided: the quantile of Beta(lost + 1, trials - lost).
    """
    from scipy.stats import beta

    return 1.0 if lost >= trials else float(beta.ppf(confidence, lost + 1, trials - lost))


def trials_needed(error: float, confidence: float = CONFIDENCE) -> int:
    """Fewest trials that can support an error: those of which none is lost, (1 - error)^n <= 1 - confidence."""
    count = max(1, math.ceil(math.log(1 - confidence) / math.log1p(-error)) - 1)
    while upper_bound(0, count, confidence) > error:
        count += 1
    return count


def losses_allowed(error: float, trials: int, confidence: float = CONFIDENCE) -> int:
    """Most losses whose upper bound is within the error; -1 where not even none is."""
    lost = -1
    while lost + 1 < trials and upper_bound(lost + 1, trials, confidence) <= error:
        lost += 1
    return lost


def check_stageable(settings: DetectorSettings) -> None:
    """Raises ConfigError for settings whose levels are not error maps of their own, computed one by one."""
    found = None
    if len(settings.levels) < 2:
        found = "one level"
    elif settings.fusion == "images" or settings.residual.startswith("features"):
        found = f"fusion {settings.fusion!r} and residual {settings.residual!r}"
    elif settings.trajectory != "each":
        found = f"trajectory {settings.trajectory!r}"
    if found:
        raise ConfigError(
            "early exit: expected a preset of several levels, each reconstructed and compared by itself, found " + found
        )


def check_normals(error: float, count: int, unit: str) -> None:
    """Raises ConfigError for an error outside (0, 1), DataError for fewer normals than it can be stated with."""
    if not 0 < error < 1:
        raise ConfigError(f"early exit: expected an error between 0 and 1, found {error}")
    needed = trials_needed(error)
    if count < needed:
        raise DataError(
            f"early exit: an error of {error:g} needs at least {needed} normal {unit}s for the threshold, each with a "
            f"planted anomaly that the preset finds ({CONFIDENCE:.0%} confidence), found {count}"
        )


def known_exit(detector: AnomalyDetector) -> EarlyExit:
    """What the detector's calibration knows of leaving early. Raises ConfigError where it knows nothing."""
    found = None if detector.calibration is None else detector.calibration.early_exit
    if found is None:
        raise ConfigError(
            f"early exit: expected a model calibrated for it with preset {detector.name!r}, found one without; "
            "anodiff calibrate MODEL NORMALS --early-exit 0.01 --output MODEL2"
        )
    return found


def two_stages(
    detector: AnomalyDetector, chosen: EarlyExit, images: Tensor, foreground: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps (N, *S), scores (N,), mean reconstructions (N, C, *S), and who left (N,) bool, all on the device.

    Only the images that stay are reconstructed from the other levels, packed into the network's batches; what is said
    of them has the bits that it has without early exit. Of one that left, all is of the first stage.
    """
    first = detector.reconstruct(images, [chosen.level])
    maps = detector.maps(detector.errors(images, first), foreground, chosen.level)
    scores = detector.scores(maps, foreground)
    left = scores.double() < chosen.threshold
    maps, scores, shown = chosen.pixels(maps), chosen.scores(scores), first[0].clone()
    stay = (~left).nonzero()[:, 0]
    if len(stay):
        rows = stay.to(images.device)
        kept, inside = images[rows], None if foreground is None else foreground[rows.to(foreground.device)]
        others = [level for level in range(len(detector.settings.levels)) if level != chosen.level]
        levels = list(detector.reconstruct(kept, others).unbind(0))
        levels.insert(chosen.level, first[0][stay])
        together = torch.stack(levels)
        maps[stay] = detector.maps(detector.errors(kept, together), inside)
        scores[stay] = detector.scores(maps[stay], inside)
        shown[stay] = detector.shown(together)
    return maps, scores, shown, left
