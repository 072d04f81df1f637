"""anodiff restore for volumes: missing voxels, missing slices, and blur; each on the input's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.volumes.volume import Volume
from anodiff.engine.loop import Summary
from anodiff.engine.store import Item
from anodiff.errors import ConfigError, InputError
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import Common
from anodiff.pipelines.volume_masks import VolumeMaskSource, volume_mask_settings, volume_mask_source
from anodiff.pipelines.volume_restoring import run_volumes
from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
from anodiff.restoration import Blur, Operator, Restored, Restorer, Slices
from anodiff.restoration.batches import Batch


def run(
    model_path: Path,
    model: DiffusionModel,
    restorer: Restorer,
    inputs: Sequence[str],
    output: Path,
    known: Operator | None,
    *,
    mask: Path | None,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    npy: bool,
    common: Common,
) -> Summary:
    """Restores volumes from what ``known`` left of them, or where ``mask`` says that voxels are missing.

    options: of `Restorer.restore`. Raises ConfigError for an operator that is of images alone, and for a level of noise
    of what is written as it was read.
    """
    if known is not None and not isinstance(known, Blur | Slices):
        raise ConfigError(
            f"--operator: expected mask:FILE, slices or blur for volumes, found one of images ({type(known).__name__})"
        )
    if not isinstance(known, Blur) and options["sigma_y"]:
        raise ConfigError(
            "--sigma-y: expected 0 for missing voxels of volumes, whose other voxels are written as they were read, "
            f"found {options['sigma_y']:g}"
        )

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        if isinstance(known, Blur):
            return restorer.restore(None, known, batch.images, **options).averaged(), None
        assert batch.masks is not None
        if batch.masks.ndim == 4 and bool(batch.masks.flatten(1).all(dim=1).any()):
            raise InputError(
                "expected voxels that were measured in every slice that the model sees, found a slice that misses all: "
                "a model of volumes (volume.mode patches), or of neighbours, sees them beside it"
            )
        return restorer.inpaint(batch.images, batch.masks, **options).averaged(), None

    source = _missing(known) if isinstance(known, Slices) else volume_mask_source(mask, None)
    job = VolumeRestoringJob(model, task, output, mask_of=source, average=False, at_once=common.images_at_once)
    settings = {**settings, **volume_mask_settings(mask, None)}
    return run_volumes(job, model_path, model, restorer, inputs, settings, name="restore", common=common, npy=npy)


def _missing(slices: Slices) -> VolumeMaskSource:
    """The voxels (I, J, K) that nobody measured: axes of an operator count as those of a box, z first."""
    import torch

    def missing(_: Item, volume: Volume) -> NDArray[np.bool_]:
        i, j, k = volume.shape
        measured = slices.measured(torch.empty(1, 1, k, j, i))
        return np.ascontiguousarray((measured == 0).expand(k, j, i).numpy().transpose(2, 1, 0))

    return missing
