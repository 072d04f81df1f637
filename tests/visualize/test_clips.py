"""Pictures of clips: true times, one scale, constant memory; a report that is one safe file and can be clicked."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from anodiff.anomaly.events import Event
from anodiff.data.video.synthetic import Planted, Scene, SyntheticClip, plant, write_scenes
from anodiff.data.video.write_av import VideoWriter
from anodiff.errors import InputError
from anodiff.visualize.clip_report import ClipEntry, ClipReport, render_clip_report, timeline_points, write_clip_report
from anodiff.visualize.clips import (
    BAND,
    BOX,
    HEAD,
    HOT,
    INK,
    STRIP,
    AnnotatedVideo,
    RollingStrip,
    ScoreAxis,
    WholeStrip,
    clock,
    column_maxima,
    resized,
    save_thumbnail,
    thumbnail,
)
from anodiff.visualize.heatmap import HeatScale, overlay

_found = importlib.util.spec_from_file_location("report_tests", Path(__file__).with_name("test_report.py"))
assert _found is not None
assert _found.loader is not None
report_tests = importlib.util.module_from_spec(_found)
_found.loader.exec_module(report_tests)
Page, HOSTILE = report_tests.Page, report_tests.HOSTILE

AXIS = ScoreAxis(0.0, 4.0, 2.0)
SCALE = HeatScale(0.0, 1.0, 2.0)


def _event(number: int = 1, start: float = 1.0, end: float = 2.0, peak: float = 3.0, **changes: Any) -> Event:
    event = Event("c", number, start, end, 4, 8, 6, (start + end) / 2, peak, 2.5, 0.01, 0.5, True, (2, 3, 4, 5))
    return dataclasses.replace(event, **changes)


def _frames(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def test_a_video_keeps_times_of_any_rate_and_odd_sides(tmp_path: Path) -> None:
    times = [0.5, 0.54, 0.9, 0.9, 3.25]
    with VideoWriter(tmp_path / "v.mp4", (15, 21), quality=1) as video:
        for i, time in enumerate(times):
            video.write(np.full((15, 21, 3), 40 * i, dtype=np.uint8), time)
        assert not (tmp_path / "v.mp4").exists()
    found = _frames(tmp_path / "v.mp4")
    np.testing.assert_allclose([time for time, _ in found], [0.5, 0.54, 0.9, 0.9 + 1 / 90_000, 3.25], atol=1e-5)
    assert found[0][1].shape == (16, 22, 3)
    for i, (_, pixels) in enumerate(found):
        assert abs(int(pixels[:15, :21].mean()) - 40 * i) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_a_video_that_fails_leaves_nothing_and_a_growing_one_what_was_seen(tmp_path: Path) -> None:
    def fails() -> None:
        with VideoWriter(tmp_path / "v.mp4", (16, 16)) as video:
            video.write(_noise((16, 16, 3)), 0.0)
            video.write(_noise((16, 17, 3)), 1.0)

    with pytest.raises(ValueError, match="expected uint8"):
        fails()
    assert list(tmp_path.iterdir()) == []
    growing = VideoWriter(tmp_path / "g.mp4", (16, 16), growing=True)
    for i in range(160):
        growing.write(_noise((16, 16, 3), i), 5 + i / 4)
    shutil.copy(tmp_path / "g.mp4", tmp_path / "killed.mp4")  # what a kill would leave
    growing.close()
    assert len(_frames(tmp_path / "g.mp4")) == 160
    cut = _frames(tmp_path / "killed.mp4")
    assert len(cut) >= 50
    assert cut[0][0] == pytest.approx(5.0)


def test_the_annotated_video_shows_the_frame_the_overlay_and_the_box(tmp_path: Path) -> None:
    times = np.arange(12) / 5
    curve = np.linspace(0, 4, 12)
    event = _event(start=1.0, end=1.6)
    values = np.zeros((6, 8), np.float32)
    values[2:4, 2:4] = 5.0
    pixels = np.full((12, 16, 1), 120, np.uint8)
    video = AnnotatedVideo(
        tmp_path / "a.mp4", (12, 16), AXIS, scale=SCALE, curve=(times, curve), events=[event], min_px=160
    )
    assert video.zoom == 10
    with video:
        for time, score in zip(times, curve, strict=True):
            inside = event if event.start <= time <= event.end else None
            video.write(pixels, float(time), float(score), anomaly_map=values, event=inside)
    found = _frames(tmp_path / "a.mp4")
    np.testing.assert_allclose([time for time, _ in found], times, atol=1e-5)
    assert found[0][1].shape == (120 + HEAD + STRIP, 160, 3)
    shown = overlay(np.full((12, 16), 120, np.uint8), resized(values, (12, 16)), SCALE)
    np.testing.assert_allclose(found[0][1][5:120:10, 5:160:10], shown, atol=30)

    def boxed(picture: np.ndarray) -> int:
        return int((np.abs(picture[:120].astype(int) - BOX).max(-1) < 60).sum())

    assert boxed(found[0][1]) == 0
    assert boxed(found[6][1]) > 50


def test_large_frames_are_shrunk_by_whole_numbers_and_other_sizes_refused(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "a.mp4", (101, 150), AXIS, max_px=75) as video:
        assert (video.shrink, video.zoom) == (2, 3)
        video.write(_noise((101, 150, 3)), 0.0)
        with pytest.raises(ValueError, match="expected frames of"):
            video.write(_noise((100, 150, 3)), 1.0)


def _strip(strip: RollingStrip | WholeStrip, width: int, time: float, score: float) -> np.ndarray:
    canvas = Image.new("RGB", (width, STRIP))
    strip.draw(canvas, (0, 0), time, score)
    return np.asarray(canvas)


def test_the_whole_strip_has_bands_the_threshold_and_a_cursor_that_moves() -> None:
    times, values = np.arange(100.0), np.zeros(100)
    values[50] = 4.0
    strip = WholeStrip(AXIS, 100, times, values, events=[_event(start=45, end=55)])
    for at in (0.0, 30.0, 99.0):
        drawn = _strip(strip, 100, at, 0.0)
        assert (drawn[:, int(at)] == INK).all()
        assert (drawn[1, 46:49] == BAND).all()
        row = STRIP - 3 - round(0.5 * (STRIP - 6))
        assert (drawn[row] == HOT).all(-1).sum() > 40
    # the peak of one frame in a hundred thousand is still drawn
    long = np.zeros(100_000)
    long[50_000] = 4.0
    tops = [
        np.flatnonzero(
            (_strip(WholeStrip(AXIS, 100, np.arange(100_000.0), values), 100, 0.0, 0.0)[:10] != (15, 17, 21)).any(
                (0, 2)
            )
        )
        for values in (np.zeros(100_000), long)
    ]
    assert set(tops[1]) - set(tops[0])


def test_the_rolling_strip_remembers_no_more_than_its_width() -> None:
    strip = RollingStrip(AXIS, 60, 6.0)
    for i in range(600):
        drawn = _strip(strip, 60, i / 25, 4.0 if i == 524 else 0.0)
    assert len(strip._points) <= 62
    assert (drawn[:, -1] == INK).all()
    # 3 s ago at 0.1 s a column
    columns = np.flatnonzero((drawn[2:8, :-1] != (15, 17, 21)).any((0, 2)))
    assert columns.size
    assert abs(columns - 29).max() <= 2


def test_columns_keep_their_highest_value() -> None:
    rng = np.random.default_rng(0)
    columns, values = np.sort(rng.integers(0, 20, 100)), rng.normal(size=100)
    values[columns == 3] = np.nan
    at, highest = column_maxima(columns, values)
    expected = {c: np.nanmax(values[columns == c]) for c in np.unique(columns) if c != 3}
    assert dict(zip(at.tolist(), highest.tolist(), strict=True)) == expected
    assert column_maxima(np.array([1]), np.array([np.nan]))[0].size == 0


def test_the_axis_is_one_for_all_and_marks_the_threshold() -> None:
    axis = ScoreAxis.around(1.0, 3.0)
    assert (axis.low, axis.high, axis.threshold) == (1.0, 7.0, 3.0)
    np.testing.assert_allclose(axis.position([0.0, 1.0, 4.0, 9.0]), [0, 0, 0.5, 1])
    with pytest.raises(ValueError, match="low < high"):
        ScoreAxis(1.0, 1.0)


def test_thumbnails_carry_the_box_in_native_pixels_and_are_bounded(tmp_path: Path) -> None:
    small = thumbnail(np.full((12, 16), 100, np.uint8), box=(2, 3, 4, 5))
    assert small.shape == (96, 128, 3)
    marked = np.argwhere((small == BOX).all(-1))
    np.testing.assert_allclose([*marked.min(0), *marked.max(0)], [23, 15, 64, 48], atol=2)
    assert thumbnail(_noise((600, 800, 3)), max_px=320).shape == (240, 320, 3)
    save_thumbnail(tmp_path / "t.jpg", small)
    assert np.asarray(Image.open(tmp_path / "t.jpg")).shape == small.shape
    hot = thumbnail(np.full((4, 4), 100, np.uint8), anomaly_map=np.array([[9.0, np.nan], [0.0, 0.0]]), scale=SCALE)
    assert hot[0, 0].tolist() != [100, 100, 100]
    assert hot[-1, -1].tolist() == [100, 100, 100]


def test_a_clock_reads_as_an_operator_does() -> None:
    assert [clock(t) for t in (0, 59.999, 3723.456)] == ["0:00:00.00", "0:01:00.00", "1:02:03.46"]


def _entries(count: int = 3) -> list[ClipEntry]:
    rng = np.random.default_rng(1)
    picture = _noise((12, 16))
    entries = [
        ClipEntry(
            f"cam/{i:03d}",
            f"in/{i:03d}.mp4",
            np.arange(200) / 10,
            rng.random(200),
            [_event(1, 2.0, 3.0, 3.0 + i / 10), _event(2, 8.0, 9.5, 2.5 + i / 10, box=None)],
            {1: picture, 2: lambda: picture},
            np.arange(200) > 150 if i == 0 else None,
        )
        for i in range(count)
    ]
    return [*entries, ClipEntry("torn", "in/torn.avi", status="failed", error="in/torn.avi: expected a video")]


def _report(**changes: Any) -> ClipReport:
    given: dict[str, Any] = {
        "title": "Night shift",
        "settings": {"video": {"past": 3}},
        "summary": {"frames_per_second": 25.5},
        "clips": _entries(),
        "axis": AXIS,
        "scale": SCALE,
        "metrics": {
            "frame_auroc": 0.97,
            "frame_auroc_ci95": [0.9, 0.99],
            "rbdc": None,
            "reasons": {"rbdc": "no boxes"},
        },
        "false_alarms": ["At most 2 false alarms an hour."],
    }
    return ClipReport(**{**given, **changes})


def test_the_report_is_one_file_whose_policy_names_its_script_and_style(tmp_path: Path) -> None:
    write_clip_report(tmp_path / "report.html", _report())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    for element in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = element["attrs"].get(name)
            assert value is None or value.startswith(("data:image/", "#")), (element["tag"], value[:80])
        assert "style" not in element["attrs"]
        assert not [name for name in element["attrs"] if name.startswith("on")]
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["attrs"]["content"]
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_can_get_out_of_its_place(name: str) -> None:
    clip = dataclasses.replace(_entries(1)[0], id=name, path=name, error=name, status=name)
    page = Page(
        render_clip_report(
            _report(
                title=name, clips=[clip], settings={name: name}, summary={name: name}, notes=[name], metrics={name: 0.5}
            )
        )
    )
    plain = Page(render_clip_report(_report(clips=[_entries(1)[0]], metrics={"x": 0.5}, notes=["n"])))
    assert {e["tag"] for e in page.elements} <= {e["tag"] for e in plain.elements} | {"p"}
    assert len(page.all("script")) == 1
    assert not [e for e in page.elements if any(key.startswith("on") for key in e["attrs"])]


def test_every_event_has_a_band_a_row_and_facts() -> None:
    page = Page(render_clip_report(_report()))
    bands = [e["attrs"] for e in page.all("g", class_="band")]
    rows = [e["attrs"] for e in page.all("tr") if "data-event" in e["attrs"]]
    assert {band["data-event"] for band in bands} == {row["data-event"] for row in rows}
    assert len(rows) == 6
    assert [float(row["data-peak"]) for row in rows] == sorted((float(row["data-peak"]) for row in rows), reverse=True)
    assert all(band["role"] == "button" and band["aria-label"] for band in bands)
    assert "0:00:02.00 to 0:00:03.00" in rows[0]["data-facts"]
    assert "at x 2, y 3, 4×5 px" in rows[0]["data-facts"]
    first = page.all("g", class_="band")[0]
    rect = page.elements[page.elements.index(first) + 1]["attrs"]
    assert float(rect["x"]) == pytest.approx(1000 * 2.0 / 19.9, abs=0.01)
    assert float(rect["width"]) == pytest.approx(1000 * 1.0 / 19.9, abs=0.01)
    truth = page.all("rect", class_="truth")
    assert len(truth) == 1
    assert float(truth[0]["attrs"]["x"]) == pytest.approx(1000 * 15.1 / 19.9, abs=0.01)
    assert "At most 2 false alarms an hour." in page.text
    assert "no boxes" in page.text
    assert "expected a video" in page.text


def test_a_timeline_keeps_its_peak_however_long_it_is() -> None:
    values = np.zeros(100_000)
    values[77_777] = 3.9
    points = [
        tuple(map(float, pair.split(","))) for pair in timeline_points(AXIS, np.arange(100_000.0), values).split()
    ]
    assert len(points) <= 500
    x, y = min(points, key=lambda point: point[1])
    assert x == pytest.approx(777.77, abs=3)
    assert y == pytest.approx(2 + (1 - 3.9 / 4) * 56, abs=0.1)


def test_without_a_threshold_nothing_is_called_an_event() -> None:
    entries = [dataclasses.replace(_entries(1)[0], events=[_event(alarm=None)])]
    page = Page(render_clip_report(_report(axis=ScoreAxis(0.0, 4.0), clips=entries)))
    assert "No threshold." in page.text
    assert "excursions, not judged" in page.text
    assert not page.all("line", class_="threshold")
    assert "This run has no clips." in Page(render_clip_report(_report(clips=[]))).text


def test_pictures_are_capped_and_those_that_are_gone_are_left_out() -> None:
    def gone() -> np.ndarray:
        raise InputError("gone")

    page = Page(render_clip_report(_report(), max_thumbnails=2))
    assert len([e for e in page.all("img") if "td" in e["inside"]]) == 2
    assert "for the 2 events with the highest peaks only" in page.text
    entry = dataclasses.replace(_entries(1)[0], thumbnails={1: gone})
    assert not [e for e in Page(render_clip_report(_report(clips=[entry]))).all("img") if "td" in e["inside"]]


def test_hundreds_of_clips_stay_a_file_one_can_send() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(20_000) / 10
    clips = [ClipEntry(f"c{i}", f"c{i}", times, rng.random(20_000), [_event(start=100, end=200)]) for i in range(40)]
    assert len(render_clip_report(_report(clips=clips))) < 40 * 12_000 + 60_000


def test_the_script_finds_every_element_it_names() -> None:
    page = Page(render_clip_report(_report()))
    ids = {e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]}
    named = set(re.findall(r"\$\(\"#([\w-]+)", page.all("script")[0]["text"]))
    assert named
    assert named <= ids


def test_the_synthetic_camera_can_be_asked_for_any_frame_and_shows_what_it_says(tmp_path: Path) -> None:
    event = Planted("vehicle", 5.0, 9.0)
    scene = Scene(seed=1, duration_s=20, events=(event,), day_s=0)
    again = list(SyntheticClip(Scene(seed=1, duration_s=20, events=(event,), day_s=0), first=30))
    quiet = dataclasses.replace(scene, events=())
    assert len(scene) == 80
    for frame in again[::7]:
        np.testing.assert_array_equal(frame.pixels, scene.frame(frame.index).pixels)
        changed = (scene.frame(frame.index).pixels != quiet.frame(frame.index).pixels)[..., 0]
        assert scene.label(frame.index) == (5 <= frame.time <= 9)
        assert changed.any() == scene.truth(frame.index).any()
        assert (changed | ~scene.truth(frame.index)).mean() > 0.99
    assert scene.truth(28).any()
    night = dataclasses.replace(scene, day_s=20.0)
    assert night.frame(40).pixels.mean() < 0.6 * night.frame(0).pixels.mean()
    assert len(plant(300, 1)) == 3
    with pytest.raises(ValueError, match="of footage an event"):
        plant(30)
    root = write_scenes(tmp_path / "set", train=1, test=1, minutes=0.5)
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        "train/normal_00.mp4",
        "test/scene_00.mp4",
        "events.csv",
    }
    assert len(_frames(root / "train/normal_00.mp4")) == 120


@pytest.mark.slow
def test_the_script_runs_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    html = render_clip_report(_report())
    # a second script that the page would refuse, so its policy is taken off: it clicks a band and goes on by keyboard
    probe = """<script>
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      document.querySelectorAll(".band")[1].dispatchEvent(new MouseEvent("click", {bubbles: true}));
      const one = document.querySelector('tr[aria-selected="true"]').dataset.event;
      press("ArrowRight");
      const two = document.querySelector('tr[aria-selected="true"]').dataset.event;
      press("ArrowDown");
      const three = document.querySelector('tr[aria-selected="true"]').dataset.event;
      press("Enter");
      const shown = [one, two, three, document.activeElement.tagName, document.querySelector("#detail").hidden];
      shown.push(document.querySelector("#d-picture").src.slice(0, 10));
      document.title = [...shown, document.querySelectorAll('[aria-pressed="true"].band').length].join(" ");
    </script></body>"""
    html = re.sub(r"<meta http-equiv.*?>", "", html).replace("</body>", probe)
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert title[1] == "0-2 1-1 2-1 TR false data:image 1"
