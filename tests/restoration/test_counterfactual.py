"""Counterfactuals on two Gaussian classes that differ in a lesion: the flow between them is known in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from anodiff.errors import ConfigError, InputError
from anodiff.restoration import Restorer

SIDE, STD = 8, 0.3
CLASSES = ("healthy", "diseased")


def means() -> Tensor:
    """(2, 1, 8, 8): a slope, and the same with a bright lesion."""
    healthy = torch.linspace(-0.5, 0.3, SIDE).expand(1, SIDE, SIDE)
    lesion = torch.zeros(1, SIDE, SIDE)
    lesion[:, 2:5, 3:6] = 0.8
    return torch.stack([healthy, healthy + lesion])


LESION = (means()[1] != means()[0])[0]


class TwoClasses(nn.Module):
    """The exact denoiser of N(mean, STD^2) of each class, and of both, half of each."""

    def __init__(self, clip: float | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("means", means())

    def forward(self, x: Tensor, sigma: Tensor, context: None = None, label: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
        offsets = x.double()[:, None] - self.means.double()
        variance = (STD**2 + sigma**2)[:, None]
        each = self.means + STD**2 / variance * offsets  # (N, 2, 1, H, W)
        shares = (-offsets.square().sum((2, 3, 4)) / (2 * variance[:, :, 0, 0, 0])).softmax(1)
        if label is not None:
            known = nn.functional.one_hot(label.clamp(min=0), 2).double()
            shares = torch.where((label < 0)[:, None], shares, known)
        return (shares[:, :, None, None, None] * each).sum(1).to(x.dtype)


def restorer(**options: object) -> Restorer:
    config = SimpleNamespace(class_names=CLASSES)
    model = SimpleNamespace(denoiser=TwoClasses(), config=config)
    return Restorer(model, **{"device": "cpu", "precision": "fp32", "network_batch": 2, "steps": 48, **options})


def diseased(count: int = 2, seed: int = 0) -> Tensor:
    return means()[1] + STD * torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def shrink(sigma: float, low: float) -> float:
    return math.sqrt((STD**2 + low**2) / (STD**2 + sigma**2))


@pytest.mark.parametrize("sampler", [None, "ddim"])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_plain_counterfactual_is_the_flow_from_one_gaussian_to_the_other(sampler: str | None, sigma: float) -> None:
    """x + (m_healthy - m_diseased) (1 - k): up x - m grows by 1 / k, down it shrinks by k."""
    steps = 48 if sampler is None else 192
    mine, x = restorer(sampler=sampler, steps=steps), diseased()
    low = min(mine.sigma_min, sigma / 4)
    found = mine.counterfactual(x, "healthy", sigma, source="diseased", guidance=1.0)
    expected = (means()[1] - means()[0]) * (1 - shrink(sigma, low))
    tolerance = 2e-3 if sampler is None else 0.02
    torch.testing.assert_close(found.difference, expected.expand_as(x), rtol=0, atol=tolerance)
    assert torch.equal(found.difference, x - found.images)
    assert found.nfe == (4 if sampler is None else 2) * steps


@pytest.mark.parametrize("source", ["diseased", None])
def test_the_difference_lights_up_in_the_lesion_and_nowhere_else(source: str | None) -> None:
    x = diseased(3)
    found = restorer().counterfactual(x, "healthy", 1.0, source=source)
    inside, outside = found.difference[:, :, LESION], found.difference[:, :, ~LESION]
    assert float(inside.mean()) > 0.5
    assert float(outside.abs().max()) < 2e-3
    # what guidance adds goes on from the plain estimate in the same direction
    plain = restorer().counterfactual(x, "healthy", 1.0, source=source, guidance=1.0)
    assert float(inside.mean()) > float(plain.difference[:, :, LESION].mean())


def test_an_image_of_the_target_class_comes_back() -> None:
    x = means()[0] + STD * torch.randn(2, 1, SIDE, SIDE)
    mine = restorer()
    found = mine.counterfactual(x, "healthy", 2.0, source="healthy", guidance=1.0)
    torch.testing.assert_close(found.images, x, rtol=0, atol=2e-3)


def test_fresh_noise_draws_of_the_target_class() -> None:
    """From a level that drowns the image, the result is a draw of N(m_healthy, STD^2)."""
    x = diseased(1).expand(64, -1, -1, -1) + 1e-3 * torch.arange(64).reshape(-1, 1, 1, 1)
    found = restorer(network_batch=32, steps=24).counterfactual(x, "healthy", 40.0, guidance=1.0, start="noise")
    error = 5 * STD / math.sqrt(64)
    assert float((found.images.mean(0) - means()[0]).abs().max()) < error
    assert abs(float((found.images - means()[0]).std()) - STD) < 0.02
    assert found.nfe == 24


@pytest.mark.parametrize(("start", "steps"), [("inversion", 12), ("noise", 6)])
def test_the_steps_of_both_ways_are_told(start: str, steps: int) -> None:
    mine, told = restorer(steps=6), []
    mine.on_step = lambda step: told.append(str(step))
    mine.counterfactual(diseased(3), "healthy", 1.0, start=start)
    assert told == [f"{n}/{steps} of batch {batch}/2" for batch in (1, 2) for n in range(1, steps + 1)]


def test_outside_the_mask_every_bit_stays() -> None:
    x = diseased()
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[:4] = True
    for start in ("inversion", "noise"):
        found = restorer(steps=12).counterfactual(x, "healthy", 1.0, mask=mask, start=start)
        assert torch.equal(found.images[:, :, ~mask], x[:, :, ~mask])
        assert not found.difference[:, :, ~mask].any()
        assert float(found.difference[:, :, mask & LESION].mean()) > 0.3


def test_an_image_has_the_same_bits_whatever_its_mates_are() -> None:
    x, mine = diseased(3), restorer(steps=6)
    whole = mine.counterfactual(x, "healthy", 1.0)
    for row in range(3):
        assert torch.equal(mine.counterfactual(x[row : row + 1], "healthy", 1.0).images[0], whole.images[row])
    assert whole.nfe == 2 * 6 + 2 * 2 * 6  # a guided estimate is two calls, and Heun's step takes two estimates


@pytest.mark.parametrize(("label", "mean"), [("healthy", 0), ("diseased", 1)])
def test_generated_images_are_of_their_class(label: str, mean: int) -> None:
    made = restorer(network_batch=32, steps=20).generate(64, shape=(1, SIDE, SIDE), label=label)
    assert float((made.images.mean(0) - means()[mean]).abs().max()) < 5 * STD / math.sqrt(64)
    assert made.nfe == 20
    both = restorer(network_batch=32, steps=20).generate(64, shape=(1, SIDE, SIDE))
    sick = both.images[:, 0, LESION].mean(1) > (means()[:, 0, LESION].mean())
    assert 16 < int(sick.sum()) < 48


def test_guidance_sharpens_and_counts_twice() -> None:
    mine = restorer(network_batch=16, steps=12)
    plain, guided = (mine.generate(16, shape=(1, SIDE, SIDE), label="diseased", guidance=w) for w in (1.0, 4.0))
    lesion = [made.images[:, 0, LESION].mean() - made.images[:, 0, ~LESION].mean() for made in (plain, guided)]
    assert lesion[1] >= lesion[0]
    assert (plain.nfe, guided.nfe) == (12, 24)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "helthy"}, "found 'helthy'; did you mean 'healthy'"),
        ({"source": "sick"}, "source class: expected one of healthy, diseased, found 'sick'"),
        ({"start": "ddim"}, "start: expected one of inversion, noise"),
        ({"start": "noise", "source": "diseased"}, "expected a start by inversion"),
        ({"guidance": -1.0}, "guidance: expected a weight"),
        ({"sigma": 100.0}, "up to 80"),
        ({"sigma": None}, "expected one of sigma and strength"),
        ({"mask": torch.ones(3, 3, dtype=torch.bool)}, "mask: expected the shape"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict, said: str) -> None:
    given = {"target": "healthy", "sigma": 1.0, **options}
    with pytest.raises(ConfigError, match=said):
        restorer().counterfactual(diseased(), **given)


def test_samplers_models_and_pixels_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="expected heun or ddim with a start by inversion, found 'dpmpp'"):
        restorer(sampler="dpmpp").counterfactual(diseased(), "healthy", 1.0)
    with pytest.raises(ConfigError, match="found a weight of 2 alone"):
        restorer().generate(1, shape=(1, SIDE, SIDE), guidance=2.0)
    with pytest.raises(InputError, match="finite"):
        restorer().counterfactual(diseased() * math.nan, "healthy", 1.0)
    plain = Restorer(SimpleNamespace(denoiser=TwoClasses()), device="cpu", network_batch=2)
    with pytest.raises(ConfigError, match="expected a model that was trained with classes"):
        plain.counterfactual(diseased(), "healthy", 1.0)
