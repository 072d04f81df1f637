"""Progress: plain lines off a terminal, a bar on one, an honest rate."""

from __future__ import annotations

import io
import threading

import pytest

from anodiff.engine import progress as module
from anodiff.engine.progress import Progress, duration, number


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module.time, "monotonic", fake)
    return fake


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_the_interval_and_at_the_end(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(100, "images", "training", stream=out, interval=10) as progress:
        for _ in range(25):
            clock.now += 1.0
            progress.update(2, loss=0.125)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3, lines
    assert lines[0].startswith("training: 20/100 images 20% | loss 0.125 | 2 images/s")
    assert "left" in lines[0]
    assert "40 s left" in lines[0]
    assert lines[-1].startswith("training: 50/100 images 50%")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_rate_counts_only_this_run_and_only_the_last_half_minute(clock: Clock) -> None:
    progress = Progress(1000, start=500, quiet=True)
    progress.open()
    clock.now += 1.0
    progress.update(10)
    assert progress.done == 510
    assert progress.rate == pytest.approx(10)
    for _ in range(120):
        clock.now += 1.0
        progress.update(1)
    assert progress.rate == pytest.approx(1)
    assert progress.seconds_left == pytest.approx(1000 - progress.done)


def test_a_field_that_changes_within_a_unit_leaves_the_rate(clock: Clock) -> None:
    progress = Progress(10, quiet=True)
    progress.open()
    for second in range(1, 101):
        clock.now += 1.0
        progress.update(int(second % 50 == 0), step=f"{second % 50}/50")
    for second in range(20):
        clock.now += 1.0
        progress.update(0, step=f"{second}/50")
    assert progress.rate == pytest.approx(1 / 50)
    assert progress.seconds_left == pytest.approx(8 * 50)


def test_unknown_total_has_no_time_left(clock: Clock) -> None:
    progress = Progress(None, "frames", quiet=True)
    progress.open()
    clock.now += 2
    progress.update(4)
    assert progress.seconds_left is None
    assert "4 frames |" in progress.line()
    assert "left" not in progress.line()


def test_terminal_gets_one_live_bar_with_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    with Progress(4, "images", "scoring", stream=out) as progress:
        progress.update(4, loss=0.25)
        progress.note("a [bracketed] note")
    text = out.getvalue()
    assert "scoring" in text
    assert "4/4" in text
    assert "loss 0.25" in text
    assert "a [bracketed] note" in text


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with Progress(1, stream=out) as progress:
        progress.update()
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()


def test_quiet_prints_nothing() -> None:
    out = io.StringIO()
    with Progress(1, stream=out, quiet=True, interval=0) as progress:
        progress.update()
        progress.note("unseen")
    assert out.getvalue() == ""


def test_updates_from_many_threads_are_all_counted() -> None:
    with Progress(4000, quiet=True) as progress:
        threads = [threading.Thread(target=lambda: [progress.update() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert progress.done == 4000


def test_durations_and_numbers_read_well() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7620)] == ["0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 07 min"]
    assert [number(v) for v in (12345, 0.123456, "1e-4")] == ["12,345", "0.1235", "1e-4"]


def test_peak_memory_is_that_of_this_process() -> None:
    peak = module.peak_memory_gib()
    assert peak is not None
    assert 0.005 < peak < 64
