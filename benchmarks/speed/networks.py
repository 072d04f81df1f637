"""The trained networks that the benchmarks of reconstruction need: MONAI's U-Net, on synthetic brain slices.

Trained by our own command where a work folder does not hold them yet (some minutes on 2 CPU cores), so that both sides
run the same weights and that neither is a network of noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from anodiff.data.phantoms import write_phantoms
from anodiff.model import DiffusionModel, load
from anodiff.pipelines import train

ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [32, 64, 96],
    "attention_levels": [False, False, True], "num_res_blocks": 2, "num_head_channels": 32,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "network.kind": "monai", "network.arguments": ARGUMENTS, "diffusion.prediction": "eps",
    "diffusion.schedule": "vp-linear", "diffusion.noise_input": "timestep", "diffusion.weight": "eps",
    "diffusion.sigma.kind": "uniform-t", "training.lr": 3e-4, "preset": "one-step",
}  # fmt: skip
COUNTS = {"n_train": 1000, "n_val": 100, "n_test_good": 500, "n_test_lesion": 500}


def phantoms(work: Path) -> Path:
    """Synthetic slices of 64x64: normal ones to learn from, and 1,000 to score, half of them with lesions."""
    data = work / "phantoms"
    if not data.exists():
        write_phantoms(data, **COUNTS, size=64, seed=0)
    return data


def monai_model(work: Path, images: int, device: str, noise: str = "gaussian") -> DiffusionModel:
    """MONAI's U-Net trained to predict the noise on the phantoms, as a model of ours."""
    folder = work / f"monai_{noise}_{images}"
    path = folder / "model.safetensors"
    if not path.exists():
        settings = {**RECIPE, "training.images": images, "diffusion.noise": noise, "diffusion.noise_scale": "published"}
        overrides = [f"{key}={text(value)}" for key, value in settings.items()]
        resume = (folder / "checkpoint.pt").exists()
        train.run("phantoms", phantoms(work), folder, overrides=overrides, device=device, resume=resume)
    return load(path)


def as_it_comes(model: DiffusionModel) -> nn.Module:
    """MONAI's network itself, with the model's weights, as its own library makes it."""
    from monai.networks.nets import DiffusionModelUNet

    network = DiffusionModelUNet(**ARGUMENTS).eval()
    network.load_state_dict(model.denoiser.network.unet.state_dict())  # type: ignore[union-attr]
    return network


def text(value: Any) -> str:
    """A value as --set takes it."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
