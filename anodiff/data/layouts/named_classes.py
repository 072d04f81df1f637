"""Which class is the normal one: by name where a name says so, else as the user says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from anodiff.errors import DataError

#: names of classes that are taken as normal, compared without case and with "-" and " " as "_"
NORMAL_NAMES = frozenset(
    {"good", "normal", "normals", "healthy", "ok", "no_finding", "no_findings", "defect_free", "nominal"}
)


def plain_name(name: str) -> str:
    """A class name as it is compared."""
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def has_normal_name(name: str) -> bool:
    """Whether a class of this name is normal without anyone saying so."""
    return plain_name(name) in NORMAL_NAMES


def normal_classes(classes: Collection[str], normal: Sequence[str], where: Path) -> set[str]:
    """The classes that are normal: those named in ``normal``, or, where it is empty, those of a well-known name.

    Raises DataError, listing the classes, where none has a well-known name or one in ``normal`` does not exist.
    """
    listed = ", ".join(classes)
    if not normal:
        found = {name for name in classes if has_normal_name(name)}
        if not found:
            raise DataError(
                f"{where}: expected --normal CLASS to say which class is normal, found the classes {listed}"
            )
        return found
    by_plain = {plain_name(name): name for name in classes}
    if unknown := [name for name in normal if plain_name(name) not in by_plain]:
        raise DataError(
            f"{where}: expected --normal to name a class, found {', '.join(unknown)}; the classes are {listed}"
        )
    return {by_plain[plain_name(name)] for name in normal}
