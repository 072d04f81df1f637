"""Entries of an iterator made in a thread, ahead of their use: files are decoded while the device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

#: seconds between looks at whether the other side is still there
TICK = 0.1


class _Raised:
    """What ended the source: an exception, or None at its own end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Made(Generic[T]):
    """One entry."""

    def __init__(self, value: T) -> None:
        self.value = value


def read_ahead(source: Iterable[T], room: int) -> Generator[T, None, None]:
    """The entries of ``source`` in order, at most ``room`` of them, and one in hand, made before they are asked for.

    An exception of the source comes out where its next entry would have; those before it are not lost. `close` the
    generator (`contextlib.closing`) where it may be left early: it returns when the thread no longer uses the source,
    so that the source's files can be closed after that.
    """
    waiting: queue.Queue[_Made[T] | _Raised] = queue.Queue(max(1, room))
    left = threading.Event()
    thread = threading.Thread(target=_make, args=(source, waiting, left), name="anodiff-ahead", daemon=True)
    thread.start()
    try:
        while True:
            entry = waiting.get()
            if isinstance(entry, _Raised):
                if entry.error is not None:
                    raise entry.error
                return
            yield entry.value
    finally:
        left.set()
        thread.join()


def _make(source: Iterable[T], waiting: queue.Queue[_Made[T] | _Raised], left: threading.Event) -> None:
    """In the thread: makes entries until the source ends or nobody wants more."""
    error: BaseException | None = None
    try:
        for value in source:
            if not _put(_Made(value), waiting, left):
                return
    except BaseException as raised:
        error = raised
    _put(_Raised(error), waiting, left)


def _put(entry: _Made[T] | _Raised, waiting: queue.Queue[_Made[T] | _Raised], left: threading.Event) -> bool:
    """Waits for room; False where nobody wants more."""
    while not left.is_set():
        try:
            waiting.put(entry, timeout=TICK)
        except queue.Full:
            continue
        return True
    return False
