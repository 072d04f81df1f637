"""Adapters that make networks of other libraries callable as ``network(x, c_noise)`` inside a Denoiser.

Both libraries' U-Nets expect the image at variance-preserving scale and the timestep of their own table, counted from
0. That is what ``Denoiser(wrap_monai(unet), "eps", schedule=..., noise_input="timestep")`` gives them, with the
prediction named as the network was trained: their "epsilon", "sample" and "v_prediction" are "eps", "x0" and "v" here.
Neither library is imported: anything that is called the same way works.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from anodiff.errors import ConfigError
from anodiff.networks.grids import crop, pad


class ForeignNetwork(nn.Module):
    """``F(x, t)`` around a foreign U-Net ``unet`` with timesteps t (N,), counted from 0.

    unet:     the wrapped module; its parameters are registered below ``unet.``.
    call:     name of the timestep argument in the module's forward.
    integers: timesteps are rounded before they are embedded. Sinusoidal embeddings take positions between two trained
              timesteps, which few-step grids need; a learnt table of embeddings does not.

    multiple: sides that the module can halve all the way down; others are padded to it and cropped back.

    A network with twice the image's channels (learnt variance) gives its first half, the prediction.
    """

    def __init__(self, unet: nn.Module, call: str, integers: bool, multiple: int = 1) -> None:
        super().__init__()
        self.unet = unet
        self.call = call
        self.integers = integers
        self.multiple = multiple

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction (N, C, *spatial) of the network for images x at variance-preserving scale and timesteps t (N,)."""
        timesteps = t.round().long() if self.integers else t
        output = self.unet(pad(x, self.multiple), **{self.call: timesteps})
        prediction: Tensor = getattr(output, "sample", output)
        if prediction.shape[1] == 2 * x.shape[1]:
            prediction = prediction[:, : x.shape[1]]
        return crop(prediction, x.shape[2:])


def wrap_monai(unet: nn.Module) -> ForeignNetwork:
    """Network from a MONAI ``DiffusionModelUNet`` (2-D or 3-D, unconditional), called as ``unet(x, timesteps=t)``."""
    return ForeignNetwork(unet, "timesteps", integers=False, multiple=halvings(getattr(unet, "block_out_channels", ())))


def wrap_diffusers(unet: nn.Module) -> ForeignNetwork:
    """Network from a diffusers ``UNet2DModel``, called as ``unet(x, timestep=t).sample``.

    Raises ConfigError for one with a Fourier time embedding: it was trained on sigma, without a table of timesteps.
    """
    if getattr(getattr(unet, "config", None), "time_embedding_type", None) == "fourier":
        raise ConfigError("a UNet2DModel with time_embedding_type 'fourier' has no timesteps; 'positional' is expected")
    learnt_table = isinstance(getattr(unet, "time_proj", None), nn.Embedding)
    levels = getattr(getattr(unet, "config", None), "block_out_channels", ())
    return ForeignNetwork(unet, "timestep", integers=learnt_table, multiple=halvings(levels))


def halvings(levels: Sequence[int]) -> int:
    """What the sides must be a multiple of, where each level but the last halves them; 1 where no level is known."""
    return int(2 ** max(0, len(levels) - 1))
