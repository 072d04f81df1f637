"""The sections of a recipe that only a model of volumes, or of clips, has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from anodiff.config.sections import Count, Positive, Section, Share


class VolumeConfig(Section):
    """How a model meets volumes. What is not here is in ``preprocess``, of the whole volume instead of an image.

    ``preprocess.intensity``, ``value_range`` (a CT window in HU, with ``unit_range``), ``foreground`` and its erosion
    hold for the volume; ``preprocess.channels`` are those of a voxel (modalities); ``preprocess.size`` is the size of
    a slice in the network. Array axes are those of the grid of ``orientation``.
    """

    #: ``slices``: a 2-D network sees slices, one by one (or 2.5-D, see ``neighbours``); ``patches``: a 3-D network
    mode: Literal["slices", "patches"] = "slices"
    #: of the model's grid, along which slices are cut; the maps of several are averaged
    axes: Annotated[tuple[Literal[0, 1, 2], ...], Field(min_length=1, max_length=3)] = (2,)
    #: slices on each side that become channels of the image, before and after those of the slice itself; 0 is 2-D
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    #: where i, j and k point; LPI shows slices of every axis as on a screen; null: as stored
    orientation: str | None = "LPI"
    #: mm along i, j and k of that orientation; 0 keeps an axis as it is, null all
    spacing: (
        tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None
    ) = None
    #: voxels of the grid after that, by cropping and padding; null: as large as the volume is
    size: tuple[Count, Count, Count] | None = None
    crop_to_foreground: bool = False
    foreground_erode_mm: Annotated[float, Field(ge=0, le=100)] = 0.0
    #: intensities and foreground are of the whole volume, or of each slice as if it were an image of its own
    statistics: Literal["volume", "slice"] = "volume"
    #: slices with a smaller share of foreground are neither learnt from nor scored
    min_foreground: Share = 0.01
    #: voxels of a training patch and of a window at scoring (i, j, k)
    patch: tuple[Count, Count, Count] = (64, 64, 64)
    #: share of a window that its neighbour covers too
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    #: a volume's score is the mean of its so many highest slice scores (1: the highest); not with patches
    score_slices: Count = 3
    #: side, in voxels of the model's grid, of the median filter over the finished map; 1 is none
    median: Annotated[int, Field(ge=1, le=15)] = 1
    #: lesion candidates below it are left out
    min_volume_mm3: Annotated[float, Field(ge=0)] = 0.0
    #: of a volume's candidates so many of the highest peaks are listed; how many more there are is said
    max_candidates: Count = 200

    @model_validator(mode="after")
    def _consistent(self) -> VolumeConfig:
        code = None if self.orientation is None else self.orientation.upper()
        if code is not None and (
            len(code) != 3 or any(sum(c in pair for c in code) != 1 for pair in ("RL", "AP", "SI"))
        ):
            raise ValueError(
                f"orientation must be one of R/L, A/P and S/I each, such as LPI, found {self.orientation!r}"
            )
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes must differ, found {list(self.axes)}")
        if self.median % 2 == 0:
            raise ValueError(f"median must be odd, found {self.median}")
        if self.mode == "patches" and (self.neighbours or self.statistics == "slice"):
            raise ValueError("neighbours and statistics of slices belong to mode slices, found mode patches")
        if self.statistics == "slice" and self.neighbours:
            raise ValueError("neighbours need intensities of the whole volume: expected statistics volume")
        if self.statistics == "slice" and (self.foreground_erode_mm or self.crop_to_foreground):
            raise ValueError(
                "foreground_erode_mm and crop_to_foreground need the foreground of the whole volume: expected "
                "statistics volume"
            )
        if self.crop_to_foreground and self.size is None:
            raise ValueError("crop_to_foreground says where size voxels are taken: expected volume.size, found none")
        return self

    @property
    def stack(self) -> int:
        """Slices that the network sees at once."""
        return 2 * self.neighbours + 1


class VideoConfig(Section):
    """A model of clips: which frames it sees, and which of them it is asked about.

    ``mode``: ``predict`` denoises the current frame's ``target`` given ``past`` frames, ``step`` frames apart (what was
    not predictable is anomalous); ``joint`` denoises current and past frames together as channels, given nothing;
    ``space-time`` does so with a network that is factorised: each frame for itself, attention over time between them;
    ``difference`` denoises the current frame and its change from the one ``step`` back. ``target``, of ``predict``: the
    change from the frame ``step`` back, or the frame itself. The ``background`` (median of the normal training frames,
    for a camera that stands still) is taken off every frame, and all is multiplied by ``gain``, so that moving figures
    span about [-1, 1].

    ``fps``: the rate the model works at: faster clips are thinned to it, and folders of frames are taken to have it.
    ``window_px``: side of the square whose mean error is a frame's score, the largest of the frame; ``bands`` divides a
    window's error by what is normal at its height in the picture. None: chosen on normals and what is planted in them.
    """

    mode: Literal["predict", "joint", "space-time", "difference"] = "predict"
    target: Literal["change", "frame"] = "change"
    past: Annotated[int, Field(ge=1, le=16)] = 3
    step: Annotated[int, Field(ge=1, le=64)] = 2
    fps: Positive | None = None
    background: Literal["median", "none"] = "median"
    gain: Positive = 2.0
    window_px: Annotated[int, Field(ge=1)] | None = None
    bands: bool | None = None
    #: standard deviation, in seconds, of the smoothing of frame scores over time, inside a clip
    smooth_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    #: of the threshold that makes events
    false_alarms_per_hour: Positive = 10.0

    @property
    def reach(self) -> int:
        """How many frames back the oldest one lies that the model sees."""
        return self.step if self.mode == "difference" else self.past * self.step

    @property
    def offsets(self) -> tuple[int, ...]:
        """How far back each frame lies that the model sees, the current one (0) first."""
        return tuple(range(0, self.reach + 1, self.step))

    @property
    def sequence(self) -> int:
        """How many frames the network keeps apart, attending over time; 1 where all are channels."""
        return len(self.offsets) if self.mode == "space-time" else 1

    @property
    def denoised(self) -> int:
        """How many frames are denoised at once."""
        return 1 if self.mode == "predict" else len(self.offsets)

    @property
    def given(self) -> int:
        """How many frames the denoiser is given beside."""
        return self.past if self.mode == "predict" else 0
