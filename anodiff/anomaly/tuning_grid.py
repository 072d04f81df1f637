"""What a tuning, and a baseline that chooses for itself, may choose from: one grid for both."""

from __future__ import annotations

from collections.abc import Sequence

from anodiff.anomaly.reduce import Reduction

#: residuals that follow from the difference of image and reconstruction
FROM_DIFFERENCE = ("signed", "squared", "absolute")
#: px on the model grid
SMOOTHINGS = (0.0, 1.0, 1.5, 2.5, 4.0, 6.0)
#: widths are at most this share of the image's shortest side: a wider one leaves nothing of a small image
WIDEST = 1 / 8
#: shares of a level's overall scale that are added to the local one
SCALE_FLOORS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
#: (reduction, topk)
REDUCTIONS: tuple[tuple[Reduction, float], ...] = (
    ("mean", 0.005),
    ("max", 0.005),
    ("topk", 0.001),
    ("topk", 0.005),
    ("topk", 0.02),
    ("topk", 0.1),
)


def smoothings(size: Sequence[int]) -> tuple[float, ...]:
    """The widths of SMOOTHINGS that an image of spatial ``size`` leaves room for, px."""
    return tuple(width for width in SMOOTHINGS if width <= WIDEST * min(size))
