"""A video file, written frame by frame at the frames' true times: H.264 in MP4, MPEG-4 without such an encoder."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import StorageError
from anodiff.files import storage_errors

#: ticks a second of the file's clock, the usual one of MPEG: every common frame rate is a whole number of them
CLOCK = 90_000
ENCODERS = ("libx264", "libopenh264", "mpeg4")


class VideoWriter:
    """An MP4 file of frames that need not come at a steady rate; a context manager.

    Args:
        path: of the file. It appears under this name when it is complete; with ``growing`` at once, and can be watched
            while it is written and after a kill.
        size: (height, width) of the frames; odd sides are extended by a copied row or column, as the format wants.
        quality: constant rate factor, 0 (lossless) to 51.
        growing: see ``path``.
        threads: of the encoder.

    Raises:
        StorageError: it cannot be written, or there is no encoder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        *,
        quality: int = 23,
        growing: bool = False,
        threads: int = 1,
    ) -> None:
        self.path, self.size, self.frames = Path(path), size, 0
        self._part = self.path if growing else self.path.with_name(f".{self.path.name}.anodiff-part")
        self._last = -1
        self._container: Any = None
        with _written(self.path):
            self._open(quality, growing, threads)

    def _open(self, quality: int, growing: bool, threads: int) -> None:
        import av

        name = next((each for each in ENCODERS if each in av.codecs_available), None)
        if name is None:
            raise StorageError(
                f"cannot write {str(self.path)!r}: expected an encoder of {', '.join(ENCODERS)}, found none"
            )
        flags = {"movflags": "+faststart"}
        if growing:
            flags = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(self._part), "w", format="mp4", options=flags)
        stream = self._container.add_stream(name)
        stream.height, stream.width = (side + side % 2 for side in self.size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, CLOCK)
        stream.codec_context.thread_count = threads
        if name == "libx264":
            # no B-frames: what is written can be shown, and a file that is cut off loses no earlier frame
            stream.options = {"crf": str(quality), "preset": "veryfast", "bf": "0", "g": "50"}
        else:
            stream.codec_context.bit_rate = 4_000_000
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=kind is None)

    def write(self, pixels: NDArray[np.uint8], time: float) -> None:
        """One frame: RGB uint8 (height, width, 3) at a time in seconds, later than the one before.

        Frames whose times are equal, or fall, in the file's clock are put one tick after the one before.

        Raises:
            StorageError: it cannot be written.
            ValueError: another size, or not RGB of 8 bits.
        """
        import av

        if pixels.shape != (*self.size, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 {(*self.size, 3)}, found {pixels.dtype} {pixels.shape}")
        odd = [(0, side % 2) for side in self.size]
        whole = np.pad(pixels, [*odd, (0, 0)], mode="edge") if any(side % 2 for side in self.size) else pixels
        with _written(self.path):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(whole), format="rgb24")
            self._last = max(round(time * CLOCK), self._last + 1)
            frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self, keep: bool = True) -> None:
        """Completes the file; without ``keep`` an unfinished one is removed. Calling it twice does no harm."""
        container, self._container = self._container, None
        if container is None:
            return
        try:
            with _written(self.path):
                if keep or self._part == self.path:
                    container.mux(self._stream.encode(None))
        finally:
            with contextlib.suppress(Exception) if not keep else contextlib.nullcontext():
                container.close()
        if self._part == self.path:
            return
        with storage_errors(self.path):
            if keep and self.frames:
                os.replace(self._part, self.path)
            else:
                self._part.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(path: Path) -> Any:
    """Errors of the encoder and of the disk as one sentence."""
    import av

    try:
        with storage_errors(path):
            yield
    except av.FFmpegError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error}") from error
