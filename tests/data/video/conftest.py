"""Tiny videos, written frame by frame with the times that a test wants."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

Write = Callable[..., Path]
SIDE = (48, 64)


def picture(index: int, height: int = SIDE[0], width: int = SIDE[1]) -> np.ndarray:
    """uint8 (H, W, 3): red on the left, blue on the right, green in the upper left corner, a grey level that says which
    frame it is in the lower right one."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 200, 40, 40
    pixels[:, width // 2 :] = 40, 40, 200
    pixels[: height // 4, : width // 4] = 40, 200, 40
    pixels[-height // 3 :, -width // 3 :] = 20 + 16 * index % 220
    return pixels


def write_video(
    path: Path,
    frames: Sequence[np.ndarray] | int = 12,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times_ms: Sequence[int] | None = None,
    rate: int = 10,
    options: dict[str, str] | None = None,
    container_format: str | None = None,
) -> Path:
    """A video of the frames (or of so many pictures), at 100 ms each or at ``times_ms``; noise-free and short."""
    pictures = [picture(k) for k in range(frames)] if isinstance(frames, int) else frames
    unit = Fraction(1, 1000) if times_ms is not None else Fraction(1, rate)
    times = times_ms if times_ms is not None else range(len(pictures))
    # An index at the front, so that a file that was cut off can be opened.
    movie = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", format=container_format, options=movie) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"g": "6"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        stream.codec_context.time_base = unit
        for pixels, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.ndim == 3 else "gray")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def display(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes a display matrix into the track header of an MP4 (ISO 14496-12, 8.3.2: after 40 bytes, in 16.16)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", content[start : start + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *values)
    path.write_bytes(content)
    return path


def transport_stream(frames: int, height: int = SIDE[0], width: int = SIDE[1]) -> bytes:
    """A stream of so many pictures as a camera sends it (MPEG-TS)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"g": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(k, height, width)).reformat(format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(name="write_video")
def write_video_fixture() -> Write:
    return write_video


@pytest.fixture(name="display")
def display_fixture() -> Callable[..., Path]:
    return display


@pytest.fixture(name="picture")
def picture_fixture() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture(name="transport_stream")
def transport_stream_fixture() -> Callable[..., bytes]:
    return transport_stream
