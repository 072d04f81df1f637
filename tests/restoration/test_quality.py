"""Generated images beside real ones: each figure is what it says, copies are found, also mirrored ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from anodiff.config import parse_config
from anodiff.errors import DataError
from anodiff.metrics import generation as g
from anodiff.model import build_denoiser
from anodiff.restoration import Restorer, quality


@pytest.fixture
def restorer(tiny_recipe: dict[str, Any]) -> Restorer:
    torch.manual_seed(0)
    denoiser = build_denoiser(parse_config(tiny_recipe))
    return Restorer(SimpleNamespace(denoiser=denoiser), device="cpu", precision="fp32", network_batch=8)


def textures(count: int, seed: int, gain: float = 0.6) -> Tensor:
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.standard_normal((16, 16)), 1.2) for _ in range(count)]
    return torch.from_numpy(gain * np.stack(fields)[:, None] / np.std(fields)).float().clamp(-1, 1)


def test_every_figure_is_the_statistic_of_the_sets_it_names(restorer: Restorer) -> None:
    made, held = textures(6, 1, gain=0.2), textures(20, 2)
    found = quality.compare_with_real(restorer, made, held, seed=3, n_boot=20)
    assert (found.images, found.real_images, found.training_images, found.neighbours) == (6, 14, 0, {})
    order = np.random.default_rng(3).permutation(20)
    sets = {"generated": made, "real": held[order[:6]], "wanted": held[order[6:]]}
    seen = {}
    for name, images in sets.items():
        levels = restorer.denoiser.features(images, quality.FEATURE_SIGMA)
        parts = [f(level.flatten(2)) for level in levels for f in (lambda x: x.mean(2), lambda x: x.std(2))]
        seen[name] = g.described(images.numpy(), torch.cat(parts, 1).numpy())
    for kind in ("generated", "real"):
        wanted = g.distances(seen[kind], seen["wanted"])
        assert {name: each[kind]["value"] for name, each in found.statistics.items()} == pytest.approx(wanted, rel=1e-4)
        assert all(each[kind]["ci95"][0] < each[kind]["ci95"][1] for each in found.statistics.values())
    # images of less contrast are farther from the real ones than real ones are
    for name in ("patches", "spectrum_db"):
        assert found.statistics[name]["generated"]["value"] > 1.5 * found.statistics[name]["real"]["value"]


def test_half_of_the_held_out_images_bound_how_many_are_compared(restorer: Restorer) -> None:
    found = quality.compare_with_real(restorer, textures(9, 1), textures(7, 2), n_boot=5)
    assert (found.images, found.real_images) == (3, 4)


def test_copies_are_nearer_than_held_out_images_and_new_ones_are_not(restorer: Restorer) -> None:
    training, held = textures(150, 1), textures(60, 2)
    copies = training[[140, 3, 77]] + 0.01
    found = quality.compare_with_real(restorer, copies, held, training, n_boot=2).neighbours
    assert list(found) == ["pixels", "features"]
    for near in found.values():
        assert near.index.tolist() == [140, 3, 77]
        assert near.nearer.max() == 0
        assert near.near == 3
    np.testing.assert_allclose(found["pixels"].distance, 0.01, rtol=1e-3)
    search = NearestNeighbors(n_neighbors=1).fit(training.flatten(1).numpy())
    wanted = np.sort(search.kneighbors(held.flatten(1).numpy())[0][:, 0]) / 16
    np.testing.assert_allclose(found["pixels"].held_out, wanted, rtol=1e-5)
    fresh = quality.compare_with_real(restorer, textures(60, 3), held, training, n_boot=2).neighbours
    for near in fresh.values():
        assert near.near <= 9  # 3 expected
        assert 0.3 < near.nearer.mean() < 0.7


def test_mirrored_copies_are_found_where_training_mirrored(restorer: Restorer) -> None:
    training, held = textures(40, 1), textures(10, 2)
    mirrored = training[[5, 30]].flip(3)
    plain = quality.compare_with_real(restorer, mirrored, held, training, n_boot=2).neighbours["pixels"]
    assert plain.distance.min() > 0.2
    flipped = quality.compare_with_real(restorer, mirrored, held, training, flips=(3,), n_boot=2).neighbours["pixels"]
    assert flipped.index.tolist() == [5, 30]
    assert flipped.distance.max() == 0
    turned = training[[5, 30]].flip(2, 3)  # both at once, as training with both has seen it
    both = quality.compare_with_real(restorer, turned, held, training, flips=(3, 2), n_boot=2).neighbours["pixels"]
    assert both.index.tolist() == [5, 30]
    assert both.distance.max() == 0


def test_turned_copies_are_found_where_training_exchanged_rows_and_columns(restorer: Restorer) -> None:
    training, held = textures(40, 1), textures(10, 2)
    quarter = training[[5, 30]].rot90(1, (2, 3))
    flips: dict[str, Any] = {"flips": (3, 2), "n_boot": 2}
    plain = quality.compare_with_real(restorer, quarter, held, training, **flips).neighbours["pixels"]
    assert plain.distance.min() > 0.2
    found = quality.compare_with_real(restorer, quarter, held, training, transposed=True, **flips).neighbours
    for near in found.values():
        assert near.index.tolist() == [5, 30]
    assert found["pixels"].distance.max() == 0
    narrow = (images[:, :, :12] for images in (quarter, held, training))  # has no transposed copy of its own size
    assert quality.compare_with_real(restorer, *narrow, transposed=True, n_boot=2).training_images == 40


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, known = textures(7, 1).numpy(), textures(50, 2).numpy()
    whole = quality.nearest_of(images, [known])
    monkeypatch.setattr(quality, "CHUNK", 8)
    for found, wanted in zip(quality.nearest_of(images, [known]), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


class Half(nn.Module):
    """A denoiser without an encoder."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / 2


def test_a_network_without_an_encoder_is_judged_by_what_is_left() -> None:
    found = quality.compare_with_real(
        Restorer(SimpleNamespace(denoiser=Half()), device="cpu"),
        textures(4, 1),
        textures(8, 2),
        textures(9, 3),
        n_boot=3,
    )
    assert list(found.statistics) == ["patches", "spectrum_db", "intensities"]
    assert list(found.neighbours) == ["pixels"]


def test_too_few_are_refused(restorer: Restorer) -> None:
    with pytest.raises(DataError, match=r"at least 2 generated images and 4 real ones .*, found 2 and 3"):
        quality.compare_with_real(restorer, textures(2, 1), textures(3, 2))
