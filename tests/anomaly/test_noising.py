"""Noising and reconstruction: what the denoiser is shown, how often, and at which levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anodiff.anomaly.noising import reconstruct, sigma_grid, tiling
from anodiff.anomaly.presets import PRESETS, resolve
from anodiff.anomaly.settings import DetectorSettings
from anodiff.diffusion import image_keys, make_schedule
from anodiff.errors import ConfigError

IMAGES = torch.rand(3, 2, 10, 12) * 2 - 1
KEYS = image_keys(IMAGES, 0)
CPU = torch.device("cpu")


class Recorder:
    """A denoiser that returns its input times a factor, and remembers all it was shown."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.rows: list[Tensor] = []
        self.sigmas: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows.append(x)
        self.sigmas.append(torch.as_tensor(sigma, dtype=torch.float32).expand(len(x)))
        return x * self.factor


def settings(**slots: object) -> DetectorSettings:
    return DetectorSettings(**{"noise": "gaussian", "noise_scale": "unit", **slots})  # type: ignore[arg-type]


def test_one_step_shows_each_level_once_at_its_own_noise() -> None:
    seen = Recorder()
    out = reconstruct(seen, IMAGES, KEYS, settings(levels=(0.5, 2.0)))
    assert out.shape == (2, *IMAGES.shape)
    assert len(seen.rows) == 1
    assert seen.sigmas[0].tolist() == [0.5, 2.0] * 3
    rows = seen.rows[0].reshape(3, 2, *IMAGES.shape[1:]).transpose(0, 1)
    torch.testing.assert_close(rows, out)
    noise = (rows - IMAGES) / torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1, 1)
    assert abs(float(noise.mean())) < 0.15
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.15


def test_an_antithetic_pair_cancels_in_a_linear_denoiser() -> None:
    out = reconstruct(Recorder(0.7), IMAGES, KEYS, settings(levels=(0.5, 8.0), antithetic=True))
    torch.testing.assert_close(out, (0.7 * IMAGES).expand_as(out), atol=2e-6, rtol=1e-5)


def test_without_noise_the_clean_image_is_shown_at_its_level() -> None:
    seen = Recorder(0.7)
    out = reconstruct(seen, IMAGES, KEYS, settings(noise="none", levels=(0.4,)))
    assert torch.equal(seen.rows[0], IMAGES)
    assert seen.sigmas[0].tolist() == pytest.approx([0.4] * 3)
    assert torch.equal(out[0], 0.7 * IMAGES)
    chain = Recorder(0.7)
    reconstruct(chain, IMAGES, KEYS, settings(noise="none", levels=(0.4,), sampler="ddim", steps=3))
    assert torch.equal(chain.rows[0], IMAGES)


def test_pairs_are_independent_and_averaged() -> None:
    one, four, sixteen = (
        reconstruct(Recorder(), IMAGES, KEYS, settings(levels=(1.0,), pairs=pairs))[0] - IMAGES for pairs in (1, 4, 16)
    )
    assert float(four.std() / one.std()) == pytest.approx(0.5, abs=0.08)
    assert float(sixteen.std() / one.std()) == pytest.approx(0.25, abs=0.04)


def test_each_image_has_its_own_noise_and_keeps_it() -> None:
    together = Recorder()
    reconstruct(together, IMAGES, KEYS, settings(levels=(1.0,)))
    noise = together.rows[0] - IMAGES
    assert not torch.allclose(noise[0], noise[1])
    alone = Recorder()
    reconstruct(alone, IMAGES[1:2], KEYS[1:2], settings(levels=(1.0,)))
    assert torch.equal(alone.rows[0][0], together.rows[0][1])


@pytest.mark.parametrize("box", [None, 4, 5, 100])
@pytest.mark.parametrize("size", [(10, 12), (6, 7, 8)])
def test_boxes_tile_the_image(box: int | None, size: tuple[int, ...]) -> None:
    chosen = settings(where="boxes", box=box)
    boxes = tiling(chosen, size, CPU)
    assert (boxes.sum(0) == 1).all()
    assert len(boxes) == chosen.nfe_for(size)


def check_boxes(rows: Tensor, boxes: Tensor, sigma: float) -> None:
    """Outside its box a row is the clean image to the bit; inside it is noisy."""
    for row, box in zip(rows.unbind(1), boxes, strict=True):
        assert torch.equal(row[..., ~box], IMAGES[..., ~box])
        if sigma > 0.1:
            assert (row[..., box] != IMAGES[..., box]).float().mean() > 0.99


def test_one_step_in_boxes_shows_the_rest_clean_and_stitches() -> None:
    chosen = settings(where="boxes", box=5, levels=(2.0,))
    seen = Recorder(0.5)
    out = reconstruct(seen, IMAGES, KEYS, chosen)[0]
    boxes = tiling(chosen, (10, 12), CPU)
    rows = seen.rows[0].reshape(len(IMAGES), len(boxes), *IMAGES.shape[1:])
    check_boxes(rows, boxes, 2.0)
    for row, box in zip(rows.unbind(1), boxes, strict=True):
        assert torch.equal(out[..., box], 0.5 * row[..., box])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp"])
def test_a_chain_in_boxes_keeps_the_rest_clean_at_every_step(sampler: str) -> None:
    chosen = settings(where="boxes", levels=(2.0,), sampler=sampler, steps=4, antithetic=True)
    seen = Recorder(0.9)
    reconstruct(seen, IMAGES, KEYS, chosen)
    boxes = tiling(chosen, (10, 12), CPU)
    assert len(seen.rows) == 4
    for rows, sigma in zip(seen.rows, seen.sigmas, strict=True):
        for sign in rows.reshape(len(IMAGES), 2, len(boxes), *IMAGES.shape[1:]).unbind(1):
            check_boxes(sign, boxes, float(sigma[0]))


def test_anoddpm_walks_all_250_steps_of_the_schedule() -> None:
    _, chosen = resolve("anoddpm")
    seen = Recorder(0.0)
    reconstruct(seen, IMAGES[:1, :, :8, :8], KEYS[:1], chosen)
    walked = torch.cat(seen.sigmas).double()
    torch.testing.assert_close(walked, make_schedule("vp-linear").sigmas[:250].flip(0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp", "heun"])
@pytest.mark.parametrize("grid", ["karras", "log", "step"])
def test_chains_of_every_kind_end_at_the_known_image(sampler: str, grid: str) -> None:
    known = torch.rand(1, 2, 10, 12)
    chosen = settings(levels=(0.5, 1.5), sampler=sampler, grid=grid, steps=6)
    seen = Recorder()

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        seen(x, sigma)
        return known.expand_as(x)

    out = reconstruct(exact, IMAGES, KEYS, chosen)
    torch.testing.assert_close(out, known.expand_as(out), atol=1e-5, rtol=1e-5)
    assert sum(len(rows) for rows in seen.rows) == 3 * chosen.nfe


def test_the_noise_of_a_chain_is_new_at_every_step() -> None:
    chosen = settings(levels=(1.0,), sampler="ancestral", steps=5)
    seen = Recorder(1.0)
    reconstruct(seen, IMAGES, KEYS, chosen)
    noises = torch.stack([IMAGES.flatten()] + [rows.flatten() for rows in seen.rows]).diff(dim=0)
    correlation = torch.corrcoef(noises) - torch.eye(5)
    assert correlation.abs().max() < 0.2


def test_a_step_grid_takes_the_models_own_table_where_it_has_one() -> None:
    chosen = settings(levels=(0.427,), sampler="ancestral", steps=251, grid="step")
    cosine = make_schedule("vp-cosine")
    assert torch.equal(sigma_grid(chosen, 0.427, cosine)[:-1], cosine.sigmas[:251].flip(0))
    linear = sigma_grid(settings(levels=(1.0,), sampler="ddim", steps=10, grid="step"), 1.0, make_schedule("edm"))
    assert float(linear[0]) == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ConfigError, match="step grid"):
        sigma_grid(chosen, 0.01, cosine)


def test_the_presets_run_in_3d() -> None:
    volumes = torch.rand(2, 1, 8, 8, 8)
    for name in ("default", "pddpm"):
        _, chosen = resolve(name)
        assert PRESETS[name].nfe_for((8, 8, 8)) == chosen.nfe_for((8, 8, 8))
        seen = Recorder()
        assert reconstruct(seen, volumes, image_keys(volumes), chosen).shape == (len(chosen.levels), *volumes.shape)
        assert sum(len(rows) for rows in seen.rows) == 2 * chosen.nfe_for((8, 8, 8))
