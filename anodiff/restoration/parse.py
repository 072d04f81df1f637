"""Operators by their text: what a command line says."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from anodiff.errors import ConfigError
from anodiff.restoration.operators import (
    Operator,
    Slices,
    SuperResolution,
    cartesian_lines,
    gaussian_blur,
    motion_blur,
)
from anodiff.restoration.quantisation import Jpeg

FORMS = (
    "superres:FACTOR",
    "blur:gaussian:PX",
    "blur:motion:PX[:DEGREES]",
    "slices:every:K[:AXIS]",
    "slices:missing:K[:AXIS]",
    "kspace:Rx[:AXIS]",
    "jpeg:QUALITY",
)


def parse_operator(text: str) -> Operator:
    """The operator of a text in one of FORMS; an axis counts the spatial ones from 0. Raises ConfigError."""
    name, _, rest = text.partition(":")
    if name in ("blur", "slices"):
        kind, _, rest = rest.partition(":")
        name = f"{name}:{kind}"
    makers: dict[str, tuple[int, Callable[..., Operator]]] = {
        "superres": (1, lambda factor: SuperResolution(int(factor))),
        "blur:gaussian": (1, lambda width: gaussian_blur(float(width))),
        "blur:motion": (2, lambda length, angle="0": motion_blur(float(length), float(angle))),
        "slices:every": (2, lambda k, axis="0": Slices(int(k), int(axis))),
        "slices:missing": (2, lambda k, axis="0": Slices(int(k), int(axis), missing_ones=True)),
        "jpeg": (1, lambda quality: Jpeg(int(quality))),
        "kspace": (2, lambda rate, axis="-1": cartesian_lines(float(rate.removesuffix("x")), int(axis))),
    }
    values = rest.split(":") if rest else []
    if name not in makers:
        near = difflib.get_close_matches(name, makers, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--operator: expected one of {', '.join(FORMS)}, mask:FILE, found {text!r}{hint}")
    most, make = makers[name]
    try:
        if not 1 <= len(values) <= most:
            raise ValueError
        return make(*values)
    except ValueError:
        form = next(form for form in FORMS if form.startswith(name))
        raise ConfigError(f"--operator: expected {form}, found {text!r}") from None
