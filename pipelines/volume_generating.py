"""What `anodiff generate` makes of a model of volumes: NIfTI files on the recipe's grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.config import VolumeConfig
from anodiff.data.volumes.nifti import read_nifti, write_map
from anodiff.data.volumes.volume import Volume
from anodiff.engine.store import Item
from anodiff.errors import ConfigError
from anodiff.model import DiffusionModel
from anodiff.pipelines.generate import GenerateJob
from anodiff.pipelines.volume_pictures import three_planes
from anodiff.restoration import Restorer

#: mm along an axis of which the recipe names no spacing
UNKNOWN_MM = 1.0


def makes_volumes(model: DiffusionModel, npy: bool) -> bool:
    """Whether a model makes volumes, not images. Raises ConfigError for a model of clips, and ``npy`` of volumes."""
    if model.config.video is not None:
        raise ConfigError("generate: expected a model of images or volumes, found one of clips")
    volume = model.config.volume
    found = volume is not None and (volume.mode == "patches" or volume.neighbours > 0)
    if found and npy:
        raise ConfigError("--npy: expected none for volumes, which are written as float32 NIfTI, unrounded")
    return found


class VolumeGenerateJob(GenerateJob):
    """An item is the number of a volume: read -> its number, compute -> float32 (C, I, J, K) in [-1, 1] and the cost.

    A model of slices with neighbours makes slabs of so many slices, across the first of the recipe's axes.
    """

    def __init__(self, model: DiffusionModel, restorer: Restorer, folder: Path, of: Mapping[str, Any]) -> None:
        super().__init__(restorer, folder, False, of)
        assert model.config.volume is not None
        self.config, self.channels = model.config.volume, model.config.preprocess.channels

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        known = self.config.spacing is not None and 0 not in self.config.spacing
        return () if known else (f"the recipe does not name every spacing: {UNKNOWN_MM:g} mm is written instead",)

    def compute(self, batch: list[int]) -> Sequence[tuple[NDArray[np.float32], int, float]]:
        """The volumes of these numbers, one at a time."""
        found = []
        for number in batch:
            began = time.monotonic()
            made = self.restorer.generate([number], **self.of)
            image = made.images[0].numpy()
            found.append((image if image.ndim == 4 else self._slab(image), made.nfe, time.monotonic() - began))
        return found

    def write(self, item: Item, computed: tuple[NDArray[np.float32], int, float]) -> dict[str, Any]:
        """Writes the volume with the recipe's orientation and spacing."""
        values, nfe, seconds = computed
        files = {"image": f"images/{item.id}.nii.gz"}
        write_map(grid_of(self.config, values), values, self.folder / files["image"])
        return {"nfe": nfe, "seconds": seconds, "files": list(files.values()), **files}

    def pictures(self, item: Item, row: Mapping[str, Any]) -> Callable[[], tuple[None, NDArray[np.uint8]]]:
        """Three planes through the middle, read when they are shown."""

        def read() -> tuple[None, NDArray[np.uint8]]:
            volume = read_nifti(self.folder / row["image"])
            i, j, k = (side // 2 for side in volume.shape)
            return None, three_planes(volume, volume.data[0], (i, j, k), -1.0, 1.0)

        return read

    def _slab(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Slices as channels (C * stack, h, w) -> (C, I, J, K); of a plane the later axis runs down."""
        slices = image.reshape(-1, self.channels, *image.shape[1:]).swapaxes(2, 3)
        return np.ascontiguousarray(np.moveaxis(slices, 0, self.config.axes[0] + 1))


def grid_of(config: VolumeConfig, values: NDArray[np.float32]) -> Volume:
    """A volume (C, I, J, K) on a grid of the recipe's orientation and spacing, its middle at the origin."""
    from nibabel.orientations import axcodes2ornt

    spacing = [side or UNKNOWN_MM for side in config.spacing or (0, 0, 0)]
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (world, direction) in enumerate(axcodes2ornt(tuple((config.orientation or "RAS").upper()))):
        affine[int(world), axis] = direction * spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(values.shape[1:]) - 1) / 2)
    low, high = float(values.min()), float(values.max())
    return Volume(values, affine, low, high, "float32", "generated", "nifti")
