"""Maps that weigh a difference by how far apart image and reconstruction are for the denoiser's own encoder.

The papers use LPIPS, a network trained on photographs. Here the denoiser's encoder takes its place, as it is at hand in
any model, in 2-D and 3-D: the presets that need it are named ``*-features``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anodiff.anomaly.residuals import Polarity, absolute_residual, feature_residual, signed_difference
from anodiff.errors import ConfigError

#: noise level at which the encoder is told to look at a (clean) image
FEATURE_SIGMA = 0.1
#: share of an image's pixels whose error counts as fully anomalous (AutoDDPM's 95th percentile)
LOUD_SHARE = 0.05
SMALLEST = 1e-8


class FeatureDistance:
    """Distance D_f of reconstructions from given images (N, C, *S); one call of the encoder each.

    ``denoiser`` is one with ``features(x, sigma)``. Raises ConfigError for one without.
    """

    def __init__(self, denoiser: Any, images: Tensor) -> None:
        if not hasattr(denoiser, "features"):
            raise ConfigError("a distance of features needs a denoiser with an encoder, found one without features")
        self.denoiser, self.images = denoiser, images
        self.ours: list[Tensor] = denoiser.features(images, FEATURE_SIGMA)

    def __call__(self, reconstructions: Tensor) -> Tensor:
        """(N, C, *S) -> (N, *S), 0 where both look alike, see :func:`anodiff.anomaly.residuals.feature_residual`."""
        theirs = self.denoiser.features(reconstructions, FEATURE_SIGMA)
        return feature_residual(self.ours, theirs, self.images.shape[2:])

    def difference(self, reconstructions: Tensor, polarity: Polarity) -> Tensor:
        """Mean over channels of |x - r|, or of its part that is anomalous by ``polarity``; -> (N, *S)."""
        return absolute_residual(signed_difference(self.images, reconstructions, polarity), polarity)

    def relative(self, reconstructions: Tensor, polarity: Polarity = "both") -> Tensor:
        """D_f |x - r| by its largest value in the image; -> (N, *S) in [0, 1] (THOR, methods 5.6).

        The published code divides by the largest of the batch; by the image's own no score depends on batch mates.
        """
        product = self(reconstructions) * self.difference(reconstructions, polarity)
        return product / (_largest(product) + SMALLEST)

    def soft_mask(self, reconstructions: Tensor, polarity: Polarity = "both") -> Tensor:
        """D_f min(|x - r| / P95, 1), P95 the image's 95th percentile of |x - r|; -> (N, *S) (AutoDDPM, methods 5.5)."""
        difference = self.difference(reconstructions, polarity)
        loud = upper_quantile(difference, LOUD_SHARE)
        return self(reconstructions) * (difference / (loud + SMALLEST)).clamp(max=1.0)


def upper_quantile(maps: Tensor, share: float) -> Tensor:
    """The value that ``share`` of each map's pixels exceed at most; (N, *S) -> (N, 1, ...), an element of each map."""
    values = maps.flatten(1)
    rank = max(1, math.ceil((1.0 - share) * values.shape[1]))
    return values.kthvalue(rank, dim=1).values.reshape(-1, *[1] * (maps.ndim - 1))


def dilate(maps: Tensor, side: int) -> Tensor:
    """Grey dilation: the largest value of the box of odd ``side`` px around each pixel; (N, *S) -> (N, *S)."""
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[maps.ndim - 1]
    return pool(maps.unsqueeze(1), side, stride=1, padding=side // 2).squeeze(1)


def close(maps: Tensor, side: int) -> Tensor:
    """Grey closing by a box: dilation, then erosion; (N, *S) -> (N, *S)."""
    return -dilate(-dilate(maps, side), side)


def region_mask(relative: Tensor, side: int) -> Tensor:
    """M = (dilate(close(A)) + A) / 2 of THOR (methods 5.6): whole regions, loudest where A is; (N, *S) in [0, 1]."""
    return (dilate(close(relative, side), side) + relative) / 2


def anomalous_region(soft: Tensor, share: float, side: int) -> Tensor:
    """The loudest ``share`` of a soft mask's pixels, dilated by a box; (N, *S) -> bool (AutoDDPM, methods 5.5)."""
    return dilate((soft > upper_quantile(soft, share)).to(soft.dtype), side) > 0


def _largest(maps: Tensor) -> Tensor:
    return torch.amax(maps, dim=tuple(range(1, maps.ndim)), keepdim=True)
