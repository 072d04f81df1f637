"""What an operator watches: the footage with its heatmap, a box where something happens, and the score over time.

Frames are drawn one by one in constant memory. The heatmap has the run's one scale, and so has the strip of scores:
neither is stretched to a clip.
"""

from __future__ import annotations

import io
import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.data.video.write_av import VideoWriter
from anodiff.files import atomic_write
from anodiff.visualize.heatmap import HeatScale, Pixels, as_rgb, format_value, overlay

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from anodiff.anomaly.events import Box, Event

Colour = tuple[int, int, int]

GROUND: Colour = (15, 17, 21)
INK: Colour = (232, 234, 237)
FAINT: Colour = (110, 117, 128)
CURVE: Colour = (143, 184, 238)
HOT: Colour = (240, 113, 79)
BAND: Colour = (67, 32, 26)
BOX: Colour = (64, 224, 208)
#: of the strip under the picture, px
STRIP, HEAD = 72, 18


@dataclass(frozen=True)
class ScoreAxis:
    """The strip's scale, one a run: scores from ``low`` to ``high``, and the threshold where there is one.

    Raises:
        ValueError: not finite, or not low < high.
    """

    low: float
    high: float
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a score axis needs finite low < high, found {self.low}, {self.high}")

    @classmethod
    def around(cls, low: float, threshold: float, reach: float = 2.0) -> ScoreAxis:
        """From a usual normal score to ``reach`` times as far above the threshold as that lies below it."""
        below = max(threshold - low, 1e-9 + 1e-6 * abs(threshold))
        return cls(threshold - below, threshold + reach * below, threshold)

    def position(self, values: ArrayLike) -> NDArray[np.float64]:
        """Scores -> 0 (bottom) .. 1 (top), clamped; nan stays."""
        return np.clip((np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low), 0.0, 1.0)


class AnnotatedVideo:
    """annotated.mp4: each frame with overlay and boxes, below it a strip of scores with threshold and cursor.

    Frames keep their true times. With ``curve`` (a recorded clip) the strip shows the whole clip and the cursor moves;
    without it (live) the last ``window_s`` seconds move past a cursor at the right. A context manager.

    Args:
        path: of the file.
        size: (H, W) of the frames, as `write` gets them.
        axis: of the scores.
        scale: of the maps; None draws no heatmap.
        curve: (times (n,), smoothed scores (n,)) of the whole clip.
        events: of the whole clip, drawn as bands.
        min_px, max_px: small frames are enlarged by a whole number to a longer side of at least about ``min_px``, large
            ones shrunk by a whole number to at most ``max_px``.
        window_s: seconds shown when live.
        growing: see `VideoWriter`.

    Raises:
        StorageError: see `VideoWriter`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        axis: ScoreAxis,
        *,
        scale: HeatScale | None = None,
        curve: tuple[ArrayLike, ArrayLike] | None = None,
        events: Sequence[Event] = (),
        min_px: int = 480,
        max_px: int = 1280,
        window_s: float = 60.0,
        growing: bool = False,
    ) -> None:
        self.size, self.scale, self.axis = size, scale, axis
        self.zoom, self.shrink = max(1, round(min_px / max(size))), max(1, -(-max(size) // max_px))
        # the sides that box averages give, whatever the remainder
        height, width = (-(-side // self.shrink) * self.zoom for side in size)
        self.strip: Strip = (
            RollingStrip(axis, width, window_s) if curve is None else WholeStrip(axis, width, *curve, events=events)
        )
        self._shape = (height + HEAD + STRIP, width)
        self._video = VideoWriter(path, self._shape, growing=growing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._video.close(keep=kind is None)

    def close(self) -> None:
        """Completes the file."""
        self._video.close()

    def write(
        self,
        pixels: Pixels,
        time: float,
        score: float = math.nan,
        *,
        anomaly_map: ArrayLike | None = None,
        box: Box | None = None,
        event: Event | None = None,
        note: str = "",
    ) -> None:
        """One frame.

        Args:
            pixels: uint8 (H, W), (H, W, 1) or (H, W, 3), of the size given before.
            time: seconds, later than before.
            score: smoothed; nan for a frame without one.
            anomaly_map: (h, w), over the whole frame whatever its grid.
            box: where it is anomalous; drawn while ``event`` goes on, the event's own box where None.
            event: that goes on.
            note: a few words at the right of the head line.

        Raises:
            ValueError: another size. StorageError: it cannot be written.
        """
        self._video.write(self._drawn(pixels, time, score, anomaly_map, box, event, note), time)

    def _drawn(
        self,
        pixels: Pixels,
        time: float,
        score: float,
        anomaly_map: ArrayLike | None,
        box: Box | None,
        event: Event | None,
        note: str,
    ) -> Pixels:
        from PIL import Image, ImageDraw

        if pixels.shape[:2] != self.size:
            raise ValueError(f"expected frames of {self.size}, found {pixels.shape[:2]}")
        height, width = self._shape
        canvas = Image.new("RGB", (width, height), GROUND)
        canvas.paste(self._picture(pixels, anomaly_map), (0, 0))
        draw = ImageDraw.Draw(canvas)
        if event is not None:
            self._frame_box(draw, box or event.box, event)
        top = height - HEAD - STRIP
        shown = "no score" if math.isnan(score) else f"score {format_value(score)}"
        draw.text((4, top + 2), f"{clock(time)}   {shown}", fill=INK if event is None else HOT, font=_font())
        if note:
            draw.text((width - 4, top + 2), note, fill=FAINT, font=_font(), anchor="ra")
        self.strip.draw(canvas, (0, top + HEAD), time, score)
        return np.asarray(canvas)

    def _picture(self, pixels: Pixels, anomaly_map: ArrayLike | None) -> Image.Image:
        from PIL import Image

        picture = Image.fromarray(np.ascontiguousarray(as_rgb(pixels)))
        if self.shrink > 1:
            picture = picture.reduce(self.shrink)
        if anomaly_map is not None and self.scale is not None:
            values = resized(anomaly_map, (picture.height, picture.width))
            picture = Image.fromarray(overlay(np.asarray(picture), values, self.scale))
        if self.zoom == 1:
            return picture
        return picture.resize((picture.width * self.zoom, picture.height * self.zoom), Image.Resampling.NEAREST)

    def _frame_box(self, draw: ImageDraw.ImageDraw, box: Box | None, event: Event) -> None:
        label = f"event {event.number}" if event.alarm else f"candidate {event.number}, p {format_value(event.p_value)}"
        if box is None:
            draw.text((5, 3), label, fill=BOX, font=_font())
            return
        x, y, w, h = (side * self.zoom / self.shrink for side in box)
        draw.rectangle([x - 1, y - 1, x + w, y + h], outline=BOX, width=2)
        draw.text((max(2, x), max(0, y - 17)), label, fill=BOX, font=_font(), stroke_width=2, stroke_fill=GROUND)


class Strip(ABC):
    """A drawing of scores over time, ``width`` x STRIP px."""

    def __init__(self, axis: ScoreAxis, width: int) -> None:
        self.axis, self.width = axis, width

    @abstractmethod
    def draw(self, canvas: Image.Image, place: tuple[int, int], time: float, score: float) -> None:
        """Draws the strip with the cursor at ``time``, its upper left corner at ``place``."""

    def _height(self, values: ArrayLike) -> NDArray[np.float64]:
        return (STRIP - 3) - self.axis.position(values) * (STRIP - 6)

    def _threshold(self, draw: ImageDraw.ImageDraw) -> None:
        if self.axis.threshold is not None:
            y = float(self._height(self.axis.threshold))
            for x in range(0, self.width, 8):
                draw.line([(x, y), (x + 4, y)], fill=HOT)


class WholeStrip(Strip):
    """A recorded clip from its first frame to its last: drawn once, each column the highest score of its time."""

    def __init__(
        self, axis: ScoreAxis, width: int, times: ArrayLike, scores: ArrayLike, *, events: Sequence[Event] = ()
    ) -> None:
        from PIL import Image, ImageDraw

        super().__init__(axis, width)
        at, values = np.asarray(times, dtype=np.float64), np.asarray(scores, dtype=np.float64)
        self._start = float(at[0]) if at.size else 0.0
        self._length = (float(at[-1]) - self._start if at.size else 0.0) or 1.0
        self._base = Image.new("RGB", (width, STRIP), GROUND)
        draw = ImageDraw.Draw(self._base)
        for event in events:
            draw.rectangle([self._x(event.start), 0, self._x(event.end) + 1, STRIP], fill=BAND)
        columns, highest = column_maxima(self._columns(at), values)
        points = list(zip(columns.tolist(), self._height(highest).tolist(), strict=True))
        if len(points) > 1:
            draw.line(points, fill=CURVE, width=1)
        self._threshold(draw)

    def draw(self, canvas: Image.Image, place: tuple[int, int], time: float, score: float) -> None:
        """See `Strip`."""
        from PIL import ImageDraw

        canvas.paste(self._base, place)
        x = place[0] + self._x(time)
        ImageDraw.Draw(canvas).line([(x, place[1]), (x, place[1] + STRIP)], fill=INK)

    def _columns(self, times: ArrayLike) -> NDArray[np.int64]:
        along = (np.asarray(times, dtype=np.float64) - self._start) / self._length
        return np.rint(np.clip(along, 0.0, 1.0) * (self.width - 1)).astype(np.int64)

    def _x(self, time: float) -> int:
        return int(self._columns(time))


class RollingStrip(Strip):
    """The last ``window_s`` seconds; the cursor is now, at the right. Remembers one score a column."""

    def __init__(self, axis: ScoreAxis, width: int, window_s: float) -> None:
        super().__init__(axis, width)
        self._window = window_s
        self._points: deque[tuple[int, float, float]] = deque(maxlen=width + 2)

    def draw(self, canvas: Image.Image, place: tuple[int, int], time: float, score: float) -> None:
        """See `Strip`; remembers the score."""
        from PIL import Image, ImageDraw

        step = self._window / self.width
        column = int(time // step)
        if not math.isnan(score):
            if self._points and self._points[-1][0] == column:
                score = max(score, self._points.pop()[2])
            self._points.append((column, time, score))
        strip = Image.new("RGB", (self.width, STRIP), GROUND)
        draw = ImageDraw.Draw(strip)
        points = [
            (self.width - 1 - (time - then) / step, float(self._height(value))) for _, then, value in self._points
        ]
        points = [point for point in points if point[0] >= 0]
        if len(points) > 1:
            draw.line(points, fill=CURVE, width=1)
        self._threshold(draw)
        draw.line([(self.width - 1, 0), (self.width - 1, STRIP)], fill=INK)
        canvas.paste(strip, place)


def column_maxima(
    columns: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The highest value of each column that has one: (n,) not falling, (n,) with nan -> (m,), (m,)."""
    there = ~np.isnan(values)
    columns, values = columns[there], values[there]
    if not columns.size:
        return columns, values
    starts = np.flatnonzero(np.diff(columns, prepend=columns[0] - 1))
    return columns[starts], np.maximum.reduceat(values, starts)


def thumbnail(
    pixels: Pixels,
    *,
    anomaly_map: ArrayLike | None = None,
    scale: HeatScale | None = None,
    box: Box | None = None,
    max_px: int = 320,
) -> Pixels:
    """A frame with its overlay and box, RGB uint8, its longer side at most ``max_px`` and enlarged by at most 8."""
    from PIL import Image, ImageDraw

    rgb = np.ascontiguousarray(as_rgb(pixels))
    height, width = rgb.shape[:2]
    factor = min(8.0, max_px / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(rgb).resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)
    if anomaly_map is not None and scale is not None:
        picture = Image.fromarray(overlay(np.asarray(picture), resized(anomaly_map, size[::-1]), scale))
    if box is not None:
        x, y, w, h = (side * factor for side in box)
        ImageDraw.Draw(picture).rectangle([x - 1, y - 1, x + w, y + h], outline=BOX, width=2)
    return np.asarray(picture)


def save_thumbnail(path: str | os.PathLike[str], picture: Pixels) -> None:
    """Writes a picture as JPEG, under a temporary name first. Raises StorageError."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
    atomic_write(path, buffer.getvalue())


def resized(anomaly_map: ArrayLike, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (h, w) on another grid (H, W) over the same frame, by linear interpolation; nan becomes the lowest."""
    from PIL import Image

    values = np.asarray(anomaly_map, dtype=np.float32)
    if np.isnan(values).any():
        values = np.nan_to_num(values, nan=float(np.nanmin(values)) if not np.isnan(values).all() else 0.0)
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))


def clock(time: float) -> str:
    """Seconds as 1:02:03.45."""
    hundredths = max(0, round(time * 100))
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(12)
