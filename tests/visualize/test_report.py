"""The report: self-contained, safe against any name, complete, honest about what is missing, usable without a mouse."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anodiff.errors import InputError
from anodiff.metrics import curves_of, evaluate_pools, pool_maps
from anodiff.visualize import HeatScale, Report, ReportRow, render_report, write_report
from anodiff.visualize.report import printable

VOID = {"meta", "img", "input", "br"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onclick='alert(1)",
    "line\nbreak\ttab\x00nul",
    "right to left \u202e gnp.exe",
    "Müller/Łódź 脳 🧠",
    "not utf-8 \udcff",
    "{{ 7 * 7 }}{% raw %}",
    "</style></title></script>",
    "&lt;already&gt; & more",
]


class Page(HTMLParser):
    """A small DOM: elements in order, each with its tag, attributes, text and ancestors; fails on unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {[element['tag'] for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute is given twice: {attrs}"
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [e["tag"] for e in self._open]}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": "", "inside": [e["tag"] for e in self._open]})

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data

    def all(self, tag: str | None = None, **attrs: str) -> list[dict[str, Any]]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attrs.items()}
        return [
            e
            for e in self.elements
            if (tag is None or e["tag"] == tag)
            and all(value in (e["attrs"].get(name) or "").split() for name, value in wanted.items())
        ]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [e for e in self.all("tr") if "data-name" in e["attrs"]]

    @property
    def text(self) -> str:
        return next(e["text"] for e in self.elements if e["tag"] == "main")


def _images(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((16, 20), bool)
    mask[4:9, 5:9] = True
    image = rng.integers(0, 255, (16, 20), dtype=np.uint8)
    return {
        "input": image,
        "reconstruction": image,
        "map": (rng.random((16, 20)) + mask).astype(np.float32),
        "mask": mask,
    }


def _rows() -> list[ReportRow]:
    rows = [
        ReportRow(f"n{i}", f"in/n{i}.png", i % 2, float(i), 1 / (i + 1), i > 4, images=_images(i)) for i in range(8)
    ]
    return [*rows, ReportRow("broken", "in/broken.png", None, status="failed", error="broken.png is truncated.")]


def _report(**changes: Any) -> Report:
    given: dict[str, Any] = {
        "title": "Test run",
        "settings": {"detector": {"noise": "simplex", "levels": [0.2, 0.4]}, "seed": 0},
        "summary": {"nfe": 16, "images_per_second": 3.21, "false_alarm_rate": 0.05, "unit": "image", "device": "cpu"},
        "metrics": None,
        "rows": _rows(),
        "scale": HeatScale(0.0, 1.0, 2.0),
        "threshold": 4.5,
    }
    return Report(**{**given, **changes})


def _evaluated() -> Report:
    images = [_images(i) for i in range(8)]
    pools = pool_maps(
        ((f"{i}", m["map"], m["mask"] if i % 2 else None) for i, m in enumerate(images)), [0, 1] * 4, range(8)
    )
    metrics = evaluate_pools(pools, pixel_threshold_fpr5=None, n_boot=30)
    return _report(metrics=metrics, curves=curves_of(pools))


def test_it_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", _evaluated())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    for element in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = element["attrs"].get(name)
            assert value is None or value.startswith(("data:image/", "#")), (element["tag"], value[:80])
        assert "style" not in element["attrs"]
        assert not [name for name in element["attrs"] if name.startswith("on")]
    assert not page.all("link")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|localStorage", html)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_policy_lets_only_this_script_and_style_run() -> None:
    page = Page(render_report(_report()))
    policy = next(e for e in page.all("meta") if "content-security-policy" in str(e["attrs"].get("http-equiv")).lower())
    for tag in ("script", "style"):
        (element,) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(element["text"].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy["attrs"]["content"]
    assert "default-src 'none'" in policy["attrs"]["content"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_every_string_is_escaped(hostile: str) -> None:
    clean = Page(render_report(_hostile("plain")))
    page = Page(render_report(_hostile(hostile)))
    assert [e["tag"] for e in page.elements] == [e["tag"] for e in clean.elements]
    assert [sorted(e["attrs"]) for e in page.elements] == [sorted(e["attrs"]) for e in clean.elements]
    shown = printable(hostile)
    assert page.rows[0]["attrs"]["data-name"] == shown
    assert shown in page.all("title")[0]["text"]
    assert page.text.count(shown) >= 8
    assert render_report(_hostile(hostile)).encode("utf-8")


def _hostile(text: str) -> Report:
    rows = [
        ReportRow(text, text, 1, 2.0, 0.5, False, images=_images()),
        ReportRow(text + "2", text, status="failed", error=text),
    ]
    return _report(
        title=text,
        rows=rows,
        notes=[text],
        settings={"key": {"inner": text}},
        summary={"nfe": 1, "false_alarm_rate": 0.05, "unit": text, "model": text},
        metrics={"image_auroc": None, "reasons": {"image_auroc": text}},
    )


def test_names_cannot_hide_behind_control_characters() -> None:
    assert printable("a\nb\u202ec\udcff") == "a\\nb\\u202ec\\udcff"
    assert printable("Müller 脳 🧠 a b") == "Müller 脳 🧠 a b"


def test_all_rows_are_there_by_falling_score_with_failed_ones_last() -> None:
    page = Page(render_report(_report()))
    assert [row["attrs"]["data-name"] for row in page.rows] == [*(f"n{i}" for i in range(7, -1, -1)), "broken"]
    assert "broken.png is truncated." in page.rows[-1]["text"]
    assert "1 input could not be scored" in page.text
    assert page.rows[-1]["attrs"]["data-verdict"] == "failed"
    assert page.rows[-1]["attrs"]["data-score"] == ""


def test_decisions_and_disagreements_are_stated() -> None:
    page = Page(render_report(_report()))
    assert "2 of 4 labelled anomalous inputs are found (50 %) and 1 of 4 normal ones raise an alarm (25 %)" in page.text
    errors = {row["attrs"]["data-name"]: row["attrs"]["data-error"] for row in page.rows}
    assert {name: error for name, error in errors.items() if error} == {
        "n1": "missed",
        "n3": "missed",
        "n6": "false alarm",
    }
    assert "false-alarm rate of 5 % of normal images" in page.text


def test_uncalibrated_and_unlabelled_runs_say_so_and_drop_empty_columns() -> None:
    rows = [ReportRow(f"n{i}", f"n{i}.png", score=float(i), images=_images(i)) for i in range(3)]
    page = Page(render_report(_report(rows=rows, threshold=None, scale=HeatScale(0, 1, 2, calibrated=False))))
    assert "Not calibrated." in page.text
    assert {e["attrs"]["data-sort"] for e in page.all("button") if "data-sort" in e["attrs"]} == {"name", "score"}
    assert not page.all(class_="threshold")
    scales = page.all("figure", class_="scale")
    assert len(scales) == 2
    assert all("threshold" not in e["text"] for e in scales)


def test_too_few_normals_for_a_threshold_is_not_called_uncalibrated() -> None:
    rows = [ReportRow(f"n{i}", f"n{i}.png", score=float(i), p_value=0.25, images=_images(i)) for i in range(3)]
    page = Page(render_report(_report(rows=rows, threshold=None)))
    assert "No threshold. The p-values say" in page.text
    assert "no p-values" not in page.text


def test_the_scale_is_drawn_with_the_threshold_in_the_middle() -> None:
    page = Page(render_report(_report()))
    for figure in page.all("figure", class_="scale"):
        assert re.sub(r"\s+", " ", figure["text"]).strip() == "Map value 01 pixel threshold≥ 2"


def test_without_a_scale_no_map_is_shown_and_without_rows_the_page_says_so() -> None:
    page = Page(render_report(_report(scale=None)))
    assert not page.all("figure", class_="scale")
    assert not page.all(data_view="map")
    empty = render_report(_report(rows=[], threshold=None))
    assert "This run has no inputs." in Page(empty).text


def test_metrics_show_intervals_and_reasons_never_zero_for_undefined() -> None:
    page = Page(render_report(_evaluated()))
    (strip,) = page.all("dl", class_="metrics")
    assert "no pixel threshold" in strip["text"]
    assert len(page.all("line", class_="range")) == 5
    assert len(page.all("polyline")) == 4
    assert {e["attrs"]["role"] for e in page.all("svg") if "aria-label" in e["attrs"]} == {"img"}


def test_pictures_are_capped_with_a_sentence_and_read_only_for_those_shown() -> None:
    asked: list[int] = []

    def reader(i: int) -> Callable[[], Mapping[str, np.ndarray]]:
        def read() -> Mapping[str, np.ndarray]:
            asked.append(i)
            return _images(i)

        return read

    rows = [ReportRow(f"n{i}", f"{i}.png", score=float(i), images=reader(i)) for i in range(50)]
    page = Page(render_report(_report(rows=rows), max_pictures=4))
    assert sorted(asked) == [46, 47, 48, 49]
    assert len(page.rows) == 50
    assert sum("data-open" in row["attrs"] for row in page.rows) == 4
    assert (
        "Pictures are embedded for the 4 highest scores only, to keep this file small; all 50 inputs are listed."
        in page.text
    )
    assert "highest scores only" not in Page(render_report(_report(rows=rows), max_pictures=50)).text


def test_a_picture_that_cannot_be_read_leaves_its_row() -> None:
    def gone() -> Mapping[str, np.ndarray]:
        raise InputError("n.png is gone")

    page = Page(render_report(_report(rows=[ReportRow("n", "n.png", score=1.0, images=gone)])))
    assert len(page.rows) == 1
    assert "data-open" not in page.rows[0]["attrs"]


def test_missing_numbers_of_any_kind_are_dashes() -> None:
    missing: Any = pd.NA
    numpy_numbers: list[Any] = [np.int64(1), np.float32(2.0), np.float64(0.5), np.bool_(True)]
    rows = [
        ReportRow("a", "a", missing, float("nan"), float("nan"), missing),
        ReportRow("b", "b", *numpy_numbers),
    ]
    page = Page(render_report(_report(rows=rows)))
    by_name = {row["attrs"]["data-name"]: row["attrs"] for row in page.rows}
    assert (by_name["a"]["data-score"], by_name["a"]["data-p"], by_name["a"]["data-label"]) == ("", "", "")
    assert (by_name["b"]["data-score"], by_name["b"]["data-verdict"]) == ("2.0", "anomalous")
    assert "nan" not in page.text.lower()


def test_everything_can_be_reached_by_keyboard() -> None:
    page = Page(render_report(_evaluated()))
    assert [row["attrs"]["tabindex"] for row in page.rows] == ["0"] + ["-1"] * 8
    assert all(e["inside"][-1] == "th" for e in page.all("button") if "data-sort" in e["attrs"])
    assert [e["attrs"]["aria-sort"] for e in page.all("th") if "aria-sort" in e["attrs"]] == ["descending"]
    assert page.all("a", class_="skip")[0]["attrs"]["href"] == "#inputs"
    assert page.all("dialog")[0]["attrs"]["aria-labelledby"] == "v-name"
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(set(ids)) == len(ids)
    for element in page.elements:
        for name in ("aria-labelledby", "href"):
            target = element["attrs"].get(name)
            assert target is None or target.lstrip("#") in ids
    for element in page.all("input"):
        assert "label" in element["inside"]
    for element in page.all("button"):
        assert (
            element["text"].strip() or element["attrs"].get("aria-label") or element["attrs"]["id"] in ("theme", "more")
        )
    assert page.all("html")[0]["attrs"]["lang"] == "en"
    assert all("alt" in e["attrs"] for e in page.all("img"))


def test_the_script_finds_every_element_it_names() -> None:
    page = Page(render_report(_evaluated()))
    ids = {e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]}
    named = set(re.findall(r"\$\(\"#([\w-]+)", page.all("script")[0]["text"]))
    assert named
    assert named <= ids


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_themes(theme: str) -> None:
    style = Page(render_report(_report())).all("style")[0]["text"]
    block = re.search(r":root \{(.*?)\}" if theme == "light" else r':root\[data-theme="dark"\] \{(.*?)\}', style, re.S)
    assert block
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))
    by_system = re.search(r':root:not\(\[data-theme="light"\]\) \{(.*?)\}', style, re.S)
    assert by_system
    if theme == "dark":
        assert dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", by_system[1])) == colours
    pairs = [(ink, ground) for ink in ("ink", "muted", "link", "hot-ink") for ground in ("ground", "surface", "soft")]
    pairs += [(f"chip-{kind}-ink", f"chip-{kind}") for kind in ("hot", "normal", "warn")]
    for ink, ground in [*pairs, ("chip-warn-ink", "surface")]:
        light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def _luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_an_installed_package_carries_the_templates() -> None:
    import anodiff.visualize

    root = Path(anodiff.visualize.__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("not run from a source checkout")
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["anodiff.visualize"]
    for path in (root / "anodiff" / "visualize" / "templates").iterdir():
        assert any(fnmatch(f"templates/{path.name}", pattern) for pattern in patterns), path.name


@pytest.mark.slow
def test_the_script_runs_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    write_report(tmp_path / "report.html", _evaluated())
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    page = Page(done.stdout)
    assert not [e for e in page.all(class_="segments") if "hidden" in e["attrs"]]
    stacks = [e for e in page.all("img") if e["inside"][-2:] == ["td", "span"] and "alt" in e["attrs"]]
    assert len(stacks) == 8 * 6
