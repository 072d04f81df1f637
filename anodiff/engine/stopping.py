"""How a run is asked to stop: the first signal lets it finish what is in hand, a later one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

TOGETHER = 0.5  # seconds within which a second signal belongs to the first

_STOPPING = "stopping after what is in hand; the same command goes on from there (Ctrl-C again stops at once)"


class Stopped(BaseException):
    """Raised in `Job.compute` when the run was asked to stop: the batch is left undone, as if never begun."""


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a request to stop, later ones into KeyboardInterrupt (main thread only).

    Signals within TOGETHER seconds are one request: GNU timeout sends one to the process and one to its group.

    Args:
        said: to whoever asked, on standard error; "" says nothing. then: is called when asked.

    Attributes:
        asked: to end after the batch in hand; insisted: to end at once.
    """

    def __init__(self, said: str = _STOPPING, then: Callable[[], object] | None = None) -> None:
        self.asked = self.insisted = False
        self._said, self._then = said, then
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            if time.monotonic() - self._when < TOGETHER:
                return
            self.insisted = True
            raise KeyboardInterrupt
        self.asked, self._when = True, time.monotonic()
        if self._then is not None:
            self._then()
        # Not by print, which may just be at work; nobody may listen any more, and nothing here may fail in its place.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._said}\n".encode() if self._said else b"")

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Ends what is inside at a second signal, as if it had come to its end; other interrupts go through."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.insisted:
                raise
