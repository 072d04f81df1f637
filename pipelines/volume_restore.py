"""anodiff restore for volumes: missing voxels, missing slices, and blur; each on the input's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.volumes.volume import Volume
from anodiff.engine.loop import Summary
from anodiff.engine.store import Item
from anodiff.errors import ConfigError, InputError
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import Common
from anodiff.pipelines.volume_job import VolumeItem
from anodiff.pipelines.volume_masks import VolumeMaskSource, volume_mask_settings, volume_mask_source
from anodiff.pipelines.volume_restoring import run_volumes
from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
from anodiff.restoration import Blur, Operator, Restored, Restorer, Slices
from anodiff.restoration.batches import Batch
from anodiff.restoration.volumes import LoadedVolume


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
            "--operator: expected mask:FILE, slices or blur for volumes (NIfTI, MGH and DICOM), found "
            f"{settings['operator']}"
        )
    if isinstance(known, Slices):
        known.measured(torch.empty(1, 1, 2, 2, 2))
    if not isinstance(known, Blur) and options["sigma_y"]:
        raise ConfigError(
            "--sigma-y: expected 0 for missing voxels of volumes, whose other voxels are written as they were read, "
            f"found {options['sigma_y']:g}"
        )

    def task(batch: Batch) -> tuple[Restored, Tensor | None]:
        if isinstance(known, Blur):
            return restorer.restore(None, known, batch.images, **options).averaged(), None
        assert batch.masks is not None
        if bool(batch.masks.flatten(1).all(dim=1).any()):
            raise InputError(
                "expected voxels that were measured in all that the model sees at once, found "
                f"{'a volume' if batch.images.ndim == 5 else 'a slice'} that misses all of them on the model's grid"
            )
        return restorer.inpaint(batch.images, batch.masks, **options).averaged(), None

    source = _missing(known) if isinstance(known, Slices) else volume_mask_source(mask, None)
    make = partial(_SlicesJob, known) if isinstance(known, Slices) else VolumeRestoringJob
    job = make(model, task, output, mask_of=source, average=False, at_once=common.images_at_once)
    settings = {**settings, **volume_mask_settings(mask, None)}
    return run_volumes(job, model_path, model, restorer, inputs, settings, name="restore", common=common, npy=npy)


class _SlicesJob(VolumeRestoringJob):
    """Volumes with slices missing, refused before a chain where the model could not know which."""

    def __init__(self, slices: Slices, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.slices = slices

    def read(self, item: VolumeItem) -> LoadedVolume:
        """As of every job. Raises InputError where nothing is missing, the model's grid has other slices, or a model of
        single slices would see some of which nothing was measured."""
        loaded = super().read(item)
        assert loaded.hole is not None
        axis = 2 - self.slices.axis % 3
        name, count = "xyz"[axis], loaded.volume.shape[axis]
        if not loaded.hole.any():
            raise InputError(
                f"{item.path}: expected an axis along which slices are missing, found {count} along {name}, all of "
                "them measured"
            )
        first, sides = self.restorer.sides(loaded)
        if sides[axis] != count:
            raise InputError(
                f"{item.path}: expected as many slices along {name} on the model's grid as in the file, {count}, found "
                f"{sides[axis]}: resampled, those that are missing would take the others with them"
            )
        if first == axis and not self.config.neighbours:
            raise InputError(
                f"{item.path}: expected slices missing along another axis than {name}, along which the model sees "
                "single slices, or a model of volumes (volume.mode patches) or of neighbours; found slices of which "
                "nothing was measured"
            )
        return loaded


def _missing(slices: Slices) -> VolumeMaskSource:
    """The voxels (I, J, K) that nobody measured: axes of an operator count as those of a box, z first."""

    def missing(_: Item, volume: Volume) -> NDArray[np.bool_]:
        i, j, k = volume.shape
        measured = slices.measured(torch.empty(1, 1, k, j, i))
        return np.ascontiguousarray((measured == 0).expand(k, j, i).numpy().transpose(2, 1, 0))

    return missing
