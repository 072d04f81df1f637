"""results.json and RESULTS.md: a section a benchmark, each written anew without touching the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anodiff.files import atomic_write, write_json

HERE = Path(__file__).parent


def stored(folder: Path = HERE) -> dict[str, Any]:
    """The sections that results.json holds, by name."""
    path = folder / "results.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def publish(name: str, found: dict[str, Any], folder: Path = HERE) -> str:
    """Stores a section's results and writes the page of all sections; returns the page."""
    sections = stored(folder) | {name: found}
    page = rendered(sections)
    write_json(folder / "results.json", sections)
    atomic_write(folder / "RESULTS.md", page)
    return page


def rendered(sections: dict[str, Any]) -> str:
    """RESULTS.md."""
    from benchmarks.quality import main_job, table_page, video_page

    makers = {"main_job": main_job.markdown, "table": table_page.markdown, "video": video_page.markdown}
    return "\n".join(make(sections[name]) for name, make in makers.items() if name in sections)
