"""The sections of a recipe that every model has: input, network, diffusion, training, calibration, engine."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
#: the percentages of the landmarks of Nyul, Udupa & Zhang 2000
DECILES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0)


class Section(BaseModel):
    """A part of the recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class IntensityConfig(Section):
    """How raw intensities become the [-1, 1] of the library.

    ``unit_range`` maps the value range of the data type (0..255, 0..65535; other types: ``[0, 1]``, and what leaves it
    is refused unless ``preprocess.value_range`` says what the range is) to [-1, 1];
    ``percentile`` maps the ``low`` and ``high`` percentiles of the foreground; ``zscore`` standardises the foreground;
    ``robust`` does so by median and quartiles, +-``clip`` deviations becoming -1 and 1. Where lesions are brighter than
    tissue, ``spread: lower`` measures the deviation below the median only, where lesions cannot widen it.
    ``nyul`` brings the ``low``, ``landmarks`` and ``high`` percentiles of the foreground to a standard scale from -1 to
    1: their mean places in the training images, which training finds and the model file keeps as ``standard``.
    """

    kind: Literal["unit_range", "percentile", "zscore", "robust", "nyul"] = "unit_range"
    low: Annotated[float, Field(ge=0, le=100)] = 0.5
    high: Annotated[float, Field(ge=0, le=100)] = 99.5
    clip: Positive | None = None
    spread: Literal["both", "lower", "upper"] = "both"
    landmarks: Annotated[tuple[Annotated[float, Field(gt=0, lt=100)], ...], Field(min_length=1, max_length=99)] = (
        DECILES
    )
    #: of each channel, where its low, landmarks and high lie on the standard scale; null: training finds it
    standard: tuple[tuple[Annotated[float, Field(ge=-1, le=1)], ...], ...] | None = None

    @model_validator(mode="after")
    def _landmarks_rise(self) -> IntensityConfig:
        if self.kind != "nyul":
            if self.standard is not None or self.landmarks != DECILES:
                raise ValueError(f"landmarks and standard belong to kind nyul, found kind {self.kind}")
            return self
        points = (self.low, *self.landmarks, self.high)
        if any(low >= high for low, high in pairwise(points)):
            raise ValueError(f"low, landmarks and high must rise, found {list(points)}")
        for channel in self.standard or ():
            falls = any(low > high for low, high in pairwise(channel))
            if len(channel) != len(points) or falls or channel[:1] != (-1.0,) or channel[-1:] != (1.0,):
                raise ValueError(
                    f"each channel of standard must rise from -1 to 1 in {len(points)} numbers, found {list(channel)}"
                )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> IntensityConfig:
        if self.kind == "robust" and self.clip is None:
            raise ValueError("robust needs clip, the deviations from the median that become -1 and 1 (5 is usual)")
        if self.low >= self.high:
            raise ValueError(f"low must be below high, found {self.low} and {self.high}")
        return self


class PreprocessConfig(Section):
    """From a decoded image to the model's grid, with an exact way back to the native one."""

    channels: Annotated[int, Field(ge=1, le=16)] = 1
    channel: Annotated[int, Field(ge=0)] | None = None
    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (128, 128)
    #: ``none``: pixel for pixel, for training of ``size`` alone, in restoration of any size, as in scoring with
    #: ``engine.window``
    resize: Literal["stretch", "pad", "none"] = "pad"
    intensity: IntensityConfig = IntensityConfig()
    #: the values that mean black and white, whatever the data type; None: the type's own range
    value_range: tuple[Finite, Finite] | None = None
    #: where an image or volume comes with a mask of its own that is taken; ``given``: each must
    foreground: Literal["none", "otsu", "threshold", "given"] = "none"
    foreground_threshold: Share = 0.05
    #: the foreground's rim of so many px (model grid) is no place for anomalies, such as a scalp; never learnt from
    foreground_erode_px: Annotated[int, Field(ge=0, le=64)] = 0
    max_pixels: Count = 100_000_000

    @model_validator(mode="after")
    def _scale_of_each_channel(self) -> PreprocessConfig:
        standard = self.intensity.standard
        if standard is not None and len(standard) != self.channels:
            raise ValueError(
                f"intensity.standard needs one row a channel: expected {self.channels}, found {len(standard)}"
            )
        return self

    @model_validator(mode="after")
    def _range_ordered(self) -> PreprocessConfig:
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range must be [low, high] with low below high, found {list(self.value_range)}")
        return self


class NetworkConfig(Section):
    """The U-Net: ``channels`` per resolution, ``attention`` at which of them, ``stem`` = pixel-unshuffle factor.

    The transformer (``kind: dit``): ``patch`` voxels a side become one token of ``width`` channels, ``depth`` blocks.
    """

    kind: Literal["unet", "dit", "monai", "diffusers"] = "unet"
    channels: tuple[Count, ...] = (64, 128, 192)
    blocks: Count = 2
    attention: tuple[bool, ...] = (False, False, True)
    stem: Annotated[int, Field(ge=1, le=8)] = 2
    patch: Annotated[int, Field(ge=1, le=16)] = 4
    width: Count = 256
    depth: Count = 8
    head_channels: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    checkpointing: bool = False
    #: the U-Net is told where in the image a place is, for images aligned with one another (the transformer always is)
    position: bool = False
    #: numbers that say what the noise-free image looks like, where ``diffusion.given`` is image
    code: Count = 128
    #: constructor arguments of an imported network (``kind`` monai or diffusers), as its own library names them
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _levels_agree(self) -> NetworkConfig:
        if self.kind == "unet" and len(self.channels) != len(self.attention):
            raise ValueError(
                f"attention needs one entry per resolution: expected {len(self.channels)}, found {len(self.attention)}"
            )
        if self.kind == "unet":
            for width, attended in zip(self.channels, self.attention, strict=True):
                if attended and width > self.head_channels and width % self.head_channels:
                    raise ValueError(
                        f"head_channels {self.head_channels} must divide the attended channels, found {width}"
                    )
        if self.kind == "dit" and self.width % self.head_channels:
            raise ValueError(f"head_channels {self.head_channels} must divide the width, found {self.width}")
        return self


class SigmaConfig(Section):
    """From which noise levels training draws: log-normal (EDM), log-uniform, uniform over the schedule's steps, or one.

    ``fixed`` trains on the level ``value`` alone: a denoising auto-encoder.
    """

    kind: Literal["lognormal", "loguniform", "uniform-t", "fixed"] = "lognormal"
    mean: float = -0.4
    std: Positive = 1.4
    low: Positive = 0.02
    high: Positive = 20.0
    value: Positive = 0.4


class DiffusionConfig(Section):
    """The forward process and what the network predicts."""

    #: ``learned``: trained on the variational bound, variance-preserving, from ``sigma.low`` to ``sigma.high``
    schedule: Literal["vp-linear", "vp-cosine", "vp-sigmoid", "additive", "edm", "learned"] = "edm"
    num_steps: Annotated[int, Field(ge=2)] = 1000
    prediction: Literal["eps", "x0", "v", "edm"] = "edm"
    sigma_data: Positive = 0.5
    noise_input: Literal["log_sigma", "timestep"] = "log_sigma"
    #: ``mixed``: half of the images with gaussian, half with pyramid noise: one model that restores and detects, each
    #: worse than a model of its own
    noise: Literal["gaussian", "simplex", "pyramid", "coarse", "mixed"] = "gaussian"
    noise_scale: Literal["unit", "published"] = "unit"
    #: ``foreground`` trains on images whose background (within 5 % of the range above the darkest value) stays clean;
    #: ``box`` on noise in one box of half each side alone, which alone is asked for (for presets with where: boxes);
    #: ``parts`` on noise in parts of any outline, up to half the image, and all of the image is asked for
    noise_where: Literal["all", "foreground", "box", "parts"] = "all"
    #: rectangles of the image that the denoiser is shown otherwise and asked for as they were: black, or without their
    #: fine or coarse detail
    mask: Literal["none", "pixels", "frequency"] = "none"
    #: ``image``: the denoiser is told a short code of the noise-free image (``network.code`` numbers)
    given: Literal["nothing", "image"] = "nothing"
    sigma: SigmaConfig = SigmaConfig()
    weight: Literal["edm", "eps", "x0", "v", "min-snr"] = "edm"
    #: of a reverse step: the posterior's, or learnt beside the image (for likelihood and ancestral sampling)
    variance: Literal["fixed", "learned"] = "fixed"
    #: the image estimate is clamped to [-clip, clip] when sampling
    clip: Positive | None = None

    @model_validator(mode="after")
    def _bound_is_of_noise(self) -> DiffusionConfig:
        if (self.mask != "none" or self.noise_where in ("box", "parts")) and "learned" in (
            self.schedule,
            self.variance,
        ):
            raise ValueError(
                "a learned schedule or variance is of noise on whole images: expected mask none and noise_where all, "
                f"found {self.mask} and {self.noise_where}"
            )
        return self

    @model_validator(mode="after")
    def _learned_noise(self) -> DiffusionConfig:
        if self.schedule == "learned":
            if self.variance == "learned":
                raise ValueError("one of schedule and variance can be learned, found both")
            if self.noise_input != "log_sigma" or self.sigma.kind not in ("lognormal", "loguniform"):
                raise ValueError(
                    "a learned schedule needs noise_input log_sigma and sigma.kind lognormal or loguniform"
                )
            if self.sigma.low >= self.sigma.high:
                raise ValueError(f"sigma.low must be below sigma.high, found {self.sigma.low} and {self.sigma.high}")
        return self


class ConditioningConfig(Section):
    """Class labels: the model learns all of them, and what each alone looks like; null: it learns normal images only.

    An image's class is that of its class folder, or the column ``class`` of a manifest. Data without these names, or
    with others, have two classes by their labels: ``normal`` for normal images, the other one for anomalous ones.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=2)] = ("healthy", "diseased")
    #: the class that a detector holds every image against; null: the first
    normal: str | None = None
    #: share of training images that are shown without their label, which teaches what guidance starts from
    drop: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _names(self) -> ConditioningConfig:
        plain = [name.strip().casefold() for name in self.classes]
        if not all(plain) or len(set(plain)) != len(plain):
            raise ValueError(f"classes must have names that differ, found {list(self.classes)}")
        if self.normal is not None and self.normal not in self.classes:
            raise ValueError(f"normal must be one of the classes {', '.join(self.classes)}, found {self.normal!r}")
        return self

    @property
    def normal_index(self) -> int:
        """The number of the normal class."""
        return 0 if self.normal is None else self.classes.index(self.normal)


class AugmentConfig(Section):
    """Only what anatomy or scene allows: a brain may be mirrored left to right, a chest may not."""

    flip_lr: bool = False
    flip_ud: bool = False
    shift_px: Annotated[int, Field(ge=0)] = 0
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gain: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    #: rows and columns with equal chance exchanged; with both flips, all turns by 90 degrees
    transpose: bool = False
    #: height and width of a window at a random place, pixel for pixel; null: the whole image
    crop: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> AugmentConfig:
        if self.crop is not None and self.shift_px:
            raise ValueError(f"a crop is at a random place already: expected shift_px 0, found {self.shift_px}")
        return self


class TrainingConfig(Section):
    """Progress is counted in images, so a batch size never changes the meaning of a schedule."""

    images: Count = 60_000
    batch_size: Count = 32
    accumulate: Count = 1
    lr: Positive = 3e-4
    warmup_images: Annotated[int, Field(ge=0)] = 2_000
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_grad: Positive = 1.0
    ema_halflife_images: Positive = 4_000.0
    ema_rampup: Share = 0.08
    validate_every_images: Count = 8_000
    validation_images: Count = 128
    checkpoint_minutes: Positive = 3.0
    #: compile the network before training: a minute once, then a quarter faster and more; for long runs
    compiled: bool = False
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: int = 0


class CalibrationConfig(Section):
    """``rate``: the false-alarm rate that the threshold promises, per ``unit``, on normal images."""

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    unit: Literal["image"] = "image"
    #: of clips: frames by which windows are chosen, and as many with something planted in them
    standardise_images: Count = 600
    threshold_images: Count = 2_000
    #: of clips, instead of threshold_images: consecutive frames, shared by the clips; 36,000 at 10 a second are an hour
    threshold_frames: Count = 36_000


class EngineConfig(Section):
    """``network_batch``: the one batch shape the network ever sees; part of what makes scores reproducible."""

    network_batch: Count = 16
    workers: Count = 2
    #: compile the network before scoring: half a minute once, then up to twice as fast; for long runs
    compiled: bool = False
    #: GiB that one internal batch may take beside the weights; it is made smaller where it needs more
    max_memory: Positive | None = None
    #: height and width of what the network sees of an image at once: overlapping windows, whose estimates are averaged
    #: inside the sampling loop; with ``preprocess.resize: none`` images may then have any size. null: the whole image
    window: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] | None = None
    #: share of a window that its neighbour covers too
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
