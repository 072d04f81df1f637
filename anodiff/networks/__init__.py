"""Networks: plain modules F(x, c_noise), without any knowledge of schedules or files."""

from anodiff.networks.conditioned import ImageConditioned
from anodiff.networks.dit import DiT
from anodiff.networks.spacetime import SpaceTimeUNet
from anodiff.networks.unet import UNet

__all__ = ["DiT", "ImageConditioned", "SpaceTimeUNet", "UNet"]
