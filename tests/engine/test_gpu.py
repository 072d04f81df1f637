"""What only a GPU can show: that nothing waits for the host, what runs out of memory there, and compiled networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodiff.anomaly import AnomalyDetector, DetectorSettings
from anodiff.anomaly.noising import reconstruct
from anodiff.config import parse_config
from anodiff.diffusion import SAMPLERS, Denoiser, karras_grid
from anodiff.diffusion.noise import sample_noise
from anodiff.engine.device import to_device
from anodiff.engine.inference import GIB, InferenceDenoiser
from anodiff.engine.windows import WindowDenoiser
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.networks import UNet
from anodiff.training import Trainer

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@contextmanager
def no_waiting() -> Iterator[None]:
    """An operation for which the host waits raises in here."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def denoiser(dims: int = 2) -> Denoiser:
    torch.manual_seed(0)
    network = UNet(1, dims=dims, channels=(8, 16), blocks=1, attention=(False, True), stem=2, head_channels=8)
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():  # layers that start at zero would hide the network
            nn.init.normal_(parameter, std=0.05)
    return Denoiser(network)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_no_step_of_a_chain_waits_for_the_gpu(name: str, precision: str) -> None:
    path = InferenceDenoiser(denoiser(), DEVICE, precision, network_batch=4)
    keys = torch.arange(4, device=DEVICE)
    x = sample_noise("gaussian", keys, (1, 16, 16))

    def source(step: int) -> Tensor:
        return sample_noise("gaussian", keys, (1, 16, 16), draw=step)

    grid = karras_grid(1.0, 0.01, 6)
    SAMPLERS[name](path, x, grid, source)  # what is done once is not a step
    with no_waiting():
        SAMPLERS[name](path, x, grid, source)


@pytest.mark.parametrize("family", ["gaussian", "simplex", "pyramid", "coarse"])
@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp"])
def test_no_chain_of_a_detector_waits_for_the_gpu(family: str, sampler: str) -> None:
    settings = DetectorSettings(
        noise=family, noise_scale="unit", levels=(1.0, 0.5), pairs=2, sampler=sampler, steps=3, standardise="none"
    )
    path = InferenceDenoiser(denoiser(), DEVICE, network_batch=4)
    keys, images = torch.arange(3, device=DEVICE), torch.zeros(3, 1, 16, 16, device=DEVICE)
    reconstruct(path, images, keys, settings)
    with no_waiting():
        reconstruct(path, images, keys, settings)


@pytest.mark.parametrize("noise", ["gaussian", "pyramid", "simplex"])
def test_no_step_of_a_training_waits_for_the_gpu(tiny_recipe: dict[str, Any], noise: str) -> None:
    recipe = tiny_recipe | {"diffusion": {**tiny_recipe["diffusion"], "noise": noise}}
    images = torch.rand(24, 1, 16, 16) * 2 - 1
    trainer = Trainer(parse_config(recipe), images, images[:8], device=torch.device("cuda", 0), precision="bf16")
    trainer.step()
    with no_waiting():
        loss = trainer.step()
    assert bool(loss.isfinite())


def test_a_training_on_a_gpu_repeats_itself_and_is_near_that_of_a_cpu(tiny_recipe: dict[str, Any]) -> None:
    images = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = []
    for device in (DEVICE, DEVICE, "cpu"):
        trainer = Trainer(parse_config(tiny_recipe), images, images[:8], device=torch.device(device), precision="fp32")
        losses.append([float(trainer.step()) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=2e-2)


def test_a_copy_to_the_gpu_is_exact_and_changes_the_type_there() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(16, 16).T
    with no_waiting():
        there = to_device(values, torch.device("cuda", 0), torch.float32)
    assert there.dtype == torch.float32
    assert torch.equal(there.cpu(), values.float())
    assert to_device(there, there.device) is there


class Large(nn.Module):
    """Needs a share of the GPU's memory for every row."""

    def __init__(self, bytes_per_row: int) -> None:
        super().__init__()
        self.bytes_per_row = bytes_per_row

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        needed = torch.empty(len(x), self.bytes_per_row, dtype=torch.uint8, device=x.device)
        return x + 1 + 0 * needed[:, :1].float().view(-1, 1, 1, 1).nan_to_num(0, 0, 0)


def test_a_gpu_without_room_halves_the_batch_and_the_result_is_right() -> None:
    free, _ = torch.cuda.mem_get_info()
    path = InferenceDenoiser(Large(free // 3), DEVICE, "fp32", network_batch=8)
    assert torch.equal(path(torch.zeros(5, 1, 4, 4), 0.1).cpu(), torch.ones(5, 1, 4, 4))
    assert path.network_batch == 2
    assert path.notes[-1].startswith("out of memory: went on with engine.network_batch=2")


def test_max_memory_is_kept_by_the_process() -> None:
    try:
        path = InferenceDenoiser(denoiser(), DEVICE, "fp32", network_batch=64, max_memory=1.0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        path(torch.zeros(64, 1, 128, 128), 0.5)
        assert torch.cuda.max_memory_reserved() <= GIB
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 * GIB, dtype=torch.uint8, device=DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_a_compiled_network_agrees(precision: str, tolerance: float) -> None:
    x = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = InferenceDenoiser(denoiser(), DEVICE, precision, network_batch=4)(x, 0.5)
    path = InferenceDenoiser(denoiser(), DEVICE, precision, network_batch=4, compiled=True)
    assert path.compiled, path.notes
    found = path(x, 0.5)
    assert float((found - plain).norm() / plain.norm()) < tolerance
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    assert torch.equal(path(x[order], 0.5), found[order])


@pytest.mark.parametrize("dims", [2, 3])
def test_windows_agree_with_the_cpu_and_take_memory_that_does_not_grow(dims: int) -> None:
    x = torch.randn(1, 1, *(40, 36, 24)[:dims], generator=torch.Generator().manual_seed(0))
    there, here = (
        WindowDenoiser(InferenceDenoiser(denoiser(dims), device, "fp32", 4), (16,) * dims)(x, 0.5)
        for device in (DEVICE, "cpu")
    )
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
    if dims == 3:
        return
    windows = WindowDenoiser(InferenceDenoiser(denoiser(), DEVICE, "fp32", 4), (128, 128), 0.25)
    beyond = []
    for side in (512, 2048):
        image = torch.zeros(1, 1, side, side, device=DEVICE)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        windows(image, 0.5)
        beyond.append(torch.cuda.max_memory_allocated() - before - image.numel() * 4)  # less the estimate itself
    assert beyond[1] <= 1.1 * beyond[0] + 2**22


def test_a_detector_asks_for_what_it_is_told_and_says_where_it_runs(tiny_recipe: dict[str, Any]) -> None:
    config = parse_config(tiny_recipe)
    detector = AnomalyDetector(DiffusionModel(config, build_denoiser(config)), "one-step", device=DEVICE)
    assert detector.denoiser.sentence.startswith(f"cuda ({torch.cuda.get_device_name()})") or (
        detector.denoiser.sentence.startswith(f"cuda:0 ({torch.cuda.get_device_name()})")
    )
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    found = detector(images)
    assert found.maps.device == images.device
    assert bool(found.scores.isfinite().all())
