"""What became of images: the result of every task of the Restorer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Restored:
    """What became of N images; tensors lie on the images' device.

    Attributes:
        images: (N, C, *S) float32 in the model's range: the estimate of a denoised image, else the first sample.
        nfe: denoiser calls an image. gradients: of the denoiser, an image; each costs about two calls.
        samples: (N, K, C, *S), where more than one was asked for, or samples of a denoised image.
        uncertainty: (N, C, *S) standard deviation at each voxel, where known.
        sigma: (N,) float64, the noise level that was given or found.
        sigma_from: where each level comes from: "given", "foreground" or "background" (see ``noise_level``).
        counts: the level is that of counts made of constant deviation: the values themselves have none.
    """

    images: Tensor
    nfe: int
    gradients: int = 0
    samples: Tensor | None = None
    uncertainty: Tensor | None = None
    sigma: Tensor | None = None
    sigma_from: tuple[str, ...] | None = None
    counts: bool = False

    def averaged(self) -> Restored:
        """The mean of the samples in the place of the first: nearer to the truth than each of them, and smoother.

        Of their spread nothing is left: of most solvers it is no uncertainty.
        """
        return self if self.samples is None else replace(self, images=self.samples.mean(dim=1), uncertainty=None)
