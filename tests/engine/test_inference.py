"""One internal batch shape: the same bits whatever the batch mates, the order and the cut (promise 1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anodiff.diffusion import Denoiser
from anodiff.engine.inference import InferenceDenoiser
from anodiff.errors import ConfigError
from anodiff.networks import UNet


class Tiny(nn.Module):
    """Convolutions, group norm, attention and a noise embedding: every kind of kernel that a U-Net runs."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.embed = nn.Linear(1, 16)
        self.inside = convolution(1, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.mix = nn.Linear(16, 48)
        self.out = convolution(16, 1, 3, padding=1)
        self.seen: list[tuple[int, ...]] = []

    def features(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        self.seen.append(tuple(x.shape))
        embedding = self.embed(sigma.log()[:, None])
        hidden = self.norm(self.inside(x) + embedding.reshape(len(x), 16, *[1] * (x.ndim - 2))).relu()
        q, k, v = self.mix(hidden.flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return [hidden, hidden + mixed.transpose(1, 2).reshape(hidden.shape)]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.out(self.features(x, sigma)[1])


def inputs(n: int, *, dims: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (n, 1, 16, 16) if dims == 2 else (n, 1, 6, 8, 8)
    return torch.randn(shape, generator=generator), torch.rand(n, generator=generator) * 3 + 0.1


@pytest.fixture
def network() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_bit_equal_whatever_the_batch(network: Tiny, precision: str) -> None:
    run = InferenceDenoiser(network, "cpu", precision, network_batch=8)
    x, sigma = inputs(21)
    whole = run(x, sigma)
    assert whole.dtype == torch.float32
    for size in (1, 7, 20):
        pieces = [run(x[i : i + size], sigma[i : i + size]) for i in range(0, 21, size)]
        assert torch.equal(torch.cat(pieces), whole)
    order = torch.randperm(21)
    assert torch.equal(run(x[order], sigma[order]), whole[order])
    assert {shape[0] for shape in run.denoiser.seen} == {8}


def test_without_the_fixed_shape_the_promise_would_be_empty(network: Tiny) -> None:
    """The values are right too: equal to the plain network to rounding, also across internal shapes."""
    x, sigma = inputs(9)
    with torch.no_grad():
        plain = network(x, sigma)
    for batch in (1, 4, 16):
        torch.testing.assert_close(
            InferenceDenoiser(network, "cpu", "fp32", batch)(x, sigma), plain, rtol=1e-4, atol=1e-5
        )


def test_a_single_sigma_serves_all_rows(network: Tiny) -> None:
    run = InferenceDenoiser(network, "cpu", "fp32", 4)
    x, _ = inputs(5)
    assert torch.equal(run(x, 0.7), run(x, torch.full((5,), 0.7)))
    assert torch.equal(run(x, torch.tensor(0.7, dtype=torch.float64)), run(x, 0.7))


def test_calls_count_rows_without_padding(network: Tiny) -> None:
    run = InferenceDenoiser(network, "cpu", "fp32", 16)
    x, sigma = inputs(5)
    run(x, sigma)
    run.features(x[:2], sigma[:2])
    assert run.calls == 7


def test_no_rows_give_no_rows(network: Tiny) -> None:
    assert InferenceDenoiser(network, "cpu", "fp32", 4)(torch.empty(0, 1, 8, 8), 1.0).shape == (0, 1, 8, 8)


def test_features_are_bit_equal_too_and_float32(network: Tiny) -> None:
    run = InferenceDenoiser(network, "cpu", "bf16", 4)
    x, sigma = inputs(6)
    first, second = run.features(x, sigma)
    assert first.dtype == second.dtype == torch.float32
    assert first.shape == (6, 16, 16, 16)
    alone = run.features(x[5:], sigma[5:])
    assert torch.equal(alone[1], second[5:])


def test_a_network_without_features_says_so() -> None:
    with pytest.raises(ConfigError, match="features"):
        InferenceDenoiser(nn.Identity(), "cpu", "fp32", 4).features(torch.zeros(1, 1, 8, 8), 1.0)


def test_volumes_run_as_well() -> None:
    torch.manual_seed(0)
    run = InferenceDenoiser(Tiny(dims=3), "cpu", "fp32", 2)
    x, sigma = inputs(3, dims=3)
    assert torch.equal(run(x, sigma)[2:], run(x[2:], sigma[2:]))


def test_results_may_enter_ordinary_arithmetic(network: Tiny) -> None:
    x, sigma = inputs(2)
    out = InferenceDenoiser(network, "cpu", "fp32", 4)(x, sigma)
    assert not out.is_inference()
    assert not out.requires_grad
    out += 1


def test_an_impossible_batch_is_refused(network: Tiny) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        InferenceDenoiser(network, "cpu", "fp32", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_bit_equal_on_a_gpu_and_near_the_cpu(network: Tiny, precision: str) -> None:
    x, sigma = inputs(21)
    reference = InferenceDenoiser(network, "cpu", "fp32", 8)(x, sigma)
    run = InferenceDenoiser(network, "cuda", precision, 8)
    whole = run(x, sigma)
    assert torch.equal(torch.cat([run(x[i : i + 1], sigma[i : i + 1]) for i in range(21)]), whole)
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    assert (whole.cpu() - reference).abs().max() <= tolerance * reference.abs().max()


def test_threads_are_a_power_of_two(network: Tiny) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        InferenceDenoiser(network, "cpu", "fp32", 4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_context_is_padded_with_its_image() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return x + context.sum(1, keepdim=True)

    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(5, 1, 4, 4, generator=generator), torch.randn(5, 3, 4, 4, generator=generator)
    given = InferenceDenoiser(Sum(), "cpu", network_batch=2).given(context)
    torch.testing.assert_close(given(x, 0.1), x + context.sum(1, keepdim=True))


def network_denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = UNet(1, channels=(8, 16), blocks=1, attention=(False, True), stem=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Denoiser(network)


def test_rounded_weights_give_the_bits_of_autocast_and_leave_the_model_alone() -> None:
    denoiser = network_denoiser().eval()
    x, sigma = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5)
    path = InferenceDenoiser(denoiser, "cpu", "bf16", network_batch=4)
    given = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = denoiser(given, sigma)
    assert torch.equal(path(x, sigma), expected.float())
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}


class Hungry(nn.Module):
    """Has memory for two rows."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("too much")
        return x + 1


def test_out_of_memory_halves_the_batch_says_so_and_goes_on() -> None:
    path = InferenceDenoiser(Hungry(), "cpu", "fp32", network_batch=8)
    assert torch.equal(path(torch.zeros(5, 1, 4, 4), 0.1), torch.ones(5, 1, 4, 4))
    assert path.network_batch == 2
    assert path.calls == 5
    assert path.notes[-1].startswith("out of memory: went on with engine.network_batch=2")


def test_no_memory_for_one_image_is_an_error() -> None:
    class Starving(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("too much")

    for most in (None, 1.0):  # with max_memory one image is tried first
        with pytest.raises(ConfigError, match="expected memory for one image at a time"):
            InferenceDenoiser(Starving(), "cpu", "fp32", 4, max_memory=most)(torch.zeros(1, 1, 4, 4), 0.1)


@pytest.mark.slow
def test_a_compiled_network_agrees_and_its_rows_do_not_depend_on_their_mates() -> None:
    x = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 2e-2)):
        plain = InferenceDenoiser(network_denoiser(), "cpu", precision, network_batch=4)(x, 0.5)
        compiled = InferenceDenoiser(network_denoiser(), "cpu", precision, network_batch=4, compiled=True)
        found = compiled(x, 0.5)
        assert float((found - plain).norm() / plain.norm()) < tolerance
        order = torch.tensor([3, 5, 0, 1, 4, 2])
        assert torch.equal(compiled(x[order], 0.5), found[order])
