"""One model, every task: operators that lose something, solvers that find it again, and the Restorer over both."""

from __future__ import annotations

from anodiff.restoration.counterfactual import Counterfactual
from anodiff.restoration.noise_level import estimate_rician_sigma, estimate_sigma
from anodiff.restoration.operators import (
    Blur,
    KSpace,
    LinearOperator,
    Mask,
    Operator,
    Slices,
    SuperResolution,
    cartesian_lines,
    gaussian_blur,
    motion_blur,
)
from anodiff.restoration.quantisation import Jpeg
from anodiff.restoration.restored import Restored
from anodiff.restoration.restorer import Restorer
from anodiff.restoration.solvers import SOLVERS, Posterior

__all__ = [
    "SOLVERS",
    "Blur",
    "Counterfactual",
    "Jpeg",
    "KSpace",
    "LinearOperator",
    "Mask",
    "Operator",
    "Posterior",
    "Restored",
    "Restorer",
    "Slices",
    "SuperResolution",
    "cartesian_lines",
    "estimate_rician_sigma",
    "estimate_sigma",
    "gaussian_blur",
    "motion_blur",
]
