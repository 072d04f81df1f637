"""The scoring job for volumes: what is read, computed and written for one of them."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.anomaly.candidates import Candidates, find_candidates
from anodiff.anomaly.volume_calibration import VolumeCalibration
from anodiff.anomaly.volumes import SliceScore, VolumeDetector, VolumeResult
from anodiff.data.volumes.discover import split_mark
from anodiff.data.volumes.marks import channel_files, split_labels
from anodiff.data.volumes.nifti import read_nifti, write_map
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.read import read_mask, read_volume, with_given
from anodiff.data.volumes.volume import Volume, VolumeSource
from anodiff.engine.store import STATE_FOLDER, Item
from anodiff.errors import InputError
from anodiff.files import atomic_write, make_folder
from anodiff.pipelines.heatmaps import NOT_DRAWN
from anodiff.pipelines.pictures import map_spread
from anodiff.pipelines.scoring import Outputs, short_float
from anodiff.pipelines.volume_pictures import affine_mm, overlay_volume, save_planes, shown_volume, volume_scale
from anodiff.pipelines.volume_remarks import merged_remark, seen_remark

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration
    from anodiff.data.seen import SeenImages

#: bool voxels of a measured volume: its foreground, and its annotation
VOXELS = f"{STATE_FOLDER}/voxels"
DICOM_KINDS = ("pm", "seg", "sc")


@dataclass(frozen=True)
class VolumeItem(Item):
    """An input that is a volume; ``source`` where it was found among others, else its path says what it is."""

    source: VolumeSource | None = None

    @property
    def stamp(self) -> str:
        """Changes when any of its files does, mask and foreground too; empty where one cannot be looked at."""
        try:
            known = (*self._files(), *_files_below(split_labels(self.extra.mask)[0] if self.extra.mask else ""))
            found = [os.stat(file) for file in known]
            given = [os.stat(file) for file in _files_below(split_labels(self.extra.foreground)[0])]
        except (OSError, ValueError):
            return ""
        newest = max((each.st_mtime_ns for each in found), default=0)
        named = "" if self.extra.label is None and not self.extra.mask else f":{self.extra.label}:{self.extra.mask}"
        times = [(each.st_size, each.st_mtime_ns) for each in given]
        named += f":{self.extra.foreground}:{times}" if given else ""
        return f"{len(found)}:{sum(each.st_size for each in found)}:{newest}{named}"

    def _files(self) -> tuple[str, ...]:
        if self.source is not None and self.source.files:
            return self.source.files
        several = channel_files(self.path)
        return tuple(several) if several else _files_below(self.file or self.path)


def _files_below(path: str) -> tuple[str, ...]:
    """The files that a volume's path stands for; all of a folder, since any of them may be a slice."""
    file = path if not path or os.path.lexists(path) else split_mark(path)[0]
    if not os.path.isdir(file):
        return (file,) if file else ()
    return tuple(sorted(entry.path for entry in os.scandir(file) if entry.is_file()))


@dataclass(frozen=True)
class VolumeOutputs(Outputs):
    """dicom: objects wanted of DICOM inputs, of DICOM_KINDS; measured: whether masks are known and metrics follow."""

    map_format: str = "nii.gz"
    dicom: tuple[str, ...] = ()
    measured: bool = False


@dataclass(frozen=True)
class LoadedVolume:
    """One volume, read and prepared for the model, with its annotation (bool, native) where there is one.

    trained_on: whether the model has learnt from it; None where that is not known.
    """

    volume: Volume
    prepared: PreparedVolume
    mask: NDArray[np.bool_] | None
    remarks: tuple[str, ...]
    trained_on: bool | None = None


@dataclass(frozen=True)
class ScoredVolume:
    """One volume, scored on the model's grid."""

    loaded: LoadedVolume
    result: VolumeResult
    seconds: float


class VolumeJob:
    """read -> LoadedVolume, compute -> ScoredVolume, write -> the row of scores.csv; see `anodiff.engine.loop.Job`.

    seen: of the model, where it knows volumes again. seen_share: see `anodiff.pipelines.volume_remarks.seen_share`.
    """

    def __init__(
        self,
        detector: VolumeDetector,
        outputs: VolumeOutputs,
        channel: int | None = None,
        seen: SeenImages | None = None,
        seen_share: float | None = None,
    ) -> None:
        self.detector, self.outputs, self.channel, self.seen = detector, outputs, channel, seen
        self.seen_share = seen_share
        self.quantiles = detector.voxel_quantiles
        self.foreground = detector.slicer.preprocess.foreground
        self.scale = volume_scale(detector.calibration, self.quantiles)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this run, one sentence each."""
        drawn = self.outputs.maps or self.scale is not None or not self.outputs.heatmaps
        return self.detector.notes if drawn else (*self.detector.notes, NOT_DRAWN)

    @property
    def of_images(self) -> Calibration | None:
        """The calibration where it is on images; one on volumes remarks on each volume itself."""
        found = self.detector.calibration
        return None if isinstance(found, VolumeCalibration) else found

    def read(self, item: VolumeItem) -> LoadedVolume:
        """One volume from disk, with foreground and mask where they are named; InputError where one cannot be used."""
        volume, mask = self.look(item)
        volume = with_given(volume, item.extra.foreground)
        remarks = (*volume.remarks, *self.detector.doubts(volume))
        return LoadedVolume(volume, self.detector.prepare(volume), mask, remarks, self._trained_on(volume))

    def look(self, item: VolumeItem) -> tuple[Volume, NDArray[np.bool_] | None]:
        """A volume and its mask as they are to be seen, not prepared for the model; InputError as `read`."""
        volume = read_volume(item.source or item.path)
        mask = None
        if item.extra.mask:
            mask = read_mask(item.extra.mask, volume)
            if item.extra.label == 0 and mask.any():
                raise InputError(
                    f"{item.path}: expected no marked voxel in the mask of a volume labelled normal, "
                    f"found {int(mask.sum())} in {item.extra.mask}"
                )
            if item.extra.label == 1 and not mask.any():
                mask = None
        return volume, mask

    def _trained_on(self, volume: Volume) -> bool | None:
        if self.seen is None:
            return None
        from anodiff.training.volumes import volume_hash

        return self.seen.contains(volume_hash(volume))

    def compute(self, batch: list[LoadedVolume]) -> Sequence[ScoredVolume]:
        """Scores volumes one at a time on the device."""
        scored = []
        for loaded in batch:
            began = time.monotonic()
            result = self.detector(loaded.prepared, loaded.volume)
            scored.append(ScoredVolume(loaded, result, time.monotonic() - began))
        return scored

    def write(self, item: VolumeItem, computed: ScoredVolume) -> dict[str, Any]:
        """Writes the map, the planes and the DICOM objects of one volume; returns its row."""
        result, volume = computed.result, computed.loaded.volume
        if not np.isfinite(result.score):
            raise InputError(
                f"{item.path}: expected a finite score, found {result.score}; its intensities may overflow"
            )
        values = computed.loaded.prepared.back(result.map)
        inside = computed.loaded.prepared.back(result.inside.astype(np.float32)) >= 0.5
        files: dict[str, str] = {}
        if self.outputs.maps:
            files["map"] = f"maps/{item.id}.nii.gz"
            write_map(volume, values, self.outputs.folder / files["map"])
        if self.outputs.measured:
            files["voxels"] = f"{VOXELS}/{item.id}.npz"
            save_voxels(self.outputs.folder / files["voxels"], inside, computed.loaded.mask)
        peak = peak_of(values, inside)
        if self.outputs.heatmaps and self.scale is not None:
            files["heatmap"] = f"heatmaps/{item.id}.png"
            self.draw(self.outputs.folder / files["heatmap"], volume, computed.loaded.mask, values, peak)
        candidates = self._candidates(volume, values, inside)
        doubts = (merged_remark(candidates.listed, int(inside.sum())), seen_remark(self.seen_share))
        remarks = [*computed.loaded.remarks, *result.remarks, *(doubt for doubt in doubts if doubt)]
        if candidates.left_out:
            total = len(candidates.listed) + candidates.left_out
            remarks.append(
                f"{total:,} candidates: the {len(candidates.listed):,} with the highest peaks are listed, "
                f"{candidates.left_out:,} are left out (volume.max_candidates, volume.min_volume_mm3)"
            )
        dicom = self._write_dicom(item, volume, values, candidates.marked, remarks)
        calibration = self.detector.volume_calibration
        threshold = None if calibration is None else calibration.volume_threshold
        return {
            "score": short_float(result.score),
            "p_value": result.p_value,
            "is_anomalous": result.is_anomalous,
            "threshold": None if threshold is None else short_float(threshold),
            "nfe": result.nfe,
            "seconds": computed.seconds,
            "map_spread": map_spread(values[inside] if inside.any() else values),
            "peak": list(peak),
            "slices": [native_slice(computed.loaded.prepared, each) for each in result.slices],
            "lesions": [asdict(candidate) for candidate in candidates.listed],
            "lesions_left_out": candidates.left_out,
            "remarks": remarks,
            "trained_on": computed.loaded.trained_on,
            "files": [*files.values(), *dicom],
            **files,
        }

    def _candidates(self, volume: Volume, values: NDArray[np.float32], inside: NDArray[np.bool_]) -> Candidates:
        """Of a map on the native grid; none where there is no threshold."""
        if self.quantiles is None:
            return Candidates([], np.zeros(volume.shape, dtype=bool))
        config = self.detector.config
        return find_candidates(
            values,
            inside,
            self.quantiles[0.99],
            affine_mm(volume),
            self.quantiles,
            config.min_volume_mm3,
            config.max_candidates,
        )

    def draw(
        self,
        path: Path,
        volume: Volume,
        mask: NDArray[np.bool_] | None,
        values: NDArray[np.float32],
        peak: tuple[int, int, int],
    ) -> None:
        """Writes the three planes through the peak."""
        assert self.scale is not None
        save_planes(path, volume, shown_volume(volume, self.channel), values, self.scale, peak, mask)

    def _write_dicom(
        self,
        item: VolumeItem,
        volume: Volume,
        values: NDArray[np.float32],
        marked: NDArray[np.bool_],
        remarks: list[str],
    ) -> list[str]:
        """The DICOM objects that were asked for; paths below the output folder."""
        if not self.outputs.dicom:
            return []
        if volume.kind != "dicom":
            remarks.append("no DICOM object is written: the input is not DICOM")
            return []
        from anodiff.data.volumes.dicom_write import (
            write_parametric_map,
            write_secondary_capture,
            write_segmentation,
        )

        folder, written = self.outputs.folder, []
        for kind in self.outputs.dicom:
            name = f"dicom/{item.id}_{kind}"
            if kind == "sc":
                assert self.scale is not None
                rgb = overlay_volume(shown_volume(volume, self.channel), values, self.scale)
                written += [
                    str(path.relative_to(folder)) for path in write_secondary_capture(volume, rgb, folder / name)
                ]
                continue
            if not volume.frames[0].placed:
                remarks.append(f"no {kind} is written: its slices have no position in the patient")
                continue
            if kind == "pm":
                write_parametric_map(volume, values, folder / f"{name}.dcm")
            else:
                write_segmentation(volume, marked, folder / f"{name}.dcm")
            written.append(f"{name}.dcm")
        return written

    def stored_map(self, row: dict[str, Any]) -> NDArray[np.float32]:
        """The map of a row, float32 (I, J, K)."""
        return np.asarray(read_nifti(self.outputs.folder / row["map"]).data[0])


@dataclass(frozen=True)
class Planes:
    """One volume and its mask with its stored map."""

    volume: Volume
    mask: NDArray[np.bool_] | None
    values: NDArray[np.float32]


class PlanesJob:
    """Draws what could not be drawn before the one colour scale of a run was known; see `pipelines.heatmaps`."""

    def __init__(self, job: VolumeJob, rows: dict[str, dict[str, Any]]) -> None:
        self.job, self.rows = job, rows

    def read(self, item: VolumeItem) -> Planes:
        """The volume again, and its map."""
        return Planes(*self.job.look(item), self.job.stored_map(self.rows[item.id]))

    def compute(self, batch: list[Planes]) -> Sequence[Planes]:
        """Nothing to compute."""
        return batch

    def write(self, item: VolumeItem, computed: Planes) -> dict[str, Any]:
        """Draws the planes; returns what the row learns."""
        name = f"heatmaps/{item.id}.png"
        i, j, k = self.rows[item.id]["peak"]
        self.job.draw(self.job.outputs.folder / name, computed.volume, computed.mask, computed.values, (i, j, k))
        return {"heatmap": name, "files": [name]}


def peak_of(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> tuple[int, int, int]:
    """The voxel (i, j, k) of the foreground where the map is largest; of the whole map where there is no foreground."""
    where = np.where(inside, values, -np.inf) if inside.any() else values
    i, j, k = np.unravel_index(int(where.argmax()), values.shape)
    return int(i), int(j), int(k)


def native_slice(prepared: PreparedVolume, found: SliceScore) -> dict[str, Any]:
    """A slice of the model's grid by its place in the file: the native axis it lies across, and the nearest index."""
    model, native = prepared.plan.model, prepared.plan.native
    to_native = np.linalg.inv(native.affine) @ model.affine
    axis = int(np.abs(to_native[:3, found.axis]).argmax())
    centre = (np.array(model.shape) - 1) / 2
    centre[found.axis] = found.index
    index = round(float((to_native @ np.array([*centre, 1.0]))[axis]))
    return {
        "axis": axis,
        "slice": int(np.clip(index, 0, native.shape[axis] - 1)),
        "score": short_float(found.score),
        "p_value": found.p_value,
    }


def save_voxels(path: Path, inside: NDArray[np.bool_], mask: NDArray[np.bool_] | None) -> None:
    """Writes what is measured of a volume: foreground and annotation, one bit a voxel."""
    make_folder(path.parent)
    content = {"shape": np.array(inside.shape), "inside": np.packbits(inside)}
    if mask is not None:
        content["mask"] = np.packbits(mask)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)  # type: ignore[arg-type]
    atomic_write(path, buffer.getvalue())


def load_voxels(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """(foreground, annotation or None) of `save_voxels`."""
    with np.load(path) as stored:
        shape = tuple(int(side) for side in stored["shape"])
        count = int(np.prod(shape))
        inside, mask = (
            np.unpackbits(stored[name], count=count).astype(bool).reshape(shape) if name in stored else None
            for name in ("inside", "mask")
        )
    assert inside is not None
    return inside, mask
