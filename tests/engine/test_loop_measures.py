"""What the loop says of its own speed: wall time and processor time, and the shares of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loop_jobs import Lengths, run

from anodiff.engine import loop
from anodiff.engine.store import Item


def test_speed_and_busy_share_are_measured(out: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the job moves, so that other work on the machine changes nothing."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], thread_time=time.thread_time, process_time=time.process_time)
    monkeypatch.setattr(loop, "time", clock)

    class Timed(Lengths):
        def read(self, item: Item) -> str:
            now[0] += 0.02  # one reader, and the device waits for all ten
            return super().read(item)

        def compute(self, batch: list[str]) -> Sequence[int]:
            now[0] += 0.05
            return super().compute(batch)

    summary, _, _ = run(out, items[:10], Timed(out), batch_size=10, workers=1)
    assert summary.seconds == pytest.approx(10 * 0.02 + 0.05)
    assert summary.images_per_second == pytest.approx(10 / 0.25)
    assert summary.device_busy_share == pytest.approx(0.05 / 0.25)
    assert "40 images/s end to end, device busy 20%" in summary.sentence()
    assert "volumes/s end to end" in summary.sentence("volumes")
    again, _, _ = run(out, items[:10], Timed(out), batch_size=10, workers=1)
    assert again.sentence() == "10 ok, 0 failed, 10 of them from an earlier run; nothing was computed in this run"


def test_processor_time_beside_computing_is_told_from_that_of_its_kernels(out: Path, items: list[Item]) -> None:
    """Counted by thread in processor time, so that other work on the machine changes nothing."""

    def spin(seconds: float) -> None:
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pass

    class Spinning(Lengths):
        def read(self, item: Item) -> str:
            spin(0.01)
            return super().read(item)

        def compute(self, batch: list[str]) -> Sequence[int]:
            kernel = threading.Thread(target=spin, args=(0.1,))  # a thread of the device's own counts as computing
            kernel.start()
            spin(0.1)
            kernel.join()
            return super().compute(batch)

        def write(self, item: Item, computed: int) -> Mapping[str, Any]:
            spin(0.01)
            return super().write(item, computed)

    summary, _, _ = run(out, items[:10], Spinning(out), batch_size=5, workers=2)
    assert summary.beside_seconds == pytest.approx(0.2, abs=0.05)  # 10 times read and written
    assert summary.processor_seconds == pytest.approx(0.6, abs=0.1)  # and two batches of two threads
    assert summary.beside_share == pytest.approx(summary.beside_seconds / summary.processor_seconds)
    assert f"{summary.beside_share:.0%} of processor time spent starting, reading and writing" in summary.sentence()
    whole = summary.with_whole(summary.processor_seconds + 0.6)  # starting and reporting
    assert whole.processor_seconds - whole.beside_seconds == pytest.approx(
        summary.processor_seconds - summary.beside_seconds
    )
    assert whole.beside_share == pytest.approx((summary.beside_seconds + 0.6) / (summary.processor_seconds + 0.6))
    assert replace(summary, processor_seconds=0.0).beside_share is None
