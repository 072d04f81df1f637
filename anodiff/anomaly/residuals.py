"""How an image differs from its reconstruction: one error value a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from anodiff.anomaly.smoothing import resize_linear, smooth_spatial, tree_sum

Polarity = Literal["both", "brighter", "darker"]
Residual = Literal[
    "absolute",
    "squared",
    "signed",
    "ssim",
    "features",
    "features+absolute",
    "features-relative",
    "features-stitched",
]


def signed_difference(image: Tensor, reconstruction: Tensor, polarity: Polarity) -> Tensor:
    """Image minus reconstruction, positive where the image is anomalous by ``polarity``; channels kept.

    ``both`` and ``brighter``: x - r; ``darker``: r - x.
    """
    difference = image - reconstruction
    return -difference if polarity == "darker" else difference


def absolute_residual(difference: Tensor, polarity: Polarity) -> Tensor:
    """Mean over channels of |d| (``both``) or of its positive part; (N, C, *S) -> (N, *S)."""
    return channel_mean(difference.abs() if polarity == "both" else difference.clamp(min=0))


def squared_residual(difference: Tensor, polarity: Polarity) -> Tensor:
    """Mean over channels of d^2 (``both``) or of the squared positive part; (N, C, *S) -> (N, *S)."""
    kept = difference if polarity == "both" else difference.clamp(min=0)
    return channel_mean(kept * kept)


def ssim_residual(image: Tensor, reconstruction: Tensor, data_range: float = 2.0) -> Tensor:
    """1 - SSIM per pixel, in [0, 2], mean over channels; (N, C, *S) -> (N, *S).

    Gaussian window of 1.5 px cut at 3.5 standard deviations, K1 = 0.01, K2 = 0.03 (Wang et al. 2004).
    """
    axes = range(2, image.ndim)

    def window(x: Tensor) -> Tensor:
        return smooth_spatial(x, 1.5, axes, truncate=3.5)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_r = window(image), window(reconstruction)
    var_x = window(image * image) - mean_x * mean_x
    var_r = window(reconstruction * reconstruction) - mean_r * mean_r
    cov = window(image * reconstruction) - mean_x * mean_r
    structure = (2 * mean_x * mean_r + c1) * (2 * cov + c2)
    similarity = structure / ((mean_x * mean_x + mean_r * mean_r + c1) * (var_x + var_r + c2))
    return channel_mean(1.0 - similarity)


def feature_residual(image_features: Sequence[Tensor], features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Sum over resolutions of 1 - cos between encoder activations, resampled to ``size``; -> (N, *size).

    The feature distance D_f of DDAD (methods 5.7), without its batch-wide scale. Each (N, K, *s) pair is compared
    along K.
    """
    total: Tensor | None = None
    for ours, theirs in zip(image_features, features, strict=True):
        a, b = ours.movedim(1, -1), theirs.movedim(1, -1)
        norms = (tree_sum(a * a) * tree_sum(b * b)).sqrt()
        distance = 1.0 - tree_sum(a * b) / norms.clamp(min=1e-12)
        resized = resize_linear(distance.unsqueeze(1), size).squeeze(1)
        total = resized if total is None else total + resized
    if total is None:
        raise ValueError("feature residual: expected at least one resolution of features, found none")
    return total


def residual(image: Tensor, reconstruction: Tensor, kind: Residual, polarity: Polarity = "both") -> Tensor:
    """The error map of one reconstruction; image, reconstruction (N, C, *S) in [-1, 1] -> (N, *S).

    ``signed`` keeps the sign (positive = anomalous by ``polarity``; for ``both`` the magnitude is taken after
    smoothing, when what cancels has cancelled). ``ssim`` has no sign. Those named after features compare activations:
    see :func:`feature_residual` and :mod:`anodiff.anomaly.perceptual`.

    Raises:
        ValueError: another ``kind``.
    """
    if kind == "ssim":
        return ssim_residual(image, reconstruction)
    difference = signed_difference(image, reconstruction, polarity)
    if kind == "signed":
        return channel_mean(difference)
    if kind == "absolute":
        return absolute_residual(difference, polarity)
    if kind == "squared":
        return squared_residual(difference, polarity)
    raise ValueError(f"residual: expected absolute, squared, signed or ssim, found {kind!r}")


def channel_mean(x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, *S), channels added in order."""
    channels = list(x.unbind(1))
    total = channels[0]
    for channel in channels[1:]:
        total = total + channel
    return total / len(channels)


def apply_polarity(maps: Tensor, kind: Residual, polarity: Polarity) -> Tensor:
    """Last step of a map: a signed residual of polarity ``both`` becomes a magnitude; all others stay as they are."""
    return maps.abs() if kind == "signed" and polarity == "both" else maps


__all__ = [
    "Polarity",
    "Residual",
    "absolute_residual",
    "apply_polarity",
    "channel_mean",
    "feature_residual",
    "residual",
    "signed_difference",
    "squared_residual",
    "ssim_residual",
]
