"""The speed benchmarks run, compare results before they time, and say what they found in one table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from benchmarks.speed import folder, networks, precision, simplex, training, windows
from benchmarks.speed.__main__ import NAMES, results
from benchmarks.speed.side_by_side import Comparison, distance, in_turns, require_equal


def test_the_ratio_is_the_median_over_turns() -> None:
    found = Comparison("work", ours=(1.0, 2.0, 1.0), theirs=(3.0, 4.0, 5.0), facts={}).ratio
    assert found == {"median": 3.0, "low": 2.5, "high": 4.0}


def test_sides_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    found = in_turns("work", lambda: calls.append("ours"), lambda: calls.append("theirs"), 3)
    assert calls == ["ours", "theirs"] * 4
    assert len(found.ours) == len(found.theirs) == 3


def test_results_that_differ_end_the_benchmark() -> None:
    x = torch.ones(4)
    assert distance(1.01 * x, x) == pytest.approx(0.01, rel=1e-4)
    assert require_equal(x * 1.01, x, "bf16", "work") > 0
    with pytest.raises(SystemExit, match=r"work: expected results within 0\.0001 of each other, found 0\.01"):
        require_equal(x * 1.01, x, "fp32", "work")


def test_one_training_step_of_either_side(tmp_path: Path) -> None:
    output = tmp_path / "training.json"
    size = ["--batch", "2", "--side", "16", "--uncompiled"]
    found = training.main(["--device", "cpu", "--turns", "1", *size, "--output", str(output)])
    assert [each.work for each in found if each.work.endswith("fp32")] == [
        "2 images of 16x16, our U-Net, fp32",
        "2 images of 16x16, our DiT, fp32",
    ]
    for each in found:
        weights = each.facts
        assert abs(weights["weights"] / weights["peer_weights"] - 1) < 0.25  # networks of one size
    assert json.loads(output.read_text())["rows"][0]["ratio"]["median"] > 0


def test_simplex_fields_of_both_sides_are_as_smooth(tmp_path: Path) -> None:
    pytest.importorskip("opensimplex", reason="opensimplex, the peer, is not installed")
    pytest.importorskip("numba", reason="numba, which makes the peer fast, is not installed")
    output = tmp_path / "simplex.json"
    found = simplex.main(["--turns", "1", "--fields", "4", "--side", "32", "--device", "cpu", "--output", str(output)])
    correlations = found[0].facts["correlations"]
    assert correlations["ours"] == pytest.approx(correlations["peer"], abs=simplex.AGREEMENT)


def test_the_table_holds_what_has_run_and_nothing_else(tmp_path: Path) -> None:
    row = {
        "work": "a forward",
        "seconds": {"ours": 0.5, "peer": 2.0},
        "ratio": {"median": 4.0, "low": 3.5, "high": 4.5},
    }
    machine = {"processor": "x86_64", "cpu": "AVX512", "threads": 2, "torch": "2"}
    (tmp_path / "network.json").write_text(json.dumps({"title": "network forward", "rows": [row], "machine": machine}))
    text = results(tmp_path)
    assert "| a forward | 0.5 | 2 | 4.0 (3.5-4.5) |" in text
    assert text.count("\n## ") == 1
    assert "Goal: 4 times on 2 CPU cores" in text
    assert "trained on" not in text
    found = {"title": "a folder", "rows": [row], "machine": machine, "training_images": 3200}
    (tmp_path / "folder.json").write_text(json.dumps(found))
    assert "Each network was trained on 3,200 images." in results(tmp_path)
    assert len(NAMES) == len(set(NAMES))


def test_the_phantoms_of_the_benchmarks_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = dict.fromkeys(networks.COUNTS, 2)
    monkeypatch.setattr(networks, "COUNTS", few)
    data = networks.phantoms(tmp_path)
    before = sorted(data.rglob("*.png"))
    assert len(list((data / "test").rglob("*.png"))) == 4
    assert networks.phantoms(tmp_path) == data
    assert sorted(data.rglob("*.png")) == before


def test_monai_network_as_it_comes_holds_the_model_s_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "COUNTS", dict.fromkeys(networks.COUNTS, 6))
    small = {**networks.ARGUMENTS, "channels": [8, 16, 16], "num_head_channels": 8, "norm_num_groups": 8}
    monkeypatch.setattr(networks, "ARGUMENTS", small)
    monkeypatch.setitem(networks.RECIPE, "network.arguments", small)
    model = networks.monai_model(tmp_path, 32, "cpu")
    x, t = torch.randn(1, 1, 64, 64), torch.tensor([250.0])
    with torch.no_grad():
        expected = model.denoiser.network(x, t)
        torch.testing.assert_close(networks.as_it_comes(model)(x, timesteps=t), expected)


def test_the_precision_table_names_the_largest_difference_and_leaves_out_what_is_undefined() -> None:
    image = dict.fromkeys(("fp32", "bf16", "bf16, compiled"), None)
    pixel = {"fp32": 0.9, "bf16": 0.9011, "bf16, compiled": 0.8985}
    aurocs = {name: {"pixel_auroc": pixel[name], "image_auroc": image[name]} for name in pixel}
    text = precision.table([{"work": "brain, dev", "aurocs": aurocs}])
    assert "| brain, dev | pixel | 0.9000 | 0.9011 | 0.8985 | 0.0015 |" in text
    assert "| image |" not in text
    assert "looks at test" not in text
    assert "these looks at test are not among those" in precision.table([{"work": "bottle, test", "aurocs": aurocs}])


def test_a_split_is_called_by_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    assert precision.name_of(tmp_path / "pneumoniamnist" / "split.csv") == "pneumoniamnist"
    assert precision.name_of(tmp_path / "mvtec" / "bottle") == precision.name_of(tmp_path / "bottle.csv") == "bottle"


@pytest.mark.parametrize("main", [precision.main, windows.main])
def test_what_is_not_timed_takes_no_turns(
    main: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (precision, windows):
        monkeypatch.setattr(module, "device_of", lambda *_: pytest.fail("begun"))
    with pytest.raises(SystemExit):
        main(["--case", "model", "data", "dev", "--turns", "3"] if main is precision.main else ["--turns", "3"])
    assert "unrecognized arguments: --turns 3" in capsys.readouterr().err


def test_ours_of_a_folder_is_a_process_from_its_start_to_its_report(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    config = parse_config(tiny_recipe | {"preset": "one-step"})
    DiffusionModel(config, build_denoiser(config)).save(tmp_path / "model.safetensors")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    begun = time.perf_counter()
    seconds = folder.score_all(tmp_path / "model.safetensors", tmp_path / "a.png", tmp_path / "out", "cpu")
    assert 0 < seconds <= time.perf_counter() - begun
    assert (tmp_path / "out" / "report.html").exists()
    monkeypatch.setattr(folder.subprocess, "run", lambda *_, **__: None)
    assert folder.score_all(tmp_path / "model.safetensors", tmp_path / "a.png", tmp_path / "out", "cpu") < seconds / 10
