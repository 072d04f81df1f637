"""The store: resumes what is the same, refuses what is not, shares with nobody."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anodiff.engine.store import Item, ResultStore
from anodiff.errors import StorageError

SETTINGS = {"model": "abc", "preset": "default", "seed": 0}


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    made = []
    for name in "abc":
        path = tmp_path / f"{name}.txt"
        path.write_text(name)
        made.append(Item(name, str(path)))
    return made


def record(store: ResultStore, item: Item, **row: Any) -> None:
    store.record(item, {"id": item.id, "path": item.path, "status": "ok", **row}, item.stamp)


def test_a_row_is_amended_without_touching_what_its_input_was(tmp_path: Path, items: list[Item]) -> None:
    out = tmp_path / "out"
    with ResultStore.open(out, SETTINGS) as store:
        store.begin(items)
        record(store, items[0], score=1.0)
        Path(items[0].path).write_text("changed since")
        (row,) = store.rows(items)
        (out / "picture").write_text("")
        store.amend(items[0], {**row, "heatmap": "picture", "files": ["picture"]})
        store.amend(items[1], {"id": "b", "path": items[1].path, "status": "ok"})  # was never recorded
        (row,) = store.rows(items)
        assert (row["score"], row["heatmap"], row["files"]) == (1.0, "picture", ["picture"])
    with ResultStore.open(out, SETTINGS) as store:
        assert store.begin(items) == set()  # the input is another than the one that was scored


def test_rows_survive_and_come_in_the_order_of_the_items(tmp_path: Path, items: list[Item]) -> None:
    out = tmp_path / "out"
    with ResultStore.open(out, SETTINGS) as store:
        assert store.begin(items) == set()
        for item in reversed(items):
            record(store, item, score=0.1 + 0.2)
    with ResultStore.open(out, SETTINGS) as store:
        assert store.begin(items) == {"a", "b", "c"}
        assert [row["id"] for row in store.rows(items)] == ["a", "b", "c"]
        assert all(row["score"] == 0.1 + 0.2 for row in store.rows(items))
        store.export_csv(out / "scores.csv", ["id", "score", "threshold"], items)
    assert (out / "scores.csv").read_text().splitlines()[1] == f"a,{0.1 + 0.2!r},"


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    ResultStore.open(tmp_path, SETTINGS).close()
    with pytest.raises(StorageError, match=r'preset was "default", is "anoddpm"') as caught:
        ResultStore.open(tmp_path, {**SETTINGS, "preset": "anoddpm"})
    assert "seed" not in str(caught.value)
    assert "--overwrite" in str(caught.value)
    ResultStore.open(tmp_path, SETTINGS).close()


def test_the_folder_of_another_job_or_model_is_named_so(tmp_path: Path) -> None:
    job, model = tmp_path / "job", tmp_path / "model"
    ResultStore.open(job, {"job": "denoise", "model": "a"}).close()
    with pytest.raises(
        StorageError, match="holds a run of anodiff denoise, not of anodiff inpaint; choose another folder"
    ):
        ResultStore.open(job, {"job": "inpaint", "model": "b"})
    with pytest.raises(StorageError, match="of anodiff denoise, not of anodiff score or evaluate;"):
        ResultStore.open(job, {"model": "a"})
    ResultStore.open(model, {"model": "a", **{f"slot{n}": "x" * 200 for n in range(9)}}).close()
    with pytest.raises(StorageError, match=r"holds a run of another model \(slot0 was .*, 6 more\); choose") as caught:
        ResultStore.open(model, {"model": "b", **{f"slot{n}": n for n in range(9)}})
    assert str(caught.value).count(" was ") == 3
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_failed_changed_or_lost_results_are_done_again(tmp_path: Path, items: list[Item]) -> None:
    a, b, c = items
    with ResultStore.open(tmp_path / "out", SETTINGS) as store:
        store.begin(items)
        (tmp_path / "out" / "c.npy").write_text("map")
        store.record(a, {"id": "a", "path": a.path, "status": "failed", "error": "no"}, a.stamp)
        record(store, b)
        record(store, c, files=["c.npy"])
        assert store.begin(items) == {"b", "c"}
        Path(b.path).write_text("changed")
        assert store.begin(items) == {"c"}
        (tmp_path / "out" / "c.npy").unlink()
        assert store.begin(items) == set()


def test_an_input_that_is_no_longer_given_is_not_silently_dropped(tmp_path: Path, items: list[Item]) -> None:
    with ResultStore.open(tmp_path / "out", SETTINGS) as store:
        store.begin(items)
        record(store, items[2])
        with pytest.raises(StorageError, match=r"c\.txt.*not among these inputs"):
            store.begin(items[:2])


def test_more_inputs_are_welcome_even_where_they_rename_the_earlier(tmp_path: Path, items: list[Item]) -> None:
    with ResultStore.open(tmp_path / "out", SETTINGS) as store:
        store.begin(items[:1])
        (tmp_path / "out" / "a.npy").write_text("map")
        record(store, items[0], files=["a.npy"])
        renamed = [Item(f"sub__{item.id}", item.path) for item in items]
        assert store.begin(renamed) == set()
        assert not (tmp_path / "out" / "a.npy").exists()
        assert list(store.rows(items)) == []


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path, items: list[Item]) -> None:
    out = tmp_path / "out"
    (tmp_path / "precious").write_text("outside")
    with ResultStore.open(out, SETTINGS) as store:
        for name in ("a.npy", "mine.txt"):
            (out / name).write_text("")
        record(store, items[0], files=["a.npy", "../precious"])
    with ResultStore.open(out, {"model": "other"}, overwrite=True) as store:
        assert store.begin(items) == set()
    assert not (out / "a.npy").exists()
    assert (out / "mine.txt").exists()
    assert (tmp_path / "precious").exists()


def test_a_table_without_its_record_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("id\n")
    with pytest.raises(StorageError, match="without the record"):
        ResultStore.open(tmp_path, SETTINGS)
    ResultStore.open(tmp_path, SETTINGS, overwrite=True).close()


def test_a_damaged_record_is_named_and_overwrite_helps(tmp_path: Path) -> None:
    (tmp_path / ".anodiff").mkdir()
    (tmp_path / ".anodiff" / "results.sqlite").write_bytes(b"not a database, by no means" * 100)
    with pytest.raises(StorageError, match="damaged"):
        ResultStore.open(tmp_path, SETTINGS)
    ResultStore.open(tmp_path, SETTINGS, overwrite=True).close()


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from anodiff.engine.store import ResultStore\n"
        "store = ResultStore.open(sys.argv[1], {}); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="another run"):
            ResultStore.open(tmp_path, {}, overwrite=overwrite)
    other.communicate("")
    ResultStore.open(tmp_path, {}).close()


def test_a_full_disk_is_a_storage_error(tmp_path: Path, items: list[Item]) -> None:
    with ResultStore.open(tmp_path, SETTINGS) as store:
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StorageError, match="no space left"):
            record(store, items[0], text="x" * 100_000)


def test_a_read_only_place_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("anodiff.engine.store.sqlite3.connect", refuse)
    with pytest.raises(StorageError, match="readonly"):
        ResultStore.open(tmp_path, SETTINGS)


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")
    item = Item("x", path)
    with ResultStore.open(tmp_path, SETTINGS) as store:
        record(store, item)
        assert next(store.rows([item]))["path"] == path
