"""generate, denoise, inpaint, restore, edit: files on the inputs' own grid, rows for broken ones, resumed runs."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.data.preprocess import Geometry
from anodiff.engine.progress import Progress
from anodiff.engine.stopping import Stop, Stopped
from anodiff.engine.store import Item
from anodiff.errors import DataError, InputError
from anodiff.model import DiffusionModel, load
from anodiff.pipelines.restoring_masks import mask_settings, mask_source, model_mask
from anodiff.pipelines.restoring_options import SOLVER_NAMES
from anodiff.pipelines.restoring_run import _watching
from anodiff.restoration import SOLVERS, Mask, Restorer
from anodiff.restoration.chains import ChainStep
from anodiff.restoration.gradients import GradientDenoiser
from anodiff.restoration.parse import parse_operator
from anodiff.restoration.start import PAIRS, ROUNDS

Run = Callable[..., int]
COLUMNS = ["id", "path", "nfe", "status", "error", "seconds"]
SIZES = ((20, 24), (16, 16), (13, 31), (20, 24))
QUICK = ("--device", "cpu", "--steps", "2")


@pytest.fixture
def inputs(world: Any, tmp_path: Path) -> Path:
    world.write_images(tmp_path / "in", 2, 400)
    return tmp_path / "in"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_options_name_the_solvers() -> None:
    assert tuple(SOLVERS) == SOLVER_NAMES


def test_generate_writes_and_extends_a_run(anodiff: Run, world: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert anodiff("generate", world.raw, "-n", 2, "--npy", "--output", out, *QUICK) == 0
    rows = world.read_table(out / "results.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["id"] for row in rows] == ["000000", "000001"]
    assert {row["nfe"] for row in rows} == {"2"}
    first = pixels(out / "images" / "000000.png")
    assert first.shape == (16, 16)
    assert first.dtype == np.uint8
    values = np.load(out / "arrays" / "000000.npy")
    np.testing.assert_array_equal(first, np.round((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    assert anodiff("generate", world.raw, "-n", 3, "--npy", "--output", out, *QUICK) == 0
    np.testing.assert_array_equal(pixels(out / "images" / "000000.png"), first)
    assert (out / "images" / "000002.png").exists()
    page = (out / "report.html").read_text()
    assert page.count("data:image/") == 3
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert anodiff("generate", world.raw, "-n", 3, "--seed", 1, "--npy", "--output", out, *QUICK) == 2


def test_generated_images_may_have_another_size(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("-n", 2, "--steps", 2, "--device", "cpu")
    assert anodiff("generate", world.model, *words, "--size", "24,40", "--output", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "images" / "000001.png").size == (40, 24)
    # the same folder holds no images of two sizes
    assert anodiff("generate", world.model, *words, "--size", "32,40", "--output", tmp_path / "out") == 2
    assert "size" in capfd.readouterr().err
    real = ("--real", world.data, "--output", tmp_path / "judged")
    assert anodiff("generate", world.model, *words, "--size", "24,40", *real) == 2
    assert "--size: expected none with --real" in capfd.readouterr().err


def test_denoise_keeps_grid_and_values_and_lists_broken_files(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path
) -> None:
    (inputs / "broken.png").write_bytes(b"no picture")
    values = pixels(inputs / "i000.png").astype(np.uint16) * 200
    Image.fromarray(values).save(inputs / "deep.png")
    out = tmp_path / "out"
    assert anodiff("denoise", world.raw, inputs, "--uncertainty", "--npy", "--output", out, *QUICK) == 1
    rows = {row["id"]: row for row in world.read_table(out / "results.csv")}
    assert list(rows["i000"]) == [
        "id", "path", "nfe", "sigma", "sigma_file", "sigma_from", "grid", "model_grid", "shrink", "clipped", "remark",
        "status", "error", "seconds",
    ]  # fmt: skip
    assert rows["broken"]["status"] == "failed"
    assert "broken.png" in rows["broken"]["error"]
    assert float(rows["i000"]["sigma"]) > 0
    assert rows["i000"]["sigma_from"] == "foreground"
    assert rows["i000"]["nfe"] == "2"
    assert pixels(out / "images" / "i000.png").shape == (20, 24)
    assert pixels(out / "images" / "deep.png").dtype == np.uint16
    assert np.load(out / "arrays" / "i000.npy").shape == (20, 24)
    assert np.load(out / "uncertainty" / "i000.npy").shape == (20, 24)
    page = (out / "report.html").read_text()
    assert 'type="range"' in page
    assert "broken.png" in page


def test_denoise_estimates_or_samples(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    one = inputs / "i000.png"
    assert anodiff("denoise", world.raw, one, "--sigma", 0.3, "--output", tmp_path / "a", *QUICK) == 0
    assert anodiff("denoise", world.raw, one, "--sigma", 0.3, "--sample", "--output", tmp_path / "b", *QUICK) == 0
    assert anodiff("denoise", world.raw, one, "--noise", "rician", "--output", tmp_path / "c", *QUICK) == 0
    assert world.read_table(tmp_path / "b" / "results.csv")[0]["nfe"] == "3"
    found = [pixels(next((tmp_path / name / "images").iterdir())) for name in "abc"]
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("mask", ["box", "file", "folder"])
def test_inpainting_changes_the_hole_alone(anodiff: Run, world: Any, inputs: Path, tmp_path: Path, mask: str) -> None:
    hole = np.zeros((20, 24), dtype=bool)
    hole[6:14, 8:18] = True
    (tmp_path / "masks").mkdir()
    for name in ("i000.png", "i001_mask.png"):
        Image.fromarray(hole.astype(np.uint8) * 255).save(tmp_path / "masks" / name)
    where = {
        "box": ("--box", "6,8,8,10"),
        "file": ("--mask", tmp_path / "masks" / "i000.png"),
        "folder": ("--mask", tmp_path / "masks"),
    }[mask]
    out = tmp_path / "out"
    assert anodiff("inpaint", world.raw, inputs, *where, "--output", out, *QUICK) == 0
    for name in ("i000.png", "i001.png"):
        before, after = pixels(inputs / name), pixels(out / "images" / name)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert not np.array_equal(after[hole], before[hole])


def test_inpainting_where_anomalous_needs_and_uses_the_calibration(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world.write_images(tmp_path / "in", 2, 300, lesion=True)
    out = tmp_path / "out"
    assert anodiff("inpaint", world.raw, tmp_path / "in", "--where-anomalous", "--output", out, *QUICK) == 2
    assert "not calibrated" in capfd.readouterr().err
    assert anodiff("inpaint", world.model, tmp_path / "in", "--where-anomalous", "--output", out, *QUICK) == 0
    for name in ("i000.png", "i001.png"):
        mask = pixels(out / "masks" / name) > 0
        before, after = pixels(tmp_path / "in" / name), pixels(out / "images" / name)
        np.testing.assert_array_equal(after[~mask], before[~mask])
    assert any((pixels(out / "masks" / name) > 0).any() for name in ("i000.png", "i001.png"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_chain_after_the_step_in_hand(
    anodiff: Run, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Of three images the second is stopped in the second of its four steps; the next run does it and the third."""
    world.write_images(tmp_path / "in", 3, 400)
    before = 2 * PAIRS * ROUNDS  # calls for the mean image that all chains of a run start about
    call, done, ending = GradientDenoiser.__call__, [0], [before + 6]

    def counted(self: GradientDenoiser, *inputs: Any, **options: Any) -> Any:
        done[0] += 1
        if done[0] in ending:
            os.kill(os.getpid(), number)
        return call(self, *inputs, **options)

    monkeypatch.setattr(GradientDenoiser, "__call__", counted)
    out = tmp_path / "out"
    arguments = ("inpaint", world.raw, tmp_path / "in", "--box", "6,8,8,10", "--solver", "proximal", "--device", "cpu")
    assert anodiff(*arguments, "--steps", 4, "--output", out) == 130
    assert done == [before + 6]
    assert [row["id"] for row in world.read_table(out / "results.csv") if row["status"] == "ok"] == ["i000"]
    assert not (out / "report.html").exists()
    ending.clear()
    assert anodiff(*arguments, "--steps", 4, "--output", out) == 0
    assert done == [before + 6 + before + 8]
    assert anodiff(*arguments, "--steps", 4, "--output", tmp_path / "whole") == 0
    for name in ("i000.png", "i001.png", "i002.png"):
        assert (out / "images" / name).read_bytes() == (tmp_path / "whole" / "images" / name).read_bytes()


def test_steps_are_shown_and_the_last_one_is_not_thrown_away() -> None:
    stream, stop = io.StringIO(), Stop()
    with Progress(1, "images", "inpaint", stream=stream, interval=0) as progress:
        watch = _watching(progress, stop)
        watch(ChainStep(12, 32, 1, 3))
        assert "inpaint: 0/1 images 0% | step 12/32 of batch 1/3 |" in stream.getvalue()
        stop.asked = True
        watch(ChainStep(32, 32, 3, 3))
        for step in (ChainStep(13, 32, 3, 3), ChainStep(32, 32, 1, 3)):
            with pytest.raises(Stopped):
                watch(step)


def test_a_batch_of_the_network_that_is_asked_for_is_taken(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("edit", world.raw, inputs, "--sigma", 0.5, "--output", tmp_path / "out", *QUICK)
    assert anodiff(*arguments) == 0
    assert anodiff(*arguments, "--set", "engine.network_batch=3") == 2
    assert "network_batch was 1, is 3" in capfd.readouterr().err


@pytest.mark.parametrize("solver", ["matched", "proximal"])
def test_super_resolution_is_so_much_larger(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, solver: str
) -> None:
    out = tmp_path / "out"
    arguments = ("--operator", "superres:2", "--solver", solver, "--output", out, *QUICK)
    assert anodiff("restore", world.raw, inputs, *arguments) == 0
    assert pixels(out / "images" / "i000.png").shape == (40, 48)


def test_super_resolution_agrees_with_what_was_measured(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    """An 8x8 file for a 16x16 model: the averages of the result are the file, to rounding."""
    small = np.random.default_rng(0).integers(60, 200, (8, 8)).astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    arguments = ("--operator", "superres:2", "--solver", "projected", "--npy", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", world.raw, tmp_path / "small.png", *arguments) == 0
    large = np.load(tmp_path / "out" / "arrays" / "small.npy")
    np.testing.assert_allclose(large.reshape(8, 2, 8, 2).mean((1, 3)), small, atol=0.01)


@pytest.mark.parametrize("name", ["blur:gaussian:3", "slices:every:2", "kspace:2x", "kspace:3x:0", "mask"])
def test_restore_agrees_with_what_was_measured(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, name: str
) -> None:
    """A float image of the model's size: what the result measures is what was measured of the true image."""
    truth = torch.from_numpy(pixels(inputs / "i000.png")[:16, 4:20] / 320 - 0.2).float()[None, None]
    operator, left = name, truth
    if name == "mask":
        hole = np.zeros((16, 16), dtype=np.uint8)
        hole[4:8, 4:8] = 255
        Image.fromarray(hole).save(tmp_path / "hole.png")
        operator, known = f"mask:{tmp_path / 'hole.png'}", Mask(torch.from_numpy(hole > 0))
    else:
        known = parse_operator(name)
        left = known.adjoint(known(truth)) if name.startswith("kspace") else known(truth)
    assert float(left.abs().max()) < 1
    np.save(tmp_path / "a.npy", (left[0, 0].numpy() + 1) / 2)
    words = ("--operator", operator, "--solver", "projected", "--npy", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", world.raw, tmp_path / "a.npy", *words) == 0
    found = torch.from_numpy(np.load(tmp_path / "out" / "arrays" / "a.npy") * 2 - 1)[None, None]
    torch.testing.assert_close(known(found), known(truth), atol=1e-4, rtol=0)
    assert float((found - truth).abs().max()) > 1e-3
    if name.startswith("slices"):  # another size has other slices
        assert anodiff("restore", world.raw, inputs, "--operator", operator, "--output", tmp_path / "b", *QUICK) == 1
        assert "expected 16x16" in world.read_table(tmp_path / "b" / "results.csv")[0]["error"]


@pytest.mark.parametrize(("average", "solver"), [(2, "resampled"), (3, "proximal")])
def test_the_mean_of_samples_is_what_average_writes(
    anodiff: Run, world: Any, tmp_path: Path, average: int, solver: str
) -> None:
    """Beside the samples that the library draws; even numbers in pairs of opposite noise."""
    values = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    hole = np.zeros((16, 16), dtype=np.uint8)
    hole[4:10, 4:10] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    model = load(world.raw)
    image, _ = model.prepare([str(tmp_path / "a.npy")])
    missing = torch.from_numpy(hole > 0)
    restorer = Restorer(model, steps=2, device="cpu")
    options = {"solver": solver, "samples": average, "antithetic": average == 2}
    samples = restorer.inpaint(torch.where(missing, 0, image), missing, **options).samples
    assert samples is not None
    assert not torch.equal(samples[0, 0], samples[0, 1])
    words = ("--solver", solver, "--average", average, "--npy", *QUICK)
    for job, where in (
        ("inpaint", ("--mask", tmp_path / "hole.png")),
        ("restore", ("--operator", f"mask:{tmp_path / 'hole.png'}")),
    ):
        out = tmp_path / job
        assert anodiff(job, world.raw, tmp_path / "a.npy", *where, *words, "--output", out) == 0
        found = np.load(out / "arrays" / "a.npy") * 2 - 1
        np.testing.assert_allclose(found, samples[0].numpy().mean(axis=0)[0].clip(-1, 1), atol=2e-6)
        assert int(world.read_table(out / "results.csv")[0]["nfe"]) % average == 0
        assert not (out / "uncertainty").exists()


@pytest.mark.parametrize("intensity", [{}, {"kind": "robust", "clip": 4}], ids=["unit_range", "robust"])
def test_what_a_hole_holds_is_not_looked_at(
    anodiff: Run, world: Any, inputs: Path, tmp_path: Path, intensity: dict[str, Any]
) -> None:
    model = load(world.raw)
    preprocess = model.config.preprocess.model_dump() | {"intensity": intensity}
    config = type(model.config).model_validate(model.config.model_dump() | {"preprocess": preprocess})
    DiffusionModel(config, model.denoiser).save(tmp_path / "model.safetensors")
    before = pixels(inputs / "i000.png")
    found = []
    for value in (0, 255):
        image = before.copy()
        image[6:14, 0:10] = value
        Image.fromarray(image).save(tmp_path / "x.png")
        out = tmp_path / f"out{value}"
        arguments = ("--box", "6,0,8,10", "--npy", "--output", out, *QUICK)
        assert anodiff("inpaint", tmp_path / "model.safetensors", tmp_path / "x.png", *arguments) == 0
        found.append(np.load(out / "arrays" / "x.npy"))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_rician_level_comes_from_the_background_unless_that_is_cut_off(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    clean = 120.0 * (np.hypot(y - 7.5, x - 7.5) < 5)
    noisy = np.hypot(clean + 3 * rng.normal(size=clean.shape), 3 * rng.normal(size=clean.shape))
    for name, image in (("seen", noisy), ("cut", np.where(clean > 0, noisy, 0))):
        Image.fromarray(np.rint(image).astype(np.uint8)).save(tmp_path / f"{name}.png")
        words = ("--noise", "rician", "--output", tmp_path / name)
        assert anodiff("denoise", world.raw, tmp_path / f"{name}.png", *words, *QUICK) == 0
        row = world.read_table(tmp_path / name / "results.csv")[0]
        assert row["sigma_from"] == ("background" if name == "seen" else "foreground")
        assert ("estimated inside the foreground" in capfd.readouterr().err) == (name == "cut")
        if name == "seen":
            assert float(row["sigma"]) == pytest.approx(3 / 127.5, rel=0.25)


def test_masks_in_subfolders_belong_to_the_images_of_the_same_path(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    holes = {"a/x.png": 1, "b/x_mask.png": 2, "y.png": 3}
    for name, row in holes.items():
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        hole = np.zeros((8, 8), dtype=np.uint8)
        hole[row] = 255
        Image.fromarray(hole).save(masks / name)
    source = mask_source(masks, None)
    assert source is not None
    for image, row in (("a/x.png", 1), ("b/x.tif", 2), ("c/y.png", 3)):
        found = source(Item("i", f"{tmp_path}/scans/{image}"), (8, 8))
        np.testing.assert_array_equal(np.flatnonzero(found.any(axis=1)), [row])
    with pytest.raises(InputError, match=r"x\.png and .*x_mask\.png"):
        source(Item("i", f"{tmp_path}/scans/x.png"), (8, 8))
    with pytest.raises(InputError, match="found none"):
        source(Item("i", f"{tmp_path}/scans/z.png"), (8, 8))
    before = mask_settings(masks, None)
    (masks / "a").rename(masks / "c")
    assert mask_settings(masks, None) != before
    with pytest.raises(InputError, match="at most 3 pixels"):
        mask_source(masks, None, 3)(Item("i", "scans/y.png"), (8, 8))  # type: ignore[misc]
    Image.fromarray(hole).save(masks / "y_mask.png")
    with pytest.raises(DataError, match="one mask for y"):
        mask_source(masks, None)
    (masks / "y_mask.png").unlink()
    (masks / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: expected a mask, found a link"):
        mask_source(masks, None)


def test_padding_beside_a_hole_is_missing_too() -> None:
    mask = np.zeros((4, 8), dtype=bool)
    mask[0, :2] = True
    found = model_mask(mask, Geometry((4, 8), (8, 8), (2, 0, 4, 8)))
    np.testing.assert_array_equal(
        np.argwhere(found.numpy()), [[row, column] for row in range(3) for column in range(2)]
    )


def test_an_edit_stays_inside_its_box(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    arguments = ("--sigma", 0.8, "--box", "5,5,8,8", "--output", tmp_path / "out", *QUICK)
    assert anodiff("edit", world.raw, inputs, *arguments) == 0
    before, after = pixels(inputs / "i000.png"), pixels(tmp_path / "out" / "images" / "i000.png")
    outside = np.ones(before.shape, dtype=bool)
    outside[5:13, 5:13] = False
    np.testing.assert_array_equal(after[outside], before[outside])
    assert not np.array_equal(after, before)
    assert anodiff("edit", world.raw, inputs, "--strength", 0.2, "--output", tmp_path / "b", *QUICK) == 0


def test_a_result_does_not_depend_on_its_batch_mates(anodiff: Run, world: Any, inputs: Path, tmp_path: Path) -> None:
    for name, paths in (("all", [inputs]), ("one", [inputs / "i001.png"])):
        arguments = ("--box", "6,8,8,10", "--output", tmp_path / name, *QUICK)
        assert anodiff("inpaint", world.raw, *paths, *arguments) == 0
    np.testing.assert_array_equal(
        pixels(tmp_path / "all" / "images" / "i001.png"), pixels(tmp_path / "one" / "images" / "i001.png")
    )


def test_a_model_that_resizes_nothing_denoises_every_size(anodiff: Run, world: Any, tmp_path: Path) -> None:
    model = load(world.raw)
    model.config = model.config.model_copy(
        update={"preprocess": model.config.preprocess.model_copy(update={"resize": "none"})}
    )
    model.save(tmp_path / "native.safetensors")
    (tmp_path / "in").mkdir()
    noisy = [np.random.default_rng(n).integers(0, 256, size).astype(np.uint8) for n, size in enumerate(SIZES)]
    for n, values in enumerate(noisy):
        Image.fromarray(values).save(tmp_path / "in" / f"i{n}.png")
    arguments = ("--sigma", "0.3", "--npy", "--output", tmp_path / "out", *QUICK)
    assert anodiff("denoise", tmp_path / "native.safetensors", tmp_path / "in", *arguments) == 0
    restorer = Restorer(load(tmp_path / "native.safetensors"), device="cpu")
    for n, values in enumerate(noisy):
        alone = restorer.denoise(torch.from_numpy(values / 127.5 - 1)[None, None].float(), 0.3).images[0, 0]
        found = np.load(tmp_path / "out" / "arrays" / f"i{n}.npy").reshape(values.shape)
        np.testing.assert_allclose(found, (alone.numpy() + 1) * 127.5, atol=2e-3)
    assert anodiff("score", tmp_path / "native.safetensors", tmp_path / "in", "--output", tmp_path / "s") == 1
    rows = world.read_table(tmp_path / "s" / "scores.csv")
    assert [row["status"] for row in rows] == ["failed", "ok", "failed", "failed"]
    assert "expected 16x16 pixels, since this model resizes nothing" in rows[0]["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("denoise", "--sigma", "loud"), "--sigma: expected auto"),
        (("denoise", "--noise", "rician", "--sample"), "--noise gaussian"),
        (("inpaint",), "exactly one"),
        (("inpaint", "--box", "1,2,3"), "Y,X,H,W"),
        (("inpaint", "--mask", "nowhere.png"), "no such path"),
        (("inpaint", "--box", "1,1,4,4", "--solver", "best"), "solver"),
        (("inpaint", "--box", "1,1,4,4", "--preset", "one-step"), "--preset: expected --where-anomalous"),
        (
            ("inpaint", "--box", "1,1,4,4", "--solver", "resampled", "--sampler", "heun"),
            "expected a sampler of ancestral",
        ),
        (("restore", "--operator", "superres:2", "--solver", "resampled"), "needs a mask"),
        (("restore", "--operator", "slices:every:2:4"), "spatial axis below 2"),
        (
            ("restore", "--operator", "superres:2", "--solver", "projected", "--sigma-y", "0.1", "--sampler", "dpmpp"),
            "expected a sampler of ancestral",
        ),
        (("edit", "--strength", "2"), "strength"),
        (("edit", "--sigma", "50"), "that the model was trained on, up to"),
        (("denoise", "--sigma", "50", "--sample"), "that the model was trained on, up to"),
        (("restore", "--operator", "superres:3"), "factor that divides"),
        (("restore", "--operator", "magic:3"), "--operator: expected"),
        (("restore", "--operator", "mask:"), "mask:FILE"),
        (("edit",), "exactly one"),
        (("edit", "--sigma", "-1"), "positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unusable_arguments_are_one_sentence(
    anodiff: Run,
    world: Any,
    inputs: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = (words[0], world.raw, inputs, *words[1:], "--output", tmp_path / "out", *QUICK)
    assert anodiff(*arguments) == 2
    error = capfd.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
