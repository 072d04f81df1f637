"""A network that is told what the noise-free image looks like: a short code of it, beside the noise level.

Behrendt et al. 2023, "Guided reconstruction with conditioned diffusion models for unsupervised anomaly detection in
brain MRIs" (cDDPM). A code of so few numbers holds the contrast and brightness of a scan, and no lesion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anodiff.networks.dit import DiT
from anodiff.networks.unet import CONVOLUTION, UNet, group_norm

#: channels after each halving of the image
WIDTHS = (32, 64, 128, 128)


class ImageEncoder(nn.Module):
    """(N, C, *S) -> (N, code): convolutions of stride 2, the mean over what is left of the grid, a linear layer."""

    def __init__(self, dims: int, channels: int, code: int) -> None:
        super().__init__()
        conv = CONVOLUTION[dims]
        layers: list[nn.Module] = []
        for c_in, c_out in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [conv(c_in, c_out, 3, stride=2, padding=1), group_norm(c_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.outlet = nn.Linear(WIDTHS[-1], code)

    def forward(self, image: Tensor) -> Tensor:
        return self.outlet(self.layers(image).flatten(2).mean(dim=2))


class ImageConditioned(nn.Module):
    """F(x, c_noise[, label]) around a `UNet` or `DiT`, whose last ``channels`` of x are the noise-free image.

    The network within sees the channels before them, and its embedding is shifted by ``project(encoder(image))``:
    ``code`` numbers are all that passes from one to the other.
    """

    def __init__(self, network: UNet | DiT, channels: int, code: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels
        self.encoder = ImageEncoder(network.dims, channels, code)
        self.project = nn.Linear(code, network.embedding.width)

    #: a denoiser around it needs the noise-free image as its context
    sees_image = True

    @property
    def classes(self) -> int:
        """Of the network within."""
        return self.network.classes

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """See the class."""
        noisy, shift = self._parts(x)
        return self.network(noisy, c_noise, label, shift)

    def features(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> list[Tensor]:
        """Activations of the network within."""
        noisy, shift = self._parts(x)
        return self.network.features(noisy, c_noise, label, shift)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy channels, and the shift (N, width) that says what the noise-free ones look like."""
        noisy, image = torch.tensor_split(x, [x.shape[1] - self.channels], dim=1)
        return noisy, self.project(F.silu(self.encoder(image)))
