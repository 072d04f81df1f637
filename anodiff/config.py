"""The recipe of a model: what one YAML file of configs/ says, validated.

Unknown keys are refused with the nearest right one; YAML never names a Python object. Every value that changes a score
travels inside the model file, so that a model is scored as it was trained.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anodiff.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


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
    """

    kind: Literal["unit_range", "percentile", "zscore", "robust"] = "unit_range"
    low: Annotated[float, Field(ge=0, le=100)] = 0.5
    high: Annotated[float, Field(ge=0, le=100)] = 99.5
    clip: Positive | None = None
    spread: Literal["both", "lower", "upper"] = "both"

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
    resize: Literal["stretch", "pad"] = "pad"
    intensity: IntensityConfig = IntensityConfig()
    #: the values that mean black and white, whatever the data type; None: the type's own range
    value_range: tuple[Finite, Finite] | None = None
    foreground: Literal["none", "otsu", "threshold"] = "none"
    foreground_threshold: Share = 0.05
    #: the foreground's rim of so many px (model grid) is no place for anomalies, such as a scalp; never learnt from
    foreground_erode_px: Annotated[int, Field(ge=0, le=64)] = 0
    max_pixels: Count = 100_000_000

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
    noise: Literal["gaussian", "simplex", "pyramid", "coarse"] = "gaussian"
    noise_scale: Literal["unit", "published"] = "unit"
    #: ``foreground`` trains on images whose background (within 5 % of the range above the darkest value) stays clean
    noise_where: Literal["all", "foreground"] = "all"
    sigma: SigmaConfig = SigmaConfig()
    weight: Literal["edm", "eps", "x0", "v", "min-snr"] = "edm"
    #: of a reverse step: the posterior's, or learnt beside the image (for likelihood and ancestral sampling)
    variance: Literal["fixed", "learned"] = "fixed"
    #: the image estimate is clamped to [-clip, clip] when sampling
    clip: Positive | None = None

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


class AugmentConfig(Section):
    """Only what anatomy or scene allows: a brain may be mirrored left to right, a chest may not."""

    flip_lr: bool = False
    flip_ud: bool = False
    shift_px: Annotated[int, Field(ge=0)] = 0
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gain: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


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
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: int = 0


class CalibrationConfig(Section):
    """``rate``: the false-alarm rate that the threshold promises, per ``unit``, on normal images."""

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    unit: Literal["image"] = "image"
    standardise_images: Count = 600
    threshold_images: Count = 2_000


class EngineConfig(Section):
    """``network_batch``: the one batch shape the network ever sees; part of what makes scores reproducible."""

    network_batch: Count = 16
    workers: Count = 2
    #: compile the network before scoring: half a minute once, then up to twice as fast; for long runs
    compiled: bool = False


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
    not predictable is anomalous); ``joint`` denoises current and past frames together, given nothing; ``difference``
    denoises the current frame and its change from the one ``step`` back. ``target``: the change from the frame ``step``
    back, or the frame itself. The ``background`` (median of the normal training frames, for a camera that stands still)
    is taken off every frame, and all is multiplied by ``gain``, so that moving figures span about [-1, 1].

    ``fps``: the rate the model works at: faster clips are thinned to it, and folders of frames are taken to have it.
    ``window_px``: side of the square whose mean error is a frame's score, the largest of the frame; ``bands`` divides a
    window's error by what is normal at its height in the picture. None: chosen on normals and what is planted in them.
    """

    mode: Literal["predict", "joint", "difference"] = "predict"
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
    def denoised(self) -> int:
        """How many frames are denoised at once."""
        return 1 if self.mode == "predict" else len(self.offsets)

    @property
    def given(self) -> int:
        """How many frames the denoiser is given beside."""
        return self.past if self.mode == "predict" else 0


class AnodiffConfig(Section):
    """A whole recipe. ``polarity`` is declared, never learnt: are anomalies brighter, darker, or both?"""

    name: str
    description: str = ""
    polarity: Literal["both", "brighter", "darker"] = "both"
    preset: str = "default"
    #: slots of a preset that this recipe sets otherwise, by preset name
    presets: dict[str, dict[str, Any]] = {}
    preprocess: PreprocessConfig = PreprocessConfig()
    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    engine: EngineConfig = EngineConfig()
    #: null: a model of 2-D images, which scores volumes slice by slice
    volume: VolumeConfig | None = None
    #: null: the inputs are no clips
    video: VideoConfig | None = None

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
        return self

    @property
    def network_channels(self) -> int:
        """Channels that the network denoises: those of a pixel, times the slices or frames it sees at once."""
        if self.video is not None:
            return self.preprocess.channels * self.video.denoised
        return self.preprocess.channels * (1 if self.volume is None else self.volume.stack)

    @property
    def context_channels(self) -> int:
        """Channels that the network is given beside: the past frames of a clip."""
        return 0 if self.video is None else self.preprocess.channels * self.video.given

    @property
    def network_dims(self) -> int:
        """Spatial axes of the network: 3 for patches of volumes, else 2."""
        return 3 if self.volume is not None and self.volume.mode == "patches" else 2


def known_keys(section: type[BaseModel] = AnodiffConfig, prefix: str = "") -> list[str]:
    """Every key of a recipe by its full dotted name, groups before what is in them."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        found.append(f"{prefix}{name}")
        # A group that may be null is a union with None.
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += known_keys(kind, f"{prefix}{name}.")
    return found


def nearest_key(key: str) -> str | None:
    """The key of a recipe that ``key`` is probably a misspelling of, by its full dotted name; None where none is near.

    In the same group before any other; a right name without its group is that name.
    """
    known = known_keys()
    group, _, name = key.rpartition(".")
    beside = [known_key for known_key in known if known_key.rpartition(".")[0] == group]
    last = {known_key.rpartition(".")[2]: known_key for known_key in reversed(known)}
    if not group and name in last:
        return last[name]
    near = difflib.get_close_matches(name, [known_key.rpartition(".")[2] for known_key in beside], n=1)
    if near:
        return f"{group}.{near[0]}" if group else near[0]
    if name in last:
        return last[name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75) if not group or not beside else []
    return near[0] if near else None


def unknown_key(key: str) -> str:
    """What is wrong with ``key``, which no recipe has, and what was probably meant: half a sentence."""
    near, group = nearest_key(key), key.rpartition(".")[0]
    if near is not None:
        return f"unknown key {key!r}; did you mean {near!r}?"
    beside = [known.rpartition(".")[2] for known in known_keys() if known.rpartition(".")[0] == group]
    return f"unknown key {key!r}; known here: {', '.join(beside)}" if beside else f"unknown key {key!r}"


def explain(error: ValidationError, source: str) -> str:
    """The first thing wrong with a recipe, in one sentence that names the key."""
    first = error.errors()[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        return f"{source}: {unknown_key(key)}"
    if first["type"] == "missing":
        return f"{source}: the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    where = f" at {key!r}" if key else ""
    found = "" if isinstance(first["input"], dict | BaseModel) else f" (found {first['input']!r})"
    return f"{source}:{where} {message[0].lower()}{message[1:]}{found}"


def parse_config(values: Any, source: str = "config") -> AnodiffConfig:
    """Validate a recipe given as nested dicts; ``source`` names it in errors. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of keys to values, found {type(values).__name__}")
    try:
        return AnodiffConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, source)) from None


def apply_overrides(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Set ``key.sub=value`` pairs (the value is read as YAML) in a copy of ``values``. Raises ConfigError."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values))
    for override in overrides:
        path, found, text = override.partition("=")
        if not found or not path.strip():
            raise ConfigError(f"--set {override}: expected key.sub=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value {text!r} is not valid YAML") from None
        *parents, last = path.strip().split(".")
        place = result
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError(f"--set {override}: {parent!r} holds a value, not a group of keys")
        place[last] = value
    return result


def shipped_configs() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    from importlib.resources import files

    folder = Path(str(files("anodiff.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """A YAML file by its path, or a shipped recipe by its name. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    near = difflib.get_close_matches(path.stem, list(shipped), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name}: expected a YAML file or one of {', '.join(shipped)}{hint}")


def load_config(name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> AnodiffConfig:
    """Read a recipe (a YAML file, or the name of a shipped one) and apply ``key.sub=value`` overrides.

    Raises ConfigError, naming the file and the key.
    """
    path = find_config(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected a readable YAML file ({detail})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
    return parse_config(apply_overrides(values, overrides), str(path))


__all__ = [
    "AnodiffConfig",
    "AugmentConfig",
    "CalibrationConfig",
    "DiffusionConfig",
    "EngineConfig",
    "IntensityConfig",
    "NetworkConfig",
    "PreprocessConfig",
    "SigmaConfig",
    "TrainingConfig",
    "VideoConfig",
    "VolumeConfig",
    "apply_overrides",
    "find_config",
    "known_keys",
    "load_config",
    "nearest_key",
    "parse_config",
    "shipped_configs",
    "unknown_key",
]
