"""anodiff likelihood: bits per dimension of 8-bit, 16-bit and float files, levels, scores against normals, refusals."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.pipelines import cli, likelihood
from anodiff.pipelines.likelihood_job import LikelihoodJob
from anodiff.restoration.gradients import GradientDenoiser

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [16, 16]},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1},
    "diffusion": {"sigma": {"kind": "loguniform", "low": 0.005, "high": 40.0}, "sigma_data": 0.3},
    "engine": {"network_batch": 4},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved(path: Path, recipe: dict[str, Any] = RECIPE) -> Path:
    """A model whose network is 0: with the prediction "edm" it is the exact denoiser of N(0, sigma_data^2)."""
    config = parse_config(recipe)
    DiffusionModel(config, build_denoiser(config)).save(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


def normal_images(folder: Path, n: int, std: float = 0.3, seed: int = 0) -> Path:
    """Images of independent pixels of N(0, std^2), as 8-bit PNG, 16-bit PNG and float32 NPY."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(n):
        x = rng.normal(0, std, (16, 16)).clip(-1, 1)
        Image.fromarray(np.rint((x + 1) * 127.5).astype(np.uint8)).save(folder / f"a{k}.png")
        Image.fromarray(np.rint((x + 1) * 32767.5).astype(np.uint16)).save(folder / f"b{k}.png")
        np.save(folder / f"c{k}.npy", ((x + 1) / 2).astype(np.float32))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run(*arguments: object) -> int:
    return cli.main(["likelihood", *(str(each) for each in arguments), "--device", "cpu"])


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [(("--levels", 64), 0.12), (("--estimate", "flow", "--levels", 16), 0.03)],
)
def test_bits_of_normal_images_are_those_of_their_density(
    model: Path, tmp_path: Path, options: tuple[object, ...], tolerance: float
) -> None:
    images, out = normal_images(tmp_path / "in", 4), tmp_path / "out"
    assert run(model, images, *options, "--output", out) == 0
    rows = table(out / "results.csv")
    pixels = np.concatenate([2 * np.load(images / f"c{k}.npy") - 1 for k in range(4)])
    nats = float(-norm.logpdf(pixels, scale=0.3).mean())
    for kind, data, width in (("a", "uint8", 2 / 255), ("b", "uint16", 2 / 65535), ("c", "float32", 2 / 255)):
        chosen = [row for row in rows if row["id"].startswith(kind)]
        assert {row["data"] for row in chosen} == {data}
        assert [float(row["bin_width"]) for row in chosen] == pytest.approx([width] * 4)
        mean = np.mean([float(row["bits_per_dim"]) for row in chosen])
        assert mean == pytest.approx(nats / math.log(2) - math.log2(width), abs=tolerance)
    parts = [float(rows[0][name]) for name in ("prior", "chain", "reconstruction")]
    assert sum(parts) == pytest.approx(float(rows[0]["bits_per_dim"]))
    assert "bits per dimension" in (out / "report.html").read_text()


def test_a_row_does_not_depend_on_its_batch_mates(model: Path, tmp_path: Path) -> None:
    images, four = normal_images(tmp_path / "in", 2), ("--levels", 4, "--set", "engine.network_batch=4")
    together = run(model, images, *four, "--output", tmp_path / "a")
    alone = run(model, images / "b1.png", *four, "--batch-size", 1, "--output", tmp_path / "b")
    assert (together, alone) == (0, 0)
    rows = {row["id"]: row for row in table(tmp_path / "a" / "results.csv")}
    assert rows["b1"]["bits_per_dim"] == table(tmp_path / "b" / "results.csv")[0]["bits_per_dim"]


@pytest.mark.parametrize(("named", "expected"), [((), {1}), (("--set", "engine.network_batch=3"), {3})])
def test_on_a_cpu_an_image_is_not_computed_several_times(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...], expected: set[int]
) -> None:
    images, rows, estimate = normal_images(tmp_path / "in", 1), set(), LikelihoodJob.estimate

    def counted(job: LikelihoodJob, x: torch.Tensor, *arguments: Any) -> Any:
        rows.add(len(x))
        return estimate(job, x, *arguments)

    monkeypatch.setattr(LikelihoodJob, "estimate", counted)
    assert run(model, images, "--levels", 4, *named, "--output", tmp_path / "out") == 0
    assert rows == expected


def test_smooth_images_are_likelier_and_score_higher(model: Path, tmp_path: Path) -> None:
    normals = normal_images(tmp_path / "normals", 8)
    flat = normal_images(tmp_path / "flat", 2, std=0.05, seed=9)
    assert run(model, normals, "--levels", 12, "--output", tmp_path / "n") == 0
    levels = table(tmp_path / "n" / "levels.csv")
    assert len(levels) == 12 * 24
    for folder in ("flat", "normals"):
        arguments = ("--levels", 12, "--reference", tmp_path / "n", "--output", tmp_path / f"{folder}-out")
        assert run(model, tmp_path / folder, *arguments) == 0
    odd, usual = (
        {row["id"]: row for row in table(tmp_path / f"{folder}-out" / "results.csv")} for folder in ("flat", "normals")
    )
    assert flat.exists()
    for kind in "abc":
        assert float(odd[f"{kind}0"]["bits_per_dim"]) < float(usual[f"{kind}0"]["bits_per_dim"])
        assert float(odd[f"{kind}0"]["score"]) > max(float(row["score"]) for row in usual.values())


def test_discrete_bound_names_its_levels_and_takes_a_learned_variance(tmp_path: Path) -> None:
    images = normal_images(tmp_path / "in", 1)
    for variance in ("fixed", "learned"):
        diffusion = {**RECIPE["diffusion"], "schedule": "vp-linear", "variance": variance}
        model = saved(tmp_path / f"{variance}.safetensors", {**RECIPE, "diffusion": diffusion})
        out = tmp_path / variance
        assert run(model, images, "--estimate", "discrete", "--levels", 10, "--output", out) == 0
        assert {row["nfe"] for row in table(out / "results.csv")} == {"10"}
    # halfway between small and large is nearer the truth here than the small variance, at ten steps
    fixed, learned = (float(table(tmp_path / name / "results.csv")[0]["chain"]) for name in ("fixed", "learned"))
    assert learned < fixed
    page = (tmp_path / "fixed" / "report.html").read_text()
    assert "vp-linear, 1000 steps" in page
    assert "discrete" in page


def test_levels_are_those_the_model_was_trained_on(model: Path) -> None:
    loaded = load(model)
    settings = likelihood.settings_of(loaded, "discrete", 1000, "rk4", "1", 0.05, 0.01, 0)
    assert (settings.low, settings.high) == (0.05, 40.0)
    job = LikelihoodJob(loaded, GradientDenoiser(loaded.denoiser, "cpu"), settings)
    levels = job.discrete_levels()
    assert float(levels[0]) >= 0.05
    assert float(levels[-1]) <= 40.0


def test_refusals(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = normal_images(tmp_path / "in", 1)
    coarse = saved(tmp_path / "c.safetensors", {**RECIPE, "diffusion": {"noise": "coarse"}})
    (tmp_path / "wrong").mkdir()
    for path, options, words in (
        (model, ("--estimate", "exact"), "--estimate: expected one of continuous, discrete, flow"),
        (model, ("--solver", "euler"), "--solver: expected one of heun, rk4"),
        (model, ("--probes", "0"), "--probes: expected a positive number or 'exact'"),
        (model, ("--sigma-min", "99"), "--sigma-min: expected a level between 0 and 40"),
        (model, ("--bin-width", "0"), "--bin-width"),
        (model, ("--reference", tmp_path / "wrong"), "levels.csv"),
        (coarse, (), "trained with gaussian noise"),
    ):
        assert run(path, images, *options, "--output", tmp_path / "out") == 2
        assert words in capfd.readouterr().err
        assert not (tmp_path / "out").exists()
