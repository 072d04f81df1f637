"""anodiff configs: the ready recipes. List them, read one, copy one to change it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import new_file

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="""List, show or copy the ready recipes.

    \b
    Examples:
      anodiff configs ls
      anodiff configs show brain_flair
      anodiff configs cp brain_flair mine.yaml
    """,
)

Name = Annotated[str, typer.Argument(help="Name of a shipped recipe (anodiff configs ls).")]


@app.command("ls")
def list_configs() -> None:
    """List the shipped recipes, one line each."""
    from anodiff.config import load_config, shipped_configs

    shipped = shipped_configs()
    width = max(map(len, shipped))
    for name in shipped:
        typer.echo(f"{name:<{width}}  {load_config(name).description}".rstrip())


@app.command("show")
def show(name: Name) -> None:
    """Print a recipe as it is shipped, comments included."""
    typer.echo(_shipped(name).read_text(encoding="utf-8"), nl=False)


@app.command("cp")
def copy(
    name: Name,
    destination: Annotated[Path, typer.Argument(help="A new file, or a folder.")] = Path(),
) -> None:
    """Copy a recipe, to change it.

    A file that is there already is left alone; a folder that is missing is made.
    """
    from anodiff.files import atomic_write

    source = _shipped(name)
    target = destination / source.name if destination.is_dir() else destination
    atomic_write(new_file(target), source.read_bytes())
    typer.echo(f"wrote {target}")


def _shipped(name: str) -> Path:
    """The path of a shipped recipe; its nearest name in the error where there is none."""
    from difflib import get_close_matches

    from anodiff.config import shipped_configs

    known = shipped_configs()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise ConfigError(f"{name}: expected one of {', '.join(known)}{f'; did you mean {near[0]!r}?' if near else ''}")
    return known[name]
