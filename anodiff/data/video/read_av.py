"""Video files by PyAV (FFmpeg): any codec and pixel format, true times, turned as they are displayed.

A file is read up to where it breaks. FFmpeg notices most damage, not all: bytes changed inside a frame may decode to
a wrong picture without a word.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from anodiff.data.video.clip import Clip, ClipInfo, Frame, is_live, shown
from anodiff.data.video.pixels import Pixels
from anodiff.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEFAULT_FPS = 25.0
#: demuxers that read what a file itself holds; a playlist that calls itself a video cannot name other files and hosts
FILE_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,mjpeg,m4v,dv,ivf,mxf,nut,gif"
URL_PROTOCOLS = "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto,rtmp,rtmps,rtmpt,srt"
#: containers whose header says how long they should be
_WITH_LENGTH = ("mov", "matroska", "avi", "asf", "flv")
#: packets without a picture that may stand before the first one (a recording that begins between two key frames)
LEADING_PACKETS = 2000
#: seconds that a file may lack of what its header promises before it counts as cut off
LENGTH_SLACK = 0.5


class Break(Exception):
    """Why a source yields no further frame."""


class Damage(Break):
    """What broke is the data itself, so that the frame before may be damaged too, without the decoder noticing."""


class VideoClip(Clip):
    """A video file, or one behind an http URL.

    path: of the file; fps: for frames that carry no time, None = the rate that the file states, or 25; max_pixels: of
    one frame; timeout: seconds that a URL may be silent.
    """

    def __init__(self, path: str, fps: float | None, max_pixels: int, timeout: float = 30.0) -> None:
        self._path, self._fps, self._max_pixels, self._timeout = path, fps, max_pixels, timeout
        self._to_pixels = Pixels()
        self._container: InputContainer | None = None
        self._info: ClipInfo | None = None

    @property
    def info(self) -> ClipInfo:
        if self._info is None:
            self._open()
        assert self._info is not None
        return self._info

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None

    def _open(self) -> None:
        self._container = open_container(self._path, timeout=self._timeout)
        stream = video_stream(self._container, self._path, self._max_pixels)
        self._stream = stream
        self._decoded = Decoded(self._container, stream)
        try:
            frame = next(self._decoded, None)
            if frame is None:
                raise Break("no picture in it")
            self._pixels = self._to_pixels(frame)
        except Exception as error:
            self.close()
            if isinstance(error, (Break, *decode_errors())):
                raise InputError(
                    f"{shown(self._path)}: expected a video, found none that can be decoded ({one_line(error)})"
                ) from None
            raise
        rate = _stated_rate(self._container, stream)
        self._clock = Clock(self._fps or rate or DEFAULT_FPS, _start(self._container))
        self._first = frame
        height, width, channels = self._pixels.shape
        self._info = ClipInfo(
            shown(self._path), height, width, channels, stream.frames or None, rate or self._fps, frame.rotation
        )

    def _frames(self) -> Iterator[Frame]:
        info = self.info
        # One frame is held back: the last one before damage, or before the end of a file that was cut off, may be half
        # a picture.
        ends: tuple[type[Exception], ...] = (Break, *decode_errors())
        held = first = Frame(0, self._clock(own_time(self._first)), self._pixels)
        try:
            for frame in self._decoded:
                pixels = self._to_pixels(frame)
                if pixels.shape != (info.height, info.width, info.channels):
                    raise Break(f"frames of another size follow, {_size(pixels)}")
                after = Frame(held.index + 1, self._clock(own_time(frame)), pixels)
                yield held
                held = after
            reason, suspect = self._missing(held), True
        except ends as error:
            reason, suspect = one_line(error), isinstance(error, Damage)
        finally:
            self.close()
        if not (reason and suspect):
            yield held
        name = shown(self._path)
        if reason:
            count = held.index + (not suspect)
            self.broken = f"{name}: broke off after {count} frames, at {held.time:.2f} s: {reason}"
        elif self._decoded.lost:
            lost = self._decoded.lost
            self.broken = f"{name}: begins at {first.time:.2f} s: {lost} packets before it cannot be decoded"

    def _missing(self, last: Frame) -> str:
        """What the header promises and the file lacks; "" where it is whole, or where no one can tell."""
        if self._container is None or self._container.format.name.split(",")[0] not in _WITH_LENGTH:
            return ""
        length = _stated_length(self._container, self._stream)
        step = last.time / max(last.index, 1) or 1 / self._clock.fps
        if length is None or last.time + step > length - max(LENGTH_SLACK, 3 * step):
            return ""
        return f"the file ends there, its header says {length:.2f} s"


class Clock:
    """Seconds of each frame in turn, never going back.

    A frame without a time, or with one that is not later than the last frame's, follows it at the shorter of the last
    two distances: one alone may be a gap, and a guess past the next frame's time would cost that one its own.

    fps: for such frames at the start; start: what the source calls zero, in seconds, None = its first frame's time.
    """

    def __init__(self, fps: float, start: float | None) -> None:
        self.fps, self._start = fps, start
        self._last: float | None = None
        self._steps = deque([1 / fps] * 2, maxlen=2)

    def __call__(self, time: float | None) -> float:
        """The next frame's time, for its time on the source's own clock (None = it has none)."""
        if self._start is None:
            self._start = time
        # Microseconds: the unit in which containers give their start.
        now = None if time is None or self._start is None else round(time - self._start, 6)
        if self._last is None:
            now = max(now or 0.0, 0.0)
        elif now is None or now <= self._last:
            now = self._last + min(self._steps)
        else:
            self._steps.append(now - self._last)
        self._last = now
        return now


def own_time(frame: VideoFrame) -> float | None:
    """A frame's time of presentation by its stream's clock, in seconds; None where it has none."""
    return None if frame.pts is None else float(frame.time)


def open_container(
    path: str,
    *,
    timeout: float | None = None,
    name: str | None = None,
    options: dict[str, str] | None = None,
    container_format: str | None = None,
) -> InputContainer:
    """An open file or stream.

    path: a file or URL; timeout: seconds that a stream may be silent; name, options, container_format: what FFmpeg is
    to open for it instead. Raises InputError where there is nothing that FFmpeg knows as a video.
    """
    import av

    if is_live(path):
        name, given = name or path, {"protocol_whitelist": URL_PROTOCOLS} | (options or {})
    else:
        if not os.path.isfile(path):
            found = "a folder" if os.path.isdir(path) else "no such file" if not os.path.lexists(path) else "a device"
            raise InputError(f"{path}: expected a video, found {found}")
        # "file:" and an absolute path: FFmpeg would read other names as URLs and patterns.
        name, given = f"file:{os.path.abspath(path)}", {"format_whitelist": FILE_FORMATS} | (options or {})
    try:
        return av.open(name, "r", format=container_format, options=given, timeout=timeout)
    except decode_errors() as error:
        raise InputError(f"{shown(path)}: expected a video, found {_reason(error, path)}") from None


def video_stream(container: InputContainer, path: str, max_pixels: int) -> VideoStream:
    """The video stream of the largest pictures, as the ffmpeg tool takes it, the first one of equals; no cover.

    Raises InputError where there is none, or its frames are too large.
    """
    streams: list[Any] = [each for each in container.streams.video if not _is_cover(each)]
    stream = max(streams, key=lambda each: each.codec_context.width * each.codec_context.height, default=None)
    if stream is None:
        container.close()
        raise InputError(f"{shown(path)}: expected a video, found a file without pictures")
    context = stream.codec_context
    if context.width * context.height > max_pixels:
        container.close()
        raise InputError(
            f"{shown(path)}: expected at most {max_pixels:,} pixels a frame (preprocess.max_pixels raises the limit), "
            f"found {context.width}x{context.height}"
        )
    return stream


def _is_cover(stream: VideoStream) -> bool:
    """Whether a stream is a picture that stands for the file, as songs and films have it."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


class Decoded:
    """The frames of a file, up to the first damage after its first whole picture, which raises Damage.

    Packets before that picture may be unusable: a recording that was begun between two key frames. An AVI has no times
    of presentation, only an order of packets: its frames get the times of packets in turn, since where frames are
    stored out of order, what FFmpeg passes on are times of others.

    Attributes:
        lost: packets and frames before the first whole picture.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.lost = 0
        self._ordered = container.format.name == "avi"
        self._frames = self._decode(container, stream)

    def __iter__(self) -> Iterator[VideoFrame]:
        return self._frames

    def __next__(self) -> VideoFrame:
        return next(self._frames)

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        whole = False
        times: deque[int | None] = deque()
        for packet in packets_of(container, stream):
            if packet.size:
                times.append(packet.dts)
            try:
                frames = packet.decode()
            except decode_errors() as error:
                self._lose(whole, one_line(error))
                if times:
                    times.popleft()
                continue
            for frame in frames:
                time = times.popleft() if times else None
                if self._ordered:
                    frame.pts = time
                # What follows a damaged key frame is built upon it.
                if frame.is_corrupt or (self.lost and not whole and not frame.key_frame):
                    self._lose(whole, "half of a frame")
                    continue
                whole = True
                yield frame

    def _lose(self, whole: bool, reason: str) -> None:
        self.lost += 1
        if whole or self.lost > LEADING_PACKETS:
            raise Damage(f"damaged data ({reason})")


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of a stream, the last one empty, for which the decoder gives what it still holds.

    That one comes before the error, too, where reading fails.
    """
    import av

    try:
        yield from container.demux(stream)
    except decode_errors():
        empty: Packet[Any] = av.Packet()
        empty.stream = stream
        yield empty
        raise


def one_line(error: BaseException) -> str:
    """An error's own words on one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__


def _reason(error: BaseException, path: str) -> str:
    if not is_live(path) and os.path.isfile(path) and not os.path.getsize(path):
        return "an empty file"
    if isinstance(error, PermissionError):
        return "a file that may not be read"
    kind = "no answer" if is_live(path) else "a damaged file or one of another kind"
    return f"{kind} ({one_line(error)})"


def decode_errors() -> tuple[type[Exception], ...]:
    import av

    # OSError and ValueError: some of FFmpeg's errors come as Python's own.
    return (av.error.FFmpegError, OSError, ValueError)


def _start(container: InputContainer) -> float | None:
    return None if container.start_time is None else container.start_time / 1e6


def _stated_length(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds from the container's start to the end of the video by its header, None = not said."""
    begin = _start(container) or 0.0
    if container.format.name == "avi":
        # FFmpeg shortens an AVI's duration to what is there, and leaves the number of frames as it was promised.
        return float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None
    if stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - begin
    if tag := stream.metadata.get("DURATION"):
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - begin
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def _stated_rate(container: InputContainer, stream: VideoStream) -> float | None:
    """Mean frames a second: by count and length where the header has both and no dropped frames to count."""
    if container.format.name.startswith("mov") and stream.frames and stream.duration and stream.time_base:
        return float(stream.frames / (stream.duration * stream.time_base))
    return float(stream.average_rate) if stream.average_rate else None


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}x{pixels.shape[2]}"
