"""The volume recipes that are shipped, as they are: an update and a window each, and the memory that these take."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from anodiff.config import load_config, shipped_configs
from anodiff.diffusion import Denoiser
from anodiff.diffusion.objective import denoising_loss
from anodiff.engine.memory import peak_bytes
from anodiff.model import build_denoiser

GIB = 2**30
RECIPES = [name for name in shipped_configs() if name.startswith("open_ms_")]
ON_GPU = [name for name in RECIPES if name.endswith("_gpu")]
#: what each recipe's machine has, in bytes: 24 GiB of a CPU, 80 GB of a GPU
MACHINE = {name: 80 * 10**9 if name in ON_GPU else 24 * GIB for name in RECIPES}


@cache
def without_values(name: str) -> Denoiser:
    """The denoiser of a recipe, its tensors by their sizes alone."""
    return build_denoiser(load_config(name)).to("meta")


def counted(name: str, batch: int, window: int) -> tuple[int, int]:
    """Bytes of tensors, in float32, of an update on ``batch`` examples and of a call on ``window`` windows.

    Counted without computing, attention written out: bf16 and fused attention take less. A kernel's own is not in it.
    """
    config, denoiser = load_config(name), without_values(name)
    size = config.volume.patch if config.network_dims == 3 and config.volume else config.preprocess.size
    weights = sum(each.numel() * each.element_size() for each in denoiser.parameters())

    def update() -> None:
        clean, noise = (torch.empty(batch, config.network_channels, *size, device="meta") for _ in range(2))
        sigma, weight = (torch.empty(batch, device="meta") for _ in range(2))
        denoiser.zero_grad(set_to_none=True)
        denoising_loss(denoiser.given(None, None), clean, sigma, noise, weight).mean().backward()

    @torch.no_grad()
    def call() -> torch.Tensor:
        x = torch.empty(window, config.network_channels, *size, device="meta")
        return denoiser(x, torch.empty(window, device="meta"))

    # Beside the weights: their average, two moments of each. Gradients are made in the update.
    return 4 * weights + peak_bytes(update), weights + peak_bytes(call)


def test_each_machine_has_both_kinds_of_recipe() -> None:
    assert sorted(RECIPES) == ["open_ms_25d", "open_ms_25d_gpu", "open_ms_3d", "open_ms_3d_gpu"]
    for name in RECIPES:
        config = load_config(name)
        assert config.volume is not None
        assert (config.volume.mode == "patches") == ("3d" in name)
        assert bool(config.volume.neighbours) == ("25d" in name)


@pytest.mark.parametrize("name", RECIPES)
def test_the_counted_memory_fits_the_machine_and_a_batch_grows_by_its_rows(name: str) -> None:
    config = load_config(name)
    rows = config.training.batch_size
    window = config.engine.network_batch
    update, call = counted(name, rows, window)
    print(f"{name}: an update of {rows} {update / 1e9:.1f} GB, a call of {window} {call / 1e9:.1f} GB")
    assert max(update, call) < MACHINE[name]
    one, two = (counted(name, n, 1)[0] for n in (1, 2))
    assert update == pytest.approx(one + (rows - 1) * (two - one), rel=0.02)
    if name in ON_GPU:
        assert update > 24 * GIB  # or it would need no such machine


ONE_STEP = """
import json, sys
import nibabel as nib
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.config import load_config, parse_config
from anodiff.data.volumes import read_volume
from anodiff.model import DiffusionModel
from anodiff.training import Trainer
from anodiff.training.volumes import NormalPart, read_normals
import torch

def status(key):  # not getrusage: a new process inherits what its parent had
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))

name, head, window, rows = sys.argv[1:5]
values = load_config(name).model_dump(mode="json")
if rows != "all":
    values["training"]["batch_size"] = values["engine"]["network_batch"] = int(rows)
config = parse_config(values)
examples = read_normals([NormalPart(head, "one")], config).examples
held = examples.sample(config.training.validation_images, 0)
before = status("VmRSS:")
trainer = Trainer(config, examples, held, device=torch.device("cpu"), precision="fp32")
first = [each.detach().clone() for each in trainer.network.parameters()]
loss = float(trainer.step())
changed = any(not torch.equal(a, b) for a, b in zip(first, trainer.network.parameters()))
update = status("VmHWM:")
detector = VolumeDetector(DiffusionModel(config, trainer.averaged), device="cpu")
volume = read_volume(window)
result = detector(detector.prepare(volume), volume)
print(json.dumps({"loss": loss, "changed": changed, "grew": update - before, "peak": status("VmHWM:"),
                  "nfe": result.nfe, "levels": len(detector.settings.levels), "score": result.score}))
"""


def ball(path: Path, shape: tuple[int, int, int]) -> Path:
    """A ball (an ellipsoid) of noise around 100 in air, voxels of 1 mm."""
    middle = (np.array(shape)[:, None, None, None] - 1) / 2
    inside = (((np.indices(shape) - middle) / (0.48 * np.array(shape)[:, None, None, None])) ** 2).sum(axis=0) < 1
    values = np.where(inside, 100 + 6 * np.random.default_rng(0).standard_normal(shape), 1).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", RECIPES)
def test_an_update_and_a_window_on_a_cpu(name: str, tmp_path: Path) -> None:
    """In a process of its own. Recipes for a GPU with one example at a time, which the count is held against."""
    config = load_config(name)
    assert config.volume is not None
    head = ball(tmp_path / "head.nii", (96, 112, 64))
    spacing = config.volume.spacing or (1.0, 1.0, 1.0)
    i, j, k = (round(side * step) for side, step in zip(config.volume.patch, spacing, strict=True))
    window = ball(tmp_path / "window.nii", (96, 112, 1) if config.volume.mode == "slices" else (i, j, k))
    rows = "1" if name in ON_GPU else "all"
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP, name, str(head), str(window), rows],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected, _ = counted(name, 1 if rows == "1" else config.training.batch_size, 1)
    print(
        f"{name}: peak {found['peak'] / GIB:.2f} GiB, an update {found['grew'] / GIB:.2f}, counted {expected / GIB:.2f}"
    )
    assert np.isfinite([found["loss"], found["score"]]).all()
    assert found["changed"]
    assert found["nfe"] == found["levels"]  # one slice, or one window
    assert found["peak"] < 24 * GIB
    # what kernels need inside, and what the allocator keeps, is not counted
    assert found["grew"] < 2 * expected + 0.5 * GIB
