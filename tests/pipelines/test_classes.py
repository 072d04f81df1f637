"""Models with classes: trained from the command line on normal and anomalous images, generated, and edited by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import anodiff as library
from anodiff.anomaly import AnomalyDetector
from anodiff.config import parse_config
from anodiff.data.readers import read_image
from anodiff.data.seen import pixel_hash
from anodiff.model import DiffusionModel, build_denoiser, load
from anodiff.restoration import Restorer

Run = Callable[..., int]
CLASSES = ["healthy", "diseased"]
QUICK = ("--device", "cpu", "--steps", "2")


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    values = {**tiny_recipe, "preset": "one-step", "conditioning": {"classes": CLASSES}}
    path.write_text(yaml.safe_dump({**values, "preprocess": {"size": [16, 16], "foreground": "threshold"}}))
    return path


@pytest.fixture
def folders(world: Any, tmp_path: Path) -> Path:
    """Class folders: 24 healthy and 6 diseased images."""
    world.write_images(tmp_path / "data" / "healthy", 24, 0)
    world.write_images(tmp_path / "data" / "diseased", 6, 300, lesion=True)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes with random weights, which tell them apart."""
    torch.manual_seed(0)
    config = parse_config(
        {
            "name": "tiny",
            "preprocess": {"size": [16, 16]},
            "network": {"channels": [8, 16], "blocks": 1, "attention": [False, False], "stem": 1},
            "conditioning": {"classes": CLASSES},
            "engine": {"network_batch": 4},
        }
    )
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("classes") / "model.safetensors"
    DiffusionModel(config, denoiser).save(path)
    return path


def train(anodiff: Run, recipe: Path, data: Path, output: Path, *options: object) -> int:
    return anodiff("train", recipe, "--data", data, "--output", output, "--device", "cpu", *options)


def test_all_classes_are_learnt_and_normals_calibrate(
    anodiff: Run, world: Any, recipe: Path, folders: Path, tmp_path: Path
) -> None:
    assert train(anodiff, recipe, folders, tmp_path / "run") == 0
    trained = library.load(tmp_path / "run" / "model.safetensors")
    rows = world.read_table(tmp_path / "run" / "split.csv")
    held = {Path(row["path"]) for row in rows if row["part"] == "held out"}
    learnt = {Path(row["path"]) for row in rows if row["part"] == "train"}
    assert {path.parent.name for path in held} == {"healthy"}
    assert {path for path in learnt if path.parent.name == "diseased"} == set((folders / "diseased").iterdir())
    assert trained.provenance["classes"] == {"healthy": 24 - len(held), "diseased": 6}
    counts = trained.calibrations["one-step"].counts
    assert counts["threshold_images"] == len(held)
    assert counts["standardise_images"] == 24 - len(held)
    assert trained.seen is not None
    assert all(trained.seen.contains(pixel_hash(read_image(str(path)))) for path in learnt)
    # the same images are held out as from a model without classes
    plain = tmp_path / "plain"
    assert train(anodiff, recipe, folders, plain, "--set", "conditioning=null") == 0
    others = world.read_table(plain / "split.csv")
    assert {Path(row["path"]) for row in others if row["part"] == "held out"} == held
    # it generates and edits, and continues
    assert anodiff("generate", tmp_path / "run" / "model.safetensors", "-n", 1, "--class", "diseased", *QUICK,
                   "--output", tmp_path / "new") == 0  # fmt: skip


def test_a_detector_holds_images_against_the_normal_class(model: Path) -> None:
    loaded = load(model)
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    detector = AnomalyDetector(loaded, "one-step", device="cpu")
    healthy = Restorer(loaded, device="cpu", network_batch=4).denoiser(x, 0.5, label=torch.tensor([0, 0]))
    assert torch.equal(detector.denoiser(x, 0.5), healthy)
    assert not torch.equal(detector.denoiser(x, 0.5), detector.denoiser(x, 0.5, label=torch.tensor([1, 1])))


def test_info_names_the_classes(anodiff: Run, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert anodiff("info", model) == 0
    assert "classes     healthy, diseased; a detector holds images against healthy" in capsys.readouterr().out


def test_labels_decide_where_the_data_has_other_names(
    anodiff: Run, world: Any, recipe: Path, folders: Path, tmp_path: Path
) -> None:
    (folders / "healthy").rename(folders / "good")
    (folders / "diseased").rename(folders / "spots")
    lines = ["path,label,class"] + [
        f"{path},{int(path.parent.name == 'spots')},{path.parent.name}" for path in sorted(folders.glob("*/*.png"))
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    assert train(anodiff, recipe, tmp_path / "table.csv", tmp_path / "run") == 0
    assert library.load(tmp_path / "run" / "model.safetensors").provenance["classes"]["diseased"] == 6


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["healthy,0"] * 20, "expected images of every class to learn from, found none of diseased"),
        (["healthy,0"] * 18 + ["sick,1"] * 2, "found 2 of others or of none: sick 2"),
        (["healthy,0"] * 10 + ["healthy,1"] * 5 + ["diseased,1"] * 5, "that are labelled anomalous"),
        (["diseased,0"] * 20, "expected images of every class"),
    ],
)
def test_data_that_do_not_fit_the_classes_are_refused(
    rows: list[str], said: str, anodiff: Run, world: Any, recipe: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    world.write_images(tmp_path / "data", 20)
    lines = ["path,class,label"] + [f"data/i{n:03d}.png,{row}" for n, row in enumerate(rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    assert train(anodiff, recipe, tmp_path / "table.csv", tmp_path / "run") == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_split_keeps_the_classes(anodiff: Run, world: Any, folders: Path, tmp_path: Path) -> None:
    assert anodiff("split", folders, "--output", tmp_path / "split.csv") == 0
    rows = world.read_table(tmp_path / "split.csv")
    assert all(Path(row["path"]).parent.name == row["class"] for row in rows)


def test_generated_classes_differ_and_are_part_of_the_run(anodiff: Run, model: Path, tmp_path: Path) -> None:
    made = {}
    for name in CLASSES:
        out = tmp_path / name
        assert anodiff("generate", model, "-n", 2, "--class", name, "--npy", *QUICK, "--output", out) == 0
        made[name] = np.load(out / "arrays" / "000000.npy")
    assert not np.array_equal(made["healthy"], made["diseased"])
    assert anodiff("generate", model, "-n", 2, "--class", "diseased", *QUICK, "--output", tmp_path / "healthy") == 2


def test_edit_writes_the_counterfactual_and_its_difference(
    anodiff: Run, world: Any, model: Path, tmp_path: Path
) -> None:
    world.write_images(tmp_path / "in", 2, 400, lesion=True)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    options = ("--class", "healthy", "--from-class", "diseased", "--guidance", 2, "--sigma", 0.5, "--npy")
    assert anodiff("edit", model, tmp_path / "in", *options, *QUICK, "--output", out) == 1
    rows = {row["id"]: row for row in world.read_table(out / "results.csv")}
    assert [row["status"] for row in rows.values()] == ["failed", "ok", "ok"]
    assert rows["i000"]["nfe"] == str(2 * 2 + 2 * 2 * 2)
    difference = np.load(out / "maps" / "i000.npy")
    with Image.open(tmp_path / "in" / "i000.png") as picture:
        before = np.asarray(picture).astype(np.float32)
    assert difference.shape == before.shape
    # what the model sees of the input is smoother than the file: equal up to what resizing loses
    result = np.load(out / "arrays" / "i000.npy")
    assert abs(float((before - result - difference).mean())) < 2
    assert float(np.abs(difference).mean()) > 1
    x, inside = load(model).prepare([tmp_path / "in" / "i000.png"])
    mine = Restorer(load(model), device="cpu", steps=2).counterfactual(
        x, "healthy", 0.5, source="diseased", guidance=2.0
    )
    assert float(rows["i000"]["difference"]) == pytest.approx(float(mine.difference.abs()[0, 0][inside[0]].mean()))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('alt="difference: ') == 2
    assert {path.name for path in (out / "heatmaps").iterdir()} == {"i000.png", "i001.png"}


def test_a_mask_holds_for_the_difference_too(anodiff: Run, world: Any, model: Path, tmp_path: Path) -> None:
    world.write_images(tmp_path / "in", 1, 400, lesion=True)
    options = ("--class", "healthy", "--sigma", 0.5, "--box", "4,4,8,8", "--start", "noise")
    assert anodiff("edit", model, tmp_path / "in", *options, *QUICK, "--output", tmp_path / "out") == 0
    difference = np.load(tmp_path / "out" / "maps" / "i000.npy")
    assert difference[4:12, 4:12].any()
    difference[4:12, 4:12] = 0
    assert not difference.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--class", "ill", "--sigma", 1), "expected one of healthy, diseased, found 'ill'"),
        (("--guidance", 2, "--sigma", 1), "expected --class with --guidance"),
        (("--from-class", "diseased", "--sigma", 1), "expected --class with --from-class"),
        (("--class", "healthy"), "exactly one of --sigma and --strength"),
    ],
)
def test_options_that_do_not_fit(
    options: tuple[object, ...], said: str, anodiff: Run, world: Any, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    world.write_images(tmp_path / "in", 1)
    assert anodiff("edit", model, tmp_path / "in", *options, *QUICK, "--output", tmp_path / "out") == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_model_without_classes_says_so(
    anodiff: Run, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("generate", world.raw, "-n", 1, "--class", "x", *QUICK, "--output", tmp_path / "out") == 2
    assert "trained with classes" in capsys.readouterr().err


@pytest.mark.slow
def test_the_difference_finds_the_lesions_of_phantoms(anodiff: Run, tmp_path: Path) -> None:
    """Phantoms with a bright disc or none: anodiff train phantoms --data DATA --set conditioning.classes=..."""
    from anodiff.data.phantoms import make_phantom

    def write(folder: Path, seed: int, disc: bool) -> np.ndarray:
        image, _ = make_phantom(seed, 32)
        y, x = np.mgrid[:32, :32]
        jitter = np.random.default_rng(seed).integers(-2, 3, 2)
        mask = np.hypot(y - 13 - jitter[0], x - 20 - jitter[1]) < 4
        folder.mkdir(parents=True, exist_ok=True)
        shown = np.where(mask & disc, np.clip(image.astype(int) + 110, 0, 255), image).astype(np.uint8)
        Image.fromarray(shown).save(folder / f"{seed:04d}.png")
        return mask

    for n in range(160):
        write(tmp_path / "data" / "healthy", n, False)
        write(tmp_path / "data" / "diseased", 500 + n, True)
    masks = [write(tmp_path / "new", 1000 + n, True) for n in range(12)]
    settings = (
        "preprocess.size=[32, 32]", "conditioning.classes=[healthy, diseased]", "training.images=6000",
        "network.channels=[32, 48]", "network.attention=[false, true]", "network.stem=2", "network.head_channels=16",
        "augment.flip_lr=false",
    )  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(anodiff, Path("phantoms"), tmp_path / "data", run, *options) == 0
    words = ("--class", "healthy", "--from-class", "diseased", "--sigma", 2.0, "--steps", 16, "--device", "cpu")
    assert anodiff("edit", run / "model.safetensors", tmp_path / "new", *words, "--output", out) == 0
    ratios = []
    for mask, path in zip(masks, sorted((out / "maps").iterdir()), strict=True):
        change = np.load(path)
        ratios.append(float(change[mask].mean() / np.abs(change[~mask]).mean()))
    assert np.median(ratios) > 3, ratios
