"""The denoiser with its gradient where memory is short: smaller batches, one graph at a time, the same numbers."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodiff.errors import ConfigError
from anodiff.restoration.gradients import GradientDenoiser, WindowGradientDenoiser


class _Graph:
    """What lies in memory as long as a graph does."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


class _Cube(torch.autograd.Function):
    """x^3, for graphs of so many rows in all, and so many of them backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Memory) -> Tensor:
        if memory.held + len(x) > memory.rows:
            raise torch.OutOfMemoryError("too much")
        ctx.save_for_backward(x)
        ctx.memory, ctx.graph = memory, _Graph(len(x))
        memory.graphs.add(ctx.graph)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if len(x) > ctx.memory.backward_rows:
            raise torch.OutOfMemoryError("too much")
        return 3 * x**2 * grads[0], None


class Memory(nn.Module):
    """D(x) = x^3 with memory for the graphs of ``rows`` rows at a time, and for ``backward_rows`` of them backward."""

    def __init__(self, rows: int, backward_rows: int = 99) -> None:
        super().__init__()
        self.rows, self.backward_rows = rows, backward_rows
        self.graphs: weakref.WeakSet[_Graph] = weakref.WeakSet()

    @property
    def held(self) -> int:
        return sum(graph.rows for graph in self.graphs)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return _Cube.apply(x, self)


def rows(count: int, *size: int) -> Tensor:
    return torch.randn(count, 1, *(size or (4, 4)), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("memory", "batch"), [(Memory(2), 2), (Memory(5), 4), (Memory(99, 2), 2), (Memory(5, 1), 1)])
def test_out_of_memory_halves_the_batch_and_the_gradient_is_the_same(memory: Memory, batch: int) -> None:
    """Also where the graphs of all rows together are too much, in however small batches; forward, or backward."""
    path, x, v = GradientDenoiser(memory, "cpu", "fp32", 8), rows(7), rows(7) + 1
    values, pullback = path.linearise(x, 0.5)
    for _ in range(2):
        torch.testing.assert_close(pullback(v), 3 * x**2 * v)
    torch.testing.assert_close(values, x**3)
    assert path.network_batch == batch
    assert path.notes[-1].startswith(f"out of memory: went on with engine.network_batch={batch}")
    asked = len(path.notes)
    again, pullback = path.linearise(x, 0.5)
    torch.testing.assert_close(pullback(v), 3 * x**2 * v)
    assert torch.equal(again, values)
    assert len(path.notes) == asked
    assert memory.held <= batch
    assert path.gradients == 3 * 7
    assert path.calls == 2 * 7 + 3 * 7  # those run forward again are told


def test_graphs_that_fit_are_kept_and_nothing_is_run_again() -> None:
    memory = Memory(99)
    path, x = GradientDenoiser(memory, "cpu", "fp32", 4), rows(7)
    _, pullback = path.linearise(x, 0.5)
    assert memory.held == 8
    torch.testing.assert_close(pullback(x), 3 * x**3)
    assert (path.calls, path.gradients, path.notes) == (7, 7, [])


def test_windows_go_on_in_smaller_batches() -> None:
    path = WindowGradientDenoiser(GradientDenoiser(Memory(3), "cpu", "fp32", 8), (4, 4))
    x = rows(1, 10, 4)
    values, pullback = path.linearise(x, 0.5)
    torch.testing.assert_close(values, x**3)
    torch.testing.assert_close(pullback(x), 3 * x**3)
    assert path.network_batch == 2


def test_no_memory_for_one_row_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected memory for one image at a time"):
        GradientDenoiser(Memory(0), "cpu", "fp32", 4).linearise(rows(2), 0.5)
    _, pullback = GradientDenoiser(Memory(9, 0), "cpu", "fp32", 4).linearise(rows(2), 0.5)
    with pytest.raises(ConfigError, match="expected memory for one image at a time"):
        pullback(rows(2))
