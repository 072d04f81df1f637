"""Progress of a long run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

RATE_WINDOW_SECONDS = 30.0
PLAIN_INTERVAL_SECONDS = 10.0

Field = float | int | str


class Progress:
    """Counts units of work and shows rate, time left, memory and the caller's own fields.

    Use it as a context manager; every method may be called from any thread. On a terminal it is one live bar,
    elsewhere one plain line every `interval` seconds and one at the end, so that a log file stays readable.

    Args:
        total: units of the whole job, or None when unknown.
        unit: what is counted, in the plural ("images").
        description: what is being done, one or two words.
        start: units done by an earlier run that this one resumes; they count as done, not in the rate.
        stream: where to write; standard error by default, so that standard output stays for results.
        interval: seconds between two plain lines.
        quiet: show nothing, only count.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "images",
        description: str = "",
        *,
        start: int = 0,
        stream: TextIO | None = None,
        interval: float = PLAIN_INTERVAL_SECONDS,
        quiet: bool = False,
    ) -> None:
        self.total = total
        self.unit = unit
        self.description = description
        self.start = start
        self.done = start
        self.fields: dict[str, Field] = {}
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval
        self._quiet = quiet
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._began, start)])
        self._last_line = self._began
        self._written = start
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._open = False

    def __enter__(self) -> Progress:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Units per second over the last half minute (0 until something is done)."""
        with self._lock:
            (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / (now - then) if now > then else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the present rate, or None when the total or the rate is unknown."""
        rate = self.rate
        return max(self.total - self.done, 0) / rate if self.total is not None and rate > 0 else None

    def open(self) -> None:
        """Starts showing (entering the context does it)."""
        with self._lock:
            if self._open:
                return
            self._open = True
            self._began = self._last_line = time.monotonic()
            self._marks = deque([(self._began, self.done)])
            if not self._quiet and is_terminal(self._stream):
                self._open_bar()

    def update(self, n: int = 1, **fields: Field) -> None:
        """Counts `n` more units and replaces the shown fields, e.g. update(32, loss=0.12, lr="1e-4")."""
        now = time.monotonic()
        with self._lock:
            self.done += n
            self.fields.update(fields)
            if n:  # a field that changes while one unit is under way says nothing of the rate
                self._marks.append((now, self.done))
            while len(self._marks) > 2 and now - self._marks[1][0] > RATE_WINDOW_SECONDS:
                self._marks.popleft()
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self.done, status=self._status() + self._left())
            elif self._open and not self._quiet and now - self._last_line >= self._interval:
                self._write_line(now)

    def skip(self, n: int) -> None:
        """Counts `n` units that an earlier run did: done, but not in the rate."""
        with self._lock:
            self.start += n
            self.done += n
            self._marks = deque((when, count + n) for when, count in self._marks)

    def note(self, message: str) -> None:
        """Prints one line for the reader without breaking the bar."""
        with self._lock:
            if self._quiet:
                return
            if self._bar is not None:
                self._bar.console.print(message, markup=False, highlight=False)
            else:
                print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the display; off a terminal the final state is one last line."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            elif not self._quiet and self.done > max(self.start, self._written):
                self._write_line(time.monotonic())

    def line(self) -> str:
        """The present state as one plain line."""
        percent = f" {100 * self.done // self.total:d}%" if self.total else ""
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        head = f"{self.description}: " if self.description else ""
        return f"{head}{count} {self.unit}{percent} | {self._status()} | {duration(self.elapsed)} gone{self._left()}"

    def _left(self) -> str:
        left = self.seconds_left
        return "" if left is None else f", {duration(left)} left"

    def _status(self) -> str:
        parts = [f"{name} {number(value)}" for name, value in self.fields.items()]
        parts.append(f"{number(self.rate)} {self.unit}/s")
        parts.append(memory_text())
        return " | ".join(part for part in parts if part)

    def _write_line(self, now: float) -> None:
        self._last_line, self._written = now, self.done
        print(self.line(), file=self._stream, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=self._stream),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, status=self._status())
        self._bar.start()


def is_terminal(stream: TextIO) -> bool:
    """True where a live bar can be drawn."""
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM", "") != "dumb"


def number(value: Field) -> str:
    """A number short enough for a bar: 4 significant digits; text as it is."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as "42 s", "3 min 05 s" or "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def peak_memory_gib() -> float | None:
    """Peak memory of this process in GiB: on the GPU when one is in use, else resident; None where unknown."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())) / 2**30
    try:
        import resource
    except ImportError:  # Windows has no such call
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def memory_text() -> str:
    """The peak memory as "1.2 GiB", or nothing."""
    peak = peak_memory_gib()
    return "" if peak is None else f"{peak:.1f} GiB"
