"""What the jobs share: their common options, and opening a model with a user's overrides."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from anodiff.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from anodiff.data.table import SampleTable
    from anodiff.model import DiffusionModel

Model = Annotated[Path, typer.Argument(help="Model file (.safetensors).")]
Output = Annotated[Path, typer.Option(help="Folder for the results; an unfinished run in it is resumed.")]
ModelOutput = Annotated[Path, typer.Option(help="The new model file.")]
Preset = Annotated[str | None, typer.Option(help="Detector preset; by default the one of the model's recipe.")]
Layout = Annotated[str, typer.Option(help="How the data is laid out; auto recognises it.")]
Normal = Annotated[str, typer.Option(metavar="CLASS,...", help="The normal class or classes, where data has classes.")]
GroupBy = Annotated[
    str,
    typer.Option(
        metavar="path|REGEX|COLUMN",
        help="What belongs together: an image's folder, one (group) of a regular expression in its path, a column.",
    ),
]
Foreground = Annotated[
    str,
    typer.Option(
        metavar="FILE|PATTERN|none",
        help="Given foregrounds (brain masks): the file of a single input, or a pattern from each input's folder such "
        "as '{stem}_brain.nii.gz'; none: estimated, whatever the data name or hold.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images computed at once; does not change results.")]
AnyBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="16 images",
        help="Images computed at once, which changes no result; of volumes: slices or windows that the network sees at "
        "once, in place of engine.network_batch (results agree to 1e-4).",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")]
MaxMemory = Annotated[
    float | None,
    typer.Option(metavar="GIB", help="Most memory of what the network computes at once: it is made less to fit."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew, removing what an earlier run wrote there.")]

#: images computed at once unless ``--batch-size`` says otherwise
IMAGES_AT_ONCE = 16
#: how many of several failures a sentence names
NAMED = 3


@dataclass(frozen=True)
class Common:
    """The options that every job that computes has, as its ``run`` is given them; see `with_common`.

    overrides: of ``--set``. quiet: says nothing and shows no progress; not an option of the command line.
    """

    overwrite: Overwrite = False
    device: Device = "auto"
    precision: Precision = "auto"
    batch_size: AnyBatch = None
    seed: Seed = 0
    overrides: Set = None
    quiet: bool = False

    @property
    def images_at_once(self) -> int:
        """``batch_size``, or IMAGES_AT_ONCE where none was asked for."""
        return self.batch_size or IMAGES_AT_ONCE

    @property
    def computing(self) -> dict[str, Any]:
        """The arguments of a `Restorer` or `AnomalyDetector`: where, how exactly and from which seed it computes."""
        return {"device": self.device, "precision": self.precision, "seed": self.seed}


COMMON = Common()


def with_common(main: Callable[..., None]) -> Callable[..., None]:
    """A command whose options are those of ``main``, then those of `Common`, which ``main`` is given as ``common``."""
    signature = inspect.signature(main, eval_str=True)
    own = [each for name, each in signature.parameters.items() if name != "common"]
    hints = get_type_hints(Common, include_extras=True)
    shared = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(Common)
        if each.name != "quiet"
    ]

    @functools.wraps(main)
    def command(**given: Any) -> None:
        common = Common(**{each.name: given.pop(each.name) for each in shared})
        main(**given, common=common)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + shared
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def within_memory(overrides: list[str] | None, most: float | None) -> list[str] | None:
    """Overrides of the recipe with ``--max-memory`` among them. Raises ConfigError where it is no amount."""
    if most is None:
        return overrides
    if not 0 < most < math.inf:
        raise ConfigError(f"--max-memory: expected GiB above 0, found {most:g}")
    return [*(overrides or []), f"engine.max_memory={most}"]


def open_model(path: Path, overrides: list[str] | None, allowed: tuple[str, ...]) -> DiffusionModel:
    """Loads a model and applies `--set` overrides to its recipe, in memory only.

    Raises:
        ModelFileError: see `anodiff.load`.
        ConfigError: an override is malformed, or of a key that is fixed by training (not below one of `allowed`).
    """
    from anodiff.anomaly.presets import resolve
    from anodiff.config import apply_overrides, known_keys, parse_config, unknown_key
    from anodiff.model import load

    model = load(path)
    if overrides:
        values = apply_overrides(model.config.model_dump(mode="json"), overrides)
        for override in overrides:
            key = override.partition("=")[0].strip()
            if any(key == name or key.startswith(f"{name}.") for name in allowed):
                continue
            if key not in known_keys():
                raise ConfigError(f"--set {override}: {unknown_key(key)}")
            raise ConfigError(
                f"--set {override}: expected a key of {', '.join(allowed)}; the others are fixed by training"
            )
        model.config = parse_config(values, "--set")
        for name in model.config.presets:
            resolve(name, model.config)
    return model


def new_file(path: Path) -> Path:
    """The path of a file to be made, its folder there, before any work is done for it.

    Raises:
        StorageError: something is there already (no command changes a model file in place), or the folder cannot be
            made.
    """
    from anodiff.files import make_folder

    if path.exists():
        raise StorageError(f"{path}: expected a new file, found one that is there already")
    make_folder(path.parent)
    return path


def file_digest(path: Path) -> str:
    """blake2b of a file's bytes: what tells one model from another when a run is resumed."""
    import hashlib

    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def drawn(samples: SampleTable, count: int | None, seed: int) -> SampleTable:
    """`count` rows drawn at random without replacement by `seed`, in their order; all where None."""
    import dataclasses

    if count is None or count >= len(samples):
        return samples
    return dataclasses.replace(
        samples, table=samples.table.sample(n=count, random_state=seed).sort_index().reset_index(drop=True)
    )


def left_out(failed: Sequence[str]) -> str:
    """One sentence: how many images could not be read, and what was wrong with the first ones."""
    first = "; ".join(failed[:NAMED])
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    images = "image" if len(failed) == 1 else "images"
    return f"left out {len(failed)} {images} that could not be used: {first}{more}"


def say(text: str, quiet: bool = False) -> None:
    """One message to the reader, on standard error: standard output is for results."""
    if not quiet:
        typer.echo(text, err=True)


def table_text(header: list[str], rows: list[list[Any]]) -> str:
    """A small table in aligned columns: text to the left, numbers (3 decimals) to the right; None is a dash."""
    cells = [header] + [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [all(not isinstance(row[column], str) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def missing_text(metrics: Mapping[str, Any], keys: Iterable[str], item: str = "image") -> list[str]:
    """A sentence on each reason for which some of the keys, or their intervals, have no value; item: what is scored."""
    names: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        what, entry = ("value", key) if metrics[key] is None else ("interval", f"{key}_ci95")
        if entry in metrics and metrics[entry] is None and entry in metrics["reasons"]:
            names.setdefault((what, metrics["reasons"][entry]), []).append(key)
    return [f"no {what} of {', '.join(each)}: {why.replace('image', item)}" for (what, why), each in names.items()]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
