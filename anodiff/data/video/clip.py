"""A clip, whatever it comes from: frames in order, each with the time at which it was taken, in constant memory."""

from __future__ import annotations

import glob
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from anodiff.data.layouts.folder import natural_key, walk
from anodiff.data.readers import MAX_PIXELS, image_suffix
from anodiff.data.table import make_ids
from anodiff.errors import DataError, InputError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf"),
    *(".flv", ".3gp", ".ogv", ".h264", ".264", ".h265", ".hevc", ".mjpeg", ".mjpg"),
)
CAMERA = "camera:"
#: fewest images that make a folder a clip
MIN_FRAMES = 2
#: what the folder of a clip's pixel truth is called after the clip's own name (UCSD: Test001, Test001_gt)
TRUTH_MARK = "_gt"
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Frame:
    """index: from 0; time: seconds from the start of the clip, as its own clock says; pixels: uint8 (H, W, 1 or 3)."""

    index: int
    time: float
    pixels: np.ndarray


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before it is read.

    path: where it comes from, a URL without its user and password; height, width: of a frame as displayed (rotated);
    channels: 1 or 3; frames: how many its header says there are, None = unknown; fps: mean rate, None = unknown;
    rotation: degrees, anticlockwise, by which stored frames were turned to be displayed.
    """

    path: str
    height: int
    width: int
    channels: int
    frames: int | None
    fps: float | None
    rotation: int = 0


class Clip(ABC):
    """Frames of one source, to be iterated over once, inside a ``with`` block or closed by hand.

    Attributes:
        info: known as soon as the first frame has been decoded, which asking for it does.
        broken: once iteration has ended, one sentence that says where and why the source broke off, or None where it
            came to its own end. Frames before the break have been yielded.
    """

    broken: str | None = None
    _begun = False

    @property
    @abstractmethod
    def info(self) -> ClipInfo:
        """Raises InputError where there is nothing that can be read."""

    @abstractmethod
    def _frames(self) -> Iterator[Frame]:
        """The frames, once."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is open; calling it twice does no harm."""

    def __iter__(self) -> Iterator[Frame]:
        if self._begun:
            raise RuntimeError("a clip can be iterated over once; open it again")
        self._begun = True
        return self._frames()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class ClipSource:
    """id: unique, safe as a file name; path: what ``open_clip`` takes."""

    id: str
    path: str


def open_clip(path: str | os.PathLike[str], *, fps: float | None = None, max_pixels: int = MAX_PIXELS) -> Clip:
    """Open a video file, a folder of frames, a URL (``rtsp://``, ``http://``, ...) or a camera (``camera:0``).

    fps: frames a second of what has no times of its own (a folder of frames, a raw stream); elsewhere the clip's own
    times are true and this is not looked at. Default 25. max_pixels: of one frame.

    Raises InputError: no such source, not a video, damaged before its first frame, frames larger than ``max_pixels``.
    Raises ValueError for an fps that is not positive.
    """
    from anodiff.data.video.frames import FrameFolder
    from anodiff.data.video.live import LiveClip, is_endless
    from anodiff.data.video.read_av import VideoClip

    if fps is not None and not fps > 0:
        raise ValueError(f"expected a positive number of frames a second, found {fps}")
    text = os.fspath(path)
    if is_live(text):
        return LiveClip(text, max_pixels=max_pixels) if is_endless(text) else VideoClip(text, fps, max_pixels)
    if os.path.isdir(text):
        return FrameFolder(text, fps, max_pixels)
    return VideoClip(text, fps, max_pixels)


def is_live(path: str) -> bool:
    """Whether ``path`` names a camera or a URL and no file."""
    return (path.startswith(CAMERA) or _URL.match(path) is not None) and not os.path.lexists(path)


def shown(path: str) -> str:
    """``path`` as it may be written anywhere: a URL without its user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", path) if is_live(path) else path


def is_video(name: str) -> bool:
    """Whether a file's name ends like a video (any case)."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def list_frames(folder: str | os.PathLike[str]) -> list[str]:
    """The images that lie directly in ``folder``, in natural order; hidden ones are passed over.

    Raises InputError where the folder cannot be listed.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if image_suffix(entry.name) and entry.is_file()]
    except OSError as error:
        raise InputError(f"{folder}: expected a folder of frames, found {error.strerror or error}") from None
    return [os.path.join(folder, name) for name in sorted(names, key=natural_key) if not name.startswith(".")]


def expand_clips(inputs: Sequence[str | os.PathLike[str]]) -> list[ClipSource]:
    """The clips that a list of files, folders, glob patterns, URLs and cameras stands for, each once, in natural order.

    A folder is searched to its bottom: every video file in it is a clip, and so is every folder of at least two images
    that has no video beside them. Folders of pixel truth (``Test001_gt`` beside ``Test001``) are left out. Files named
    one by one are kept whatever they are: reading them says what is wrong. Ids as :func:`anodiff.data.table.make_ids`.

    Raises DataError for an argument that is neither of these, and where there is no clip at all.
    """
    found: dict[str, str] = {}
    for item in inputs:
        for path in _expand(os.fspath(item)):
            found.setdefault(path if is_live(path) else os.path.abspath(path), path)
    if not found:
        places = ", ".join(os.fspath(item) for item in inputs) or "no input"
        raise DataError(f"{places}: expected videos or folders of frames, found none")
    return clip_sources(sorted(found.values(), key=natural_key))


def clip_sources(paths: Sequence[str]) -> list[ClipSource]:
    """One source a path, in their order, with ids made."""
    # Folders have no extension to leave out, whatever dots their names have; streams have no common folder with files.
    files = [path for path in paths if not is_live(path)]
    ids = iter(make_ids([f"{path.rstrip(os.sep)}.frames" if os.path.isdir(path) else path for path in files]))
    streams = iter(
        make_ids([f"{shown(path).replace('://', '/').replace(':', '/')}.live" for path in paths if is_live(path)])
    )
    return [ClipSource(next(streams if is_live(path) else ids), path) for path in paths]


def _expand(item: str) -> list[str]:
    if is_live(item) or os.path.isfile(item):
        return [item]
    if os.path.isdir(item):
        return clips_below(item)
    if glob.has_magic(item):
        matched = [path for path in glob.glob(item, recursive=True) if is_video(path) or os.path.isdir(path)]
        if found := [clip for path in matched for clip in ([path] if os.path.isfile(path) else clips_below(path))]:
            return found
        raise DataError(f"{item}: expected a pattern that matches videos or folders of frames, found no match")
    raise DataError(f"{item}: expected a video, a folder, a pattern, a URL or camera:N, found no such path")


def clips_below(folder: str) -> list[str]:
    """The clips in and below a folder, as `expand_clips` finds them."""
    clips = []
    for current, folders, files in walk(folder):
        beside = set(folders)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (name.endswith(TRUTH_MARK) and name.removesuffix(TRUTH_MARK) in beside)
        ]
        names = [name for name in files if not name.startswith(".")]
        videos = [os.path.join(current, name) for name in names if is_video(name)]
        if not videos and sum(map(image_suffix, names)) >= MIN_FRAMES:
            videos = [current]
        clips += videos
    return clips
