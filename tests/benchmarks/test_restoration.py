"""The restoration benchmark: its measures, RePaint on MONAI's scheduler, what is kept, and the whole run in small."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from benchmarks.quality import denoising, inpainting, restoration, restoration_page, results
from benchmarks.quality.kept import kept
from benchmarks.quality.repaint_monai import StepNetwork, repaint, scheduler_to, walk

SIDE = 40
STD = 0.3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of independent pixels N(0, STD)."""
    return x * (STD**2 / (STD**2 + sigma**2)).view(-1, 1, 1, 1)


def test_noise_is_of_the_image_and_the_level_alone() -> None:
    images = torch.rand(3, 1, 64, 64) * 2 - 1
    noise = denoising.noised(images, 25, seed=1) - images
    assert float(noise.std()) == pytest.approx(2 * 25 / 255, rel=0.02)
    torch.testing.assert_close(denoising.noised(images[2:], 25, seed=1)[0] - images[2], noise[2])
    other = denoising.noised(images, 50, seed=1) - images
    assert abs(float((noise * other).mean() / noise.std() / other.std())) < 0.03


def test_psnr_is_scikit_images() -> None:
    a, b = torch.rand(2, 1, 20, 30) * 2 - 1
    assert denoising.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=2), abs=1e-4)


def test_quality_in_the_hole_is_of_the_hole_alone() -> None:
    truth = torch.rand(3, 40, 40) * 2 - 1
    missing = torch.zeros(40, 40, dtype=torch.bool)
    missing[10:20, 5:25] = True
    filled = torch.where(missing, truth + 0.1, truth)
    quality, similar = inpainting.inside(filled, truth, missing)
    assert quality == pytest.approx(20 * math.log10(2 / 0.1), abs=1e-3)
    assert 0 < similar < 1
    assert inpainting.inside(truth, truth, missing)[1] == pytest.approx(1)


def test_holes_are_of_the_image_and_meet_the_foreground() -> None:
    images = torch.rand(5, 1, 48, 64)
    foreground = torch.zeros(5, 48, 64, dtype=torch.bool)
    foreground[:, 20:28, 30:40] = True
    scattered, boxes = inpainting.holes(images, foreground, seed=3)
    assert float(scattered.float().mean()) == pytest.approx(inpainting.SCATTERED, abs=0.02)
    assert boxes.flatten(1).sum(1).tolist() == [inpainting.BOX**2] * 5
    assert bool((boxes & foreground).flatten(1).any(1).all())
    alone = inpainting.holes(images[3:4], foreground[3:4], seed=3)
    assert torch.equal(alone[0][0], scattered[3])
    assert torch.equal(alone[1][0], boxes[3])


def test_the_walk_of_the_paper() -> None:
    path = walk(250, 10, 10)
    down = sum(b < a for a, b in pairwise(path))
    # 24 places, 9 more times 10 steps each, on top of the 250 of a plain chain
    assert down == 250 + 24 * 9 * 10
    assert path[0] == 250
    assert path[-1] == 0
    assert {abs(b - a) for a, b in pairwise(path)} == {1}
    assert walk(6, 2, 1) == [6, 5, 4, 3, 2, 1, 0]
    assert walk(4, 2, 2) == [4, 3, 2, 1, 2, 3, 2, 1, 0]


def test_the_schedule_ends_where_the_network_does_and_the_wrapper_speaks_in_sigma() -> None:
    scheduler = scheduler_to(7.8, 250)
    share = scheduler.alphas_cumprod.double()
    assert float(((1 - share) / share).sqrt()[-1]) == pytest.approx(7.8, rel=1e-3)
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x, sigma))
        return x

    clean, noise, steps = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([0, 60, 120, 249])
    StepNetwork(denoise, scheduler.alphas_cumprod)(scheduler.add_noise(clean, noise, steps), steps)
    x, sigma = seen[0]
    torch.testing.assert_close(x, clean + sigma.view(-1, 1, 1, 1) * noise, rtol=1e-4, atol=1e-4)


def test_repaint_keeps_what_is_known_and_fills_the_rest_like_the_data() -> None:
    images = STD * torch.randn(6, 1, 32, 32)
    missing = torch.zeros(6, 1, 32, 32, dtype=torch.bool)
    missing[..., 4:28, 4:28] = True
    filled, calls = repaint(
        exact, images, missing, sigma_max=8.0, mean=torch.zeros_like(images[:1]), steps=400, jump=10, repeats=2, seed=1
    )
    assert torch.equal(filled[~missing], images[~missing])
    assert float(filled[missing].std()) == pytest.approx(STD, rel=0.05)
    assert calls == 400 + 39 * 10


def test_what_is_kept_is_made_once_until_its_settings_change(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"n": len(made), "pair": (1, 2)}

    first = kept(tmp_path / "a" / "x.json", {"levels": (1, 2)}, make)
    assert first == {"n": 1, "pair": [1, 2]}
    assert kept(tmp_path / "a" / "x.json", {"levels": (1, 2)}, make) == first
    assert kept(tmp_path / "a" / "x.json", {"levels": (1, 3)}, make)["n"] == 2


@pytest.mark.parametrize("name", list(denoising.BASELINES))
def test_baselines_denoise(name: str) -> None:
    if "wavelet" in name:
        pytest.importorskip("pywt", reason="PyWavelets, of the extra [bench], is absent")
    y, x = np.mgrid[:48, :48]
    clean = 0.5 + 0.3 * np.sin(x / 7) * (y > 20)
    noisy = clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)
    baseline = denoising.BASELINES[name]
    gains = [np.mean((noisy - clean) ** 2) / np.mean((baseline.run(noisy, 0.1, **o) - clean) ** 2)
             for o in baseline.options]  # fmt: skip
    assert max(gains) > 4


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    values = 120 + 60 * np.sin(x / 5 + rng.uniform(0, 3)) * (np.hypot(y - 20, x - 20) < 16) + rng.normal(0, 5, x.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture
def world(tmp_path: Path, tiny_recipe: dict[str, Any]) -> tuple[Path, Path]:
    """Data in the places of the real sets, of small pictures, and a small untrained model of each kind."""
    data, counts = tmp_path / "data", {"Train400": 3, "BSD68": 2, "Set12": 2}
    folders = {f"denoise/{name}": count for name, count in counts.items()}
    for name in ("brain_lgg", "mvtec/bottle"):
        folders |= {f"{name}/{part}/good": count for part, count in (("train", 4), ("val", 8), ("test", 4))}
    for name, count in folders.items():
        (data / name).mkdir(parents=True)
        for n in range(count):
            picture(100 * len(name) + n).save(data / name / f"i{n}.png")
    recipe = {**tiny_recipe, "preprocess": {"size": [SIDE, SIDE]}}
    for name, resize in (("denoiser", "none"), ("images", "pad")):
        config = parse_config({**recipe, "preprocess": {**recipe["preprocess"], "resize": resize}})
        provenance = {"images_seen": 0, "training_seconds": 0, "training_device": {"name": "test"}}
        DiffusionModel(config, build_denoiser(config), provenance=provenance).save(tmp_path / f"{name}.safetensors")
    return data, tmp_path


def test_samples_are_drawn_anew_for_another_seed(world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = world
    sampling = restoration.sampling
    monkeypatch.setattr(sampling, "RESAMPLES", 5)
    chains = {"few": ("dpmpp", 2), "many": ("ancestral", 2)}
    for seed in (0, 1):
        sampling.evidence(
            folder / "images.safetensors", data / "brain_lgg", folder / "work",
            device="cpu", precision="fp32", seed=seed, images=4, chains=chains,
        )  # fmt: skip
    drawn = [torch.load(path, weights_only=True) for path in sorted((folder / "work").glob("samples_dpmpp_*.pt"))]
    assert [len(each) for each in drawn] == [4, 4]
    assert not torch.equal(*drawn)


def test_the_page_in_the_repository_is_that_of_its_stored_results() -> None:
    page = (results.HERE / "RESTORATION.md").read_text(encoding="utf-8")
    assert page == restoration_page.markdown(results.stored()["restoration"])


def test_the_whole_benchmark_in_small(world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pywt", reason="PyWavelets, of the extra [bench], is absent")
    data, folder = world
    monkeypatch.setattr(denoising, "SAMPLE_STEPS", 2)
    monkeypatch.setattr(denoising, "BASELINES", {
        name: denoising.Baseline(each.run, each.options[:2]) for name, each in denoising.BASELINES.items()
    })  # fmt: skip
    ours = {"anodiff proximal, one sample": inpainting.Way("proximal", 2, 1)}
    monkeypatch.setattr(inpainting, "OURS", ours)
    monkeypatch.setattr(inpainting, "CHOSEN", dict.fromkeys(inpainting.MASKS, next(iter(ours))))
    monkeypatch.setattr(restoration.sampling, "RESAMPLES", 5)
    few = {"dpmpp, 20 calls": ("dpmpp", 2), "ancestral, 1000 calls": ("ancestral", 3)}
    monkeypatch.setattr(restoration.sampling.evidence, "__kwdefaults__", {"chains": few})
    words = ["--data", data, "--work", folder / "work", "--output", folder / "out", "--device", "cpu"]
    words += ["--denoiser", folder / "denoiser.safetensors", "--tune-images", 1, "--holes", 2, "--samples", 6]
    words += [word for name in ("brain", "bottle") for word in (f"--{name}", folder / "images.safetensors")]
    restoration.main([*map(str, words), "--repaint", "6", "2", "2"])
    page = (folder / "out" / "RESTORATION.md").read_text()
    stored = json.loads((folder / "out" / "results.json").read_text())["restoration"]
    assert list(stored) == ["denoising", "inpainting", "sampling"]
    ours = stored["denoising"]["rows"]["anodiff, one call"]["Set12"]["25"]
    assert f"{ours['psnr']:.2f}" in page
    assert ours["nfe"] == 1
    assert stored["denoising"]["rows"]["anodiff, posterior sample"]["Set12"]["25"]["nfe"] == 2
    assert "BM3D (published) | 31.07 | - | 28.57" in page
    rows = stored["inpainting"]["sets"]["brain"][inpainting.MASKS[0]]
    assert rows[inpainting.REPAINT]["calls"] == 6 + 2 * 2
    assert rows["anodiff proximal, one sample"]["calls"] == 2
    assert "anodiff proximal, one sample (of ours the one chosen on held-out" in page
    assert ", at 1/5 of the loop's calls" in page
    assert set(stored["sampling"]["values"]) == {"real, held out", *few}
    # a second run computes nothing: the same page, from what was kept
    for module in (denoising, inpainting):
        monkeypatch.setattr(module, "measured", lambda *_: pytest.fail("computed again"))
    restoration.main([*map(str, words), "--repaint", "6", "2", "2"])
    assert (folder / "out" / "RESTORATION.md").read_text() == page
