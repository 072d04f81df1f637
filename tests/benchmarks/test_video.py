"""The video tables: from clips to a page, nothing done twice, nothing chosen on test; the starts and delays of UMN."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.config import load_config
from anodiff.data.video.clip import open_clip
from anodiff.data.video.layouts import load_clips
from anodiff.data.video.write_av import VideoWriter
from benchmarks.quality import results, video, video_page, video_rows, video_umn

TINY = (
    "preprocess.size=[16,24]", "network.channels=[8,8]", "network.attention=[false,false]", "network.blocks=1",
    "network.head_channels=8", "training.images=32", "training.warmup_images=16", "training.validation_images=4",
    "training.holdout=0.5", "calibration.standardise_images=40", "engine.network_batch=8", "video.past=1",
)  # fmt: skip


def footage(count: int, seed: int, fast: range = range(0)) -> np.ndarray:
    """Frames (count, 32, 48) of a square over a noisy scene; it leaps where it is fast."""
    rng = np.random.default_rng(seed)
    scene = np.random.default_rng(0).integers(80, 120, (32, 48))
    left, found = int(rng.integers(40)), np.zeros((count, 32, 48), dtype=np.uint8)
    for n in range(count):
        left += 11 if n in fast else 1
        found[n] = scene + rng.integers(-1, 2, scene.shape)
        found[n, 12:18][:, (left + np.arange(5)) % 48] = 220
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ucsd_ped2 as folders of frames with ranges; umn_crowd as six MP4 files of 3 s at 20 a second with flags."""
    root = tmp_path_factory.mktemp("sets")
    ped2, umn = root / "ucsd_ped2", root / "umn_crowd"
    for part, clips in (("training", 6), ("testing", 3)):
        for n in range(1, clips + 1):
            folder = ped2 / part / "frames" / f"{n:02d}"
            folder.mkdir(parents=True)
            tested = part == "testing"  # what is learnt from is long enough to plant anomalies in
            for k, one in enumerate(footage(26 if tested else 42, n, range(10, 18) if tested and n < 3 else range(0))):
                Image.fromarray(one).save(folder / f"{k + 1:03d}.png")
    ranges = np.empty((1, 3), dtype=object)
    ranges[0] = [np.array([[11], [18]]), np.array([[11], [18]]), np.zeros((2, 0))]
    savemat(ped2 / "ped2.mat", {"gt": ranges})
    umn.mkdir()
    for n in range(1, 7):
        with VideoWriter(umn / f"Trim{n}.mp4", (32, 48), quality=5) as writer:
            for k, one in enumerate(footage(70, n, range(50, 64))):
                writer.write(np.repeat(one[..., None], 3, axis=2), k / 20)
        savemat(umn / f"alarm{n}.mat", {"alarms": np.isin(np.arange(71), np.arange(50, 64)).astype(np.uint8)})
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """The runner with tiny networks; ``run.root`` holds work/ and out/."""
    root = tmp_path_factory.mktemp("run")
    (root / "out").mkdir()

    def call(*words: str) -> int:
        torch.set_num_threads(1)
        tiny = [word for override in TINY for word in ("--set", override)]
        places = ["--data", str(data), "--work", str(root / "work"), "--output", str(root / "out")]
        return video.main([*places, "--device", "cpu", *tiny, *words])

    call.root = root  # type: ignore[attr-defined]
    return call


def section(run: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = results.stored(run.root / "out")["video"][name]
    return found


def test_rows_are_trained_chosen_on_normals_measured_and_not_done_twice(
    run: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_rows, "LEVELS", (0.1, 0.3))
    (run.root / "out" / "results.json").write_text(json.dumps({"main_job": results.stored()["main_job"]}))
    words = ("--sets", "ucsd_ped2", "--rows", "space-time", "frame-difference", "auto-encoder")
    assert run(*words) == 0
    found = section(run, "ucsd_ped2")
    assert found["looks"] == video.SETS["ucsd_ped2"] + 1
    assert list(found["cells"]) == ["space-time", "frame-difference", "auto-encoder"]
    cell = found["cells"]["space-time"]
    assert cell["metrics"]["n_frames"] == found["cells"]["auto-encoder"]["metrics"]["n_frames"] == 78
    assert set(cell["planted"]) == {"0.1", "0.3"}
    best = max(cell["planted"], key=lambda level: cell["planted"][level])
    assert cell["levels"] == [float(best)]
    split = run.root / "work" / "ucsd_ped2" / "space-time" / "split.csv"
    held = {Path(row.path) for row in video_rows.held_out(data / "ucsd_ped2", split)}
    assert len(held) == 3
    assert all("training" in path.parts for path in held)
    page = (run.root / "out" / "RESULTS.md").read_text()
    assert page.startswith("# Main job")
    metrics = found["cells"]["frame-difference"]["metrics"]
    assert metrics["frame_auroc_micro"] > 0.8
    assert f"| frame-difference | {metrics['frame_auroc_micro']:.3f}" in page
    assert "Test was looked at 3 times" in page
    assert "not ours" in page

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("done twice")

    for name in ("measure_baselines", "read_clips"):
        monkeypatch.setattr(video_rows, name, again)
    monkeypatch.setattr(video_rows.evaluate, "run", again)
    assert run(*words, "--looks", "5") == 0
    assert section(run, "ucsd_ped2") == found | {"looks": 6}


def test_a_given_model_is_evaluated_as_it_is_and_the_page_says_where_it_comes_from(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video_rows, "LEVELS", ())
    assert run("--sets", "ucsd_ped2", "--rows", "difference", "--set", "presets.default.levels=[0.2]") == 0
    model = run.root / "work" / "ucsd_ped2" / "difference" / "chosen.safetensors"
    words = ("--sets", "ucsd_ped2", "--rows", "predict", "--model", str(model), "--model-note", "From elsewhere")
    assert run(*words) == 0
    cell = section(run, "ucsd_ped2")["cells"]["predict"]
    assert not (run.root / "work" / "ucsd_ped2" / "predict").exists()  # nothing was trained
    assert cell["given"]["note"] == "From elsewhere"
    assert "video.mode: predict -> difference" in cell["given"]["changed"]
    assert "settings.default.levels: [0.1] -> [0.2]" in cell["given"]["changed"]
    page = (run.root / "out" / "RESULTS.md").read_text()
    assert "given to the benchmark, `chosen.safetensors`, other than the recipe `ped2` in" in page
    assert "From elsewhere." in page
    assert run("--sets", "ucsd_ped2", "--rows", "random", "--budget-minutes", "0") == 1
    assert "the time was up before random" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--model", str(tmp_path / "none.safetensors"))


def test_another_seed_or_preset_is_honoured_and_cells_of_another_are_left_out(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video_rows, "LEVELS", ())
    folder = run.root / "work" / "ucsd_ped2" / "difference"
    words = ("--sets", "ucsd_ped2", "--rows", "difference")

    def cell(*more: str) -> dict[str, Any]:
        assert run(*words, *more) == 0
        found: dict[str, Any] = section(run, "ucsd_ped2")["cells"]["difference"]
        return found

    first = cell("--set", "presets.default.levels=[0.2]")
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    other = cell("--set", "presets.default.levels=[0.1, 0.3]")
    assert (first["levels"], other["levels"]) == ([0.2], [0.1, 0.3])
    assert list(other["planted"]) == ["0.1 0.3"]
    seeded = cell("--set", "presets.default.levels=[0.1, 0.3]", "--seed", "1")
    assert seeded["made_from"]["seed"] == 1
    assert seeded["made_from"]["model"] != other["made_from"]["model"]  # calibrated with the noise of that seed
    assert seeded["looks"] == other["looks"] + 1 == first["looks"] + 2
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights

    capsys.readouterr()
    assert run("--sets", "ucsd_ped2", "--rows", "random") == 0
    found = section(run, "ucsd_ped2")
    assert "random" in found["cells"]
    assert "difference" not in found["cells"]
    assert "ucsd_ped2: difference is left out, being of another model, recipe or seed" in capsys.readouterr().out
    assert found["looks"] == video.SETS["ucsd_ped2"] + seeded["looks"]  # what is left out has been looked at too


def test_a_baseline_is_of_its_seed_and_recipe_whatever_keys_have_come_since() -> None:
    options, config = video_rows.Options(Path("data"), Path("work")), load_config(video_rows.RECIPE)
    recipe = config.model_dump(mode="json")
    older = recipe | {"engine": {key: value for key, value in recipe["engine"].items() if key != "overlap"}}
    assert video_rows.is_measured(config, options, {"seed": 0, "recipe": older})
    assert not video_rows.is_measured(config, options, {"seed": 1, "recipe": recipe})
    assert not video_rows.is_measured(config, options, {"seed": 0, "recipe": recipe | {"polarity": "darker"}})
    assert not video_rows.is_measured(config, options, {"seed": 0, "recipe": recipe | {"no_such_key": 1}})
    assert not video_rows.is_measured(config, options, {})


def test_another_preset_of_umn_is_calibrated_anew_without_another_training(run: Any, data: Path) -> None:
    short = ("--set", "video.window_px=4", "--set", "video.bands=false", "--set", "training.images=16")
    preset = ("--set", "presets.default.levels=[0.3]")
    assert run("--sets", "umn_crowd", *short) == 0
    before = section(run, "umn_crowd")["cells"]
    assert run("--sets", "umn_crowd", *short, *preset) == 0
    after = section(run, "umn_crowd")["cells"]
    assert list(after) == list(before)
    for name, cell in after.items():
        assert cell["made_from"]["model"] != before[name]["made_from"]["model"]
        assert cell["model"] == before[name]["model"]
    options = video_rows.Options(data, run.root / "work", overrides=(*TINY, *short[1::2], *preset[1::2]))
    assert list(video.collected("umn_crowd", options, 0)["cells"]) == list(after)
    assert video.collected("umn_crowd", dataclasses.replace(options, seed=1), 0) is None


def test_umn_learns_from_starts_and_reports_each_clip_once(run: Any, data: Path) -> None:
    short = ("--set", "video.window_px=4", "--set", "video.bands=false", "--set", "training.images=16")
    assert run("--sets", "umn_crowd", *short) == 0
    cells = section(run, "umn_crowd")["cells"]
    assert list(cells) == ["fold0", "fold1", "fold2"]
    assert sorted(each["clip"] for cell in cells.values() for each in cell["clips"]) == [
        f"Trim{n}" for n in range(1, 7)
    ]
    for cell in cells.values():
        assert not {each["clip"] for each in cell["clips"]} & set(cell["learnt_from"])
        assert all(each["flagged_s"] == pytest.approx(2.5, abs=0.01) for each in cell["clips"])
    assert "| Trim1 | Trim2 Trim3 Trim5 Trim6 | 2.5 |" in (run.root / "out" / "RESULTS.md").read_text()
    folder = run.root / "work" / "umn_crowd" / "fold0" / "data"
    table = load_clips(folder)
    assert {row.split for row in table.rows} == {"train", "test"}
    with open_clip(data / "umn_crowd" / "Trim2.mp4") as whole, open_clip(folder / "train" / "Trim2.mp4") as start:
        wanted = [frame for frame in whole if frame.time < 2.5 - video_umn.GUARD_S]
        kept = list(start)
    assert len(wanted) - 4 <= len(kept) <= len(wanted)  # frames in the order of decoding
    for one, other in zip(kept, wanted, strict=False):
        assert one.time == pytest.approx(other.time, abs=1e-3)
        assert np.array_equal(one.pixels, other.pixels)
    test = next(row for row in table.rows if row.path.endswith("Trim1.mp4"))
    with open_clip(test.path) as clip:
        times = [frame.time for frame in clip]
    truth = test.truth_at(times)
    assert truth is not None
    assert np.flatnonzero(truth).tolist() == list(range(50, 64))


def test_delays_are_of_the_first_event_that_reaches_the_flags() -> None:
    times = np.arange(100) / 10
    clip = video_umn.Flagged(Path("a.mp4"), times, (times >= 6) & (times < 8))
    smoothed = np.where(times > 6.35, 3.0, 1.0)
    found = video_umn.delays(clip, [(1.0, 1.5), (2.0, 2.2), (5.7, 7.0), (7.5, 9.0)], smoothed, 2.0)
    assert found["event_delay_s"] == pytest.approx(-0.3)
    assert found["alarm_delay_s"] == pytest.approx(0.4)
    assert found["false_alarms"] == 2
    assert found["false_alarms_per_hour"] == pytest.approx(1200)
    missed = video_umn.delays(clip, [(8.0, 9.0)], smoothed, 2.0)
    assert missed["event_delay_s"] is None
    assert missed["false_alarms"] == 0


@pytest.mark.data
def test_starts_of_the_real_files_are_cut_without_decoding_them(data_root: Path, tmp_path: Path) -> None:
    if not (data_root / "umn_crowd").is_dir():
        pytest.skip(f"real data absent: no folder {data_root / 'umn_crowd'}")
    rows = load_clips(data_root / "umn_crowd").rows
    assert len(rows) == 6
    clip = video_umn.flagged(rows[1])
    start = clip.spans[0][0]
    video_umn.cut(clip.path, tmp_path / "start.mp4", start - video_umn.GUARD_S)
    with open_clip(clip.path) as whole, open_clip(tmp_path / "start.mp4") as cut:
        kept = list(cut)
        for one, other in zip(kept, whole, strict=False):
            assert one.time == pytest.approx(other.time, abs=1e-3)
            assert np.array_equal(one.pixels, other.pixels)
    assert start - video_umn.GUARD_S - 0.2 < kept[-1].time < start - video_umn.GUARD_S
    # The threshold of the recipe needs that much of the shortest start.
    config = load_config(video_umn.RECIPE).video
    assert config is not None
    assert kept[-1].time - config.reach / 10 > 3600 / config.false_alarms_per_hour


def test_rows_are_of_recipes_that_exist_and_the_page_survives_what_is_undefined() -> None:
    for row in video_rows.ROWS.values():
        assert load_config(video_rows.RECIPE, row.overrides).video is not None
    assert load_config(video_umn.RECIPE).video is not None
    clip = {"clip": "a", "flagged_s": 3.0, "event_delay_s": None, "alarm_delay_s": None, "false_alarms": 0}
    clip |= {"false_alarms_per_hour": 0.0, "frame_auroc": None, "frame_auroc_smoothed": None}
    model = {"parameters": 1, "images_seen": 1, "training_seconds": 60, "training_device": {"name": "x"}}
    cell = {"clips": [clip], "learnt_from": ["b"], "model": model, "frames_per_second": 1.0}
    page = video_page.markdown({"umn_crowd": {"looks": 1, "cells": {"fold0": cell}}})
    assert "| a | b | 3.0 | - | - | 0 | 0 | - | - |" in page
    assert "looked at once" in page
    assert "0 of 1 clips have such an event. " in page


def test_the_median_delay_of_an_even_number_of_clips_lies_between_both_in_the_middle() -> None:
    clip = {"clip": "a", "flagged_s": 3.0, "alarm_delay_s": None, "false_alarms": 0, "false_alarms_per_hour": 0.0}
    clip |= {"frame_auroc": None, "frame_auroc_smoothed": None}
    clips = [clip | {"event_delay_s": delay} for delay in (2.0, 0.5, None, -0.1, 1.5)]
    model = {"parameters": 1, "images_seen": 1, "training_seconds": 60, "training_device": {"name": "x"}}
    cell = {"clips": clips, "learnt_from": ["b"], "model": model, "frames_per_second": 1.0}
    page = video_page.markdown({"umn_crowd": {"looks": 1, "cells": {"fold0": cell}}})
    assert "4 of 5 clips have such an event, median delay +1.00 s." in page
