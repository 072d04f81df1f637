"""Results that are kept: a part of a benchmark is computed once, and anew only where its settings have changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anodiff.files import make_folder, write_json


def kept(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` found under these settings: from ``path`` (JSON) where it is there, else made and stored."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["settings"] == settings:
            found: dict[str, Any] = before["found"]
            return found
    found = json.loads(json.dumps(make()))
    make_folder(path.parent)
    write_json(path, {"settings": settings, "found": found})
    print(f"{path.stem}: done", flush=True)
    return found
