"""Shared by the reader tests: a PNG writer for what Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest

PngWriter = Callable[[np.ndarray], bytes]


def png_bytes(samples: np.ndarray) -> bytes:
    """A PNG of uint8 or uint16 samples (H, W, C) by the specification, for what Pillow cannot write."""
    height, width, channels = samples.shape
    depth = 8 * samples.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(name="png_bytes")
def png_bytes_fixture() -> PngWriter:
    return png_bytes
