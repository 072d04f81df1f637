"""Classifier-free guidance: the exact denoiser of the guided density, its limits and cost, and no wait for the host."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anodiff.diffusion import NO_LABEL, Denoiser, classifier_free
from anodiff.engine.inference import InferenceDenoiser
from anodiff.errors import ConfigError
from anodiff.networks import DiT, UNet

MEANS, SHARES, STD = (-0.5, 0.2, 0.9), (0.5, 0.3, 0.2), 0.3


class Classes:
    """Scalar data of three Gaussian classes; the exact denoiser of each and, for a negative label, of all together."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: Tensor, sigma: Tensor, *, label: Tensor) -> Tensor:
        self.rows += len(x)
        view = (-1, *[1] * (x.ndim - 1))
        variance = STD**2 + torch.as_tensor(sigma).to(x).reshape(-1).reshape(view) ** 2
        offsets = torch.stack([x - mean for mean in MEANS])
        logits = torch.stack([math.log(p) - e**2 / (2 * variance) for p, e in zip(SHARES, offsets, strict=True)])
        estimates = torch.stack([m + STD**2 / variance * e for m, e in zip(MEANS, offsets, strict=True)])
        alone = torch.arange(len(MEANS), device=x.device).reshape(-1, *[1] * x.ndim) == label.reshape(view)
        return (torch.where((label < 0).reshape(view), logits.softmax(0), alone.to(x)) * estimates).sum(0)


def guided_score(x: Tensor, sigma: float, label: int, weight: float) -> Tensor:
    """Gradient of ln p(x) + weight ln p(class | x) at level sigma, by autograd of the densities."""
    x = x.clone().requires_grad_()
    variance = STD**2 + sigma**2
    joint = torch.stack([math.log(p) - (x - m) ** 2 / (2 * variance) for p, m in zip(SHARES, MEANS, strict=True)])
    total = joint.logsumexp(0)
    return torch.autograd.grad((total + weight * (joint[label] - total)).sum(), x)[0]


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 3.5])
@pytest.mark.parametrize("sigma", [0.05, 0.6, 4.0])
def test_it_is_the_denoiser_of_the_density_times_the_class_to_the_weight(weight: float, sigma: float) -> None:
    """Tweedie's formula on the guided score, for scalar data (any dimension mixes scores alike)."""
    x = torch.randn(5, 1, 3, 3, dtype=torch.float64)
    guided = classifier_free(Classes(), 1, weight)
    expected = x + sigma**2 * guided_score(x, sigma, 1, weight)
    level = torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(guided(x, level), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(guided(x, level.expand(5)), expected, rtol=0, atol=1e-10)


def test_its_limits_are_exact_and_cost_one_call_and_the_rest_two() -> None:
    x, sigma = torch.randn(4, 1, 3, 3), torch.tensor(0.7)
    for weight, label, rows in ((0.0, NO_LABEL, 4), (1.0, 2, 4), (2.0, None, 8)):
        data = Classes()
        found = classifier_free(data, 2, weight)(x, sigma)
        assert data.rows == rows
        if label is not None:
            assert torch.equal(found, Classes()(x, sigma, label=torch.full((4,), label)))
    assert torch.equal(
        classifier_free(Classes(), NO_LABEL, 5.0)(x, sigma), classifier_free(Classes(), 0, 0.0)(x, sigma)
    )


def test_each_level_of_a_batch_is_its_own() -> None:
    x, sigmas = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 1.0, 5.0])
    guided = classifier_free(Classes(), 0, 2.0)
    single = torch.cat([guided(x[i : i + 1], sigmas[i]) for i in range(3)])
    torch.testing.assert_close(guided(x, sigmas), single)


def test_what_the_denoiser_clamps_stays_clamped() -> None:
    x = torch.full((1, 1, 2, 2), -3.0)
    assert float(classifier_free(Classes(), 0, 4.0)(x, torch.tensor(0.3)).min()) < -1
    assert float(classifier_free(Classes(), 0, 4.0, clip=1.0)(x, torch.tensor(0.3)).min()) == -1


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="guidance: expected a weight of 0 or more"):
        classifier_free(Classes(), 0, weight)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__.split(".")[0] in ("_local_scalar_dense", "item", "nonzero", "is_nonzero"):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    guided, x = classifier_free(Classes(), 1, 2.0), torch.randn(2, 1, 4, 4)
    with Reads() as reads:
        guided(x, torch.tensor(0.5))
    assert not reads.seen
    assert classifier_free(Classes(), 1, 2.0)(x.to("meta"), torch.tensor(0.5)).device.type == "meta"


@pytest.mark.parametrize("make", [UNet, DiT])
def test_a_network_with_classes_behind_every_wrapper(make: type[UNet] | type[DiT]) -> None:
    """Denoiser, fixed-batch inference and guidance agree with the formula on the bare denoiser; NFE counts both."""
    options = {"channels": (8, 16), "blocks": 1, "attention": (False, False)} if make is UNet else {
        "width": 16, "depth": 1, "head_channels": 8
    }  # fmt: skip
    network = make(1, classes=3, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    denoiser = Denoiser(network).eval()
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor(0.8)
    with torch.no_grad():
        null, wanted = denoiser(x, sigma), denoiser(x, sigma, label=2)
        assert not torch.equal(null, wanted)
        assert torch.equal(denoiser.of_class(2)(x, sigma), wanted)
        assert torch.equal(denoiser(x, sigma, label=torch.tensor([2, -1, 2]))[0], wanted[0])
        torch.testing.assert_close(denoiser(x, sigma, label=torch.tensor([2, -1, 2]))[1], null[1])
    fixed = InferenceDenoiser(denoiser, "cpu", "fp32", network_batch=2)
    found = classifier_free(fixed, 2, 2.5)(x, sigma)
    torch.testing.assert_close(found, null + 2.5 * (wanted - null), rtol=1e-4, atol=1e-5)
    assert fixed.calls == 6
    for row in range(3):
        assert torch.equal(classifier_free(fixed, 2, 2.5)(x[row : row + 1], sigma)[0], found[row])


def test_a_network_without_classes_refuses_one() -> None:
    with pytest.raises(ConfigError, match="without classes"):
        Denoiser(UNet(1, channels=(8,), attention=(False,), blocks=1))(torch.zeros(1, 1, 4, 4), 0.5, label=0)
