"""From YAML to a recipe: files and overrides, and what a user is told about a key that is wrong."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from anodiff.config.recipe import AnodiffConfig
from anodiff.errors import ConfigError


def known_keys(section: type[BaseModel] = AnodiffConfig, prefix: str = "") -> list[str]:
    """Every key of a recipe by its full dotted name, groups before what is in them."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        found.append(f"{prefix}{name}")
        # A group that may be null is a union with None.
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += known_keys(kind, f"{prefix}{name}.")
    return found


def nearest_key(key: str) -> str | None:
    """The key of a recipe that ``key`` is probably a misspelling of, by its full dotted name; None where none is near.

    In the same group before any other; a right name without its group is that name.
    """
    known = known_keys()
    group, _, name = key.rpartition(".")
    beside = [known_key for known_key in known if known_key.rpartition(".")[0] == group]
    last = {known_key.rpartition(".")[2]: known_key for known_key in reversed(known)}
    if not group and name in last:
        return last[name]
    near = difflib.get_close_matches(name, [known_key.rpartition(".")[2] for known_key in beside], n=1)
    if near:
        return f"{group}.{near[0]}" if group else near[0]
    if name in last:
        return last[name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75) if not group or not beside else []
    return near[0] if near else None


def unknown_key(key: str) -> str:
    """What is wrong with ``key``, which no recipe has, and what was probably meant: half a sentence."""
    near, group = nearest_key(key), key.rpartition(".")[0]
    if near is not None:
        return f"unknown key {key!r}; did you mean {near!r}?"
    beside = [known.rpartition(".")[2] for known in known_keys() if known.rpartition(".")[0] == group]
    return f"unknown key {key!r}; known here: {', '.join(beside)}" if beside else f"unknown key {key!r}"


def explain(error: ValidationError, source: str) -> str:
    """The first thing wrong with a recipe, in one sentence that names the key."""
    first = error.errors()[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        return f"{source}: {unknown_key(key)}"
    if first["type"] == "missing":
        return f"{source}: the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    where = f" at {key!r}" if key else ""
    found = "" if isinstance(first["input"], dict | BaseModel) else f" (found {first['input']!r})"
    return f"{source}:{where} {message[0].lower()}{message[1:]}{found}"


def parse_config(values: Any, source: str = "config") -> AnodiffConfig:
    """Validate a recipe given as nested dicts; ``source`` names it in errors. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of keys to values, found {type(values).__name__}")
    try:
        return AnodiffConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, source)) from None


def apply_overrides(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Set ``key.sub=value`` pairs (the value is read as YAML) in a copy of ``values``. Raises ConfigError."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values))
    for override in overrides:
        path, found, text = override.partition("=")
        if not found or not path.strip():
            raise ConfigError(f"--set {override}: expected key.sub=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value {text!r} is not valid YAML") from None
        *parents, last = path.strip().split(".")
        place = result
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError(f"--set {override}: {parent!r} holds a value, not a group of keys")
        place[last] = value
    return result


def shipped_configs() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    from importlib.resources import files

    folder = Path(str(files("anodiff.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """A YAML file by its path, or a shipped recipe by its name. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    near = difflib.get_close_matches(path.stem, list(shipped), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name}: expected a YAML file or one of {', '.join(shipped)}{hint}")


def load_config(name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> AnodiffConfig:
    """Read a recipe (a YAML file, or the name of a shipped one) and apply ``key.sub=value`` overrides.

    Raises ConfigError, naming the file and the key.
    """
    path = find_config(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected a readable YAML file ({detail})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
    return parse_config(apply_overrides(values, overrides), str(path))
