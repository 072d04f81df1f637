"""Networks: plain modules F(x, c_noise), without any knowledge of schedules or files."""

from anodiff.networks.unet import UNet

__all__ = ["UNet"]
