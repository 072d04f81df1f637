"""What the normal volumes of a calibration were, so that a volume that is unlike them is remarked by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anodiff.data.volumes.geometry import plan
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError

#: a native spacing further than by this factor outside that of the normals is remarked upon
SPACING_SLACK = 1.5
#: raw values that span this factor more or less than any normal's are: MR has no unit, so scanners differ by several
SPAN_SLACK = 10.0
#: and a share of negative values that is further than this outside that of the normals: CT has air at -1000
NEGATIVE_SLACK = 0.1
#: voxels of a volume by which its raw values are known
SAMPLED = 1_000_000
#: percentiles between which raw values span
SPAN = (1.0, 99.0)

Values = Mapping[str, float]


def raw_values(volume: Volume) -> dict[str, float]:
    """``span``: from percentile 1 to 99 of the values as stored and scaled; ``negative``: the share below 0.

    Of all channels, where they are valid; of a large volume of SAMPLED voxels, always the same ones.
    """
    values = (volume.data if volume.valid is None else volume.data[:, volume.valid]).ravel()
    if len(values) > SAMPLED:
        values = values[np.random.default_rng(0).integers(len(values), size=SAMPLED)]
    low, high = np.percentile(values, SPAN)
    return {"span": float(high - low), "negative": float((values < 0).mean())}


def native_spacing(volume: Volume, orientation: str | None) -> tuple[float, ...]:
    """Voxel sides in mm, in the model's orientation."""
    way = plan(volume, orientation)
    unit = volume.spacing_mm[0] / way.native.spacing[0]
    return tuple(float(side) * unit for side in way.model.spacing)


@dataclass(frozen=True)
class Origin:
    """What the normals were: modalities ("" where none is known), and native spacing in the model's orientation.

    spacing_mm: lowest and highest along i, j and k. values: by name of `raw_values` the lowest and highest; empty where
    they are not known. given: share of them whose foreground was made elsewhere.
    """

    modalities: tuple[str, ...] = ()
    spacing_mm: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    given: float = 0.0

    @classmethod
    def of(
        cls,
        modalities: Sequence[str],
        spacings: Sequence[Sequence[float]],
        values: Sequence[Values] = (),
        given: float = 0.0,
    ) -> Origin:
        """The origin of a set of volumes."""
        if not spacings:
            return cls()
        along = list(zip(*spacings, strict=True))
        ranges = {
            name: (min(each[name] for each in values), max(each[name] for each in values))
            for name in (values[0] if values else ())
        }
        return cls(tuple(sorted(set(modalities))), (tuple(map(min, along)), tuple(map(max, along))), ranges, given)

    def remarks(self, volume: Volume, orientation: str | None) -> tuple[str, ...]:
        """The `doubts` about a volume, for a model of this orientation. Raises InputError for another modality."""
        foreign = self.foreign_modality(volume.modality)
        if foreign:
            raise InputError(f"{volume.path}: {foreign}")
        found = self.doubts(volume.modality, native_spacing(volume, orientation), raw_values(volume))
        foreground = self.foreign_foreground(volume.foreground is not None)
        return found if foreground is None else (*found, foreground)

    def foreign_foreground(self, given: bool) -> str | None:
        """A sentence where a foreground is given and those of all normals were estimated, or the other way about."""
        if (given and self.given == 0) or (not given and self.given == 1):
            this, theirs = ("given", "estimated") if given else ("estimated", "given")
            return (
                f"its foreground is {this}, where those of the model's normal volumes were {theirs}: its intensities "
                "and what is looked at may differ for that reason alone"
            )
        return None

    def foreign_modality(self, modality: str) -> str | None:
        """Half a sentence where a volume is of a modality that no normal was; None where one of both is unknown."""
        known = [name for name in self.modalities if name]
        if not modality or not known or "" in self.modalities or modality in known:
            return None
        return f"expected modality {' or '.join(known)} like the model's normal volumes, found {modality}"

    def doubts(self, modality: str, spacing: Sequence[float], values: Values) -> tuple[str, ...]:
        """Sentences on what is unlike the normals: modality, raw values where modalities do not settle it, spacing."""
        known = [name for name in self.modalities if name]
        found: list[str | None] = []
        if modality and known and modality not in known:
            found.append(
                f"modality {modality}, where the model's normal volumes are {' or '.join(known)} as far as they say"
            )
        elif not modality or modality not in known:
            found += [self.foreign_sign(values), self.foreign_span(values)]
        return tuple(sentence for sentence in (*found, self.foreign_spacing(spacing)) if sentence is not None)

    def foreign_sign(self, values: Values) -> str | None:
        """A sentence where far more, or far fewer, raw values are negative than of any normal."""
        low, high = self.values.get("negative", (0.0, 1.0))
        share = values["negative"]
        if low - NEGATIVE_SLACK <= share <= high + NEGATIVE_SLACK:
            return None
        usual = _range(low, high, ".0%")
        return (
            f"{share:.0%} of its raw values are negative, where the model's normal volumes have {usual}: it may be of "
            "another modality (CT has negative values, MR has none)"
        )

    def foreign_span(self, values: Values) -> str | None:
        """A sentence where raw values span far more, or far less, than those of any normal."""
        if "span" not in self.values:
            return None
        low, high = self.values["span"]
        if low / SPAN_SLACK <= values["span"] <= high * SPAN_SLACK:
            return None
        usual = _range(low, high, ".3g")
        return (
            f"its raw values span {values['span']:.3g} (percentiles 1 to 99), where the model's normal volumes have "
            f"{usual}: it may be of another modality, or scaled otherwise"
        )

    def foreign_spacing(self, spacing: Sequence[float]) -> str | None:
        """A sentence where voxels are much larger or smaller than those of the normals."""
        if self.spacing_mm is None:
            return None
        low, high = self.spacing_mm
        ends = zip(spacing, low, high, strict=True)
        if all(a / SPACING_SLACK <= found <= b * SPACING_SLACK for found, a, b in ends):
            return None
        ranges = " x ".join(_range(a, b, ".3g") for a, b in zip(low, high, strict=True))
        return (
            f"voxels of {' x '.join(f'{side:.3g}' for side in spacing)} mm, where the model's normal volumes have "
            f"{ranges} mm: its error may be larger for that reason alone"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a model file."""
        return {
            "modalities": list(self.modalities),
            "spacing_mm": None if self.spacing_mm is None else [list(end) for end in self.spacing_mm],
            "values": {name: list(ends) for name, ends in self.values.items()},
            "given": self.given,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Origin:
        """The inverse of `to_json`; older files know nothing of raw values, nor of foregrounds that were given."""
        spacing = values["spacing_mm"]
        return cls(
            tuple(values["modalities"]),
            None if spacing is None else (tuple(spacing[0]), tuple(spacing[1])),
            {name: (float(low), float(high)) for name, (low, high) in values.get("values", {}).items()},
            float(values.get("given", 0.0)),
        )


def _range(low: float, high: float, form: str) -> str:
    """ "5-6", or "5" where both ends read alike."""
    first, last = format(low, form), format(high, form)
    return first if first == last else f"{first}-{last}"
