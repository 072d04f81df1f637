"""Small pictures, masks and data sets, each laid out as its owners lay it out."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Put = Callable[..., Path]
FORMATS = {".tif": "TIFF", ".jpg": "JPEG", ".bmp": "BMP", ".png": "PNG"}


def put(path: Path, marked: int | None = None, size: int = 16) -> Path:
    """A picture of ``size`` pixels, or, with ``marked``, a mask with a square of that value (0: an empty mask)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(size * size).reshape(size, size).astype(np.uint8)
    if marked is not None:
        values[:] = 0
        values[4:8, 4:8] = marked
    Image.fromarray(values).save(path, format=FORMATS[path.suffix.lower()])
    return path


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file by the specification on the MNIST page: zero, zero, type, rank, sides as big-endian, data."""
    code = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[values.dtype.str[1:]]
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_idx(path: Path, values: np.ndarray) -> Path:
    """An IDX file, compressed where its name ends in .gz."""
    content = idx_bytes(values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture(name="put")
def put_fixture() -> Put:
    return put


@pytest.fixture(name="write_idx")
def write_idx_fixture() -> Callable[[Path, np.ndarray], Path]:
    return write_idx
