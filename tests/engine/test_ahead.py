"""Reading ahead: the same entries in the same order, in bounded memory, errors in their place, a thread that ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from anodiff.engine.ahead import read_ahead


def threads() -> int:
    return sum(thread.name == "anodiff-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("room", [0, 1, 7, 1000])
def test_entries_come_in_order_and_the_thread_ends(room: int) -> None:
    assert list(read_ahead(range(100), room)) == list(range(100))
    assert list(read_ahead([], room)) == []
    assert threads() == 0


def test_no_more_is_made_than_there_is_room_for() -> None:
    made: list[int] = []
    entries = read_ahead((made.append(number) or number for number in range(100)), 5)
    for taken, _ in enumerate(entries, 1):
        if taken < 10:
            until = time.monotonic() + 60
            while len(made) < taken + 6 and time.monotonic() < until:
                time.sleep(0.001)  # it does run ahead
            assert taken < len(made) <= taken + 6  # five wait, one is in hand
    assert len(made) == 100


def test_an_error_comes_where_its_entry_would_have() -> None:
    def breaks() -> Iterator[int]:
        yield from range(3)
        raise ValueError("frame 3 is torn")

    found = []
    with pytest.raises(ValueError, match="frame 3 is torn"):  # noqa: PT012
        for entry in read_ahead(breaks(), 10):
            found.append(entry)
    assert found == [0, 1, 2]
    assert threads() == 0


@pytest.mark.parametrize("leave", [GeneratorExit, KeyboardInterrupt])
def test_left_early_it_returns_when_nobody_reads_any_more(leave: type[BaseException]) -> None:
    reading = threading.Event()

    def slow() -> Iterator[int]:
        for number in range(1000):
            reading.set()
            time.sleep(0.01)
            reading.clear()
            yield number

    with pytest.raises(leave), closing(read_ahead(slow(), 2)) as entries:  # noqa: PT012
        assert next(entries) == 0
        raise leave
    assert threads() == 0
    assert not reading.is_set()
