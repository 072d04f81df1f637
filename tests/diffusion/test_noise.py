"""What promise 1 asks of the noise: a function of key, level, draw and voxel alone; and each family's unit variance."""

from __future__ import annotations

import math

import pytest
import torch

from anodiff.diffusion import FAMILIES, image_keys, sample_noise
from anodiff.diffusion.noise import MIXED, family_of
from anodiff.errors import ConfigError

families = pytest.mark.parametrize("family", [*FAMILIES, MIXED])


def keys_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**62, (n,), generator=torch.Generator().manual_seed(seed))


@families
@pytest.mark.parametrize("shape", [(1, 33, 40), (3, 17, 19), (2, 6, 9, 11)])
def test_noise_does_not_depend_on_the_batch(family: str, shape: tuple[int, ...]) -> None:
    keys = keys_of(12)
    levels, draws = torch.arange(12) % 3, torch.arange(12) % 5
    together = sample_noise(family, keys, shape, level=levels, draw=draws)
    assert together.shape == (12, *shape)
    assert together.dtype == torch.float32
    for size in (1, 7):
        parts = [
            sample_noise(family, keys[i : i + size], shape, level=levels[i : i + size], draw=draws[i : i + size])
            for i in range(0, 12, size)
        ]
        assert torch.equal(torch.cat(parts), together)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = sample_noise(family, keys[order], shape, level=levels[order], draw=draws[order])
    assert torch.equal(shuffled, together[order])


@families
def test_noise_does_not_depend_on_threads_or_autocast(family: str) -> None:
    reference = sample_noise(family, keys_of(5), (1, 40, 40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads != 3 else 2)
        assert torch.equal(sample_noise(family, keys_of(5), (1, 40, 40)), reference)
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample_noise(family, keys_of(5), (1, 40, 40)), reference)
    with torch.inference_mode():
        assert torch.equal(sample_noise(family, keys_of(5), (1, 40, 40)), reference)


@families
def test_a_window_has_the_noise_of_the_whole_image(family: str) -> None:
    keys = keys_of(2)
    whole = sample_noise(family, keys, (2, 200, 150), draw=3)
    for (y, x), (h, w) in [((17, 3), (30, 41)), ((130, 90), (70, 60)), ((199, 149), (1, 1))]:
        window = sample_noise(family, keys, (2, h, w), draw=3, origin=(y, x))
        assert torch.equal(window, whole[:, :, y : y + h, x : x + w])
    volume = sample_noise(family, keys, (1, 9, 12, 14))
    part = sample_noise(family, keys, (1, 4, 5, 6), origin=(5, 6, 7))
    assert torch.equal(part, volume[:, :, 5:9, 6:11, 7:13])


@families
def test_key_level_draw_and_channel_give_independent_noise(family: str) -> None:
    key = keys_of(16 if family == "coarse" else 1)  # with its 17 x 17 numbers a field
    shape = (2, 128, 128)
    base = sample_noise(family, key, shape)
    others = {
        "key": sample_noise(family, key + 1, shape),
        "high key word": sample_noise(family, key ^ 1 << 40, shape),
        "level": sample_noise(family, key, shape, level=1),
        "draw": sample_noise(family, key, shape, draw=1),
        "channel": base.flip(1),
    }
    # Neighbouring pixels of coarse noise are not independent: whitened by differences of differences first.
    whiten = [n.diff(dim=-1).diff(dim=-1).diff(dim=-2).diff(dim=-2)[:, 0].flatten() for n in (base, *others.values())]
    correlation = torch.corrcoef(torch.stack(whiten))[0, 1:]
    assert float(correlation.abs().max()) < 0.05, dict(zip(others, correlation.tolist(), strict=True))


@families
@pytest.mark.parametrize("shape", [(1, 96, 80), (1, 10, 16, 20)])
def test_unit_variance_at_every_voxel(family: str, shape: tuple[int, ...]) -> None:
    count = 256
    noise = sample_noise(family, keys_of(count), shape)
    mean, variance = noise.mean(0), noise.var(0)
    assert float(mean.abs().max()) < 5.5 / math.sqrt(count)
    # 8,000 voxels of a chi-square variable with a relative error of sqrt(2 / count).
    assert float((variance - 1).abs().max()) < 5.5 * math.sqrt(2 / count)
    # Coarse noise has a few independent numbers a field; test_simplex.py has its variance in closed form.
    assert float(variance.mean()) == pytest.approx(1, abs=0.02 if family == "gaussian" else 0.2)


def test_pyramid_is_red_and_the_gaussian_white() -> None:
    def shares(family: str) -> tuple[float, float]:
        noise = sample_noise(family, keys_of(16), (1, 128, 128))
        power = torch.fft.fft2(noise).abs().square().mean((0, 1)) / 128**2
        return float(power[:3, :3].sum() / 9), float(power[60:68, 60:68].mean())

    low, high = shares("gaussian")
    assert low == pytest.approx(1, abs=0.5)
    assert high == pytest.approx(1, abs=0.2)
    low, high = shares("pyramid")
    assert low > 100 * high


def test_mixed_noise_is_one_of_its_two_families_as_the_key_decides() -> None:
    keys = keys_of(64)
    mixed = sample_noise(MIXED, keys, (1, 8, 12), draw=3)
    either = {family: sample_noise(family, keys, (1, 8, 12), draw=3) for family in ("gaussian", "pyramid")}
    of = {family: (mixed == noise).flatten(1).all(1) for family, noise in either.items()}
    assert torch.equal(of["gaussian"], ~of["pyramid"])
    assert 16 < int(of["gaussian"].sum()) < 48  # half of 64, to four standard deviations
    assert (family_of(MIXED), family_of("simplex")) == ("gaussian", "simplex")


def test_dtype_and_published_scale() -> None:
    keys = keys_of(4)
    assert sample_noise("gaussian", keys, (1, 8, 8), dtype=torch.float64).dtype == torch.float64
    for family in ("gaussian", "pyramid"):
        assert torch.equal(
            sample_noise(family, keys, (1, 8, 8), scale="published"), sample_noise(family, keys, (1, 8, 8))
        )
    ratio = sample_noise("simplex", keys, (1, 8, 8), scale="published") / sample_noise("simplex", keys, (1, 8, 8))
    assert torch.allclose(ratio, torch.tensor(0.508))
    # Interpolating between two unit normals with shares 1 - s and s leaves (1 - s)^2 + s^2; s runs over eighths.
    left = sum((1 - k / 8) ** 2 + (k / 8) ** 2 for k in range(8)) / 8
    for shape in ((1, 20, 24), (1, 9, 10, 11)):
        published, unit = (sample_noise("coarse", keys, shape, scale=scale) for scale in ("published", "unit"))
        torch.testing.assert_close(published / unit, torch.full_like(unit, left ** ((len(shape) - 1) / 2)))


def test_coarse_noise_is_a_shifted_lattice_enlarged_linearly() -> None:
    """Second differences vanish except at the lattice's nodes, 8 px apart at an offset of the image's own."""
    noise = sample_noise("coarse", keys_of(40), (2, 64, 64), scale="published")
    offsets = []
    for axis in (-1, -2):
        bends = noise.diff(n=2, dim=axis).abs().amax(dim=tuple({-1, -2} - {axis})).double()  # (N, C, 62)
        nodes = bends > 1e-4
        assert torch.equal(nodes[:, 0], nodes[:, 1])  # the shift is alike for all channels
        offset = nodes[:, 0].double().argmax(dim=1) % 8
        grid = (torch.arange(62) - offset[:, None]) % 8 == 0
        assert torch.equal(nodes[:, 0], grid)
        offsets.append(offset)
    assert all(len(offset.unique()) == 8 for offset in offsets)
    assert not torch.equal(*offsets)
    at_nodes = torch.cat([noise[n, 0, (o1 + 1) % 8 :: 8, (o0 + 1) % 8 :: 8].flatten() for n, (o0, o1) in
                          enumerate(zip(*[o.tolist() for o in offsets], strict=True))])  # fmt: skip
    assert float(at_nodes.std()) == pytest.approx(1, abs=4.5 / math.sqrt(2 * len(at_nodes)))


def test_keys_are_of_pixels_and_seed() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[2] = images[0]
    keys = image_keys(images, seed=4)
    assert keys.dtype == torch.int64
    assert bool((keys >= 0).all())
    assert keys[0] == keys[2] != keys[1]
    assert torch.equal(image_keys(images.double(), 4), keys)
    assert torch.equal(image_keys(images[1:2], 4), keys[1:2])
    assert torch.equal(image_keys(images.to(memory_format=torch.channels_last), 4), keys)
    assert not bool((image_keys(images, seed=5) == keys).any())
    assert image_keys(images[:1].view(1, 1, 4, 16), 4) != keys[0]
    assert torch.equal(image_keys(torch.zeros(1, 1, 2, 2)), image_keys(-torch.zeros(1, 1, 2, 2)))
    one_pixel = images.clone()
    one_pixel[0, 0, 3, 3] += 1e-6
    assert image_keys(one_pixel, 4)[0] != keys[0]


def test_noise_is_the_same_in_every_release() -> None:
    """A stored score can be reproduced only while these hold, to the last bit, on every machine."""
    ramp = torch.arange(16, dtype=torch.float32).view(1, 1, 4, 4) / 16
    key = image_keys(ramp, seed=7)
    assert int(key) == 4100433818734659007
    first = {family: sample_noise(family, key, (1, 4, 4))[0, 0, 0, :2].tolist() for family in FAMILIES}
    assert first == {
        "gaussian": [0.48818257451057434, 0.4327092468738556],
        "simplex": [-0.5096406936645508, -0.5183172225952148],
        "pyramid": [0.2513498365879059, -0.4712032079696655],
        "coarse": [-0.505171537399292, -0.44441506266593933],
    }


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("perlin", (1, 8, 8)), {}, "unknown noise family 'perlin'"),
        (("simplx", (1, 8, 8)), {}, "did you mean 'simplex'"),
        (("gaussian", (1, 8)), {}, "2 or 3 spatial sizes"),
        (("gaussian", (1, 8, 8)), {"scale": "loud"}, "'unit' or 'published'"),
        (("gaussian", (1, 8, 8)), {"origin": (-1, 0)}, "origin"),
        (("gaussian", (1, 8, 8)), {"origin": (0, 0, 0)}, "origin"),
    ],
)
def test_errors(arguments: tuple, options: dict, message: str) -> None:
    family, shape = arguments
    with pytest.raises(ConfigError, match=message):
        sample_noise(family, keys_of(1), shape, **options)


@pytest.mark.gpu
@families
@pytest.mark.parametrize("shape", [(2, 65, 70), (1, 20, 24, 28)])
def test_noise_is_bit_equal_on_the_accelerator(family: str, shape: tuple[int, ...]) -> None:
    keys = keys_of(9)
    assert torch.equal(
        sample_noise(family, keys.cuda(), shape, draw=2).cpu(), sample_noise(family, keys, shape, draw=2)
    )
