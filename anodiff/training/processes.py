"""Several training processes under torchrun: who am I, and how gradients are shared."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """``rank`` of ``world`` processes; ``local_rank`` picks the GPU on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """True in the one process that writes files and shows progress."""
        return self.rank == 0

    def average_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its mean over the processes, in one transfer."""
        if self.world == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def average(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        if self.world == 1:
            return value
        shared = value.clone()
        dist.all_reduce(shared)
        return shared / self.world

    def any(self, flag: bool) -> bool:
        """True in every process when it is True in one: so that all stop at the same update."""
        if self.world == 1:
            return flag
        shared = torch.tensor([float(flag)], device=self._device())
        dist.all_reduce(shared)
        return bool(shared.item() > 0)

    def _device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def processes(use_cuda: bool) -> Iterator[Processes]:
    """The processes torchrun started (it sets RANK, WORLD_SIZE, LOCAL_RANK), or just this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda:
        torch.cuda.set_device(local_rank)
    # Its functions take the group of the moment of their import as a default. Imported later, by an optimiser, they
    # would keep the group's threads alive, and a thread that frees a tensor while Python ends aborts the process.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), world, local_rank)
    finally:
        dist.destroy_process_group()
