"""Cameras and network streams: frames as they come, again after the stream was away, with every gap reported."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anodiff.data.readers import MAX_PIXELS
from anodiff.data.video.clip import CAMERA, Clip, ClipInfo, Frame, shown
from anodiff.data.video.pixels import Pixels
from anodiff.data.video.read_av import (
    DEFAULT_FPS,
    Clock,
    decode_errors,
    one_line,
    open_container,
    own_time,
    packets_of,
    video_stream,
)
from anodiff.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FIRST_WAIT, MOST_WAIT = 1.0, 60.0
SILENCE = 10.0
KEPT_GAPS = 1000
#: options that FFmpeg's RTSP reader needs to come through firewalls and not to lose packets
RTSP_OPTIONS = {"rtsp_transport": "tcp"}


@dataclass(frozen=True)
class Gap:
    """A time without frames.

    start: of the last frame before it, seconds; end: of the first frame after it, None = not over; attempts: times that
    the source was tried again; reason: what ended the frames.
    """

    start: float
    end: float | None
    attempts: int
    reason: str


class LiveClip(Clip):
    """A stream or camera that is read until it is closed, and opened again whenever it stops.

    Waits grow from ``first_wait`` by doubling to ``most_wait`` seconds. Packets that cannot be decoded are passed over
    and counted; a stream that comes back with another size is scaled to the first one. Frame times are the stream's
    own within a connection; across a gap the machine's clock counts.

    Args:
        url: ``rtsp://``, ``http://`` ..., or ``camera:0``.
        max_pixels: of one frame.
        silence: seconds without data after which a source counts as gone.
        give_up: seconds of one gap after which iteration ends, ``broken`` saying so; None = never.
        on_gap: told of each gap twice: when it begins (``end`` None) and when it is over.

    Attributes:
        gaps: the latest 1000 gaps that are over. gap_count: of all. damaged: packets and frames that were passed over.
    """

    def __init__(
        self,
        url: str,
        *,
        max_pixels: int = MAX_PIXELS,
        first_wait: float = FIRST_WAIT,
        most_wait: float = MOST_WAIT,
        silence: float = SILENCE,
        give_up: float | None = None,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> None:
        self._url, self._max_pixels, self._silence = url, max_pixels, silence
        self._first_wait, self._most_wait, self._give_up = first_wait, most_wait, give_up
        self._on_gap = on_gap or (lambda gap: None)
        self._stop = threading.Event()
        self._container: InputContainer | None = None
        self._rate: float | None = None
        self._attempts = 0
        self._info: ClipInfo | None = None
        self.gaps: deque[Gap] = deque(maxlen=KEPT_GAPS)
        self.gap_count = 0
        self.damaged = 0

    @property
    def info(self) -> ClipInfo:
        """Raises InputError where the source cannot be reached, or sends no picture, the first time."""
        if self._info is None:
            frame = self._connect()
            pixels = Pixels()(frame)
            self._first = frame, time.monotonic()
            height, width, channels = pixels.shape
            self._info = ClipInfo(shown(self._url), height, width, channels, None, self._rate, frame.rotation)
        return self._info

    def close(self) -> None:
        """End the iteration, also from another thread: the next frame, or the end of a wait, is its last moment."""
        self._stop.set()
        if not self._begun:
            self._disconnect()

    def _connect(self) -> VideoFrame:
        """Open the source and wait for its first picture."""
        name, options, kind = source_of(self._url)
        ends: tuple[type[Exception], ...] = (StopIteration, *decode_errors())
        self._container = open_container(
            self._url, timeout=self._silence, name=name, options=options, container_format=kind
        )
        try:
            stream = video_stream(self._container, self._url, self._max_pixels)
            self._rate = float(stream.average_rate) if stream.average_rate else None
            self._decoded = self._passing_over(stream)
            return next(self._decoded)
        except ends as error:
            self._disconnect()
            reason = one_line(error) if str(error) else "it ended before its first picture"
            raise InputError(f"{shown(self._url)}: expected a stream of pictures, found none ({reason})") from None

    def _disconnect(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None

    def _passing_over(self, stream: VideoStream) -> Iterator[VideoFrame]:
        """Frames of this connection, without what cannot be decoded."""
        assert self._container is not None
        for packet in packets_of(self._container, stream):
            try:
                frames = packet.decode()
            except decode_errors():
                self.damaged += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damaged += 1
                else:
                    yield frame

    def _frames(self) -> Iterator[Frame]:
        info = self.info
        frame, began = self._first
        index, last, base = 0, 0.0, 0.0
        clock = Clock(info.fps or DEFAULT_FPS, None)
        to_pixels = Pixels((info.height, info.width), grey=info.channels == 1)
        try:
            while not self._stop.is_set():
                last = base + clock(own_time(frame))
                yield Frame(index, last, to_pixels(frame))
                index += 1
                try:
                    frame = next(self._decoded)
                    continue
                except StopIteration:
                    reason = "the stream ended"
                except decode_errors() as error:
                    reason = one_line(error)
                if self._stop.is_set() or (back := self._again(last, reason)) is None:
                    return
                # The machine's clock bridges the gap; the stream's own starts anew.
                frame, base = back, max(time.monotonic() - began, last + 1 / clock.fps)
                clock = Clock(clock.fps, None)
                self._report(Gap(last, base, self._attempts, reason))
        finally:
            self._disconnect()

    def _again(self, last: float, reason: str) -> VideoFrame | None:
        """The first picture after the source was tried until it came back; None where it was closed or given up."""
        self._disconnect()
        self._attempts = 0
        self._on_gap(Gap(last, None, 0, reason))
        began, wait = time.monotonic(), self._first_wait
        while not self._stop.wait(wait):
            wait = min(2 * wait, self._most_wait)
            self._attempts += 1
            try:
                return self._connect()
            except InputError as error:
                away = time.monotonic() - began
                if self._give_up is not None and away > self._give_up:
                    self.broken = (
                        f"{shown(self._url)}: broke off at {last:.2f} s ({reason}) and did not come back within "
                        f"{away:.0f} s, {self._attempts} attempts; the last one: {error}"
                    )
                    return None
        return None

    def _report(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self.gap_count += 1
        self._on_gap(gap)


def is_endless(url: str) -> bool:
    """Whether a source has no end of its own: cameras and every URL save http files, which state their length.

    Raises InputError where an http URL cannot be opened.
    """
    if not url.lower().startswith(("http://", "https://")):
        return True
    with open_container(url, timeout=SILENCE) as container:
        return container.duration is None


def source_of(url: str, system: str = sys.platform) -> tuple[str, dict[str, str], str | None]:
    """(name, options, format) with which FFmpeg opens a URL or ``camera:N`` on this system.

    Raises InputError for a camera that is neither a number nor, on Windows, a name.
    """
    if not url.startswith(CAMERA):
        return url, RTSP_OPTIONS if url.lower().startswith("rtsp") else {}, None
    which = url.removeprefix(CAMERA)
    if system.startswith("win"):
        return f"video={which}", {}, "dshow"
    if not (which.isascii() and which.isdigit()):
        raise InputError(f"{url}: expected a camera by number, as {CAMERA}0, found {which!r}")
    return (which, {}, "avfoundation") if system == "darwin" else (f"/dev/video{which}", {}, "v4l2")
