"""The evidence page of a tuning: self-contained, safe against any name, and its curves lie where their numbers say."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anodiff.visualize.heatmap import HeatScale
from anodiff.visualize.tuning import HEIGHT, WIDTH, TuneExample, TunePage, plot, render_tune_page, write_tune_page

HOSTILE = '"><script>alert(1)</script>'


def row(name: str, verdict: str, ap: float = 0.5) -> Any:
    by_kind = {"blob": ap, HOSTILE: ap}
    return SimpleNamespace(
        name=name, nfe=4, ap=ap, error=0.01, gain=-0.02, gain_error=0.03, by_kind=by_kind, verdict=verdict
    )


@pytest.fixture
def page() -> TunePage:
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 16), dtype=bool)
    mask[3:6, 4:9] = True
    example = TuneExample(HOSTILE, rng.integers(0, 255, (12, 16)).astype(np.uint8), mask.astype(np.float32), mask)
    return TunePage(
        title=HOSTILE,
        sentences=[f"Kept {HOSTILE}."],
        tiles=[("calls", "4")],
        choice=[("levels", "1", "0.5, 2"), ("fusion", "mean", "mean")],
        candidates=[row("chosen", "kept", 0.6), row(HOSTILE, "worse")],
        reductions=[row("max", "kept")],
        kinds=["blob", HOSTILE],
        levels=[0.1, 1.0, 10.0],
        level_curve={"mean": [0.1, 0.2, 0.3], HOSTILE: [0.3, 0.2, 0.1]},
        chosen_levels=[1.0],
        nfe_curve=[(2, 0.2, 0.05), (4, 0.3, 0.05)],
        examples=[example],
        scale=HeatScale(0.0, 1.0, 2.0),
    )


class Tags(HTMLParser):
    """Collects tags with their attributes; fails on tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_whole_and_runs_and_loads_nothing(page: TunePage, tmp_path: Path) -> None:
    write_tune_page(tmp_path / "page.html", page)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags(html).tags
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    assert all((attrs["src"] or "").startswith("data:image/") for tag, attrs in tags if tag == "img")
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    policy = next(attrs["content"] for tag, attrs in tags if tag == "meta" and "http-equiv" in attrs)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in str(policy)
    assert "0.600 ± 0.010" in html
    assert "-0.020 ± 0.030" in html


def test_a_single_level_and_a_single_step_are_drawn(page: TunePage) -> None:
    few = {"levels": [1.0], "level_curve": {"mean": [0.0]}, "nfe_curve": [(2, 0.0, 0.0)], "chosen_levels": [1.0]}
    html = render_tune_page(TunePage(**{**vars(page), **few}))
    assert html.count("<circle") == 2


def test_curves_lie_where_their_numbers_say() -> None:
    drawn = plot("t", "sigma", {"mean": [(0.1, 0.2, 0.0), (1.0, 0.4, 0.1), (10.0, 0.0, 0.0)]}, [1.0], logarithmic=True)
    dots = drawn.lines[0].dots
    assert [dot.x for dot in dots] == pytest.approx([0.0, WIDTH / 2, WIDTH])
    assert drawn.marks == pytest.approx((WIDTH / 2,))
    ticks = {float(tick.label): tick.at for tick in drawn.y_ticks}
    assert max(ticks) >= 0.5  # up to the highest whisker
    assert dots[0].y == pytest.approx(ticks[0.2])
    assert dots[1].high == pytest.approx(HEIGHT * (1 - 0.5 / max(ticks)))
    assert dots[1].low == pytest.approx(ticks[0.3])
    assert dots[2].y == pytest.approx(HEIGHT)
    straight = plot("t", "calls", {"mean": [(2.0, 0.1, 0.0), (4.0, 0.1, 0.0), (10.0, 0.1, 0.0)]})
    assert [dot.x for dot in straight.lines[0].dots] == pytest.approx([0.0, WIDTH / 4, WIDTH])


def test_labels_of_close_levels_do_not_overlap() -> None:
    crowded = plot("t", "sigma", {"mean": [(x, 0.1, 0.0) for x in np.geomspace(0.1, 20, 60)]}, logarithmic=True)
    places = [tick.at for tick in crowded.x_ticks]
    assert min(b - a for a, b in itertools.pairwise(places)) >= 30
    assert math.isclose(places[0], 0.0)
