"""A model file that is read when it is first needed, in whatever process that is."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anodiff.errors import ModelFileError

if TYPE_CHECKING:
    from anodiff.model import DiffusionModel


class LazyModel:
    """A model by its path; pickles as the path and the digest of its content, so that workers read it themselves.

    path: of a model file, made absolute; it is looked at at once, and read by the first :meth:`get`.

    Raises ModelFileError where there is no model file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.digest = content_digest(self.path)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._model: DiffusionModel | None = None

    def get(self) -> DiffusionModel:
        """The model, read once, by whichever thread comes first.

        Raises ModelFileError where the file is not whole, or not the one that this was made for.
        """
        with self._lock:
            if self._model is None:
                from anodiff.model import load

                found = content_digest(self.path)
                if found != self.digest:
                    raise ModelFileError(
                        f"{self.path}: expected the model with digest {self.digest}, found another with {found}"
                    )
                self._model = load(self.path)
            return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "digest": self.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.digest = state["path"], state["digest"]
        self._start()

    def __repr__(self) -> str:
        return f"LazyModel({str(self.path)!r})"


def content_digest(path: Path) -> str:
    """The digest that a model file has of its content; its tensors are not read.

    Raises ModelFileError for anything but a model file of anodiff.
    """
    from safetensors import SafetensorError, safe_open

    from anodiff.model import HEADER_KEY, load

    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {})[HEADER_KEY])["digest"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        load(path)  # says what is wrong with it
        raise ModelFileError(f"{path}: expected a model file with a digest, found one without") from None
