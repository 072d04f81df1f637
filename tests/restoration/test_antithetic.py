"""Pairs of opposite noise: each a sample as before, their mean the posterior's where the data are Gaussian."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from anodiff.errors import ConfigError
from anodiff.restoration import Restorer

MEAN, DEVIATION = 0.2, 0.4


class Exact(nn.Module):
    """The denoiser of Gaussian pixels without neighbours."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2
        return MEAN + (x - MEAN) * (DEVIATION**2 / (DEVIATION**2 + variance))


@pytest.mark.parametrize("sampler", ["dpmpp", "ancestral"])
@pytest.mark.parametrize("solver", ["matched", "proximal"])
def test_the_mean_of_a_pair_is_the_posteriors_and_each_is_a_sample_of_it(solver: str, sampler: str) -> None:
    restorer = Restorer(SimpleNamespace(denoiser=Exact()), device="cpu", network_batch=4, steps=24, sampler=sampler)
    images = torch.zeros(2, 1, 32, 32)
    missing = torch.zeros(32, 32, dtype=torch.bool)
    missing[4:28, 4:28] = True
    pair = restorer.inpaint(images, missing, solver=solver, samples=2, antithetic=True)
    alone = restorer.inpaint(images, missing, solver=solver, samples=2)
    assert pair.samples is not None
    assert alone.samples is not None
    assert torch.equal(pair.images, alone.images)
    assert torch.equal(pair.samples[:, 0], alone.samples[:, 0])
    hole, independent = pair.samples[..., missing], alone.samples[..., missing]
    assert float(hole[:, 1].std()) == pytest.approx(float(independent[:, 1].std()), rel=0.1)
    # what is drawn twice alone is off by 0.4 / sqrt(2) a pixel
    assert float((hole.mean(dim=1) - MEAN).square().mean().sqrt()) < 0.01
    assert float((independent.mean(dim=1) - MEAN).square().mean().sqrt()) > 0.2
    assert pair.uncertainty is None
    assert alone.uncertainty is not None


def test_a_pair_takes_two() -> None:
    restorer = Restorer(SimpleNamespace(denoiser=Exact()), device="cpu", network_batch=4, steps=2)
    with pytest.raises(ConfigError, match="even number of antithetic ones, found 3"):
        restorer.inpaint(torch.zeros(1, 1, 8, 8), torch.ones(8, 8), samples=3, antithetic=True)
