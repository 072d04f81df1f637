"""The loop: one bad input costs one row, a killed run goes on, a full disk ends cleanly."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anodiff.engine import loop, stopping
from anodiff.engine.loop import run_job
from anodiff.engine.store import Item, ResultStore
from anodiff.errors import ConfigError, InputError, StorageError
from anodiff.files import atomic_write

COLUMNS = ["id", "path", "score", "status", "error"]
NAMES = [f"i{n:02d}" for n in range(25)]


class Lengths:
    """A job on text files: the score is the number of characters; faults are planted by the tests."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.batches: list[list[str]] = []
        self.lock = threading.Lock()
        self.reading = self.most_waiting = 0

    def read(self, item: Item) -> str:
        with self.lock:
            self.reading += 1
            self.most_waiting = max(self.most_waiting, self.reading)
        text = Path(item.path).read_text()
        if text.startswith("bad"):
            raise InputError(f"{item.path}: expected good text,\nfound bad")
        return text

    def compute(self, batch: list[str]) -> Sequence[int]:
        self.batches.append(list(batch))
        with self.lock:
            self.reading -= len(batch)
        if any(text.startswith("poison") for text in batch):
            raise ValueError("poisoned batch")
        return [len(text) for text in batch]

    def write(self, item: Item, computed: int) -> Mapping[str, Any]:
        (self.out / f"{item.id}.out").write_text(str(computed))
        return {"score": computed, "files": [f"{item.id}.out"]}


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    for n, name in enumerate(NAMES):
        (tmp_path / name).write_text("x" * n)
    return [Item(name, str(tmp_path / name)) for name in NAMES]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(out: Path, items: list[Item], job: Any = None, **options: Any) -> tuple[loop.Summary, list[Any], Any]:
    with ResultStore.open(out, {"job": "lengths"}) as store:
        job = job or Lengths(out)
        summary = run_job(job, items, store, **options)
        store.export_csv(out / "scores.csv", COLUMNS, items)
        return summary, list(store.rows(items)), job


@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_are_right_and_ordered(out: Path, items: list[Item], batch_size: int, workers: int) -> None:
    summary, rows, job = run(out, items, batch_size=batch_size, workers=workers)
    assert [(row["id"], row["score"], row["status"]) for row in rows] == [(n, i, "ok") for i, n in enumerate(NAMES)]
    assert [text for batch in job.batches for text in batch] == ["x" * n for n in range(25)]
    assert all(len(batch) == batch_size for batch in job.batches[:-1])
    assert (summary.ok, summary.failed, summary.exit_code, summary.interrupted) == (25, 0, 0, False)


def test_each_kind_of_fault_costs_its_own_row_and_no_other(out: Path, items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "i03").write_text("bad")
    (tmp_path / "i05").write_text("poison")
    (tmp_path / "i08").unlink()

    class Faulty(Lengths):
        def write(self, item: Item, computed: int) -> Mapping[str, Any]:
            if item.id == "i11":
                raise ZeroDivisionError
            return super().write(item, computed)

    summary, rows, _ = run(out, items, Faulty(out), batch_size=4)
    failed = {row["id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert failed.keys() == {"i03", "i05", "i08", "i11"}
    assert failed["i03"] == f"{tmp_path / 'i03'}: expected good text, found bad"
    assert failed["i05"] == "ValueError: poisoned batch"
    assert "No such file" in failed["i08"]
    assert failed["i11"] == "ZeroDivisionError"
    assert (summary.ok, summary.failed, summary.exit_code) == (21, 4, 1)


def test_a_second_run_does_only_what_is_not_done(out: Path, items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "i03").write_text("bad")
    run(out, items)
    (tmp_path / "i03").write_text("mended")
    summary, rows, job = run(out, items)
    assert job.batches == [["mended"]]
    assert rows[3]["score"] == 6
    assert (summary.ok, summary.failed, summary.resumed) == (25, 0, 24)


def test_the_queues_are_bounded(out: Path, items: list[Item]) -> None:
    class Slow(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            time.sleep(0.02)
            return super().compute(batch)

    _, _, job = run(out, items, Slow(out), batch_size=2, workers=2)
    assert job.most_waiting <= 2 + (2 * 2 + 2) + 2


def test_a_full_disk_ends_the_run_with_what_was_done_safe(out: Path, items: list[Item]) -> None:
    class Full(Lengths):
        def write(self, item: Item, computed: int) -> Mapping[str, Any]:
            if item.id >= "i10":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(item, computed)

    with pytest.raises(StorageError, match="no space left"):
        run(out, items, Full(out), batch_size=2, workers=1)
    summary, rows, job = run(out, items)
    assert summary.resumed == 10
    assert [text for batch in job.batches for text in batch] == ["x" * n for n in range(10, 25)]
    assert len(rows) == 25


def test_a_really_full_disk_too_and_with_room_the_run_goes_on(items: list[Item], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a tiny tmpfs")

    class Large(Lengths):
        def write(self, item: Item, computed: int) -> Mapping[str, Any]:
            atomic_write(self.out / f"{item.id}.out", bytes(8192))
            return {"score": computed, "files": [f"{item.id}.out"]}

    try:
        with pytest.raises(StorageError, match="no space left"):
            run(disk, items, Large(disk), batch_size=2)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        summary, rows, _ = run(disk, items, Large(disk))
        assert (summary.ok, len(rows)) == (25, 25)
        assert all(len((disk / f"{name}.out").read_bytes()) == 8192 for name in NAMES)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_error_about_the_run_is_not_blamed_on_the_inputs(out: Path, items: list[Item]) -> None:
    class Wrong(Lengths):
        def compute(self, batch: list[str]) -> Sequence[int]:
            raise ConfigError("no such residual")

    with pytest.raises(ConfigError, match="no such residual"):
        run(out, items, Wrong(out))
    with ResultStore.open(out, {"job": "lengths"}) as store:
        assert store.counts() == {}


@pytest.mark.parametrize("workers", [1, 4])
def test_the_summary_names_the_first_failures_in_the_order_of_the_items(
    out: Path, items: list[Item], workers: int
) -> None:
    for item in items[3:8]:
        Path(item.path).write_text("bad")
    Path(items[5].path).write_text("poison")
    summary, _, _ = run(out, items, Lengths(out), workers=workers)
    assert summary.failed == len(summary.failures) == 5
    lines = summary.sentence().splitlines()
    assert lines[:4] == [
        f"failed: {items[3].path}: expected good text, found bad",
        f"failed: {items[4].path}: expected good text, found bad",
        f"failed: {items[5].path}: ValueError: poisoned batch",
        "... and 2 more, each with its error in the table of results",
    ]
    assert lines[4].startswith("20 ok, 5 failed; ")
    for item in items[3:8]:
        Path(item.path).write_text("mended")
    summary, _, _ = run(out, items, Lengths(out))
    assert summary.failures == ()
    assert len(summary.sentence().splitlines()) == 1


def test_speed_and_busy_share_are_measured(out: Path, items: list[Item]) -> None:
    class Half(Lengths):
        def read(self, item: Item) -> str:
            time.sleep(0.02)
            return super().read(item)

        def compute(self, batch: list[str]) -> Sequence[int]:
            time.sleep(0.02)
            return super().compute(batch)

    summary, _, _ = run(out, items[:10], Half(out), batch_size=10, workers=1)
    assert summary.seconds == pytest.approx(0.22, rel=0.5)
    assert summary.images_per_second == pytest.approx(10 / summary.seconds)
    assert 0.02 < summary.device_busy_share < 0.4
    assert "device busy" in summary.sentence()
    assert "volumes/s end to end" in summary.sentence("volumes")
    again, _, _ = run(out, items[:10], Half(out), batch_size=10, workers=1)
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


def test_out_of_memory_says_what_to_try() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    assert "network_batch" in loop.sentence_of(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\n..."))


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_loop import COLUMNS, Lengths, run
from anodiff.engine.store import Item

class Logged(Lengths):
    def read(self, item):
        with open({log!r}, "a") as log:
            log.write(item.id + "\\n")
        return super().read(item)
    def compute(self, batch):
        time.sleep(0.02)
        return super().compute(batch)
    def write(self, item, computed):
        from anodiff.files import atomic_write
        time.sleep(0.002)
        atomic_write(self.out / (item.id + ".out"), str(computed) * 10000)
        return {{"score": computed / 7, "files": [item.id + ".out"]}}

out = Path(sys.argv[1])
items = [Item(p.name, str(p)) for p in sorted(Path({inputs!r}).iterdir())]
run(out, items, Logged(out), batch_size=2)
"""


def test_killed_at_random_moments_it_ends_with_the_same_table(tmp_path: Path) -> None:
    inputs, log = tmp_path / "in", tmp_path / "log"
    inputs.mkdir()
    for n in range(40):
        (inputs / f"f{n:02d}").write_text("bad" if n % 9 == 4 else "x" * n)
    code = KILLED.format(tests=str(Path(__file__).parent), log=str(log), inputs=str(inputs))

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(out)])

    assert start(tmp_path / "calm").wait() == 0
    moment, out, kills = random.Random(7), tmp_path / "killed", 0
    while True:
        log.write_text("")
        finished = recorded(out)
        process = start(out)
        wait_for(log, process)
        time.sleep(moment.uniform(0, 0.15))
        if kills == 5 or process.poll() is not None:
            assert process.wait() == 0
            break
        process.kill()
        process.wait()
        kills += 1
        assert not finished & set(log.read_text().split()), "something finished was done twice"
    assert kills >= 2
    assert len(finished) > 0
    calm, killed = ((tmp_path / name / "scores.csv").read_bytes() for name in ("calm", "killed"))
    assert calm == killed
    for path in (tmp_path / "calm").glob("*.out"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert not list(out.rglob("*.anodiff-part"))


def recorded(out: Path) -> set[str]:
    """Ids that a killed run left as finished."""
    if not (out / ".anodiff" / "results.sqlite").exists():
        return set()
    with ResultStore.open(out, {"job": "lengths"}) as store:
        return {id_ for id_, status in store._select("SELECT id, status FROM results") if status == "ok"}


def wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has begun to read."""
    while process.poll() is None and not log.read_text():
        time.sleep(0.005)
