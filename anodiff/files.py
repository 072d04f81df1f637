"""Writing results so that a reader never sees half a file, and a table that no spreadsheet runs."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import StorageError

MAP_FORMATS = ("npy", "tiff")

_REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EFBIG: "the file is too large for the file system",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EIO: "the device reports an input/output error",
}
_TEMPORARY = ".anodiff-part"
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError raised while writing `path` into a StorageError of one sentence."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"cannot write {os.fspath(path)!r}: {reason}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Creates the folder and its parents where missing.

    Raises:
        StorageError: it cannot be created, or a file is in its place.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"cannot write into {str(folder)!r}: expected a folder, found a file")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def atomic_write(path: str | os.PathLike[str], content: bytes | str | Callable[[IO[bytes]], object]) -> Path:
    """Writes a file under a temporary name, flushes it to the disk and renames it into place.

    A reader, or a run after kill -9, sees the old file or the whole new one. `content` is bytes, text (stored as
    UTF-8) or a function that writes into a binary file object.

    Raises:
        StorageError: disk full, no permission, no such folder; nothing is left behind.
    """
    target = os.fspath(path)
    folder = os.path.dirname(target) or os.curdir
    temporary = os.path.join(folder, f".{os.urandom(8).hex()}{_TEMPORARY}")
    created = False
    with storage_errors(target):
        try:
            # cheaper than tempfile and pathlib, and the system applies the umask: this runs three times an image
            handle = os.open(temporary, _NEW_FILE, 0o666)
            created = True
            with os.fdopen(handle, "w+b") as stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            if created:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            raise
    _sync_folder(folder)
    return Path(target)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files that a killed run left in `folder` and folders up to two below it (only those)."""
    place = Path(folder)
    for inside in [place, *(entry for entry in (*place.glob("*/"), *place.glob("*/*/")) if entry.is_dir())]:
        for leftover in inside.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes `value` as indented JSON, atomically; NaN and infinities become null (JSON has neither)."""
    return atomic_write(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_map(path: str | os.PathLike[str], anomaly_map: NDArray[Any]) -> Path:
    """Writes a float32 map (H, W) or (D, H, W), bit for bit, as .npy or .tiff by the name's ending, atomically.

    Raises:
        StorageError: it cannot be written, or the ending is another.
    """
    values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    kind = Path(path).suffix.lower().lstrip(".")
    if kind == "npy":
        return atomic_write(path, lambda stream: np.lib.format.write_array(stream, values, allow_pickle=False))
    if kind == "tiff":
        return atomic_write(path, lambda stream: _write_tiff(stream, values))
    raise StorageError(f"cannot write {os.fspath(path)!r}: expected a map format of {', '.join(MAP_FORMATS)}")


def load_map(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Reads a map that `save_map` wrote: float32 (H, W) or (D, H, W).

    Raises:
        StorageError: the file is missing or is not such a map.
    """
    try:
        if Path(path).suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False).astype(np.float32, copy=False)
        from PIL import Image, ImageSequence

        with Image.open(path) as image:
            pages = [np.asarray(page, dtype=np.float32) for page in ImageSequence.Iterator(image)]
        return pages[0] if len(pages) == 1 else np.stack(pages)
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(f"cannot read the map {os.fspath(path)!r}: {error}") from error


def quote_cell(text: str) -> str:
    """Puts an apostrophe before text that a spreadsheet would run as a formula (leading = + - @, tab, return)."""
    return "'" + text if _FORMULA.match(text) else text


def unquote_cell(text: str) -> str:
    """The text that `quote_cell` made this of."""
    return text[1:] if _QUOTED.match(text) else text


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV text: text cells safe for spreadsheets, None and NaN empty, true/false, numbers in full precision.

    A float64 has the digits that tell it from every other, a float32 those of a float32: 0.3, not 0.30000001192092896.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return buffer.getvalue()


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `csv_text` atomically as UTF-8; bytes of a name that are not UTF-8 appear as \\udcXX."""
    return atomic_write(path, csv_text(columns, rows).encode("utf-8", errors="backslashreplace"))


def _cell(value: Any) -> str:
    if isinstance(value, np.float32):
        return "" if np.isnan(value) else str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return quote_cell(value) if isinstance(value, str) else repr(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_tiff(stream: IO[bytes], values: NDArray[np.float32]) -> None:
    from PIL import Image

    pages = [Image.fromarray(page) for page in (values if values.ndim == 3 else values[None])]
    pages[0].save(stream, format="TIFF", save_all=len(pages) > 1, append_images=pages[1:])


def _sync_folder(folder: str) -> None:
    """Makes a rename survive a power cut where the system allows a folder to be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
