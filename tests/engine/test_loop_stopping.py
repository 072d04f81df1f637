"""The loop asked to stop: what was done is safe, the next run goes on, a second signal does not wait."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from loop_jobs import Lengths, run

from anodiff.engine import stopping
from anodiff.engine.store import Item


def test_one_interrupt_finishes_the_batch_and_the_next_run_goes_on(out: Path, items: list[Item]) -> None:
    class Interrupted(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            if len(self.batches) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().compute(batch)

    before = signal.getsignal(signal.SIGINT)
    summary, rows, _ = run(out, items, Interrupted(out), batch_size=4)
    assert signal.getsignal(signal.SIGINT) is before
    assert summary.interrupted
    assert summary.exit_code == 130
    assert len(rows) == 12
    summary, rows, _ = run(out, items)
    assert (summary.ok, summary.resumed, summary.exit_code) == (25, 12, 0)


def test_a_job_that_is_asked_may_leave_its_batch_undone(out: Path, items: list[Item]) -> None:
    stop = stopping.Stop()

    class Asked(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            if len(self.batches) == 2:
                signal.raise_signal(signal.SIGTERM)
            if stop.asked:
                raise stopping.Stopped
            return super().compute(batch)

    job = Asked(out)
    summary, rows, _ = run(out, items, job, batch_size=4, stop=stop)
    assert summary.interrupted
    assert summary.exit_code == 130
    assert len(job.batches) == 2
    assert len(rows) == 8
    assert {row["status"] for row in rows} == {"ok"}
    again, rows, later = run(out, items, batch_size=4)
    assert not again.interrupted
    assert len(rows) == len(items)
    assert sum(map(len, later.batches)) == len(items) - 8


class Signalled(Lengths):
    """Gets signals in its third batch, and takes long over it otherwise."""

    def __init__(self, out: Path, *signals: signal.Signals) -> None:
        super().__init__(out)
        self.signals = signals

    def compute(self, batch: list[str]) -> Sequence[int]:
        if len(self.batches) == 2:
            for number in self.signals:
                signal.raise_signal(number)
            time.sleep(10)
        return super().compute(batch)


def test_a_second_interrupt_stops_at_once_with_a_summary_and_loses_nothing_written(
    out: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "TOGETHER", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    summary, rows, _ = run(out, items, Signalled(out, signal.SIGINT, signal.SIGTERM), batch_size=4)
    assert time.monotonic() - began < 5
    assert (summary.interrupted, summary.exit_code, summary.ok) == (True, 130, 8)
    assert len(rows) == 8
    assert signal.getsignal(signal.SIGTERM) is before
    summary, _, _ = run(out, items)
    assert summary.resumed == 8


def test_a_second_interrupt_in_the_last_batch_is_an_interruption_all_the_same(
    out: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "TOGETHER", 0.0)

    class AfterAll(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            found = super().compute(batch)
            if len(self.batches) == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return found

    summary, _, _ = run(out, items[:8], AfterAll(out), batch_size=4)
    assert summary.interrupted


def test_signals_that_come_together_are_one(out: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    """As of GNU timeout, which sends one to the process and one to its group."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    summary, rows, _ = run(out, items, Signalled(out, signal.SIGTERM, signal.SIGTERM, signal.SIGINT), batch_size=4)
    assert (summary.interrupted, len(rows)) == (True, 12)


def test_asking_to_stop_costs_no_row_where_nobody_listens(
    out: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard error may be a closed pipe: the run ends after its batch, all of which is there."""

    def closed(*_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    class Asked(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            if len(self.batches) == 2:
                signal.raise_signal(signal.SIGTERM)
            return super().compute(batch)

    monkeypatch.setattr(stopping, "os", SimpleNamespace(write=closed))
    summary, rows, _ = run(out, items, Asked(out), batch_size=1)
    assert (summary.interrupted, summary.ok, summary.failed) == (True, 3, 0)
    assert len(rows) == 3


def test_an_interrupt_that_the_loop_did_not_see_goes_through(out: Path, items: list[Item]) -> None:
    class Raising(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, items, Raising(out), batch_size=4)
