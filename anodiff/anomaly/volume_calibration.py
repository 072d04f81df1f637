"""What normal volumes teach a detector, beside what their slices do: the score of a whole volume, and its voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from anodiff.anomaly.calibration import (
    PIXEL_QUANTILES,
    Calibration,
    conformal_threshold,
    normals_needed,
    p_values,
    preprocess_changes,
    upper_quantiles,
)
from anodiff.anomaly.volume_origin import Origin

#: keys of the recipe's section that change neither a score nor a map
FREE_KEYS = ("min_volume_mm3", "max_candidates")
#: keys that change what is made of slices, and not their own scores
SLICE_FREE_KEYS = (*FREE_KEYS, "median", "score_slices")


@dataclass(frozen=True)
class VolumeCalibration(Calibration):
    """A calibration on normal volumes: ``scores``, ``threshold`` and ``unit`` are those of their slices.

    Attributes:
        volume_scores: (n,) float64, ascending, one a normal volume.
        volume_threshold: of a volume's score; None where there are too few normals, and ``volume_message`` says so.
        voxel_quantiles: values of the finished maps' normal foreground voxels, as ``pixel_quantiles``.
        volume: the recipe's section (plain values) that they hold for.
        origin: what the normals were.
    """

    volume_scores: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    volume_threshold: float | None = None
    volume_message: str | None = None
    voxel_quantiles: dict[float, float] = field(default_factory=dict)
    volume: dict[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)

    @classmethod
    def of(
        cls, slices: Calibration, volume_scores: Tensor, voxels: Tensor, volume: Mapping[str, Any], origin: Origin
    ) -> VolumeCalibration:
        """The calibration of slices, with scores (n,) of whole normal volumes and values of their voxels."""
        ordered = volume_scores.double().cpu().sort().values
        threshold = conformal_threshold(ordered, slices.rate)
        message = None
        if threshold is None:
            message = (
                f"a false-alarm rate of {slices.rate:g} per volume needs at least {normals_needed(slices.rate)} normal "
                f"volumes for the threshold, found {len(ordered)}: volumes have p-values but no threshold"
            )
        return cls(
            **{each.name: getattr(slices, each.name) for each in fields(Calibration)},
            volume_scores=ordered,
            volume_threshold=threshold,
            volume_message=message,
            voxel_quantiles=upper_quantiles(voxels, PIXEL_QUANTILES),
            volume=dict(volume),
            origin=origin,
        )

    def volume_p_value(self, score: float) -> float:
        """See `calibration.p_values`."""
        return float(p_values(torch.tensor([score], dtype=torch.float64), self.volume_scores))

    def volume_changes(self, found: Mapping[str, Any], free: Sequence[str] = FREE_KEYS) -> list[str]:
        """What differs between the section ``found`` and the one that was calibrated, as "volume.key was a, is b".

        ``free``: keys that may differ.
        """
        return [
            change
            for change in preprocess_changes(self.volume, found, "volume")
            if not change.startswith(tuple(f"volume.{key} " for key in free))
        ]

    def to_tensors(self) -> dict[str, Tensor]:
        """See `Calibration.to_tensors`."""
        return {**super().to_tensors(), "volume_scores": self.volume_scores}

    def to_json(self) -> dict[str, Any]:
        """See `Calibration.to_json`."""
        return {
            **super().to_json(),
            "volume_threshold": self.volume_threshold,
            "volume_message": self.volume_message,
            "voxel_quantiles": [[share, value] for share, value in self.voxel_quantiles.items()],
            "volume": self.volume,
            "origin": self.origin.to_json(),
        }

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
        """See `Calibration.from_parts`; a plain one where the preset was calibrated on images."""
        plain = Calibration.from_parts(values, tensors)
        if "volume_scores" not in tensors:
            return plain
        return cls(
            **vars(plain),
            volume_scores=tensors["volume_scores"],
            volume_threshold=values["volume_threshold"],
            volume_message=values["volume_message"],
            voxel_quantiles=dict(values["voxel_quantiles"]),
            volume=dict(values["volume"]),
            origin=Origin.from_json(values["origin"]),
        )


def voxel_p_values(values: Tensor, quantiles: Mapping[float, float]) -> Tensor:
    """Upper bounds of the p-values of voxels (n,): the smallest stored share of normal voxels that lies above.

    A voxel above the quantile at 0.99 has p <= 0.01; how far above is known only as finely as quantiles are stored.
    The largest normal voxel says nothing of a share, so 0.001 is the least. 1 below all of them.
    """
    bound = torch.ones_like(values, dtype=torch.float64)
    for share, value in sorted(quantiles.items()):
        if share < 1:
            bound = torch.where(values.double() > value, torch.full_like(bound, 1 - share), bound)
    return bound
