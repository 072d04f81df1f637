"""Networks: plain modules F(x, c_noise), without any knowledge of schedules or files."""

from anodiff.networks.dit import DiT
from anodiff.networks.unet import UNet

__all__ = ["DiT", "UNet"]
