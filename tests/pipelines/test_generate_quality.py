"""generate --real: quality.json and the figure in the report, nearest training images, refusals before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import VolumeConfig
from anodiff.data.readers import read_image
from anodiff.data.seen import SeenImages, pixel_hash
from anodiff.metrics.generation import nearest
from anodiff.model import load
from anodiff.restoration.report import Beside, RestoredRow, write_restoration_report

Run = Callable[..., int]
QUICK = ("--device", "cpu", "--steps", "2", "--batch-size", "4")


@pytest.fixture
def model(world: Any, tmp_path: Path) -> Path:
    """A model that has seen 20 of the 30 training images."""
    found = load(world.raw)
    paths = sorted((world.data / "train" / "good").glob("*.png"))[:20]
    found.seen = SeenImages.of(pixel_hash(read_image(path)) for path in paths)
    found.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_images_are_judged_beside_real_ones(
    anodiff: Run, world: Any, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("generate", model, "-n", 3, "--output", out, *QUICK) == 0
    plain = (out / "images" / "000000.png").read_bytes()
    assert not (out / "quality.json").exists()
    assert anodiff("generate", model, "-n", 5, "--real", world.data, "--output", out, *QUICK) == 0
    assert (out / "images" / "000000.png").read_bytes() == plain
    said = capfd.readouterr().err
    found = json.loads((out / "quality.json").read_text())
    # held out: 10 others of train, 24 of val, 8 good ones of test; the anomalous ones are none of them
    assert (found["images"], found["real_images"], found["training_images"]) == (5, 42 - 5, 20)
    assert set(found["statistics"]) == {"patches", "spectrum_db", "intensities", "features_kid"}
    assert f"{found['statistics']['patches']['generated']['value']:.4g} (" in said
    paths = [str(path) for path in sorted((world.data / "train" / "good").glob("*.png"))[:20]]
    training = load(model).prepare(paths)[0].numpy()
    made = [np.asarray(Image.open(out / "images" / f"{n:06d}.png"))[None] / 127.5 - 1 for n in range(5)]
    _, gap = nearest(np.stack(made), training)
    for row, sample in enumerate(found["samples"]):
        assert sample["id"] == f"{row:06d}"
        assert sample["pixels"]["distance"] == pytest.approx(gap[row], abs=5e-3)
        named = training[paths.index(sample["pixels"]["path"])]  # ties are broken by the rounding to 8 bits
        assert np.sqrt(((made[row] - named) ** 2).mean()) == pytest.approx(gap[row], abs=5e-3)
        assert 0 <= sample["features"]["held_out_nearer"] <= 1
    with Image.open(out / "quality.png") as figure:
        assert min(figure.size) > 200
    page = (out / "report.html").read_text()
    assert page.count("data:image/") == 1 + 5 * 3  # the figure; each image and its two neighbours
    assert "nearest training image by features" in page
    assert "5 % of the" not in page
    assert "by pixels, than 95% of the held-out ones do" in page


def test_an_array_is_judged_like_its_png(anodiff: Run, world: Any, model: Path, tmp_path: Path) -> None:
    for name, more in (("a", ()), ("b", ("--npy",))):
        words = ("-n", 4, "--real", world.data, *more, "--output", tmp_path / name, *QUICK)
        assert anodiff("generate", model, *words) == 0
    a, b = (json.loads((tmp_path / name / "quality.json").read_text()) for name in "ab")
    assert a == b


def test_without_hashes_the_split_decides_and_without_training_images_there_are_no_neighbours(
    anodiff: Run, world: Any, model: Path, tmp_path: Path
) -> None:
    assert load(world.raw).seen is None
    assert anodiff("generate", world.raw, "-n", 2, "--real", world.data, "--output", tmp_path / "a", *QUICK) == 0
    found = json.loads((tmp_path / "a" / "quality.json").read_text())
    assert (found["training_images"], found["real_images"]) == (30, 32 - 2)
    assert "does not say which images it was trained on" in found["notes"][0]
    good = world.data / "test" / "good"
    (tmp_path / "real").mkdir()
    for path in good.glob("*.png"):
        (tmp_path / "real" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "real" / "broken.png").write_bytes(b"none")
    assert anodiff("generate", model, "-n", 2, "--real", tmp_path / "real", "--output", tmp_path / "b", *QUICK) == 0
    found = json.loads((tmp_path / "b" / "quality.json").read_text())
    assert (found["training_images"], found["nearest_training"], found["real_images"]) == (0, {}, 6)
    assert "broken.png" in found["notes"][0]
    assert "give the data of its training" in found["notes"][1]
    assert (tmp_path / "b" / "report.html").read_text().count("data:image/") == 1 + 2


def test_what_cannot_be_judged_is_one_sentence_before_any_work(
    anodiff: Run, world: Any, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    learnt = tmp_path / "learnt"
    learnt.mkdir()
    for path in sorted((world.data / "train" / "good").glob("*.png"))[:20]:
        (learnt / path.name).write_bytes(path.read_bytes())
    volumes, many = load(model), load(model)
    volumes.config = volumes.config.model_copy(update={"volume": VolumeConfig()})
    volumes.save(tmp_path / "volumes.safetensors")
    prepared = many.config.preprocess.model_copy(update={"channels": 2})
    many.config = many.config.model_copy(update={"preprocess": prepared})
    torch.manual_seed(0)
    from anodiff.model import build_denoiser

    many.denoiser = build_denoiser(many.config)
    many.save(tmp_path / "many.safetensors")
    cases = (
        (
            model,
            ("--real", learnt),
            "4 images that the model was not trained on, to compare with, found 0 of 20",
        ),
        (model, ("--real", tmp_path / "nowhere"), "nowhere"),
        (model, ("--real", world.data, "-n", 1), "at least 2 generated images to compare (-n), found 1"),
        (tmp_path / "volumes.safetensors", ("--real", world.data), "expected a model of images"),
        (tmp_path / "many.safetensors", ("--real", world.data), "--npy for a model of 2 channels"),
    )
    for path, words, says in cases:
        assert anodiff("generate", path, *words, "--output", tmp_path / "out", *QUICK) == 2
        error = capfd.readouterr().err
        assert says in error
        assert "Traceback" not in error
        assert not (tmp_path / "out").exists()


def test_classes_are_compared_with_their_own(world: Any, tmp_path: Path) -> None:
    from anodiff.config import ConditioningConfig
    from anodiff.data.layouts import load_table
    from anodiff.pipelines.generate_quality import real_samples

    model, samples = load(world.raw), load_table(world.data)
    normal = real_samples(model, samples, None)
    assert len(normal) == 62
    model.config = model.config.model_copy(update={"conditioning": ConditioningConfig()})
    assert len(real_samples(model, samples, None)) == 68
    assert len(real_samples(model, samples, "diseased")) == 6
    assert set(real_samples(model, samples, "healthy").table["label"]) == {0}


def test_too_few_that_could_be_made_are_a_sentence_and_no_error(world: Any, tmp_path: Path) -> None:
    from anodiff.pipelines.generate_quality import RealImages, closing, read_real

    model = load(world.raw)
    real = read_real(model, world.data, None, quiet=True)
    kept = RealImages(real.held, real.training, ("a note",))
    rows = [{"id": "000000", "status": "failed", "error": "e"}]
    more = closing(None, model, kept, tmp_path, True, rows)  # type: ignore[arg-type]
    assert more.notes == ("a note", "nothing is compared with real images: expected 2 generated ones, found 0")
    assert not list(tmp_path.iterdir())


def test_copies_are_looked_for_in_every_orientation_of_training(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the eight, where training mirrored and transposed; the model made one of its training images, turned."""
    from anodiff.pipelines import generate_quality
    from anodiff.restoration import Restorer

    model = load(world.raw)
    real = generate_quality.read_real(model, world.data, None, quiet=True)
    assert real.training is not None
    image = generate_quality.as_png(real.training.images[[3]])
    turned = [each.rot90(turns, (2, 3))[0] for each in (image, image.flip(3)) for turns in range(4)]
    monkeypatch.setattr(generate_quality, "generated", lambda folder, row: turned[int(row["id"])])
    rows = [{"id": str(n), "status": "ok"} for n in range(8)]
    augment = model.config.augment.model_copy(update={"flip_lr": True, "flip_ud": True, "transpose": True})
    model.config = model.config.model_copy(update={"augment": augment})
    generate_quality.closing(Restorer(model, device="cpu"), model, real, tmp_path, True, rows)
    samples = json.loads((tmp_path / "quality.json").read_text())["samples"]
    assert [sample["pixels"]["distance"] for sample in samples] == pytest.approx([0.0] * 8, abs=1e-6)


@pytest.mark.parametrize(("held", "made", "looked_at"), [(7, 6, 7), (5000, 800, 1000)])
def test_a_sentence_says_of_how_many_held_out_ones_half_are_compared(held: int, made: int, looked_at: int) -> None:
    """Of many held-out images only some are looked at."""
    from anodiff.pipelines.generate_quality import sentences
    from anodiff.restoration.quality import MOST_REAL, Quality

    used = min(held, MOST_REAL)
    half = used // 2
    said = sentences(Quality(half, used - half, 0, {}, {}), made)[1]
    assert said.startswith(f"only the first {half} of {made} generated images are compared")
    assert f"half of the {looked_at} held-out ones that are looked at" in said


def test_text_of_the_page_is_escaped(tmp_path: Path) -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    row = RestoredRow("a", "a", pictures=lambda: (None, picture), beside=Beside(["<b>x</b>"], lambda: [picture]))
    write_restoration_report(tmp_path / "r.html", "t", {}, [row], (), b"png")
    page = (tmp_path / "r.html").read_text()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "data:image/png;base64,cG5n" in page
