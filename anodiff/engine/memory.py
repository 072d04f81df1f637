"""How much memory a computation needs at its peak, counted by tensors: what bounds a batch before memory runs out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Within it, ``peak`` is the most bytes that the tensors made here hold at a time.

    Views hold nothing of their own. What a kernel needs inside is not seen: allow for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage(each) for each in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for each in _tensors(result):
            address = _storage(each)
            if address not in inputs and address not in self._known:
                self._hold(each.untyped_storage(), address)
        return result

    def _hold(self, storage: Any, address: int) -> None:
        count = storage.nbytes()
        self._known.add(address)
        self.held += count
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, address, count)

    def _release(self, address: int, count: int) -> None:
        self._known.discard(address)
        self.held -= count


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that the tensors of a call hold at a time, beside those that were there before."""
    with PeakMemory() as memory:
        result = function()
    del result
    return memory.peak


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
