"""Whether a DICOM file holds as many bytes of pixels as its header names, without reading them."""

from __future__ import annotations

import os
from typing import Any, BinaryIO, Literal

#: implicit, explicit and big-endian; a file that names none is none that is compressed
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_UNDEFINED = 0xFFFFFFFF
#: of an element's header: tag and length; a VR of long values comes with two bytes more, reserved, in explicit files
_IMPLICIT, _EXPLICIT = 8, 12
#: stored with half the samples of both colours (PS3.3 C.7.6.3.1.2)
_HALVED = "YBR_FULL_422"


def lacking(stream: BinaryIO, header: Any) -> str:
    """Why uncompressed pixels are too few, or "".

    ``stream`` stands where reading the header stopped, before the pixels. Compressed pixels have no length that could
    be known beforehand: only decoding tells.
    """
    syntax = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
    if syntax and syntax not in _PLAIN:
        return ""
    implicit, little = header.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    size = _IMPLICIT if implicit else _EXPLICIT
    found = stream.read(size)
    # No pixels at all: reading says so.
    if len(found) < size or int.from_bytes(found[:2], order) != 0x7FE0:
        return ""
    named = int.from_bytes(found[-4:], order)
    if named == _UNDEFINED:
        return ""
    start = stream.tell()
    present = min(named, stream.seek(0, os.SEEK_END) - start)
    expected = _bytes_of(header)
    if present >= expected:
        return ""
    return f"a damaged DICOM file: expected {expected:,} bytes of pixels, found {present:,}"


def _bytes_of(header: Any) -> int:
    samples = int(header.get("SamplesPerPixel") or 1)
    if str(header.get("PhotometricInterpretation", "")) == _HALVED:
        samples = 2
    values = int(header.Rows) * int(header.Columns) * samples * int(header.get("NumberOfFrames") or 1)
    return (values * int(header.BitsAllocated) + 7) // 8
