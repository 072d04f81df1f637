"""Clips as examples: nothing straddles two of them, what is drawn is what was recorded, and the past is learnt from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import AnodiffConfig, parse_config
from anodiff.data.clip_input import ClipInput, FramePreprocessor, median_background, thinned, windows
from anodiff.data.video.clip import Frame
from anodiff.data.video.table import ClipRow
from anodiff.errors import ConfigError, DataError, InputError
from anodiff.model import build_denoiser
from anodiff.training import Trainer
from anodiff.training.augment import NUMBERS
from anodiff.training.clips import ClipExamples, ClipSet, background_of, read_clips

SIZE = 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(tiny: dict[str, Any], **video: Any) -> AnodiffConfig:
    values = {**tiny, "augment": {"flip_lr": True}, "video": {"past": 2, "step": 2, **video}}
    return parse_config({**values, "diffusion": {"sigma_data": 0.25, "sigma": {"mean": -1.5, "std": 0.5}}})


def moving(count: int, seed: int, speed: int = 1) -> np.ndarray:
    """A bright square that goes right over a dark scene and comes in again, uint8 (count, 1, SIZE, SIZE)."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, SIZE - 4, 2)
    frames = np.full((count, 1, SIZE, SIZE), 60, dtype=np.uint8)
    for n in range(count):
        columns = (left + speed * n + np.arange(4)) % SIZE
        frames[n, 0, top : top + 4][:, columns] = 200
    return frames


def clip_set(*clips: np.ndarray) -> ClipSet:
    names = tuple(f"clip{n}" for n in range(len(clips)))
    times = torch.cat([torch.arange(len(clip), dtype=torch.float64) / 10 for clip in clips])
    return ClipSet(torch.from_numpy(np.concatenate(clips)), tuple(map(len, clips)), times, names, names)


def write_clip(folder: Path, frames: np.ndarray) -> str:
    folder.mkdir(parents=True)
    for n, frame in enumerate(frames):
        Image.fromarray(frame[0]).save(folder / f"{n:03d}.png")
    return str(folder)


def test_clips_are_read_as_they_lie_and_what_fails_is_named(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    config = recipe(tiny_recipe)
    first, second = moving(9, 0), moving(7, 1)
    paths = [write_clip(tmp_path / "a", first), write_clip(tmp_path / "b", moving(4, 2))]
    paths += [write_clip(tmp_path / "c", np.concatenate([second, second])), str(tmp_path / "none")]
    (tmp_path / "c" / "007.png").write_bytes(b"no picture")
    clips = read_clips([ClipRow(path, fps=10.0) for path in paths], config)
    assert clips.lengths == (9, 7)
    assert clips.paths == (paths[0], paths[2])
    np.testing.assert_array_equal(clips.frames.numpy(), np.concatenate([first, second]))
    np.testing.assert_allclose(clips.clip(1)[1].numpy(), np.arange(7) / 10)
    short, broken, absent = clips.failed
    assert paths[1] in short
    assert "at least 5 frames" in short
    assert "007.png" in broken
    assert "none" in absent
    assert len(set(clips.hashes)) == len({frame.tobytes() for frame in np.concatenate([first, second])})
    with pytest.raises(DataError, match="found none in 1"):
        read_clips([ClipRow(paths[1])], config)


def test_examples_stay_within_their_clip_and_are_the_recorded_change(tiny_recipe: dict[str, Any]) -> None:
    config = recipe(tiny_recipe, gain=3.0)
    clips = clip_set(moving(8, 0), moving(4, 1), moving(6, 2))  # the second has no frame with enough past
    background = background_of(clips, config)
    assert background is not None
    examples = ClipExamples(clips, ClipInput(config.video, background), config)  # type: ignore[arg-type]
    assert examples.rows.tolist() == [4, 5, 6, 7, 16, 17]
    u = torch.full((6, NUMBERS), 0.9)
    drawn = examples.draw(torch.arange(6), u, torch.device("cpu"))
    scene = 3.0 * (clips.frames.double() * 2 / 255 - 1 - background.double())
    rows = examples.rows
    torch.testing.assert_close(drawn.clean, (scene[rows] - scene[rows - 2]).float())
    torch.testing.assert_close(drawn.context, torch.cat([scene[rows - 2], scene[rows - 4]], dim=1).float())
    mirrored = examples.draw(torch.arange(6), torch.zeros(6, NUMBERS), torch.device("cpu"))
    assert torch.equal(mirrored.clean, drawn.clean.flip(-1))
    assert mirrored.context is not None
    assert drawn.context is not None
    assert torch.equal(mirrored.context, drawn.context.flip(-1))


def test_examples_do_not_see_across_a_gap(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    config = recipe(tiny_recipe, fps=10.0)  # four frames back
    times = torch.arange(20, dtype=torch.float64) / 10
    times[9:] += 3.0
    times[12:] += 3.0
    clips = clip_set(moving(20, 0), moving(6, 1))
    clips = ClipSet(clips.frames, clips.lengths, torch.cat([times, clips.times[20:]]), clips.paths, clips.groups)
    examples = ClipExamples(clips, ClipInput(config.video), config)  # type: ignore[arg-type]
    assert examples.rows.tolist() == [4, 5, 6, 7, 8, 16, 17, 18, 19, 24, 25]
    # a clip of which no piece is long enough is left out by name
    torn = write_clip(tmp_path / "torn", moving(27, 0))
    for n in (*range(4, 12), *range(16, 24)):
        (tmp_path / "torn" / f"{n:03d}.png").unlink()
    whole = write_clip(tmp_path / "whole", moving(9, 0))
    found = read_clips([ClipRow(torn, fps=10.0), ClipRow(whole, fps=10.0)], config)
    assert found.paths == (whole,)
    assert found.failed[0].endswith(
        "torn: expected at least 5 frames without a gap at the model's rate, found 11 with gaps"
    )


@pytest.mark.parametrize(
    ("mode", "target"),
    [("predict", "change"), ("predict", "frame"), ("joint", "frame"), ("space-time", "frame"), ("difference", "frame")],
)
def test_every_variant_fits_the_network_that_its_recipe_builds(
    tiny_recipe: dict[str, Any], mode: str, target: str
) -> None:
    config = recipe(tiny_recipe, mode=mode, target=target)
    assert config.video is not None
    clips = clip_set(moving(8, 0))
    drawn = ClipExamples(clips, ClipInput(config.video), config).sample(3, 0)
    assert drawn.clean.shape[1] == config.network_channels
    assert (0 if drawn.context is None else drawn.context.shape[1]) == config.context_channels
    assert build_denoiser(config)(drawn.clean, 0.1, drawn.context).shape == drawn.clean.shape


def test_the_background_is_the_median_and_nothing_moves_without_motion(tiny_recipe: dict[str, Any]) -> None:
    frames = torch.randint(0, 256, (9, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = np.median(frames.numpy(), axis=0) * 2 / 255 - 1
    np.testing.assert_allclose(median_background(frames).numpy(), expected, atol=1e-6)
    assert background_of(clip_set(moving(5, 0)), recipe(tiny_recipe, background="none")) is None


def test_the_past_is_learnt_from(tiny_recipe: dict[str, Any]) -> None:
    """Where a square goes cannot be told from a noisy change alone, but from the frames before."""
    config = recipe(
        {**tiny_recipe, "training": {**tiny_recipe["training"], "images": 640, "batch_size": 16, "lr": 1e-2}}
    )
    assert config.video is not None
    examples = ClipExamples(clip_set(*(moving(20, seed) for seed in range(6))), ClipInput(config.video), config)
    held = ClipExamples(clip_set(*(moving(20, seed) for seed in range(6, 8))), ClipInput(config.video), config)
    trainer = Trainer(config, examples, held.sample(8, 0), device=torch.device("cpu"), precision="fp32")
    while not trainer.finished:
        trainer.step()
    known = held.sample(8, 0)
    noise = torch.randn(known.clean.shape, generator=torch.Generator().manual_seed(1))
    assert known.context is not None

    def error(context: torch.Tensor) -> float:
        with torch.no_grad():
            return float((trainer.averaged(known.clean + 0.5 * noise, 0.5, context) - known.clean).square().mean())

    assert error(known.context) < 0.6 * error(known.context.roll(1, dims=0))


def frames_at(times: list[float]) -> list[Frame]:
    return [Frame(n, time, np.zeros((8, 8, 1), dtype=np.uint8)) for n, time in enumerate(times)]


@pytest.mark.parametrize(("rate", "kept"), [(10, 40), (25, 40), (30, 40), (5, 20)])
def test_thinning_keeps_the_rate_of_the_model(rate: int, kept: int) -> None:
    times = [n / rate for n in range(4 * rate)]
    assert sum(taken for _, taken in thinned(frames_at(times), 10.0)) == pytest.approx(kept, abs=1)
    assert all(taken for _, taken in thinned(frames_at(times), None))


def test_jitter_and_gaps_thin_nothing_else() -> None:
    jittered = [n / 10 + 0.02 * (-1) ** n for n in range(1, 30)]
    assert all(taken for _, taken in thinned(frames_at(jittered), 10.0))
    after_gap = [0.0, 0.1, 5.0, 5.04, 5.08, 5.12]
    assert [taken for _, taken in thinned(frames_at(after_gap), 10.0)] == [True, True, True, False, True, False]


def test_frames_of_another_size_are_refused(tiny_recipe: dict[str, Any]) -> None:
    config = recipe(tiny_recipe)
    assert config.video is not None
    frames = [Frame(0, 0.0, np.zeros((8, 8, 1), np.uint8)), Frame(1, 0.1, np.zeros((8, 9, 1), np.uint8))]
    with pytest.raises(InputError, match="frame 1: expected the size 8x8 of the frames before, found 9x8"):
        list(windows(frames, FramePreprocessor(config), config.video))


def test_colours_become_grey_and_frames_keep_their_shape(tiny_recipe: dict[str, Any]) -> None:
    prepare = FramePreprocessor(recipe(tiny_recipe))
    colour = np.zeros((SIZE, 2 * SIZE, 3), dtype=np.uint8)
    colour[..., 0], colour[..., 1], colour[..., 2] = 200, 100, 50
    small = prepare(colour)
    assert small.shape == (1, SIZE, SIZE)
    assert (small == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    assert prepare.geometry(colour).box == (4, 0, 8, 16)


@pytest.mark.parametrize("wrong", [{"augment": {"gain": 0.1}}, {"preprocess": {"foreground": "otsu"}}, {"volume": {}}])
def test_recipes_that_clips_cannot_honour_are_refused(tiny_recipe: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_config({**tiny_recipe, "video": {}, **wrong})
