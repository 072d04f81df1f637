"""Detectors by name: each a choice of slots. A new method should need a few lines here and nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from anodiff.anomaly.settings import DetectorSettings, Harmonise, Stitch
from anodiff.diffusion.noise import family_of
from anodiff.errors import ConfigError

#: vp-linear, T = 1000: sigma after so many noising steps
LINEAR_250 = 0.953
LINEAR_500 = 3.424
LINEAR_750 = 17.247
LINEAR = {50: 0.1728, 100: 0.3388, 150: 0.5182, 200: 0.7193, 250: LINEAR_250, 300: 1.2339, 350: 1.5831}
#: standard deviation 0.2 of coarse noise on intensities of 0 to 1
COARSE_SIGMA = 0.4

#: Behrendt et al. 2023 (methods 5.2): step 500, simplex noise inside one box at a time, the rest seen clean
BOXES = DetectorSettings(
    noise="simplex",
    levels=(LINEAR_500,),
    where="boxes",
    residual="absolute",
    standardise="none",
    reduction="mean",
)
PRESETS: dict[str, DetectorSettings] = {
    # One step from each of eight levels; noise pairs cancel, normal error is known per place. Chosen on the dev split
    # of brain_lgg: the levels around 1 see shape, the one at 20 sees plain intensity.
    "default": DetectorSettings(
        levels=(0.48, 0.6, 0.77, 0.97, 1.23, 1.56, 1.96, 20.0),
        antithetic=True,
        residual="signed",
        standardise="auto",
        fusion="mean",
        smooth_px=5.0,
        reduction="topk",
        topk=0.005,
    ),
    # Wyatt et al. 2022 (methods 5.1): simplex noise, the full reverse chain from step 250, squared error.
    "anoddpm": DetectorSettings(
        noise="simplex",
        levels=(LINEAR_250,),
        sampler="ancestral",
        steps=250,
        grid="step",
        variance="large",
        residual="squared",
        standardise="none",
        reduction="mean",
    ),
    # In the manner of Graham et al. 2023 (methods 5.11): many start levels, each level's error standardised on normals.
    "multilevel": DetectorSettings(
        levels=(0.2, 0.4, 0.8, 1.5, 3.0, 6.0),
        residual="squared",
        standardise="auto",
        fusion="mean",
        reduction="mean",
    ),
    # The cheapest useful detector: one level, one pair.
    "one-step": DetectorSettings(
        levels=(1.5,),
        antithetic=True,
        residual="signed",
        standardise="auto",
        smooth_px=4.0,
        reduction="topk",
        topk=0.005,
    ),
    # A denoising auto-encoder (Kascenas et al. 2022) of a model trained for it, as in brain_flair_dae: one call on the
    # clean image. Polarity, normal error per place, smoothing and score as in our default, so that it is not beaten
    # for want of them.
    "dae": DetectorSettings(
        noise="none",
        levels=(COARSE_SIGMA,),
        residual="signed",
        standardise="auto",
        smooth_px=5.0,
        reduction="topk",
        topk=0.005,
    ),
    "pddpm": BOXES,
    # Iqbal et al. 2023 (methods 5.4): scored as pddpm, the difference being what the model was trained on (masked
    # images, diffusion.mask).
    "mddpm": BOXES,
    # Behrendt et al. 2023 (methods 5.3): one step each from 250, 500 and 750, the mean image compared; of a model that
    # is told a code of the noise-free image (diffusion.given).
    "cddpm": DetectorSettings(
        noise="simplex",
        levels=(LINEAR_250, LINEAR_500, LINEAR_750),
        residual="absolute",
        standardise="none",
        fusion="images",
        reduction="mean",
    ),
    # Bercea et al. 2023 (methods 5.5): reconstruct from step 200, mask by the first map, fill the mask in from step 50
    # with 5 repeats. The denoiser's features for LPIPS; as 0.13 is a threshold of LPIPS, the paper's other one: the
    # image's 95th percentile.
    "autoddpm-features": DetectorSettings(
        levels=(LINEAR[200],),
        sampler="ancestral",
        steps=200,
        grid="step",
        refine=Stitch(level=LINEAR[50], steps=50, repeats=5),
        residual="features-stitched",
        standardise="none",
        reduction="mean",
    ),
    # Bercea et al. 2024 (methods 5.6): from step 350, harmonised at 300, 150 and 50, looked at every 50 steps; the
    # denoiser's features for LPIPS.
    "thor-features": DetectorSettings(
        levels=(LINEAR[350],),
        sampler="ancestral",
        steps=350,
        grid="step",
        refine=Harmonise(at=(LINEAR[300], LINEAR[150], LINEAR[50]), looks=(LINEAR[250], LINEAR[200], LINEAR[100])),
        residual="features-relative",
        standardise="none",
        fusion="harmonic",
        reduction="mean",
    ),
    # In the manner of Mousakhan et al. 2023 (methods 5.7): ten steps from step 250, pulled to the input; distance of
    # features and of pixels, each by its size on normals instead of by the largest of the batch. The denoiser's
    # encoder for a Wide-ResNet, and no 3x3 average before the cosine. w = 2 is what does not overshoot at the start.
    "ddad-features": DetectorSettings(
        levels=(LINEAR_250,),
        sampler="ancestral",
        steps=10,
        grid="step",
        guidance=2.0,
        residual="features+absolute",
        standardise="scalar",
        fusion="mean",
        smooth_px=4.0,
        reduction="max",
    ),
}

#: what the models of a method are trained with: a key of diffusion, and those of its values that make it this method
TRAINED_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "pddpm": ("noise_where", ("box",)),
    "mddpm": ("mask", ("frequency", "pixels")),
    "cddpm": ("given", ("image",)),
}


def preset(name: str, **slots: Any) -> DetectorSettings:
    """A preset by name, with some slots set otherwise.

    Raises:
        ConfigError: unknown preset or slot (naming the nearest), or a value out of range.
    """
    if name not in PRESETS:
        raise _unknown(name, PRESETS)
    return change(PRESETS[name], slots, f"preset {name!r}")


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ConfigError(f"unknown preset {name!r}; did you mean {nearest!r}? (known: {', '.join(known)})")


def change(settings: DetectorSettings, slots: dict[str, Any], source: str) -> DetectorSettings:
    """A copy with some slots set otherwise, validated as a whole; ``source`` names it in errors. Raises ConfigError."""
    known = DetectorSettings.model_fields
    for slot in slots:
        if slot not in known:
            nearest = difflib.get_close_matches(slot, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{source}: unknown slot {slot!r}; did you mean {nearest!r}?")
    try:
        return DetectorSettings.model_validate({**settings.model_dump(), **slots})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        found = f" (found {first['input']!r})" if key else ""
        raise ConfigError(f"{source}: {f'{key}: ' if key else ''}{message[0].lower()}{message[1:]}{found}") from None


def resolve(chosen: str | DetectorSettings, config: Any = None) -> tuple[str, DetectorSettings]:
    """Name and final settings of a detector for a model's recipe.

    The recipe (``config``, any object; what it lacks is left alone) adds, to a preset chosen by name: its own slots
    for that preset (``config.presets[name]``) and its declared ``config.polarity``. A preset that only the recipe
    knows, such as one that was tuned, names the preset it starts from as ``base``, and takes what the recipe says of
    that one too. Settings given as such are taken as they are. In both, "model" noise becomes the family and scale of
    the model's training (``config.diffusion``; Gaussian where unknown).

    Raises:
        ConfigError: as :func:`preset`.
    """
    if isinstance(chosen, DetectorSettings):
        name, settings = "custom", chosen
    else:
        name = chosen
        start, slots = _from_base(name, getattr(config, "presets", None) or {})
        polarity = getattr(config, "polarity", None)
        if polarity is not None:
            slots.setdefault("polarity", polarity)
        settings = preset(start, **slots)
    trained = getattr(config, "diffusion", None)
    family = family_of(getattr(trained, "noise", "gaussian"))
    if settings.noise != "model":
        scale = getattr(trained, "noise_scale", "unit") if settings.noise == family else "unit"
        family = settings.noise
    else:
        scale = getattr(trained, "noise_scale", "unit")
    if settings.noise_scale != "model":
        scale = settings.noise_scale
    return name, change(settings, {"noise": family, "noise_scale": scale}, f"preset {name!r}")


def training_note(chosen: str | DetectorSettings, config: Any = None) -> str | None:
    """A sentence where a preset's method trains its models otherwise than this recipe did; None where all is well, and
    where the recipe, or what it says of that, is not known. Raises ConfigError for an unknown preset."""
    if isinstance(chosen, DetectorSettings):
        return None
    start, _ = _from_base(chosen, getattr(config, "presets", None) or {})
    key, values = TRAINED_WITH.get(start, ("", ()))
    found = getattr(getattr(config, "diffusion", None), key, None) if key else None
    if found is None or found in values:
        return None
    return (
        f"preset {chosen!r}: expected a model trained with diffusion.{key} {' or '.join(values)}, found {found}, so it "
        f"scores as {start} does without being {start}"
    )


def _from_base(name: str, own: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The library's preset that ``name`` starts from, through the recipe's ``own``, and the slots set otherwise."""
    slots: dict[str, Any] = {}
    passed = [name]
    while passed[-1] not in PRESETS:
        values = dict(own.get(passed[-1], {}))
        base = values.pop("base", None)
        if base is None:
            raise _unknown(passed[-1], [*PRESETS, *(known for known, found in own.items() if "base" in found)])
        if base in passed:
            raise ConfigError(f"preset {name!r}: expected a base that ends at a known preset, found {base!r} again")
        slots = {**values, **slots}
        passed.append(base)
    return passed[-1], {**own.get(passed[-1], {}), **slots}
