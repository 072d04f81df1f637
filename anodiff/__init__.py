"""anodiff: anomaly detection with diffusion models, when normal examples are all you have.

>>> import anodiff
>>> model = anodiff.load("brain.safetensors")          # doctest: +SKIP
>>> detector = anodiff.AnomalyDetector(model)          # doctest: +SKIP
>>> result = detector(images)                          # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anodiff.anomaly import AnomalyDetector
    from anodiff.model import DiffusionModel, load
    from anodiff.restoration import Restorer

__version__ = "0.1.0"
__all__ = ["AnomalyDetector", "DiffusionModel", "Restorer", "__version__", "load"]

_HOME = {
    "AnomalyDetector": "anodiff.anomaly",
    "DiffusionModel": "anodiff.model",
    "Restorer": "anodiff.restoration",
    "load": "anodiff.model",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `anodiff --help` need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'anodiff' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
