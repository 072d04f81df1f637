"""What the restoring jobs do with a volume as items of a run: read, computed and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.anomaly.volumes import SliceScore
from anodiff.data.volumes.nifti import read_nifti, write_map
from anodiff.data.volumes.read import read_given, read_volume
from anodiff.data.volumes.volume import Volume
from anodiff.files import make_folder
from anodiff.model import DiffusionModel
from anodiff.pipelines.restoring_notes import EMPTY_FOUND, EMPTY_GIVEN, lost_columns
from anodiff.pipelines.volume_job import VolumeItem, native_slice
from anodiff.pipelines.volume_masks import VolumeMaskSource
from anodiff.pipelines.volume_pictures import three_planes
from anodiff.restoration.batches import Task
from anodiff.restoration.volumes import Find, LoadedVolume, RestoredVolume, VolumeRestorer


class VolumeRestoringJob:
    """read -> LoadedVolume, compute -> RestoredVolume, write -> the row; see `anodiff.engine.loop.Job`.

    task, find, average, at_once, blind: see `VolumeRestorer`. mask_of: None where all may change.
    """

    def __init__(
        self,
        model: DiffusionModel,
        task: Task,
        folder: Path,
        *,
        mask_of: VolumeMaskSource | None = None,
        find: Find | None = None,
        average: bool = True,
        at_once: int = 16,
        blind: bool = True,
    ) -> None:
        assert model.config.volume is not None
        self.config = model.config.volume
        self.restorer = VolumeRestorer(
            model.config.preprocess, self.config, task, find=find, average=average, at_once=at_once, blind=blind
        )
        self.folder, self.mask_of = folder, mask_of

    def read(self, item: VolumeItem) -> LoadedVolume:
        """One volume from disk, with its mask and foreground; InputError where one of them cannot be used."""
        volume = read_given(item.source or item.path, item.extra.foreground)
        return self.restorer.load(volume, None if self.mask_of is None else self.mask_of(item, volume))

    def compute(self, batch: list[LoadedVolume]) -> Sequence[RestoredVolume]:
        """Restores volumes one at a time on the device."""
        return [self.restorer(loaded) for loaded in batch]

    def write(self, item: VolumeItem, computed: RestoredVolume) -> dict[str, Any]:
        """Writes the volume on the input's own grid, and what was asked for beside it; returns its row."""
        volume, files = computed.loaded.volume, {"image": f"images/{item.id}.nii.gz"}
        native = self.restorer.back(computed)
        hole = native.hole
        if computed.hole is not None and hole is not None:
            files["mask"] = f"masks/{item.id}.nii.gz"
            self._write(volume, hole.astype(np.float32), files["mask"])
        self._write(volume, native.values, files["image"])
        if native.spread is not None:
            files["uncertainty"] = f"uncertainty/{item.id}.nii.gz"
            self._write(volume, native.spread, files["uncertainty"])
        remarks = list(volume.remarks)
        if hole is not None and not hole.any():
            remarks.append(EMPTY_GIVEN if computed.hole is None else EMPTY_FOUND)
        at = np.argwhere(hole).mean(axis=0).round().astype(int) if hole is not None and hole.any() else None
        return {
            "nfe": computed.nfe,
            "sigma": float(np.median(computed.sigmas)) if computed.sigmas else None,
            "sigma_file": float(np.median(computed.sigmas_file)) if computed.sigmas_file else None,
            "sigma_from": " and ".join(sorted(set(computed.sigma_from))) or None,
            "seconds": computed.seconds,
            "slices": _levels(computed),
            "remarks": remarks,
            "remark": "; ".join(remarks) or None,
            **lost_columns(computed.lost),
            "at": [side // 2 for side in volume.shape] if at is None else at.tolist(),
            "files": list(files.values()),
            **files,
        }

    def _write(self, volume: Volume, values: NDArray[np.float32], name: str) -> None:
        make_folder((self.folder / name).parent)
        write_map(volume, values, self.folder / name)

    def pictures(
        self, item: VolumeItem, row: Mapping[str, Any]
    ) -> Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Three planes of input and result in one window, read when they are shown."""

        def read() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            volume = read_volume(item.source or item.path)
            before = self.restorer.channels(volume)[0]
            after = np.asarray(read_nifti(self.folder / row["image"]).data[0])
            low, high = (float(each) for each in np.percentile(before, (0.5, 99.5)))
            i, j, k = row["at"]
            shown = [three_planes(volume, each, (i, j, k), low, high) for each in (before, after)]
            return shown[0], shown[1]

        return read

    def hole(self, item: VolumeItem, row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """bool (H, W) on the three planes of what of a row could change, None where all could."""
        if "mask" not in row and self.mask_of is None:
            return None
        volume = read_volume(item.source or item.path)
        if "mask" in row:
            hole = np.asarray(read_nifti(self.folder / row["mask"]).data[0]) > 0
        else:
            assert self.mask_of is not None
            hole = self.mask_of(item, volume)
        i, j, k = row["at"]
        return np.asarray(three_planes(volume, hole.astype(np.float32), (i, j, k), 0, 1) >= 128)


def _levels(computed: RestoredVolume) -> list[dict[str, Any]]:
    """The noise level of each slice, by its place in the file."""
    found = []
    for each in computed.slices:
        place = native_slice(computed.loaded.prepared, SliceScore(each.axis, each.index, each.sigma, None))
        found.append(
            {
                "axis": place["axis"],
                "slice": place["slice"],
                "sigma": each.sigma,
                "sigma_file": each.sigma_file,
                "sigma_from": each.sigma_from,
            }
        )
    return found
