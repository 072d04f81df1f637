"""What a detector says of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class DetectionResult:
    """What the detector says of N images; tensors lie on the images' device.

    Attributes:
        maps: (N, *S) float32, larger = more anomalous; in units of normal error where calibrated;
            never clamped, but for the ``limits`` of the preset.
        scores: (N,) float32, higher = more anomalous.
        p_values: (N,) float64; nan where there is no calibration.
        is_anomalous: (N,) bool, score > threshold, the same as p <= rate; None without a threshold.
        reconstructions: (N, C, *S) float32, the mean over start levels of what the model makes of the image; of a
            refined chain its end.
        threshold: of the scores; None where there is no calibration or too few normals.
        nfe: denoiser calls an image, of one that does not leave early.
        notes: sentences for the user: not calibrated, or too few normals for a threshold.
        left_early: (N,) bool, who was decided on by the first level alone; None without early exit.
        calls: (N,) int64, denoiser calls of each image where some left early; else None, all cost ``nfe``.
        pixel_quantiles: values of normal pixels by their share, for a colour scale; None where not calibrated.
    """

    maps: Tensor
    scores: Tensor
    p_values: Tensor
    is_anomalous: Tensor | None
    reconstructions: Tensor
    threshold: float | None
    nfe: int
    notes: tuple[str, ...] = ()
    pixel_quantiles: dict[float, float] | None = None
    left_early: Tensor | None = None
    calls: Tensor | None = None

    def show(self, images: Tensor | None = None) -> Any:
        """A figure, or sliders in a notebook; over ``images`` where given. See :func:`anodiff.visualize.show.show`."""
        from anodiff.visualize.show import show

        return show(self, images)
