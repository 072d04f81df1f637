"""The options that generate, denoise, inpaint, restore and edit share; light, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

#: keys of the recipe that these jobs may override; the others are what the model was trained with
OPEN_KEYS = ("engine", "preprocess.max_pixels", "preprocess.channel", "preprocess.value_range")
#: the solvers by name, the default first
SOLVER_NAMES = ("matched", "guided", "proximal", "projected", "resampled")

Steps = Annotated[int, typer.Option(min=1, help="Noise levels of a chain.")]
Sampler = Annotated[str | None, typer.Option(help="dpmpp, heun, ddim or ancestral; by default the one that fits.")]
Grid = Annotated[str, typer.Option(help="Levels: karras has more low ones, log spreads them evenly.")]
Npy = Annotated[bool, typer.Option("--npy", help="Also write float32 values, unrounded, as OUTPUT/arrays/<id>.npy.")]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, or CSVs of paths.")]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="One mask for all, or a folder of <name>.png, of volumes <name>.nii.gz; white = True.",
    ),
]
Box = Annotated[
    str | None, typer.Option(metavar="Y,X,H,W", help="A box in pixels of the file; of volumes Z,Y,X,D,H,W.")
]
Average = Annotated[
    int,
    typer.Option(
        min=1, help="Writes the mean of so many samples, even numbers in pairs of opposite noise: less error, smoother."
    ),
]
Solver = Annotated[str, typer.Option(help=f"One of {', '.join(SOLVER_NAMES)}.")]


def drawing(average: int) -> dict[str, Any]:
    """How the Restorer draws the samples of ``--average``."""
    return {"samples": average, "antithetic": average % 2 == 0}
