"""What is known so far of a clip that is being scored: stopped or killed at any moment, the next run goes on there.

A line a frame, and the maps where they are asked for; both are for `remove` when the clip is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from anodiff.files import make_folder, storage_errors

LINES, MAPS = ".journal", ".maps"


class FrameRow(NamedTuple):
    """A scored frame: its number; time in seconds; score and box as in `ScoredFrame`; own: the score is its own; spent:
    seconds of work on the clip so far; parts: (n, 5) boxes of what stood out, as `native_boxes` gives them."""

    frame: int
    time: float
    score: float
    box: tuple[int, int, int, int]
    own: bool
    spent: float
    parts: list[list[float]]


class FrameLines:
    """The frames of a clip, a JSON line each; a context manager.

    Args:
        path: of the file.
        identity: of the clip, as plain values: lines of another one are dropped.
        known: told of each frame of an earlier run, in order, from frame 0.
        most: such frames that can be used, at most; None = all.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        known: Callable[[FrameRow], None],
        most: int | None = None,
    ) -> None:
        make_folder(path.parent)
        self.path = path
        head = (json.dumps(identity, sort_keys=True) + "\n").encode()
        with storage_errors(path):
            self._stream: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
            end = len(head)
            if self._stream.readline() == head:
                end += self._take_up(known, most)
            else:
                self._stream.seek(0)
                self._stream.write(head)
            self._stream.truncate(end)
            self._stream.seek(end)

    def _take_up(self, known: Callable[[FrameRow], None], most: int | None) -> int:
        """Tells of whole lines in their order; what a kill or a power cut has torn ends them. Returns their bytes."""
        count = size = 0
        while most is None or count < most:
            line = self._stream.readline()
            try:
                cells = json.loads(line)
                row = FrameRow(*cells)._replace(box=tuple(cells[3]))
            except (ValueError, TypeError, IndexError):
                break
            if not line.endswith(b"\n") or row.frame != count:
                break
            known(row)
            count, size = count + 1, size + len(line)
        return size

    def append(self, row: FrameRow) -> None:
        """One more frame. Raises StorageError."""
        with storage_errors(self.path):
            self._stream.write((json.dumps(row) + "\n").encode())
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self.path):
            self._stream.close()


class MapFile:
    """An NPY file of maps (frames, H, W) float32, written one by one; a context manager.

    Attributes:
        count: maps in it, those of an earlier run among them.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path, self.count = path, 0
        self.shape: tuple[int, ...] = ()
        with storage_errors(path):
            self._stream: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
            self._begin = self._known()

    def _known(self) -> int:
        """Finds what an earlier run wrote; where the maps begin."""
        try:
            np.lib.format.read_magic(self._stream)
            shape, _, _ = np.lib.format.read_array_header_1_0(self._stream)
        except ValueError:
            return 0
        begin, self.shape = self._stream.tell(), shape[1:]
        self.count = (self._stream.seek(0, 2) - begin) // self._bytes
        return begin

    @property
    def _bytes(self) -> int:
        return 4 * int(np.prod(self.shape))

    def cut(self, count: int) -> None:
        """Keeps the first ``count`` maps; more follow them. Raises StorageError."""
        with storage_errors(self.path):
            self.count = count
            end = self._begin + count * self._bytes if count else 0
            self._stream.truncate(end)
            self._stream.seek(end)

    def append(self, values: NDArray[np.float32]) -> None:
        """One more map. Raises StorageError."""
        with storage_errors(self.path):
            if not self.count:
                self.shape = values.shape
                self._header()
            self._stream.write(np.ascontiguousarray(values, dtype="<f4").tobytes())
        self.count += 1

    def _header(self) -> None:
        # NumPy leaves room for the first axis to grow, so that this header and the last one have one length.
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)}
        self._stream.seek(0)
        np.lib.format.write_array_header_1_0(self._stream, facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self.path), self._stream:
            if kind is None and self.count:
                self._header()


def remove(folder: Path, ids: Iterable[str]) -> None:
    """Removes what is kept of these clips. Raises StorageError."""
    with storage_errors(folder):
        for id in ids:
            for ending in (LINES, MAPS):
                (folder / f"{id}{ending}").unlink(missing_ok=True)
