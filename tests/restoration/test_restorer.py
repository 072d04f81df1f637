"""Restorer: the same bits whatever the batch, what must be kept is kept, costs as reported, right on known data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anodiff
from anodiff.config import parse_config
from anodiff.errors import ConfigError, InputError
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.restoration import (
    SOLVERS,
    Jpeg,
    Mask,
    Restorer,
    Slices,
    SuperResolution,
    cartesian_lines,
    gaussian_blur,
)
from anodiff.restoration.chains import ChainStep, network_rows, trained_levels
from anodiff.restoration.style import stylize

STEPS = 3


@pytest.fixture
def model(tiny_recipe: dict[str, Any]) -> DiffusionModel:
    torch.manual_seed(0)
    config = parse_config(tiny_recipe)
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():  # layers that start at zero would hide the network
            nn.init.normal_(parameter, std=0.05)
    return DiffusionModel(config, denoiser)


@pytest.fixture
def restorer(model: DiffusionModel) -> Restorer:
    return anodiff.Restorer(model, device="cpu", precision="fp32", network_batch=4, steps=STEPS)


class Exact(nn.Module):
    """The denoiser of Gaussian data of one deviation, without neighbours."""

    deviation = 0.4

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2
        return x * (self.deviation**2 / (self.deviation**2 + variance))


@pytest.fixture
def exact() -> Restorer:
    return Restorer(SimpleNamespace(denoiser=Exact()), device="cpu", network_batch=8, steps=24)


def images(n: int = 4, size: tuple[int, ...] = (16, 16)) -> Tensor:
    return (torch.randn((n, 1, *size), generator=torch.Generator().manual_seed(n)) * 0.4).clamp(-1, 1)


HOLE = torch.zeros(16, 16, dtype=torch.bool)
HOLE[4:9, 5:12] = True


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_inpainting_has_the_same_bits_in_any_batch_and_keeps_the_rest(restorer: Restorer, solver: str) -> None:
    x = images()
    whole = restorer.inpaint(x, HOLE, solver=solver, samples=2)
    assert torch.equal(whole.images[..., ~HOLE], x[..., ~HOLE])
    assert not torch.equal(whole.images[..., HOLE], x[..., HOLE])
    assert whole.samples is not None
    assert not torch.equal(whole.samples[:, 0], whole.samples[:, 1])
    order = torch.tensor([3, 0])
    part = restorer.inpaint(x[order], HOLE, solver=solver, samples=2)
    assert torch.equal(part.samples, whole.samples[order])
    changed = torch.where(HOLE, torch.rand(16, 16), x)
    assert torch.equal(restorer.inpaint(changed, HOLE, solver=solver, samples=2).images, whole.images)


@pytest.mark.parametrize(("asked", "rows"), [(None, 1), (2, 2)])
@pytest.mark.parametrize("solver", ["matched", "proximal"])
def test_a_cpu_fills_no_batch_up_unless_asked(model: DiffusionModel, solver: str, asked: int | None, rows: int) -> None:
    """Rows that the network sees are counted, those that only fill up a batch among them."""
    restorer = Restorer(model, device="cpu", precision="fp32", network_batch=asked, steps=STEPS)
    restorer.mean((1, 16, 16))  # looked for once
    seen: list[int] = []
    model.denoiser.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    x = images(3)
    whole = restorer.inpaint(x, HOLE, solver=solver)
    assert set(seen) == {rows}
    assert sum(seen) == STEPS * rows * -(-len(x) // rows)
    for n in range(len(x)):
        assert torch.equal(restorer.inpaint(x[n : n + 1], HOLE, solver=solver).images, whole.images[n : n + 1])


def test_the_rows_of_a_chain_follow_from_the_device_and_from_what_is_asked() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert network_rows(None, 16, cpu) == 1
    assert network_rows(None, 16, cuda) == 16
    assert network_rows(8, 16, cpu) == network_rows(8, 16, cuda) == 8


WAYS = {
    "generate": (lambda r, x: r.generate(3), 1, 2),
    "matched": (lambda r, x: r.inpaint(x, HOLE), 1, 2),
    "resampled": (lambda r, x: r.inpaint(x, HOLE, solver="resampled"), 1, 2),
    "samples": (lambda r, x: r.denoise(x, 0.5, samples=2), 1, 3),
    "edit": (lambda r, x: r.edit(x, 0.5), 1, 2),
    "edit in a mask": (lambda r, x: r.edit(x, 0.5, HOLE), 1, 2),
    "style": (lambda r, x: stylize(r, x, style=x[:1]), 2, 2),
    "style and back": (lambda r, x: stylize(r, x, style=x[:1], cycle=True), 4, 2),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_step_is_told_and_changes_nothing(model: DiffusionModel, name: str) -> None:
    way, times, batches = WAYS[name]
    restorer = Restorer(model, device="cpu", precision="fp32", network_batch=2, steps=STEPS)
    unheard = way(restorer, images(3)).images
    told: list[ChainStep] = []
    restorer.on_step = told.append
    assert torch.equal(way(restorer, images(3)).images, unheard)
    steps = times * STEPS
    assert told == [ChainStep(n, steps, b, batches) for b in range(1, batches + 1) for n in range(1, steps + 1)]
    assert [each.last for each in told] == [False] * (len(told) - 1) + [True]
    assert str(told[0]) == f"1/{steps} of batch 1/{batches}"
    assert str(ChainStep(12, 32)) == "12/32"


def test_what_a_step_raises_ends_the_chain(restorer: Restorer) -> None:
    def stop(step: ChainStep) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    restorer.mean((1, 16, 16))
    before, restorer.on_step = restorer.denoiser.calls, stop
    with pytest.raises(KeyboardInterrupt):
        restorer.inpaint(images(8), HOLE, solver="proximal")
    assert restorer.denoiser.calls - before == 2 * restorer.denoiser.network_batch


@pytest.mark.parametrize(
    "operator",
    [SuperResolution(2), gaussian_blur(1.0), Slices(2), cartesian_lines(2), Jpeg(30)],
    ids=lambda o: type(o).__name__,
)
def test_restoring_has_the_same_bits_in_any_batch(restorer: Restorer, operator: Any) -> None:
    x = images()
    whole = restorer.restore(x, operator)
    assert whole.images.shape == x.shape
    assert torch.equal(restorer.restore(x[2:3], operator).images, whole.images[2:3])
    assert torch.equal(restorer.restore(None, operator, operator(x)).images, whole.images)
    assert not torch.equal(restorer.restore(x, operator, seed=1).images, whole.images)


def test_each_image_may_have_its_own_mask(restorer: Restorer) -> None:
    x = images(3)
    masks = torch.stack([HOLE, ~HOLE, HOLE.roll(3, 0)])
    whole = restorer.inpaint(x, masks)
    alone = restorer.inpaint(x[1:2], masks[1:2])
    assert torch.equal(whole.images[1:2], alone.images)
    assert torch.equal(whole.images[1, 0][HOLE], x[1, 0][HOLE])


def test_a_generated_image_depends_on_seed_and_number_alone(restorer: Restorer) -> None:
    whole = restorer.generate(6, seed=3)
    assert whole.images.shape == (6, 1, 16, 16)
    assert whole.nfe == STEPS
    assert torch.equal(restorer.generate([5, 2], seed=3).images, whole.images[[5, 2]])
    assert not torch.equal(restorer.generate(1, seed=4).images, whole.images[:1])
    assert not torch.equal(whole.images[0], whole.images[1])


def test_generated_images_have_the_spread_of_the_data(exact: Restorer) -> None:
    drawn = exact.generate(8, shape=(1, 32, 32)).images
    assert float(drawn.std()) == pytest.approx(Exact.deviation, rel=0.04)
    assert abs(float(drawn.mean())) < 0.02


def test_the_estimate_is_the_denoiser_and_samples_cost_three_decibels(exact: Restorer) -> None:
    """Of Gaussian data: the estimate has the posterior's variance as its error, a sample twice that."""
    clean = Exact.deviation * torch.randn((4, 1, 24, 24), generator=torch.Generator().manual_seed(0))
    sigma = 0.3
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    exact.steps = 60
    found = exact.denoise(noisy, sigma, samples=6)
    assert found.nfe == 1 + 6 * 60
    variance = 1 / (1 / Exact.deviation**2 + 1 / sigma**2)
    assert float((found.images - clean).square().mean()) == pytest.approx(variance, rel=0.06)
    assert found.samples is not None
    assert float((found.samples[:, 0] - clean).square().mean()) == pytest.approx(2 * variance, rel=0.1)
    assert found.uncertainty is not None
    assert float(found.uncertainty.mean()) == pytest.approx(variance**0.5, rel=0.1)
    by_gradient = exact.denoise(noisy, sigma, uncertainty=True)
    assert by_gradient.gradients == 16
    assert by_gradient.nfe == 2
    torch.testing.assert_close(by_gradient.uncertainty, torch.full_like(noisy, variance**0.5))
    assert torch.equal(by_gradient.images, found.images)


def test_denoising_has_the_same_bits_in_any_batch(restorer: Restorer) -> None:
    x = images()
    for options in ({"samples": 2}, {"uncertainty": True}, {"noise": "rician"}, {"noise": "poisson", "gain": 50.0}):
        whole, alone = restorer.denoise(x, **options), restorer.denoise(x[1:2], **options)
        assert torch.equal(whole.images[1:2], alone.images)
        if whole.uncertainty is not None:
            assert torch.equal(whole.uncertainty[1:2], alone.uncertainty)


class Mixing(nn.Module):
    """A denoiser that links every voxel with one far away, where probing by signs is a matter of chance."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * x + 0.2 * x.roll(4, -1)


def test_the_seed_reaches_the_probes_of_the_uncertainty() -> None:
    restorer = Restorer(SimpleNamespace(denoiser=Mixing()), device="cpu", network_batch=2)
    first, second = (restorer.denoise(images(2), 0.3, uncertainty=True, seed=seed).uncertainty for seed in (0, 1))
    assert not torch.equal(first, second)


def test_samples_of_alike_images_share_their_batches(restorer: Restorer) -> None:
    """Four images of about one noise: one batch of chains, not one an image; each as if it were alone."""
    x = images(1).repeat(4, 1, 1, 1) * torch.tensor([1, 1.001, 1.002, 1.003]).reshape(4, 1, 1, 1)
    before = restorer.denoiser.calls
    found = restorer.denoise(x, samples=1)
    batch = restorer.denoiser.network_batch
    assert restorer.denoiser.calls - before == 4 + STEPS * batch * -(-4 // batch)
    assert found.sigma_from == ("foreground",) * 4
    assert torch.equal(restorer.denoise(x[2:3], samples=1).samples, found.samples[2:3])


def test_gradients_take_what_lies_on_another_device(restorer: Restorer) -> None:
    """The meta device stands in for one with an accelerator: it computes nothing, but refuses what is elsewhere."""
    denoiser = restorer.denoiser
    denoiser.device, denoiser.denoiser = torch.device("meta"), Mixing()
    values, pullback = denoiser.linearise(images(2), 0.5)
    assert values.device.type == "meta"
    assert pullback(images(2).double()).device.type == "meta"


def test_no_chain_starts_above_what_the_network_has_seen(restorer: Restorer) -> None:
    x = images(1)
    for start in (lambda: restorer.edit(x, 21.0), lambda: restorer.denoise(x, 21.0, samples=1)):
        with pytest.raises(ConfigError, match=r"up to 20\.09, found 21"):
            start()
    with pytest.raises(ConfigError, match=r"up to 20\.09, found 80 \(of strength 1\)"):
        restorer.edit(x, strength=1)
    with pytest.raises(InputError, match="an estimate"):
        restorer.denoise(x * 400, samples=1)
    assert restorer.denoise(x, 21.0).nfe == 1


@pytest.mark.parametrize(
    ("operator", "options", "sampler"),
    [
        (Slices(2), {"solver": "best"}, None),
        (SuperResolution(2), {"solver": "resampled"}, None),
        (Jpeg(30), {"solver": "proximal"}, None),
        (Jpeg(30), {"sigma_y": 0.1}, None),
        (Slices(2, axis=5), {}, None),
        (Slices(2), {"solver": "projected", "sigma_y": 0.1}, "dpmpp"),
        (Slices(2), {"sigma_y": -1.0}, None),
    ],
)
def test_pairings_are_checked_without_the_network(
    model: DiffusionModel, operator: Any, options: dict[str, Any], sampler: str | None
) -> None:
    restorer = Restorer(model, device="cpu", steps=2, sampler=sampler)
    with pytest.raises(ConfigError):
        restorer.check(operator, (1, 16, 16), **options)
    with pytest.raises(ConfigError):
        restorer.restore(images(1), operator, **options)
    assert restorer.denoiser.calls == 0
    for good in (Slices(2), gaussian_blur(1.0), SuperResolution(2), Jpeg(30)):
        Restorer(model, device="cpu", steps=2).check(good, (1, 16, 16))


def test_an_edit_changes_what_it_may(restorer: Restorer) -> None:
    x = images()
    free, masked = restorer.edit(x, 0.5), restorer.edit(x, 0.5, HOLE)
    assert free.nfe == masked.nfe == STEPS
    assert torch.equal(masked.images[..., ~HOLE], x[..., ~HOLE])
    assert not torch.equal(masked.images[..., HOLE], x[..., HOLE])
    assert torch.equal(restorer.edit(x[3:4], 0.5, HOLE).images, masked.images[3:4])
    little, much = ((restorer.edit(x, s).images - x).norm() for s in (0.05, 2.0))
    assert little < much


def test_strength_is_a_share_of_the_steps(model: DiffusionModel) -> None:
    restorer = Restorer(model, device="cpu", steps=2)
    sigma = float(model.schedule.sigma_of(0.5 * model.schedule.num_steps))
    assert torch.equal(restorer.edit(images(1), strength=0.5).images, restorer.edit(images(1), sigma).images)


def test_volumes(tiny_recipe: dict[str, Any]) -> None:
    restorer = Restorer(SimpleNamespace(denoiser=Exact()), device="cpu", network_batch=2, steps=3)
    x = images(3, (4, 8, 8))
    assert torch.equal(restorer.restore(x, Slices(2)).images[1:2], restorer.restore(x[1:2], Slices(2)).images)
    assert restorer.denoise(x, uncertainty=True).gradients == 64


def test_costs_are_as_reported(restorer: Restorer) -> None:
    x = images(2)
    assert restorer.restore(x, SuperResolution(2), solver="proximal").nfe == STEPS
    assert restorer.restore(x, SuperResolution(2), solver="guided").gradients == STEPS
    assert restorer.inpaint(x, HOLE, solver="resampled", repeats=2).nfe == 2 * STEPS - 1
    assert restorer.inpaint(x, HOLE, samples=3, solver="proximal").nfe == 3 * STEPS
    matched = restorer.restore(x, SuperResolution(2), iterations=2)
    assert matched.nfe == STEPS
    assert matched.gradients == 2 * STEPS + STEPS - 1


def test_restoring_gaussian_data_beats_what_was_measured(exact: Restorer) -> None:
    x = images(4) + 0.0
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    found = exact.restore(None, Mask(torch.zeros(16, 16, dtype=torch.bool)), noisy, sigma_y=0.2, samples=16)
    mean = found.samples.mean(dim=1)
    error = mean - noisy * (0.16 / (0.16 + 0.04))
    variance = 1 / (1 / 0.16 + 1 / 0.04)
    assert float(error.square().mean()) == pytest.approx(variance / 16, rel=0.15)
    assert float((error * noisy).sum() / noisy.square().sum()) == pytest.approx(0, abs=0.01)
    assert float(found.uncertainty.square().mean()) == pytest.approx(variance, rel=0.15)
    assert float((mean - x).square().mean()) < float((noisy - x).square().mean())


def test_levels_come_from_the_recipe(model: DiffusionModel, tiny_recipe: dict[str, Any]) -> None:
    high, low = trained_levels(model.config.diffusion, model.schedule)
    assert low == pytest.approx(0.049787, rel=1e-4)
    assert high == pytest.approx(20.0855, rel=1e-4)
    tiny_recipe["diffusion"] = {"sigma": {"kind": "loguniform", "low": 0.05, "high": 5}}
    assert trained_levels(parse_config(tiny_recipe).diffusion) == (5, 0.05)


def test_a_model_of_other_noise_says_so(model: DiffusionModel, tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["diffusion"]["noise"] = "simplex"
    other = Restorer(DiffusionModel(parse_config(tiny_recipe), model.denoiser), device="cpu", steps=2)
    assert "simplex" in other.notes[0]
    assert Restorer(model, device="cpu").notes == ()


def test_bad_arguments_are_named(restorer: Restorer, model: DiffusionModel) -> None:
    x = images(2)
    for wrong in (
        lambda: Restorer(model, device="cpu", sampler="euler"),
        lambda: Restorer(model, device="cpu", grid="linear"),
        lambda: Restorer(model, device="cpu", steps=0),
        lambda: restorer.generate(0),
        lambda: restorer.denoise(x, noise="salt"),
        lambda: restorer.denoise(x, 0.0),
        lambda: restorer.denoise(x, noise="poisson"),
        lambda: restorer.denoise(x, noise="rician", samples=1),
        lambda: restorer.denoise(x, noise="rician", uncertainty=True),
        lambda: restorer.denoise(x, noise="poisson", gain=5.0, uncertainty=True),
        lambda: restorer.denoise(x, 0.1, noise="poisson", gain=5.0),
        lambda: restorer.denoise(x, noise="poisson", gain=0.0),
        lambda: restorer.denoise(x, noise="poisson", gain=-2.0),
        lambda: restorer.denoise(x, gain=5.0),
        lambda: restorer.denoise(x, samples=-1),
        lambda: restorer.inpaint(x, HOLE[:8]),
        lambda: restorer.inpaint(x, HOLE, solver="best"),
        lambda: restorer.inpaint(x, HOLE, samples=0),
        lambda: restorer.inpaint(x, HOLE, iteration=3),
        lambda: restorer.restore(None, SuperResolution(2)),
        lambda: restorer.restore(x, Jpeg(50), solver="matched"),
        lambda: restorer.edit(x),
        lambda: restorer.edit(x, 0.5, strength=0.5),
        lambda: restorer.edit(x, strength=2),
        lambda: restorer.edit(x, -1.0),
        lambda: restorer.edit(x, 0.5, HOLE[:8]),
        lambda: Restorer(model, device="cpu", sampler="heun", steps=2).inpaint(x, HOLE, solver="resampled"),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(InputError, match="finite"):
        restorer.edit(x / 0, 0.5)
