"""Many images in one file: the arrays of an NPZ (MedMNIST) and IDX files (MNIST), read one image at a time.

An image is named ``set.npz#index=test_images/17`` or ``t10k-images-idx3-ubyte.gz#index=17``, counted from 0. Arrays
that lie uncompressed in their file are memory-mapped where they are; others are unpacked once a process into a
temporary file without a name and mapped from there, so that a set larger than the memory can be read at random.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from functools import lru_cache
from typing import IO, Any

import numpy as np

from anodiff.errors import InputError

INDEX_MARK = "#index="
MAX_STACK_CHANNELS = 16
IMAGES_KEY = "images"
_OPEN_ARRAYS = 16
_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_LOCAL_HEADER = 30
_IDX_NAME = re.compile(r"([.-]idx[0-9]-ubyte|\.idx)(\.gz)?$", re.IGNORECASE)
# The third byte of an IDX file (LeCun's MNIST page); numbers are big-endian.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LOCK = threading.Lock()


def is_stack(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name is one of an NPZ or IDX file."""
    text = os.fspath(path)
    return text.lower().endswith(".npz") or _IDX_NAME.search(text) is not None


def split_index(path: str | os.PathLike[str]) -> tuple[str, str, int | None]:
    """``("set.npz", "test_images", 17)`` for ``"set.npz#index=test_images/17"``; ``(path, "", None)`` for any other.

    A file whose own name ends so wins over the reading as an index.
    """
    text = os.fspath(path)
    name, mark, address = text.rpartition(INDEX_MARK)
    key, _, number = address.rpartition("/")
    if not mark or not (number.isascii() and number.isdigit()) or os.path.lexists(text):
        return text, "", None
    return name, key, int(number)


def index_path(file: str | os.PathLike[str], key: str, index: int) -> str:
    """The name of one image: ``set.npz#index=test_images/17``, or ``images.idx#index=17`` where ``key`` is empty."""
    return f"{os.fspath(file)}{INDEX_MARK}{key}/{index}" if key else f"{os.fspath(file)}{INDEX_MARK}{index}"


def image_paths(file: str | os.PathLike[str]) -> list[str]:
    """One name an image: of the arrays ``images`` or ``..._images`` of an NPZ, or of all its arrays that may be images.

    ``[file]`` where there is none or the file cannot be read: reading it says why.
    """
    try:
        shapes = {key: shape for key, shape in array_shapes(file).items() if len(shape) in (3, 4)}
    except InputError:
        return [os.fspath(file)]
    named = {key: shape for key, shape in shapes.items() if key == IMAGES_KEY or key.endswith(f"_{IMAGES_KEY}")}
    found = [index_path(file, key, n) for key, shape in (named or shapes).items() for n in range(shape[0])]
    return found or [os.fspath(file)]


def read_index(path: str | os.PathLike[str], max_pixels: int) -> tuple[np.ndarray, np.dtype[Any]]:
    """One image (H, W) or (H, W, C) of a stack, and its stored type. Raises InputError, see `open_array`."""
    file, key, index = split_index(path)
    array = open_array(file, key)
    shape = " x ".join(map(str, array.shape)) or "a single number"
    if array.ndim not in (3, 4) or (array.ndim == 4 and not 1 <= array.shape[3] <= MAX_STACK_CHANNELS):
        raise InputError(
            f"{path}: expected an array (images, height, width) or (images, height, width, channels <= "
            f"{MAX_STACK_CHANNELS}), found {shape}"
        )
    if index is None or index >= len(array):
        raise InputError(f"{path}: expected an image between 0 and {len(array) - 1}, found {index}")
    if array.shape[1] * array.shape[2] > max_pixels:
        raise InputError(f"{path}: expected at most {max_pixels:,} pixels, found {array.shape[2]}x{array.shape[1]}")
    return np.array(array[index]), array.dtype


def open_array(file: str | os.PathLike[str], key: str = "") -> np.ndarray:
    """The array ``key`` of an NPZ, or the one of an IDX file (``key`` empty): read-only, not in memory.

    Opened once a process while the file stays the same; threads may share it.

    Raises InputError: no such file or key, a damaged or truncated file, an array of objects or text, no room to unpack.
    """
    path = os.path.abspath(file)
    try:
        stamp = os.stat(path)
    except OSError as error:
        raise InputError(f"{file}: expected an NPZ or IDX file, found none ({error.strerror})") from None
    with _LOCK:
        opened = _opened(path, key, stamp.st_size, stamp.st_mtime_ns)
    if isinstance(opened, str):
        raise InputError(f"{file}: {opened}")
    return opened


def array_shapes(file: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by key ("" for IDX), read from the headers alone. Raises InputError as `open_array`."""
    try:
        if not _is_npz(file):
            with _idx_stream(file) as stream:
                return {"": _idx_header(stream)[0]}
        with zipfile.ZipFile(file) as archive:
            shapes = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as member:
                        shapes[name.removesuffix(".npy")] = _npy_header(member)[0]
            return shapes
    except Exception as error:
        raise InputError(f"{file}: {_reason(error)}") from None


@lru_cache(maxsize=_OPEN_ARRAYS)
def _opened(path: str, key: str, size: int, mtime: int) -> np.ndarray | str:
    """The array, or why there is none: also that is kept, so that a damaged file is not unpacked once an image."""
    try:
        return _open_npz(path, key) if _is_npz(path) else _open_idx(path)
    except Exception as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    # A hostile or damaged archive can raise nearly anything; none of it may stop a batch.
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    return f"expected a readable NPZ or IDX file, found a damaged or unreadable one ({detail})"


def _is_npz(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith(".npz")


def _open_npz(path: str, key: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            keys = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise InputError(f"expected an array {key!r}, found {keys or 'none'}")
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            shape, column_order, dtype = _npy_header(member)
            if info.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, shape, dtype, _data_start(path, info) + member.tell(), column_order)
            return _unpacked(member, shape, dtype, column_order)


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in column order, type. Raises InputError for objects and text, which are never unpickled."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, column_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, column_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise InputError(f"expected an array of NPY version 1 or 2, found {version[0]}")
    if dtype.kind not in "buif":
        raise InputError(f"expected numbers, found the type {dtype}")
    return shape, column_order, dtype


def _data_start(path: str, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after the local header, whose extra field may differ from the directory's."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<HH", file.read(_ZIP_LOCAL_HEADER)[26:])
    return info.header_offset + _ZIP_LOCAL_HEADER + int(name_length) + int(extra_length)


def _open_idx(path: str) -> np.ndarray:
    with _idx_stream(path) as stream:
        shape, dtype = _idx_header(stream)
        if isinstance(stream, gzip.GzipFile):
            return _unpacked(stream, shape, dtype)
        start, found = stream.tell(), os.path.getsize(path)
    if found != start + _bytes(shape, dtype):
        raise InputError(f"expected {start + _bytes(shape, dtype):,} bytes by its header, found {found:,}")
    return _mapped(path, shape, dtype, start)


def _idx_stream(path: str | os.PathLike[str]) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


def _idx_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
        raise InputError(f"expected an IDX file, found one that begins with {head!r}")
    sides = stream.read(4 * head[3])
    if len(sides) < 4 * head[3]:
        raise InputError("expected an IDX file, found one that ends within its header")
    return struct.unpack(f">{head[3]}I", sides), np.dtype(_IDX_TYPES[head[2]])


def _unpacked(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], column_order: bool = False
) -> np.ndarray:
    """The rest of a compressed stream, mapped from a temporary file; never more than its header announces."""
    expected = _bytes(shape, dtype)
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if expected > room:
        raise InputError(
            f"expected room for {expected:,} unpacked bytes in {tempfile.gettempdir()} (TMPDIR), found {room:,}"
        )
    found = 0
    with tempfile.TemporaryFile(prefix="anodiff-") as file:
        try:
            while found <= expected and (chunk := stream.read(_CHUNK)):
                found += file.write(chunk)
        except (EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"expected a whole file, found a truncated or damaged one ({error})") from None
        if found != expected:
            raise InputError(f"expected {expected:,} bytes by its header, found {min(found, expected + 1):,}")
        file.flush()
        return _mapped(file, shape, dtype, 0, column_order)


def _mapped(
    file: Any, shape: tuple[int, ...], dtype: np.dtype[Any], start: int, column_order: bool = False
) -> np.ndarray:
    """Memory-maps an array; one without an element, which cannot be mapped, is made."""
    if not _bytes(shape, dtype):
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape, "F" if column_order else "C")


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    count = 1
    for side in shape:
        count *= int(side)
    return count * dtype.itemsize
