"""Results of parts of a long computation, kept in a folder: killed, the same computation takes up what is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.files import atomic_write, make_folder, remove_leftovers, storage_errors

Found = dict[str, Tensor]


class Pieces:
    """One file a piece, named by a hash of what it is made from.

    Args:
        folder: of the files; None keeps nothing.
        identity: whatever else the pieces depend on (weights, settings, device), as plain values.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = None if folder is None else make_folder(folder)
        if self.folder is not None:
            remove_leftovers(self.folder)
        self._identity = json.dumps(identity or {}, sort_keys=True).encode()

    def get(self, kind: str, inputs: Iterable[Tensor], make: Callable[[], Found]) -> Found:
        """What ``make`` makes of the inputs, from the folder where it is there; a damaged file is made again.

        Raises:
            StorageError: it cannot be written.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{self._name(kind, inputs)}.npz"
        with (
            contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile),
            np.load(path, allow_pickle=False) as stored,
        ):
            return {name: torch.from_numpy(stored[name]) for name in stored.files}
        found = make()
        arrays: dict[str, Any] = {name: values.cpu().numpy() for name, values in found.items()}
        atomic_write(path, lambda stream: np.savez(stream, **arrays))
        return found

    def remove(self) -> None:
        """The computation is over: its pieces go, and the folder above where nothing else is in it."""
        if self.folder is None:
            return
        with storage_errors(self.folder):
            shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def _name(self, kind: str, inputs: Iterable[Tensor]) -> str:
        digest = hashlib.blake2b(self._identity, digest_size=16)
        digest.update(kind.encode())
        for values in inputs:
            digest.update(f"|{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def module_digest(module: torch.nn.Module) -> str:
    """A hash of a module's weights and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, values in module.state_dict().items():
        digest.update(f"|{name}{values.dtype}{tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
