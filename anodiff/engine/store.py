"""The crash-safe record of a run: which inputs are done, with their rows, in OUT/.anodiff/results.sqlite.

A row is recorded only after its files are in place, so a run killed at any moment (kill -9, power cut) finds on its
next start exactly the inputs that are finished; everything else is done again from the start, over the same file
names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anodiff.errors import StorageError
from anodiff.files import make_folder, remove_leftovers, storage_errors, write_csv

STATE_FOLDER = ".anodiff"
STORE_VERSION = 1
#: settings that differ from those of another run, and characters of each, that a sentence holds
LISTED, SHORT = 3, 60

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    id TEXT PRIMARY KEY, stamp TEXT NOT NULL, status TEXT NOT NULL, row TEXT NOT NULL, files TEXT NOT NULL);
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One input of a job.

    Attributes:
        id: names its outputs; unique in the job.
        path: as the user gave it; unique in the job.
        extra: the job's own knowledge of it (label, mask).
        file: the file on disk, where `path` says more than that (a page of it).
    """

    id: str
    path: str
    extra: Any = None
    file: str = ""

    @property
    def stamp(self) -> str:
        """Changes when the file behind the path does ("size:mtime in ns"); empty when it cannot be looked at."""
        try:
            found = os.stat(self.file or self.path)
        except (OSError, ValueError):
            return ""
        return f"{found.st_size}:{found.st_mtime_ns}"


class ResultStore:
    """Rows of one run in one output folder; one process at a time, any thread.

    Open it with `ResultStore.open(...)`, use it as a context manager, and call `begin` once with the items.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> ResultStore:
        """Opens the store of `folder` for a run with `settings` (JSON-able), new or to be resumed.

        A store with the same settings is resumed. With `overwrite` the earlier run's rows and the files it recorded
        are removed first (and nothing else).

        Raises:
            StorageError: the folder holds results of other settings (the message says which differ), results of
                unknown origin, a store of another version or a damaged one; another process has it open; it cannot
                be written.
        """
        place = make_folder(folder)
        state = make_folder(place / STATE_FOLDER)
        database = state / "results.sqlite"
        if overwrite:
            _remove_run(place, database)
        elif not database.exists() and (place / "scores.csv").exists():
            raise StorageError(
                f"{str(place)!r} holds a scores.csv without the record of its run: "
                "give another --output, or --overwrite to start anew"
            )
        with _sqlite_errors(database):
            store = cls(place, _connect(database))
        try:
            store._claim({"store_version": STORE_VERSION, **settings})
        except BaseException:
            store.close()
            raise
        remove_leftovers(place)
        return store

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the store; rows are already safe."""
        with self._lock:
            self._connection.close()

    def begin(self, items: Sequence[Item]) -> set[str]:
        """Ids that need no work: recorded ok or skipped, input unchanged since, files still there. Others are
        forgotten.

        Failed rows are tried again, since a file may have been repaired or a disk mounted.

        Raises:
            StorageError: rows of inputs that are not among `items` are recorded (these would silently leave the
                table).
        """
        by_id = {item.id: item for item in items}
        paths = {item.path for item in items}
        done: set[str] = set()
        forgotten: list[tuple[str]] = []
        for id_, stamp, status, row, files in self._select("SELECT id, stamp, status, row, files FROM results"):
            path, names = json.loads(row)["path"], json.loads(files)
            if path not in paths:
                raise StorageError(
                    f"{str(self.folder)!r} holds a result for {path!r}, which is not among these inputs: "
                    "give the same inputs (more are welcome), another --output, or --overwrite to start anew"
                )
            item = by_id.get(id_)
            renamed = item is None or item.path != path
            intact = all((self.folder / name).exists() for name in names)
            if item is not None and not renamed and status != "failed" and stamp == item.stamp and intact:
                done.add(id_)
                continue
            forgotten.append((id_,))
            if renamed:  # more inputs may move their common folder, and so rename earlier ones
                _remove_files(self.folder, names)
        with self._lock, _sqlite_errors(self.folder), self._connection:
            self._connection.executemany("DELETE FROM results WHERE id = ?", forgotten)
        return done

    def record(self, item: Item, row: Mapping[str, Any], stamp: str) -> None:
        """Commits one row: `row` is JSON-able, its "files" (paths below the folder, already in place) are kept
        beside it.

        `stamp` is the item's stamp from before it was read. A second row for the same id replaces the first.
        """
        kept = {name: value for name, value in row.items() if name != "files"}
        values = (item.id, stamp, str(row["status"]), json.dumps(kept), json.dumps(list(row.get("files", ()))))
        with self._lock, _sqlite_errors(self.folder), self._connection:
            self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", values)

    def amend(self, item: Item, row: Mapping[str, Any]) -> None:
        """Replaces the content of a recorded row, not its stamp: a later step has added to what was done then."""
        kept = {name: value for name, value in row.items() if name != "files"}
        values = (json.dumps(kept), json.dumps(list(row.get("files", ()))), item.id)
        with self._lock, _sqlite_errors(self.folder), self._connection:
            self._connection.execute("UPDATE results SET row = ?, files = ? WHERE id = ?", values)

    def rows(self, items: Iterable[Item]) -> Iterator[Row]:
        """Recorded rows in the order of `items`; items without one are left out. "files" is put back into the row."""
        found = {id_: (row, files) for id_, row, files in self._select("SELECT id, row, files FROM results")}
        for item in items:
            if item.id in found:
                row, files = found[item.id]
                yield {**json.loads(row), "files": json.loads(files)}

    def counts(self) -> dict[str, int]:
        """Number of recorded rows by status."""
        return dict(self._select("SELECT status, COUNT(*) FROM results GROUP BY status"))

    def export_csv(self, path: str | os.PathLike[str], columns: Sequence[str], items: Iterable[Item]) -> Path:
        """Writes the rows as a CSV in the order of `items`, atomically; columns that a row lacks stay empty."""
        return write_csv(path, columns, self.rows(items))

    def _select(self, query: str) -> list[tuple[Any, ...]]:
        with self._lock, _sqlite_errors(self.folder):
            return self._connection.execute(query).fetchall()

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Takes the settings of a new store, or checks them against those of the run to resume."""
        now = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        before = dict(self._select("SELECT name, value FROM settings"))
        if not before:
            with self._lock, _sqlite_errors(self.folder), self._connection:
                self._connection.executemany("INSERT INTO settings VALUES (?, ?)", now.items())
            return
        if now != before:
            raise StorageError(
                f"{str(self.folder)!r} holds {_other_run(before, now)}; "
                "choose another folder as --output, or --overwrite to start anew"
            )


def _other_run(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is foreign about the run in the folder: its job, else its model and the first settings that differ.

    Settings of another job are not listed, since they have little in common.
    """
    if before.get("job") != now.get("job"):
        return f"a run of {_job(before)}, not of {_job(now)}"
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    listed = [
        f"{name} was {_short(before.get(name, 'unset'))}, is {_short(now.get(name, 'unset'))}"
        for name in changed
        if name != "model"
    ]
    more = [f"{len(listed) - LISTED} more"] * (len(listed) > LISTED)
    text = f" ({', '.join([*listed[:LISTED], *more])})" if listed else ""
    return f"a run {'of another model' if 'model' in changed else 'with other settings'}{text}"


def _job(settings: Mapping[str, str]) -> str:
    """The job by name; scoring has none in its settings, since evaluating goes on where it stopped."""
    return f"anodiff {json.loads(settings['job'])}" if "job" in settings else "anodiff score or evaluate"


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, timeout=2.0, check_same_thread=False)
    try:
        # exclusive: two runs must not share a folder, and WAL then needs no shared memory, which network disks lack
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        # a power cut may lose the last rows, never break the file; their inputs are then done again
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _sqlite_errors(place: Path) -> Iterator[None]:
    try:
        with storage_errors(place):
            yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text:
            text = "another run is writing into this folder"
        elif "full" in text:
            text = "no space left on the device"
        elif isinstance(error, sqlite3.DatabaseError) and ("not a database" in text or "malformed" in text):
            text = f"the record of the run is damaged ({text}); --overwrite starts anew"
        raise StorageError(f"cannot use {str(place)!r}: {text}") from error


def _remove_run(place: Path, database: Path) -> None:
    """Removes what the recorded run wrote, and its record; a damaged record is removed alone."""
    if database.exists():
        try:
            with _sqlite_errors(place), contextlib.closing(_connect(database)) as connection:
                recorded = connection.execute("SELECT files FROM results").fetchall()
        except StorageError as error:
            if "damaged" not in str(error):
                raise
            recorded = []
        for (files,) in recorded:
            _remove_files(place, json.loads(files))
    with storage_errors(place):
        shutil.rmtree(database.parent)
        database.parent.mkdir()


def _remove_files(place: Path, names: Sequence[str]) -> None:
    """Removes recorded files, never anything outside the folder."""
    with storage_errors(place):
        for name in names:
            target = (place / name).resolve()
            if target.is_relative_to(place.resolve()):
                target.unlink(missing_ok=True)
