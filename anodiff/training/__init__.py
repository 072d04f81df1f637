"""Training: images in memory, the trainer, its average, checkpoints and preview."""

from anodiff.training.checkpoint import load_checkpoint, save_checkpoint
from anodiff.training.images import ImageSet, load_images, split_normals
from anodiff.training.trainer import LogRow, Trainer

__all__ = ["ImageSet", "LogRow", "Trainer", "load_checkpoint", "load_images", "save_checkpoint", "split_normals"]
