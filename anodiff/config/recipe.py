"""A whole recipe, and what its sections ask of each other."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from anodiff.config.domains import VideoConfig, VolumeConfig
from anodiff.config.sections import (
    AugmentConfig,
    CalibrationConfig,
    ConditioningConfig,
    DiffusionConfig,
    EngineConfig,
    IntensityConfig,
    NetworkConfig,
    PreprocessConfig,
    Section,
    TrainingConfig,
)


class AnodiffConfig(Section):
    """A whole recipe. ``polarity`` is declared, never learnt: are anomalies brighter, darker, or both?"""

    name: str
    description: str = ""
    polarity: Literal["both", "brighter", "darker"] = "both"
    preset: str = "default"
    #: slots of a preset that this recipe sets otherwise, by preset name
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    preprocess: PreprocessConfig = PreprocessConfig()
    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    #: null: the model knows no classes
    conditioning: ConditioningConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    engine: EngineConfig = EngineConfig()
    #: null: a model of 2-D images, which scores volumes slice by slice
    volume: VolumeConfig | None = None
    #: null: the inputs are no clips
    video: VideoConfig | None = None

    @model_validator(mode="after")
    def _windows_fit(self) -> AnodiffConfig:
        crop, size = self.augment.crop, self.preprocess.size
        plain = self.volume is None and self.video is None
        if not plain and self.engine.window is not None:
            raise ValueError("engine.window is of models of 2-D images: those of patches of volumes have volume.patch")
        if not plain and (crop is not None or self.augment.transpose or self.preprocess.resize == "none"):
            raise ValueError("augment.crop, augment.transpose and preprocess.resize none are of models of 2-D images")
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"augment.crop must fit in preprocess.size {list(size)}, found {list(crop)}")
        height, width = crop or size
        if self.augment.transpose and height != width:
            raise ValueError(f"augment.transpose needs a square image or crop, found {[height, width]}")
        return self

    @model_validator(mode="after")
    def _normals_are_counted(self) -> AnodiffConfig:
        name = "threshold_frames" if self.video is None else "threshold_images"
        found, usual = (getattr(section, name) for section in (self.calibration, CalibrationConfig()))
        if found != usual:
            said = ("images", "threshold_images") if self.video is None else ("clips", "threshold_frames")
            raise ValueError(
                f"the normals behind a threshold of {said[0]} are bounded by calibration.{said[1]}: expected "
                f"calibration.{name} to be left out, found {found}"
            )
        return self

    @model_validator(mode="after")
    def _frames_are_plain(self) -> AnodiffConfig:
        if self.video is None:
            return self
        prepared = self.preprocess
        if self.volume is not None:
            raise ValueError("a model is of volumes or of clips: expected volume or video, found both")
        if prepared.intensity != IntensityConfig() or prepared.foreground != "none" or prepared.value_range is not None:
            raise ValueError("a model of clips takes frames as they are: intensity unit_range, foreground none")
        if self.augment.gain:
            raise ValueError("a model of clips sees differences of brightness: expected augment.gain 0")
        if self.network.kind not in ("unet", "dit"):
            raise ValueError(f"a model of clips needs network.kind unet or dit, found {self.network.kind}")
        if self.video.sequence > 1 and self.network.kind != "unet":
            raise ValueError(f"video.mode space-time needs network.kind unet, found {self.network.kind}")
        return self

    @model_validator(mode="after")
    def _classes_are_of_images(self) -> AnodiffConfig:
        if self.conditioning is None:
            return self
        if self.volume is not None or self.video is not None:
            raise ValueError("conditioning is for models of images: expected no volume and no video")
        if self.network.kind not in ("unet", "dit"):
            raise ValueError(f"conditioning needs network.kind unet or dit, found {self.network.kind}")
        if self.diffusion.given != "nothing":
            raise ValueError(
                f"conditioning is on classes alone: expected diffusion.given nothing, found {self.diffusion.given}"
            )
        return self

    @model_validator(mode="after")
    def _given_is_of_images(self) -> AnodiffConfig:
        if self.diffusion.given == "image" and (self.video is not None or self.network.kind not in ("unet", "dit")):
            found = "clips" if self.video is not None else f"network.kind {self.network.kind}"
            raise ValueError(
                f"diffusion.given image is for images and volumes and network.kind unet or dit, found {found}"
            )
        return self

    @model_validator(mode="after")
    def _places_are_of_whole_images(self) -> AnodiffConfig:
        if not self.network.position:
            return self
        if self.network.kind != "unet":
            raise ValueError(f"network.position is of network.kind unet, found {self.network.kind}")
        parts = {
            "engine.window": self.engine.window is not None,
            "augment.crop": self.augment.crop is not None,
            "volume.mode patches": self.volume is not None and self.volume.mode == "patches",
        }
        found = [name for name, given in parts.items() if given]
        if found:
            raise ValueError(
                f"network.position tells where in the whole image a place is, and {found[0]} shows parts of it: "
                "expected one without the other"
            )
        return self

    @property
    def any_size(self) -> bool:
        """Whether images of any size are scored: nothing is resized, and the network sees a window at a time."""
        return self.preprocess.resize == "none" and self.engine.window is not None

    @property
    def network_channels(self) -> int:
        """Channels that the network denoises: those of a pixel, times the slices or frames it sees at once."""
        if self.video is not None:
            return self.preprocess.channels * self.video.denoised
        return self.preprocess.channels * (1 if self.volume is None else self.volume.stack)

    @property
    def context_channels(self) -> int:
        """Channels that the network is given beside: the past frames of a clip, or the noise-free image."""
        if self.diffusion.given == "image":
            return self.network_channels
        return 0 if self.video is None else self.preprocess.channels * self.video.given

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the network is told apart; none without ``conditioning``."""
        return () if self.conditioning is None else self.conditioning.classes

    @property
    def network_dims(self) -> int:
        """Spatial axes of the network: 3 for patches of volumes, else 2."""
        return 3 if self.volume is not None and self.volume.mode == "patches" else 2
