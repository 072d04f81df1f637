"""VolumeDetector: an AnomalyDetector on the slices of a volume, or on a whole one through overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly.calibration import Calibration
from anodiff.anomaly.detector import AnomalyDetector
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.volume_calibration import SLICE_FREE_KEYS, VolumeCalibration
from anodiff.anomaly.volume_steps import CountedDenoiser, OnVolumeStep, Told, counter
from anodiff.config import VolumeConfig
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.read import Foreground, with_given
from anodiff.data.volumes.slices import VolumeSlicer
from anodiff.data.volumes.volume import Volume
from anodiff.engine.windows import WindowDenoiser
from anodiff.errors import ConfigError, InputError

#: how a model of 2-D images meets volumes: each slice as the image that it was trained on
PLAIN = VolumeConfig(statistics="slice")
#: along which the slices of a volume are scored that was denoised as a whole
WHOLE_AXIS = 2


@dataclass(frozen=True)
class SliceScore:
    """A slice of the model's grid: its axis, its place there, its score; p-value None where not calibrated."""

    axis: int
    index: int
    score: float
    p_value: float | None


@dataclass(frozen=True, repr=False)
class VolumeResult:
    """What the detector says of one volume, on the model's grid.

    Attributes:
        map: (I, J, K) float32, larger = more anomalous, never clamped but for ``limits``; 0 where no slice
            was scored.
        inside: (I, J, K) bool, the foreground that was scored.
        score: higher = more anomalous, a float32 number. Of slices: the mean of the ``score_slices`` highest ones along
            an axis, averaged over axes; of a whole volume: the reduction of its map.
        p_value, is_anomalous: None without a calibration on volumes; no decision without a threshold.
        slices: what is known of each slice.
        nfe: denoiser calls of this volume.
        remarks: sentences on what was not scored as asked.
        voxel_quantiles: values of normal voxels by their share, for a colour scale; None where not calibrated.
    """

    map: np.ndarray
    inside: np.ndarray
    score: float
    p_value: float | None
    is_anomalous: bool | None
    slices: tuple[SliceScore, ...]
    nfe: int
    remarks: tuple[str, ...] = ()
    voxel_quantiles: dict[float, float] | None = None

    def __repr__(self) -> str:
        shape = " x ".join(str(side) for side in self.map.shape)
        p_value = "not calibrated" if self.p_value is None else f"p-value {self.p_value:.3g}"
        decided = {None: "not decided", True: "anomalous", False: "normal"}[self.is_anomalous]
        said = [f"map {shape}", f"score {self.score:.4g}", p_value, decided]
        if self.voxel_quantiles is not None:
            above = int(((self.map > self.voxel_quantiles[0.99]) & self.inside).sum())
            said.append(f"{above:,} of {int(self.inside.sum()):,} foreground voxels above the voxel threshold")
        said.append(f"{len(self.slices)} slices")
        said += [f"remarks: {len(self.remarks)}"] if self.remarks else []
        return f"VolumeResult({', '.join(said)})"

    def show(self, image: Tensor | None = None, axis: int | None = None) -> Any:
        """A figure, or a slider in a notebook, over the slices across ``axis``; over ``image`` (C, I, J, K), that of
        the prepared volume, where given. See :func:`anodiff.visualize.show.show_volume`."""
        from anodiff.visualize.show import show_volume

        return show_volume(self, image, axis)


class SliceDetector(AnomalyDetector):
    """Scores the middle one of the slices that the network sees at once; the others are there to tell it what is near.

    Raises ConfigError for residuals of features with neighbours: their activations are of all the slices.
    """

    def __init__(self, model: Any, preset: str | DetectorSettings = "default", **options: Any) -> None:
        super().__init__(model, preset, **options)
        volume: VolumeConfig = model.config.volume or PLAIN
        channels = model.config.preprocess.channels
        self._middle = slice(volume.neighbours * channels, (volume.neighbours + 1) * channels)
        self._alone = volume.neighbours == 0
        self.told: Told | None = None
        if not self._alone and self.settings.residual.startswith("features"):
            raise ConfigError(
                f"residual {self.settings.residual!r} compares all slices at once: expected another with neighbours"
            )

    def chunks(
        self, images: Tensor, foreground: Tensor | None, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `AnomalyDetector.chunks`; no more at once than the network sees, so that each batch can be told of."""
        at_once = self.denoiser.network_batch
        for part, inside in super().chunks(images, foreground, min(most or at_once, at_once)):
            yield part, inside
            if self.told is not None:
                self.told(len(part))

    @torch.no_grad()
    def errors(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """See `AnomalyDetector.errors`; of the middle slice."""
        if self._alone:
            return super().errors(images, reconstructions)
        return super().errors(images[:, self._middle], reconstructions[:, :, self._middle])


class PatchDetector(AnomalyDetector):
    """Scores whole volumes (N, C, I, J, K) through windows of ``volume.patch``, averaged inside the sampling loop."""

    def __init__(self, model: Any, preset: str | DetectorSettings = "default", **options: Any) -> None:
        super().__init__(model, preset, **options)
        volume: VolumeConfig = model.config.volume
        if self.settings.residual.startswith("features"):
            raise ConfigError(f"residual {self.settings.residual!r} needs the whole volume at once: expected another")
        # It stands where the network did: the base class asks it for nothing else.
        self.counted = CountedDenoiser(self.denoiser)
        self.windows = WindowDenoiser(self.counted, volume.patch, volume.overlap)
        self.denoiser = self.windows


class VolumeDetector:
    """Scores volumes one at a time; a score is a function of the model, the settings, the seed and the voxels.

    Args:
        model: a `DiffusionModel`; one of 2-D images (``config.volume`` None) scores slices as its images.
        preset, device, precision, network_batch, seed: see `AnomalyDetector`.

    Attributes:
        config: the recipe's section on volumes. detector: what scores slices, or whole volumes. slicer: prepares them.
        on_step: called after each batch of slices or windows with a `VolumeStep`; None: nobody.

    Raises:
        ConfigError: see `AnomalyDetector`; a residual that needs what slices or windows do not give; an early exit,
            whose error is stated of images.
    """

    def __init__(self, model: Any, preset: str | DetectorSettings = "default", **options: Any) -> None:
        if options.get("early_exit"):
            raise ConfigError(
                "early exit: expected a detector of images, found one of volumes, of which each part is scored"
            )
        self.config: VolumeConfig = model.config.volume or PLAIN
        kind = PatchDetector if self.config.mode == "patches" else SliceDetector
        self.detector: AnomalyDetector = kind(model, preset, **options)
        self.slicer = VolumeSlicer(model.config.preprocess, self.config)
        self.on_step: OnVolumeStep | None = None

    @property
    def name(self) -> str:
        """Of the preset."""
        return self.detector.name

    @property
    def settings(self) -> DetectorSettings:
        """Of the preset, resolved."""
        return self.detector.settings

    @property
    def calibration(self) -> Calibration | None:
        """Of slices (images, where the model is of images); of volumes too where it is a `VolumeCalibration`."""
        return self.detector.calibration

    @property
    def volume_calibration(self) -> VolumeCalibration | None:
        """The calibration on volumes that were cut and finished as now; None where there is none."""
        found = self.detector.calibration
        if not isinstance(found, VolumeCalibration) or found.volume_changes(self._section):
            return None
        return found

    @property
    def slice_calibration(self) -> Calibration | None:
        """The calibration where slices are cut as its normals' were, so that their p-values hold; else None."""
        found = self.detector.calibration
        if isinstance(found, VolumeCalibration) and found.volume_changes(self._section, SLICE_FREE_KEYS):
            return None
        return found

    @property
    def _section(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def check(self) -> None:
        """Raises ConfigError where volumes are prepared, or cut, so that the size of normal error is not known."""
        self.detector.check_preprocess()
        found = self.detector.calibration
        if not isinstance(found, VolumeCalibration) or self.config.mode == "patches":
            return
        more = sorted(set(self.config.axes) - set(found.volume["axes"]))
        placed = found.standardisation is not None and found.standardisation.granularity.kind != "scalar"
        if more and placed:
            raise ConfigError(
                f"volume.axes: expected some of {list(found.volume['axes'])}, of whose slices preset {self.name!r} "
                f"knows the size of normal error place by place, found {list(self.config.axes)}; anodiff calibrate "
                "with these axes"
            )

    @property
    def voxel_quantiles(self) -> dict[float, float] | None:
        """Values of the finished maps' normal voxels; of single slices' where no volume was calibrated on."""
        of_volumes = self.volume_calibration
        if of_volumes is not None:
            return of_volumes.voxel_quantiles
        return None if self.calibration is None else self.calibration.pixel_quantiles

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this detector's decisions, one sentence each."""
        found, notes = self.detector.calibration, self.detector.notes
        if found is None:
            return notes
        if not isinstance(found, VolumeCalibration):
            return (
                *notes,
                f"preset {self.name!r}: calibrated on 2-D images, so slices have p-values and volumes do not; "
                "anodiff calibrate on normal volumes gives them",
            )
        changed = found.volume_changes(self._section)
        if changed:
            without = "volumes" if self.slice_calibration is not None else "volumes and slices"
            return (
                *notes,
                f"preset {self.name!r}: calibrated for other volume settings ({', '.join(changed)}), so {without} have "
                "no p-value, volumes no threshold, and candidates a voxel threshold that is only about right",
            )
        return notes if found.volume_message is None else (*notes, found.volume_message)

    def prepare(self, volume: Volume, foreground: Foreground = None) -> PreparedVolume:
        """The volume on the model's grid; ``foreground``: a file, or bool (I, J, K) like the volume, such as a brain.

        Raises InputError, see `VolumeSlicer.prepare` and `anodiff.data.volumes.with_given`.
        """
        return self.slicer.prepare(with_given(volume, foreground))

    def doubts(self, volume: Volume) -> tuple[str, ...]:
        """Sentences on what is unlike the normal volumes of the calibration; none without one on volumes.

        Raises InputError for a modality that none of them had.
        """
        found = self.detector.calibration
        if not isinstance(found, VolumeCalibration):
            return ()
        return found.origin.remarks(volume, self.config.orientation)

    @torch.no_grad()
    def __call__(self, prepared: PreparedVolume, volume: Volume | None = None) -> VolumeResult:
        """Score one prepared volume; ``volume``, what it was made from, where intensities are of each slice.

        Raises InputError for a volume without foreground, or a size that the model is not calibrated for; ConfigError
        as `check` does.
        """
        self.check()
        scored = self._whole(prepared, volume) if self.config.mode == "patches" else self._sliced(prepared, volume)
        found, inside, score, slices, calls = scored
        remarks = () if self.config.mode == "patches" else self._left_out(prepared, slices)
        found = median_filter(found, inside, self.config.median)
        # As it is written in a table, where it must lie on the same side of the threshold.
        score = float(np.float32(score))
        calibration, p_value, decided = self.volume_calibration, None, None
        if calibration is not None:
            p_value = calibration.volume_p_value(score)
            decided = None if calibration.volume_threshold is None else score > calibration.volume_threshold
        quantiles = self.voxel_quantiles
        return VolumeResult(found, inside, score, p_value, decided, tuple(slices), calls, remarks, quantiles)

    def _sliced(
        self, prepared: PreparedVolume, volume: Volume | None
    ) -> tuple[np.ndarray, np.ndarray, float, list[SliceScore], int]:
        """Maps of the slices along each axis, averaged where several axes scored a voxel.

        Where the foreground alone is scored it counts alone: slices of two axes need not agree on what it is.
        """
        i, j, k = prepared.image.shape[1:]
        total, weight = np.zeros((i, j, k), dtype=np.float32), np.zeros((i, j, k), dtype=np.float32)
        inside = np.zeros((i, j, k), dtype=bool)
        slices: list[SliceScore] = []
        tops: list[float] = []
        axes = self.slicer.axes((i, j, k))
        for axis in axes:
            stack = self.slicer.cut(prepared, axis, volume)
            if not len(stack):
                continue
            assert isinstance(self.detector, SliceDetector)
            self.detector.told = counter(self.on_step, len(stack), axis)
            result = self.detector(stack.images, stack.foreground)
            self.detector.told = None
            covered = np.zeros((i, j, k), dtype=bool)
            np.moveaxis(covered, axis, 0)[list(stack.index)] = True
            own = self.slicer.inside(stack)
            if self.settings.foreground and len(axes) > 1:
                covered &= own
            total += np.where(covered, self.slicer.join(result.maps, stack), 0)
            weight += covered
            inside |= own
            scores = result.scores.double().tolist()
            known = self._slice_p_values(result.scores)
            slices += [SliceScore(axis, *each) for each in zip(stack.index, scores, known, strict=True)]
            highest = sorted(scores, reverse=True)[: self.config.score_slices]
            tops.append(sum(highest) / len(highest))
        if not tops:
            raise InputError(_nothing(volume, self.config.min_foreground))
        calls = len(slices) * self.settings.nfe_for(self.slicer.preprocess.size)
        return total / np.maximum(weight, 1), inside, sum(tops) / len(tops), slices, calls

    def _left_out(self, prepared: PreparedVolume, slices: Sequence[SliceScore]) -> tuple[str, ...]:
        """A sentence on axes along which nothing of this volume could be scored."""
        i, j, k = prepared.image.shape[1:]
        axes, scored = self.slicer.axes((i, j, k)), {each.axis for each in slices}
        missing = [str(axis) for axis in axes if axis not in scored]
        if not missing:
            return ()
        return (
            f"volume.axes: no slice along {', '.join(missing)} has {self.config.min_foreground:.3g} of foreground and "
            f"some contrast, so it is scored along {', '.join(str(axis) for axis in axes if axis in scored)} only",
        )

    def _whole(
        self, prepared: PreparedVolume, volume: Volume | None
    ) -> tuple[np.ndarray, np.ndarray, float, list[SliceScore], int]:
        """The map of a whole volume; scores of its slices are reductions of theirs."""
        if not bool(prepared.foreground.any()):
            raise InputError(_nothing(volume, 0))
        assert isinstance(self.detector, PatchDetector)
        size = prepared.image.shape[1:]
        calls = self.settings.nfe_for(size) * self.detector.windows.count(size)
        self.detector.counted.told = counter(self.on_step, calls)
        result = self.detector(prepared.image[None], prepared.foreground[None])
        self.detector.counted.told = None
        found = result.maps[0].cpu()
        inside = prepared.foreground
        index, scores = slice_scores(self.detector, found, inside, self.config.min_foreground)
        known = self._slice_p_values(scores)
        slices = [
            SliceScore(WHOLE_AXIS, n, score, p) for n, score, p in zip(index, scores.tolist(), known, strict=True)
        ]
        return found.numpy(), inside.numpy(), float(result.scores[0]), slices, calls

    def _slice_p_values(self, scores: Tensor) -> list[float | None]:
        calibration = self.slice_calibration
        return [None] * len(scores) if calibration is None else list(calibration.p_values(scores).tolist())


def slice_scores(
    detector: AnomalyDetector, found: Tensor, inside: Tensor, min_foreground: float
) -> tuple[list[int], Tensor]:
    """Places along k and scores (n,) of the slices of a map (I, J, K) with enough foreground."""
    share = inside.float().mean(dim=(0, 1))
    index = [n for n in range(found.shape[2]) if float(share[n]) >= min_foreground and float(share[n]) > 0]
    planes, masks = found.permute(2, 0, 1)[index], inside.permute(2, 0, 1)[index]
    if not index:
        return [], torch.zeros(0)
    return index, torch.cat([detector.scores(planes[[n]], masks[[n]]).cpu() for n in range(len(index))])


def median_filter(values: np.ndarray, inside: np.ndarray, side: int) -> np.ndarray:
    """Median over a cube of ``side`` voxels for each voxel of ``inside``; (I, J, K), others keep their value."""
    if side == 1:
        return values
    from scipy import ndimage

    return np.where(inside, ndimage.median_filter(values, size=side, mode="nearest"), values)


def _nothing(volume: Volume | None, share: float) -> str:
    place = "volume" if volume is None else volume.path
    return f"{place}: expected a slice with at least {share:.3g} of foreground and some contrast, found none to score"
