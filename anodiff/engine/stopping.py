"""How a run is asked to stop: the first signal lets it finish what is in hand, a later one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

TOGETHER = 0.5  # seconds within which a second signal belongs to the first

_STOPPING = b"\nstopping after what is in hand; the same command goes on from there (Ctrl-C again stops at once)\n"


class Stopped(BaseException):
    """Raised in `Job.compute` when the run was asked to stop: the batch is left undone, as if never begun."""


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a request to stop, later ones into KeyboardInterrupt (main thread only).

    Signals within TOGETHER seconds are one request: GNU timeout sends one to the process and one to its group.

    Attributes:
        asked: to end after the batch in hand; insisted: to end at once.
    """

    def __init__(self) -> None:
        self.asked = self.insisted = False
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
        os.write(2, _STOPPING)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Ends what is inside at a second signal, as if it had come to its end; other interrupts go through."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.insisted:
                raise
