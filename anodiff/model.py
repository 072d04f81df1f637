"""The model file: weights, calibrations, recipe and provenance in one ``.safetensors`` that runs no code when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anodiff.config import AnodiffConfig, NetworkConfig, parse_config
from anodiff.diffusion import Denoiser, NoiseSchedule, make_schedule
from anodiff.diffusion.adapters import wrap_diffusers, wrap_monai
from anodiff.diffusion.learned_schedule import LearnedSchedule
from anodiff.errors import ConfigError, InputError, ModelFileError

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration
    from anodiff.data.preprocess import Preprocessor
    from anodiff.data.seen import SeenImages

FORMAT_VERSION = 1
HEADER_KEY = "anodiff"
WEIGHTS = "weights."
CALIBRATION = "calibration."
CONSTANT = "constant."
SEEN = "provenance.train_hashes"
PICKLE_MARKS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def build_network(
    network: NetworkConfig,
    channels: int,
    dims: int = 2,
    given: int = 0,
    learned_variance: bool = False,
    classes: int = 0,
    frames: int = 1,
) -> nn.Module:
    """The network F(x, c_noise) of a recipe, with fresh weights; ``channels`` are those of the image.

    ``given``: channels that it is given beside them. ``learned_variance``: as many again come out, see `Denoiser`.
    ``classes``: how many it is told apart. ``frames``: that ``channels`` are made of, attended over in time where there
    are several. Raises ConfigError for these of a network of another library.
    """
    outputs = channels * (2 if learned_variance else 1)
    if network.kind == "unet":
        from anodiff.networks import SpaceTimeUNet, UNet

        shape: dict[str, Any] = {
            "channels": network.channels,
            "blocks": network.blocks,
            "attention": network.attention,
            "stem": network.stem,
            "head_channels": network.head_channels,
            "dropout": network.dropout,
            "checkpointing": network.checkpointing,
            "position": network.position,
        }
        if frames > 1:
            return SpaceTimeUNet(frames, channels, outputs, **shape)
        return UNet(channels + given, outputs, dims=dims, classes=classes, **shape)
    if network.kind == "dit":
        from anodiff.networks import DiT

        return DiT(
            channels + given,
            outputs,
            dims=dims,
            patch=network.patch,
            width=network.width,
            depth=network.depth,
            head_channels=network.head_channels,
            dropout=network.dropout,
            checkpointing=network.checkpointing,
            classes=classes,
        )
    if learned_variance:
        raise ConfigError(f"diffusion.variance learned: expected network.kind unet or dit, found {network.kind!r}")
    if classes:
        raise ConfigError(f"conditioning: expected network.kind unet or dit, found {network.kind!r}")
    return build_foreign(network.kind, network.arguments)


def build_foreign(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A MONAI ``DiffusionModelUNet`` or a diffusers ``UNet2DModel`` with fresh weights, as F(x, timestep).

    Raises ConfigError for arguments the library does not take, or where diffusers is not installed.
    """
    try:
        if kind == "monai":
            from monai.networks.nets import DiffusionModelUNet

            return wrap_monai(DiffusionModelUNet(**arguments))
        import diffusers

        foreign: Any = diffusers.UNet2DModel(**arguments)
        return wrap_diffusers(foreign)
    except ImportError as error:
        raise ConfigError(
            f"network.kind {kind}: expected the package {error.name} to be installed, found none"
        ) from None
    except (TypeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(
            f"network.arguments: expected what the {kind} network takes, found a misfit ({detail})"
        ) from None


def build_denoiser(config: AnodiffConfig) -> Denoiser:
    """The denoiser of a recipe, with fresh weights."""
    diffusion = config.diffusion
    learned, told = diffusion.variance == "learned", diffusion.given == "image"
    network = build_network(
        config.network,
        config.network_channels,
        config.network_dims,
        0 if told else config.context_channels,
        learned,
        len(config.class_names),
        1 if config.video is None else config.video.sequence,
    )
    if told:
        from anodiff.networks import DiT, ImageConditioned, UNet

        assert isinstance(network, UNet | DiT)
        network = ImageConditioned(network, config.context_channels, config.network.code)
    if diffusion.schedule == "learned":
        network.add_module("schedule", LearnedSchedule(diffusion.sigma.low, diffusion.sigma.high))
    return Denoiser(
        network,
        diffusion.prediction,
        sigma_data=diffusion.sigma_data,
        schedule=schedule_of(config),
        noise_input=diffusion.noise_input,
        clip=diffusion.clip,
        learned_variance=learned,
    )


def schedule_of(config: AnodiffConfig) -> NoiseSchedule:
    """The noise schedule of a recipe: what its step numbers mean. A learned one is as it starts."""
    if config.diffusion.schedule == "learned":
        return LearnedSchedule(config.diffusion.sigma.low, config.diffusion.sigma.high).table(
            config.diffusion.num_steps
        )
    return make_schedule(config.diffusion.schedule, config.diffusion.num_steps)


@dataclass
class DiffusionModel:
    """A trained denoiser with all that is needed to score as it was trained.

    ``calibrations`` are keyed by preset name; ``provenance`` says what it was trained on and with; ``seen`` knows the
    training images again (None where that is not recorded: imported weights, early files); ``constants`` are tensors
    that preparing an input needs, by name (the background of a scene).
    """

    config: AnodiffConfig
    denoiser: Denoiser
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    seen: SeenImages | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def preprocessor(self) -> Preprocessor:
        """From decoded pixels to the model's grid, and back; images of another size are refused, see `scorable`."""
        from anodiff.data.preprocess import Preprocessor

        return Preprocessor(self.config.preprocess)

    @property
    def scorable(self) -> Preprocessor:
        """As ``preprocessor``, of images that a detector takes: with ``engine.window`` of any size."""
        from anodiff.data.preprocess import Preprocessor

        return Preprocessor(self.config.preprocess, self.config.any_size)

    def prepare(self, paths: Sequence[str | Path], foregrounds: Sequence[str | Path] = ()) -> tuple[Tensor, Tensor]:
        """Image files as the model sees them: images (N, C, H, W) float32 and foreground (N, H, W) bool.

        foregrounds: the mask file of each image's, "" where it is estimated; none: of all. Exactly what ``anodiff
        score`` does before it scores; give both to a detector. Raises InputError.
        """
        from anodiff.data.foreground import with_given
        from anodiff.data.readers import read_image

        preprocessor, most = self.scorable, self.config.preprocess.max_pixels
        if foregrounds and len(foregrounds) != len(paths):
            raise InputError(f"foregrounds: expected one for each of {len(paths)} paths, found {len(foregrounds)}")
        prepared = [
            preprocessor(with_given(read_image(path, max_pixels=most), given, max_pixels=most))
            for path, given in zip(paths, foregrounds or [""] * len(paths), strict=True)
        ]
        if not prepared:
            raise InputError("paths: expected at least one image file, found none")
        sizes = {tuple(each.image.shape[1:]) for each in prepared}
        if len(sizes) > 1:
            raise InputError(f"paths: expected images of one size at a time, found {sorted(sizes)}")
        return torch.stack([each.image for each in prepared]), torch.stack([each.foreground for each in prepared])

    @property
    def schedule(self) -> NoiseSchedule:
        """What step numbers mean for this model: t <-> sigma."""
        if self.config.diffusion.schedule == "learned":
            learned = self.denoiser.network.get_submodule("schedule")
            assert isinstance(learned, LearnedSchedule)
            return learned.table(self.config.diffusion.num_steps)
        return schedule_of(self.config)

    @property
    def normal_denoiser(self) -> Denoiser:
        """The denoiser of normal images: that of the normal class, where the model knows classes."""
        conditioning = self.config.conditioning
        return self.denoiser if conditioning is None else self.denoiser.of_class(conditioning.normal_index)

    @property
    def parameters(self) -> int:
        """Number of weights of the network."""
        return sum(p.numel() for p in self.denoiser.network.parameters())

    def save(self, path: str | Path) -> None:
        """Write the model file (temporary name, then renamed). Raises StorageError."""
        from safetensors.torch import save

        from anodiff.files import atomic_write

        tensors: dict[str, Tensor] = {}
        for name, tensor in self.denoiser.network.state_dict().items():
            tensors[WEIGHTS + name] = tensor.detach().cpu().contiguous()
        for name, tensor in self.constants.items():
            tensors[CONSTANT + name] = tensor.detach().cpu().contiguous()
        calibrations = {}
        for preset, calibration in self.calibrations.items():
            calibrations[preset] = calibration.to_json()
            for name, tensor in calibration.to_tensors().items():
                tensors[f"{CALIBRATION}{preset}.{name}"] = tensor.detach().cpu().contiguous()
        header = {
            "format_version": FORMAT_VERSION,
            "config": self.config.model_dump(mode="json"),
            "calibrations": calibrations,
            "provenance": self.provenance,
        }
        if self.seen is not None:
            tensors[SEEN] = self.seen.hashes
            header["train_hashes"] = self.seen.distinct
        header["digest"] = digest(tensors, header)
        atomic_write(Path(path), save(tensors, metadata={HEADER_KEY: json.dumps(header)}))


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """blake2b over the header (without its digest) and all tensors: tells a damaged file from a whole one."""
    content = {key: value for key, value in header.items() if key != "digest"}
    state = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a model file, verified. Raises ModelFileError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelFileError(f"{path}: expected a model file, found {'a folder' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelFileError(f"{path}: expected a readable model file, found {error.strerror or error}") from None
    if not head:
        raise ModelFileError(f"{path}: expected a model file, found an empty file")
    if head.startswith(PICKLE_MARKS):
        raise ModelFileError(
            f"{path}: expected a .safetensors model file, found a pickle, which could run code when loaded; "
            "bring its weights in with `anodiff import`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if HEADER_KEY not in metadata:
                raise ModelFileError(
                    f"{path}: expected a model file of anodiff, found a .safetensors of another program; "
                    "bring its weights in with `anodiff import`"
                )
            tensors = {name: file.get_tensor(name) for name in names}
        header = json.loads(metadata[HEADER_KEY])
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        detail = " ".join(str(error).split())
        raise ModelFileError(f"{path}: expected a whole model file, found a damaged one ({detail})") from None
    version = header.get("format_version") if isinstance(header, dict) else None
    if version != FORMAT_VERSION:
        raise ModelFileError(f"{path}: expected model format version {FORMAT_VERSION}, found {version}")
    if header.get("digest") != digest(tensors, header):
        raise ModelFileError(f"{path}: expected content with digest {header.get('digest')}, found a damaged file")
    return header, tensors


def load(path: str | Path) -> DiffusionModel:
    """Read a model file onto the CPU, verified; the denoiser is in evaluation mode. Raises ModelFileError."""
    from anodiff.anomaly.calibration import Calibration
    from anodiff.anomaly.clip_calibration import ClipCalibration
    from anodiff.anomaly.volume_calibration import VolumeCalibration
    from anodiff.data.seen import SeenImages

    path = Path(path)
    header, tensors = _read(path)
    config = parse_config(header["config"], str(path))
    denoiser = build_denoiser(config)
    weights = {name.removeprefix(WEIGHTS): t for name, t in tensors.items() if name.startswith(WEIGHTS)}
    expected = denoiser.network.state_dict()
    if weights.keys() != expected.keys() or any(weights[name].shape != expected[name].shape for name in expected):
        wrong = sorted(
            name
            for name in weights.keys() | expected.keys()
            if name not in weights or name not in expected or weights[name].shape != expected[name].shape
        )
        raise ModelFileError(
            f"{path}: expected the weights of the network in its recipe, found {len(wrong)} that do not fit, "
            f"the first {wrong[0]!r}"
        )
    denoiser.network.load_state_dict(weights)
    kind = Calibration if config.video is None else ClipCalibration
    if config.volume is not None:
        kind = VolumeCalibration
    calibrations = {}
    for preset, values in header["calibrations"].items():
        prefix = f"{CALIBRATION}{preset}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        # Files that do not record it were calibrated with their own recipe; keys newer than a file have their defaults.
        prepared = values.get("preprocess") or header["config"].get("preprocess", {})
        plain = parse_config({**header["config"], "preprocess": prepared}, str(path)).preprocess.model_dump(mode="json")
        calibrations[preset] = kind.from_parts({**values, "preprocess": plain}, own)
    seen = SeenImages(tensors[SEEN], header["train_hashes"]) if SEEN in tensors else None
    constants = {name.removeprefix(CONSTANT): t for name, t in tensors.items() if name.startswith(CONSTANT)}
    return DiffusionModel(config, denoiser.eval(), calibrations, header["provenance"], path, seen, constants)
