"""One self-contained HTML file: each image before and after, under a slider. It opens offline and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import AnodiffError
from anodiff.files import atomic_write
from anodiff.visualize.pictures import image_uri, outline_path
from anodiff.visualize.report import printable

Pictures = Callable[[], tuple[NDArray[np.uint8] | None, NDArray[np.uint8], *tuple[NDArray[np.uint8], ...]]]

#: pictures are embedded for so many rows; every row is listed
MOST_PICTURES = 200
PICTURE_PX = 384
#: of a picture below the two, which has several panels
WIDE_PX = 768
#: animations are embedded up to so many bytes in all; those beyond are links to their files
MOST_ANIMATED = 24_000_000

SCRIPT = (
    "document.addEventListener('input',e=>{const f=e.target.closest('figure');"
    "if(f)f.style.setProperty('--at',e.target.value+'%')});"
)


@dataclass(frozen=True)
class Beside:
    """What a picture is to be compared with: pictures, one a line of text."""

    text: Sequence[str]
    pictures: Callable[[], Sequence[NDArray[np.uint8]]]


@dataclass(frozen=True)
class RestoredRow:
    """One input: ``pictures`` reads (before, after) as uint8 when it is shown, before None for a generated image.

    What it reads beyond these two is shown below them, and so is ``beside``. animation: the name of a GIF, below the
    folder of the report. told: lines below the picture. hole: reads bool (H, W) of what could change, outlined on the
    picture before; None for all.
    """

    id: str
    path: str
    status: str = "ok"
    error: str = ""
    pictures: Pictures | None = None
    beside: Beside | None = None
    animation: str | None = None
    told: Sequence[str] = ()
    hole: Callable[[], NDArray[np.bool_] | None] | None = None


def write_restoration_report(
    path: str | os.PathLike[str],
    title: str,
    facts: Mapping[str, Any],
    rows: Sequence[RestoredRow],
    notes: Sequence[str],
    figure: bytes | None = None,
) -> None:
    """Writes the page: facts and notes of the run, a figure (PNG), the pictures, and what failed, with its reason.

    Raises StorageError.
    """
    from jinja2 import Environment

    folder = files("anodiff.restoration").joinpath("templates")
    template = folder.joinpath("restored.html.j2").read_text(encoding="utf-8")
    style = folder.joinpath("restored.css").read_text(encoding="utf-8")
    views: list[dict[str, Any]] = []
    left = MOST_ANIMATED
    for row in rows:
        if row.pictures is not None and len(views) < MOST_PICTURES:
            try:
                before, after, *below = row.pictures()
                compared = [] if row.beside is None else row.beside.pictures()
                moving = None if row.animation is None else Path(path).parent.joinpath(row.animation).read_bytes()
                hole = None if row.hole is None else row.hole()
            except (AnodiffError, OSError):  # the file has gone since; its row is listed all the same
                continue
            uris = (None if before is None else image_uri(before, PICTURE_PX), image_uri(after, PICTURE_PX))
            view = {"row": row, "before": uris[0], "after": uris[1], "shape": after.shape[:2]}
            if hole is not None and hole.any():
                view["hole"] = outline_path(hole, PICTURE_PX)
            beside = [] if row.beside is None else list(zip(row.beside.text, map(image_uri, compared), strict=True))
            if moving is not None and len(moving) <= left:
                left -= len(moving)
                view["moving"] = _uri(moving, "gif")
            views.append({**view, "below": [image_uri(each, WIDE_PX) for each in below], "beside": beside})
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(SCRIPT)}"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    html = environment.from_string(template).render(
        title=title,
        policy=policy,
        style=_safe(style),
        script=_safe(SCRIPT),
        facts=facts,
        notes=notes,
        figure=None if figure is None else _uri(figure, "png"),
        views=views,
        failed=[row for row in rows if row.status != "ok"],
        left_out=sum(row.pictures is not None for row in rows) - len(views),
    )
    atomic_write(path, html)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
