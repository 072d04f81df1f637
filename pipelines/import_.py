"""anodiff import: the weights of a MONAI or diffusers U-Net become a model file; nothing of theirs is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError, ModelFileError
from anodiff.pipelines.common import ModelOutput, Set, new_file, say

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.config import AnodiffConfig
    from anodiff.diffusion import Denoiser

#: where programs put the weights inside a checkpoint
NESTS = ("state_dict", "model_state_dict", "model", "ema", "unet", "network", "module")
#: what wrappers put before the name of each weight
PREFIXES = ("module.", "model.", "unet.", "network.", "_orig_mod.")
DIFFUSERS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def main(
    weights: Annotated[
        Path, typer.Argument(help=".safetensors, or .pt/.pth/.bin (weights only), or diffusers folder.")
    ],
    config: Annotated[str, typer.Option(help="Recipe with network.kind monai or diffusers and its arguments.")],
    output: ModelOutput,
    set_: Set = None,
) -> None:
    """Bring in the weights of a MONAI or diffusers U-Net as an anodiff model file.

    The recipe says how the network is built (network.kind, network.arguments), what it predicts and its schedule.
    The model is not calibrated: `anodiff calibrate` does that with normal images.

    \b
    Examples:
      anodiff import unet.pt --config my_monai.yaml --output imported.safetensors
      anodiff import google-ddpm/unet --config my_diffusers.yaml --output imported.safetensors
      anodiff calibrate imported.safetensors normals/ --preset default --output calibrated.safetensors
    """
    from anodiff.config import load_config
    from anodiff.model import DiffusionModel, build_denoiser

    new_file(output)
    recipe = load_config(config, set_ or [])
    if recipe.network.kind not in ("monai", "diffusers"):
        found = recipe.network.kind
        raise ConfigError(f"{config}: expected network.kind monai or diffusers for foreign weights, found {found!r}")
    if recipe.preprocess.intensity.kind == "nyul" and recipe.preprocess.intensity.standard is None:
        raise ConfigError(
            f"{config}: preprocess.intensity of kind nyul needs the standard scale that the weights were trained with: "
            "expected preprocess.intensity.standard, found none"
        )
    denoiser = build_denoiser(recipe)
    source = weights_file(weights)
    put_weights(denoiser, read_weights(source), source)
    try_out(denoiser, input_shape(recipe), source)
    model = DiffusionModel(recipe, denoiser, provenance=provenance(source, recipe.network.kind))
    model.save(output)
    say(f"wrote {output} ({model.parameters / 1e6:.1f} M weights, not calibrated: see anodiff calibrate)")


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a diffusers folder. Raises ModelFileError where there is none."""
    if path.is_dir():
        for name in DIFFUSERS_NAMES:
            if (path / name).is_file():
                return path / name
        raise ModelFileError(f"{path}: expected a folder with {' or '.join(DIFFUSERS_NAMES)}, found none in it")
    if not path.is_file():
        raise ModelFileError(f"{path}: expected a file of weights, found no such file")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, read without running any code from it. Raises ModelFileError."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"{path}: expected plain weights, found a pickle that needs code to load; "
            "save its state_dict() with torch.save in the program that made it"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        detail = " ".join(str(error).split())
        raise ModelFileError(f"{path}: expected a whole file of weights, found a damaged one ({detail})") from None
    while isinstance(found, Mapping) and not any(isinstance(value, torch.Tensor) for value in found.values()):
        nest = next((name for name in NESTS if isinstance(found.get(name), Mapping)), None)
        if nest is None:
            break
        found = found[nest]
    if not isinstance(found, Mapping):
        raise ModelFileError(f"{path}: expected names and tensors, found {type(found).__name__}")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelFileError(f"{path}: expected names and tensors, found no tensor")
    return tensors


def put_weights(denoiser: Denoiser, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copies foreign weights into the network that the recipe builds. Raises ModelFileError where they do not fit."""
    network = denoiser.network
    inner = getattr(network, "unet", network)
    expected = inner.state_dict()
    found = dict(weights)
    while found.keys() != expected.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    wrong = sorted(
        [f"{name} is missing" for name in expected.keys() - found.keys()]
        + [f"{name} is not part of the network" for name in found.keys() - expected.keys()]
        + [
            f"{name} has shape {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
            for name in expected.keys() & found.keys()
            if found[name].shape != expected[name].shape
        ]
    )
    if wrong:
        raise ModelFileError(
            f"{path}: expected the {len(expected)} weights of the recipe's network, found {len(wrong)} that do not fit "
            f"(the first: {wrong[0]}); check network.kind and network.arguments"
        )
    inner.load_state_dict(found)


def input_shape(recipe: AnodiffConfig) -> tuple[int, ...]:
    """(C, *S) of what the recipe's network is given: an image, slices with their neighbours, or a patch of a volume."""
    volume = recipe.volume
    size = recipe.preprocess.size if volume is None or recipe.network_dims == 2 else volume.patch
    return (recipe.network_channels, *size)


def try_out(denoiser: Denoiser, shape: tuple[int, ...], path: Path) -> None:
    """One call on noise (C, *S): right shape and finite numbers, or ModelFileError."""
    import torch

    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            out = denoiser.eval()(noise, torch.ones(1))
    except (RuntimeError, ValueError, TypeError) as error:
        detail = " ".join(str(error).split())
        raise ModelFileError(
            f"{path}: expected a network for images of {'x'.join(map(str, shape))}, it failed on one ({detail})"
        ) from None
    if out.shape != noise.shape or not bool(out.isfinite().all()):
        raise ModelFileError(
            f"{path}: expected finite images of {tuple(noise.shape)} from the network, found {tuple(out.shape)}"
            f"{'' if bool(out.isfinite().all()) else ' with numbers that are not finite'}"
        )


def provenance(path: Path, kind: str) -> dict[str, Any]:
    """What the model file says of its origin."""
    from datetime import UTC, datetime

    import anodiff
    from anodiff.pipelines.common import file_digest

    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "anodiff": anodiff.__version__,
        "created": created,
        "imported_from": path.name,
        "library": kind,
        "digest": file_digest(path),
    }
