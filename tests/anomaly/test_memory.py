"""Feature memory: distances against scikit-learn, the coreset against brute force, and lesions that it finds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from anodiff.anomaly import baseline_choice, memory
from anodiff.anomaly.baseline_choice import Finish
from anodiff.anomaly.memory import FeatureMemory, coreset, encoder_features, timm_features
from anodiff.engine.inference import InferenceDenoiser
from anodiff.errors import ConfigError, DataError

Normals = Callable[[int, int], Tensor]
Lesioned = Callable[[int, int, float], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_PATCHES", 600)


#: nothing is smoothed, and nothing is chosen
BARE = Finish()


def pixels(images: Tensor) -> Sequence[Tensor]:
    """Features that can be followed by hand: local mean and contrast at half size, and the mean at a quarter."""
    half = nn.functional.avg_pool2d(images, 2)
    contrast = nn.functional.avg_pool2d(images * images, 2) - half * half
    return [torch.cat([half, contrast], dim=1), nn.functional.avg_pool2d(images, 4)]


def auroc(maps: Tensor, masks: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(masks.flatten().numpy(), maps.flatten().numpy()))


def points(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_distances_are_scikit_learns_with_the_weight_of_the_paper(
    normals: Normals, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = FeatureMemory(pixels, finish=BARE, neighbours=4).fit(normals(12, 0))
    queries = 1.5 * points(50, fitted.memory_.shape[1], 3)
    bank = fitted.memory_.double().numpy()
    index = NearestNeighbors(algorithm="brute").fit(bank)
    found, nearest = (part[:, 0] for part in index.kneighbors(queries.double().numpy(), 1))
    around = bank[index.kneighbors(bank[nearest], 4, return_distance=False)]
    others = np.exp(np.linalg.norm(around - queries.double().numpy()[:, None], axis=2)).sum(axis=1)
    expected = (1 - np.exp(found) / others) * found
    for at_once in (memory.VALUES_AT_ONCE, 7 * len(bank) * 16):
        monkeypatch.setattr(memory, "VALUES_AT_ONCE", at_once)
        values, numbers = fitted.distances(queries)
        np.testing.assert_array_equal(numbers.numpy(), nearest)
        np.testing.assert_allclose(values.numpy(), expected, rtol=2e-4, atol=2e-4)


def test_a_single_neighbour_leaves_the_distance_as_it_is(normals: Normals) -> None:
    fitted = FeatureMemory(pixels, finish=BARE, neighbours=1).fit(normals(12, 0))
    queries = points(20, fitted.memory_.shape[1])
    expected = torch.cdist(queries.double(), fitted.memory_.double()).amin(dim=1)
    torch.testing.assert_close(fitted.distances(queries)[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_coreset_covers_within_twice_the_best_possible_radius() -> None:
    """Gonzalez 1985; the best radius by trying all subsets."""
    cloud = points(13, 2)
    gaps = torch.cdist(cloud, cloud)
    best = min(float(gaps[list(subset)].amin(dim=0).max()) for subset in combinations(range(13), 3))
    for seed in range(5):
        chosen = coreset(cloud, 3, seed)
        assert len(set(chosen.tolist())) == 3
        assert float(gaps[chosen].amin(dim=0).max()) <= 2 * best + 1e-6
    assert sorted(coreset(cloud, 99).tolist()) == list(range(13))


def test_a_coreset_holds_rare_points_that_chance_would_miss_in_many_dimensions() -> None:
    cloud = torch.cat([0.1 * points(500, 200), 3 + 0.1 * points(3, 200, 1)])
    chosen = coreset(cloud, 5)
    assert int((chosen >= 500).sum()) >= 1
    torch.testing.assert_close(coreset(cloud, 5), chosen)


@pytest.mark.parametrize(("polarity", "contrast"), [("both", 0.9), ("both", -0.9), ("brighter", 0.9), ("darker", -0.9)])
def test_lesions_are_found(polarity: Any, contrast: float, normals: Normals, lesioned: Lesioned) -> None:
    images, masks = lesioned(20, 7, contrast)
    fitted = FeatureMemory(pixels, polarity, Finish(smooth_px=1.0)).fit(normals(40, 0))
    assert auroc(fitted.maps(images), masks) > 0.9


def test_a_declared_sign_leaves_the_opposite_out(normals: Normals, lesioned: Lesioned) -> None:
    images, masks = lesioned(20, 7, -0.9)
    found, left_out = (
        FeatureMemory(pixels, sign, BARE).fit(normals(40, 0)).maps(images) for sign in ("darker", "brighter")
    )  # type: ignore[arg-type]
    unsigned = FeatureMemory(pixels, finish=BARE).fit(normals(40, 0)).maps(images)
    core = nn.functional.max_pool2d(masks[:, None].float().neg(), 3, 1, 1)[:, 0] == -1
    assert float(left_out[core].mean()) < 0.1 * float(found[core].mean())
    torch.testing.assert_close(found[core].mean(), unsigned[core].mean(), rtol=0.1, atol=0)


def test_what_is_stored_has_no_distance_and_what_is_new_has_some(
    normals: Normals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMORY_PATCHES", 4 * 144)
    images = normals(4, 0)
    fitted = FeatureMemory(pixels, finish=BARE, share=1.0).fit(images)
    assert len(fitted.memory_) == 4 * 144
    assert float(fitted.maps(images).mean()) < 0.01 * float(fitted.maps(normals(4, 1)).mean())


def test_the_memory_is_bounded_and_a_function_of_the_seed(normals: Normals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_PATCHES", 200)
    first, again, other = (
        FeatureMemory(pixels, finish=BARE, cap=15, seed=seed).fit(normals(20, 0)) for seed in (0, 0, 1)
    )
    assert first.memory_.shape == (15, 3)
    torch.testing.assert_close(first.maps(normals(3, 1)), again.maps(normals(3, 1)), rtol=0, atol=0)
    assert not torch.equal(first.memory_, other.memory_)
    assert len(FeatureMemory(pixels, finish=BARE, share=0.05).fit(normals(20, 0)).memory_) == 10


def test_patches_outside_the_foreground_are_not_stored(normals: Normals) -> None:
    images = normals(40, 0)
    foreground = torch.zeros(40, 24, 24, dtype=torch.bool)
    foreground[:, 4:20, 4:20] = True
    # beyond the neighbours' reach of the foreground, in the coarser level too
    wild = torch.nn.functional.pad(foreground[:1, 4:20, 4:20], (4, 4, 4, 4), value=False)[:, None]
    far = torch.nn.functional.max_pool2d(wild.float(), 17, 1, 8).bool()
    marked = torch.where(far, images, torch.full_like(images, 50.0))
    fitted, marked_too = (
        FeatureMemory(pixels, finish=BARE).fit(each, foreground=foreground) for each in (images, marked)
    )
    assert float((fitted.memory_ * fitted.scale_ + fitted.centre_).abs().max()) < 5
    torch.testing.assert_close(marked_too.memory_, fitted.memory_)
    nothing = torch.zeros_like(foreground)
    with pytest.raises(DataError, match="with a foreground"):
        FeatureMemory(pixels, finish=BARE).fit(images, foreground=nothing)


def test_its_width_and_reduction_are_chosen_by_a_memory_of_other_normals(
    normals: Normals, lesioned: Lesioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline_choice, "PLANTED_NORMALS", 6)
    images, masks = lesioned(12, 7, 0.5)
    fills: list[int] = []
    fill = FeatureMemory._fill
    monkeypatch.setattr(
        FeatureMemory, "_fill", lambda self, n, f, known: (fills.append(len(known)), fill(self, n, f, known))
    )
    fitted = FeatureMemory(pixels, "darker").fit(normals(24, 0))
    assert fills == [18, 24]
    assert fitted.finish_.form == "signed"
    assert fitted.finish_.smooth_px in (0.0, 0.75, 1.0, 1.5, 2.5)
    assert 0 < fitted.settings()["planted_ap"] < 1
    assert auroc(fitted.maps(2 * normals(1, 0).mean() - images), masks) > 0.8


def test_too_few_images_and_impossible_settings_are_refused(normals: Normals) -> None:
    with pytest.raises(DataError, match="at least 2 normal images"):
        FeatureMemory(pixels, finish=BARE).fit(normals(1, 0))
    for slots in ({"share": 0.0}, {"cap": 0}, {"neighbours": 0}):
        with pytest.raises(ConfigError, match="share <= 1"):
            FeatureMemory(pixels, **slots)  # type: ignore[arg-type]


def test_the_denoisers_own_encoder_gives_features(
    convolutional_denoiser: type[nn.Module], normals: Normals, lesioned: Lesioned
) -> None:
    denoiser = InferenceDenoiser(convolutional_denoiser(), "cpu", "fp32", 4)
    features = encoder_features(denoiser)
    assert [tuple(level.shape) for level in features(normals(3, 0))] == [(3, 11, 12, 12)]
    images, masks = lesioned(20, 7, 0.9)
    assert (
        auroc(FeatureMemory(features, "brighter", Finish(smooth_px=1.0)).fit(normals(40, 0)).maps(images), masks) > 0.9
    )


def test_volumes_have_patches_too() -> None:
    def halves(images: Tensor) -> Sequence[Tensor]:
        return [nn.functional.avg_pool3d(images, 2)]

    normals, fresh = (0.1 * torch.randn(12, 1, 8, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    fresh[0, :, 2:6, 2:6, 2:6] += 1
    maps = FeatureMemory(halves, "both", Finish(smooth_px=0.5)).fit(normals).maps(fresh)
    assert maps.shape == (12, 8, 8, 8)
    assert float(maps[0, 3:5, 3:5, 3:5].min()) > float(maps[1:].amax(dim=0).quantile(0.95))


class PretendNetwork(nn.Module):
    """What timm.create_model(features_only=True) returns: a list of activations, and how its images were prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
        self.body = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen = x
        return [self.body(x), nn.functional.avg_pool2d(x, 2)]


def test_timm_is_asked_for_what_its_interface_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = PretendNetwork()
    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.update(options, name=name)
        made.load_state_dict(options["pretrained_cfg_overlay"]["state_dict"])
        return made

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    weights = {name: torch.full_like(value, 0.5) for name, value in made.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    features = timm_features("resnet18", tmp_path / "weights.pth", levels=(1, 2))
    assert (asked["name"], asked["features_only"], asked["out_indices"]) == ("resnet18", True, (1, 2))
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())
    grey = torch.full((2, 1, 4, 4), 0.2)
    assert [tuple(level.shape) for level in features(grey)] == [(2, 2, 4, 4), (2, 3, 2, 2)]
    torch.testing.assert_close(made.seen[0, :, 0, 0], torch.tensor([0.2, 0.8, 1.5]))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="expected weights of the network 'resnet18'"):
        timm_features("resnet18", tmp_path / "other.pth")


def test_weights_that_run_code_or_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace())
    torch.save({"state_dict": math.sqrt}, tmp_path / "code.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name, message in (("code.pth", "readable file"), ("absent.safetensors", "readable file"), ("list.pth", "dict")):
        with pytest.raises(ConfigError, match=message):
            timm_features("resnet18", tmp_path / name)
    with pytest.raises(ConfigError, match="a file or pretrained=True"):
        timm_features("resnet18")


def test_without_timm_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"anodiff\[features\]"):
        timm_features("resnet18", "weights.pth")


def test_features_of_a_real_timm_network(normals: Normals, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="the extra [features] is not installed")
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), weights)
    features = timm_features("resnet18", weights)
    images = nn.functional.interpolate(normals(4, 0), size=(64, 64))
    assert [level.shape[1] for level in features(images)] == [128, 256]
    assert FeatureMemory(features, "both", BARE).fit(images).maps(images).shape == (4, 64, 64)
