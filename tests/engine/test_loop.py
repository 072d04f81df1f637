"""The loop: rows right and in order, one bad input costs one row, a full disk ends cleanly."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_jobs import NAMES, Lengths, run

from anodiff.engine import loop
from anodiff.engine.store import Item, ResultStore
from anodiff.errors import ConfigError, StorageError
from anodiff.files import atomic_write


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


def test_out_of_memory_says_what_to_try() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    assert "network_batch" in loop.sentence_of(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\n..."))
