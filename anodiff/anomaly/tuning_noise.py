"""The noise families that a tuning tries, and what of the settings changes with the family.

Which one shows anomalies depends on what the model was trained to take off: one that learnt on coarse noise takes
lesions off a clean image ("none"), one that learnt on white noise needs noise to be asked anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anodiff.anomaly.settings import DetectorSettings
from anodiff.diffusion.noise import FAMILIES, family_of
from anodiff.errors import ConfigError

CLEAN_IMAGE = "none"
#: families besides the present one and that of the training
NOISES = ("gaussian", "simplex", "pyramid", CLEAN_IMAGE)
#: slots that belong to the noise family
SLOTS = ("noise", "noise_scale", "pairs", "antithetic")


@dataclass(frozen=True)
class TrainedNoise:
    """The family and scale a model was trained with; one_level: at a single level, as a denoising auto-encoder is."""

    family: str = "gaussian"
    scale: str = "unit"
    one_level: bool = False

    @classmethod
    def of(cls, model: Any) -> TrainedNoise:
        """From the model's recipe; Gaussian where it has none."""
        trained = getattr(getattr(model, "config", None), "diffusion", None)
        kind = getattr(getattr(trained, "sigma", None), "kind", "")
        family = family_of(getattr(trained, "noise", "gaussian"))
        return cls(family, getattr(trained, "noise_scale", "unit"), kind == "fixed")


def families(noises: Sequence[str] | None, name: str, present: DetectorSettings, trained: TrainedNoise) -> list[str]:
    """The families to try besides the present one; no other for a model that knows one level only.

    ``noises`` None takes that of the training and NOISES, less the clean image where the settings cannot do with it.

    Raises:
        ConfigError: a family that is not known, or one named where the model knows one level, seen clean.
    """
    known = (*FAMILIES, CLEAN_IMAGE)
    for noise in noises or ():
        if noise not in known:
            nearest = difflib.get_close_matches(noise, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown noise family {noise!r}; did you mean {nearest!r}? (known: {', '.join(known)})")
    if trained.one_level and present.noise == CLEAN_IMAGE:
        if noises:
            raise ConfigError(
                f"noises: expected none to try for {name!r}, whose model learnt one level and looks at clean images, "
                f"found {', '.join(noises)}"
            )
        return []
    placed = present.where != "all" or present.sampler == "ancestral" or present.refine is not None
    tried = noises if noises is not None else [trained.family, *NOISES]
    return [
        noise
        for noise in dict.fromkeys(tried)
        if noise != present.noise and not (noises is None and placed and noise == CLEAN_IMAGE)
    ]


def slots_of(noise: str, present: DetectorSettings, trained: TrainedNoise) -> dict[str, Any]:
    """The slots that belong to a family, for settings that are otherwise the present ones.

    A clean image needs one call a level; noise, where the present settings have none, comes in pairs that cancel.
    """
    if noise == present.noise:
        return {slot: getattr(present, slot) for slot in SLOTS}
    if noise == CLEAN_IMAGE:
        return {"noise": noise, "noise_scale": "unit", "pairs": 1, "antithetic": False}
    scale = trained.scale if noise == trained.family else "unit"
    antithetic = present.antithetic or present.noise == CLEAN_IMAGE
    return {"noise": noise, "noise_scale": scale, "pairs": present.pairs, "antithetic": antithetic}
