"""The curve of quality against denoiser calls: its points, what they are measured on, and the whole run in small."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from anodiff.anomaly import AnomalyDetector, DetectorSettings, resolve
from anodiff.anomaly.planted import Normals
from anodiff.config import load_config
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.pipelines.closing import FEW_GROUPS
from benchmarks.quality import calls, calls_page

TINY = ("preprocess.size=[16,16]", "preprocess.channels=1", "network.channels=[8,8]", "network.attention=[false,false]",
        "network.blocks=1", "network.stem=2", "network.head_channels=8", "engine.network_batch=8")  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> DiffusionModel:
    torch.manual_seed(0)
    config = load_config("bottle", TINY)
    return DiffusionModel(config, build_denoiser(config))


def normals(count: int, start: int) -> Normals:
    noise = np.random.default_rng(start).normal(0, 0.2, (count, 1, 16, 16)).astype(np.float32)
    return Normals(torch.from_numpy(noise), tuple(f"{start}-{n}" for n in range(count)))


def test_a_point_costs_the_calls_it_stands_at_and_differs_in_nothing_but_how_they_are_spent(
    model: DiffusionModel,
) -> None:
    default = resolve("default", model.config)[1]
    found = {family.name: family for family in calls.families(default, (16, 16))}
    assert list(found) == ["default", "levels", "draws", "steps"]
    assert list(found["default"].points) == [default.nfe]
    spent = {"levels", "pairs", "antithetic", "noise", "noise_scale", "sampler", "steps"}
    for name in ("levels", "draws", "steps"):
        assert tuple(found[name].points) == calls.BUDGETS
        for calls_an_image, asked in found[name].points.items():
            settings = resolve(asked, model.config)[1]
            assert settings.nfe_for((16, 16)) == calls_an_image
            same, theirs = settings.to_json(), default.to_json()
            assert {slot for slot in same if same[slot] != theirs[slot]} <= spent


def test_levels_are_the_middles_of_equal_shares_within_the_range_of_the_preset() -> None:
    grid = np.geomspace(0.2, 0.7, 16).tolist()
    for count in (1, 2, 4, 8):
        steps = np.diff(np.log(calls.shares(grid, count)))
        assert len(calls.shares(grid, count)) == count
        assert np.allclose(steps, math.log(0.7 / 0.2) / 15 * 16 / count)
    assert calls.shares(grid, 16) == grid
    # the single level is as near to the geometric mean as a grid of an even number allows
    assert abs(math.log(calls.shares(grid, 1)[0] / math.sqrt(0.2 * 0.7))) < math.log(0.7 / 0.2) / 15


def test_each_normal_is_measured_as_it_is_and_at_most_once_with_an_anomaly_of_its_own_group() -> None:
    held, fit = normals(6, 100), normals(4, 0)
    labelled = calls.planted(held, fit, DetectorSettings(), seed=0)
    images, labels = labelled.found, labelled.labels
    assert 0 < labels.sum() <= 6
    assert (~labels).sum() == 6
    assert np.array_equal(labels, images.masks.flatten(1).any(dim=1).numpy())
    assert torch.equal(images.images[~torch.from_numpy(labels)], held.images)
    names = list(images.groups)
    for row in np.flatnonzero(labels):
        original = held.images[held.groups.index(names[row])]
        assert not torch.equal(images.images[row], original)
    assert len({names[row] for row in np.flatnonzero(labels)}) == labels.sum()


def test_a_point_is_what_the_detector_gives_and_what_scikit_learn_measures(model: DiffusionModel) -> None:
    held, fit = normals(6, 100), normals(8, 0)
    default = resolve("default", model.config)[1]
    labelled = calls.planted(held, fit, default, seed=0)
    plain = default.model_copy(update={"standardise": "none"})
    family = next(each for each in calls.families(plain, (16, 16)) if each.name == "levels")
    found = calls.measure(model, family, fit, labelled, device="cpu", seed=0)
    settings = family.points[4]
    result = AnomalyDetector(model, settings, device="cpu", seed=0)(labelled.found.images)
    masks = labelled.found.masks.numpy()
    assert found["4"]["pixel_ap"] == pytest.approx(
        average_precision_score(masks.ravel(), result.maps.ravel()), abs=2e-3
    )
    assert found["4"]["image_auroc"] == pytest.approx(roc_auc_score(labelled.labels, result.scores), abs=0.03)
    low, high = found["4"]["pixel_ap_ci95"]
    assert low < found["4"]["pixel_ap"] < high
    assert found["4"]["groups"] == 6


def test_the_run_in_small_is_kept_and_reads_no_test_image(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bottle = tmp_path / "data" / "mvtec" / "bottle"
    for folder, count in (("train/good", 20), ("test/good", 2), ("test/spot", 2)):
        (bottle / folder).mkdir(parents=True)
        for n in range(count):
            values = np.random.default_rng(n).normal(120, 20, (20, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(values).save(bottle / folder / f"{n:03d}.png")
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "bottle" / "coarse").mkdir(parents=True)
    model.save(work / "bottle" / "coarse" / "model.safetensors")
    calls.SETS["bottle"].split(tmp_path / "data", work, 0)
    for path in (bottle / "test").rglob("*.png"):
        path.write_bytes(b"unreadable")
    monkeypatch.setattr(calls, "BUDGETS", (1, 2))
    words = ["--data", str(tmp_path / "data"), "--work", str(work), "--output", str(out), "--sets", "bottle",
             "magnetic_tile", "--subset", "6", "--normals", "6", "--device", "cpu"]  # fmt: skip
    assert calls.main(words) == 0
    assert "magnetic_tile: left out, found no" in capsys.readouterr().out
    found = json.loads((out / "calls.json").read_text())["sets"]
    assert list(found) == ["bottle"]
    assert (found["bottle"]["measured_on"], found["bottle"]["metric"]) == ("planted", "image_auroc")
    assert {name: list(points) for name, points in found["bottle"]["families"].items()} == {
        "default": ["4"], "levels": ["1", "2"], "draws": ["1", "2"], "steps": ["1", "2"]
    }  # fmt: skip
    page = (out / "CALLS.md").read_text()
    assert "| NFE | levels | draws | steps | default |" in page
    assert f"| 4 | - | - | - | {found['bottle']['families']['default']['4']['image_auroc']:.3f}" in page
    assert 1000 < (out / "calls.png").stat().st_size < 200_000

    monkeypatch.setattr(calls, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert calls.main(words) == 0
    assert (out / "CALLS.md").read_text() == page
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        calls.main([*words, "--seed", "0", "--subset", "4"])


def test_the_page_in_the_repository_is_that_of_its_stored_results() -> None:
    found = json.loads((calls.HERE / "calls.json").read_text(encoding="utf-8"))
    assert (calls.HERE / "CALLS.md").read_text(encoding="utf-8") == calls_page.markdown(found["sets"], found["sigma"])


def test_a_panel_a_data_set_and_a_row_for_every_number_of_calls() -> None:
    point: dict[str, Any] = {"pixel_ap": 0.5, "pixel_ap_ci95": [0.4, 0.6], "image_auroc": 0.7, "images": 9, "groups": 3}
    alone = point | {"pixel_ap_ci95": None}
    families = {"default": {"4": point}, "levels": {"1": alone, "16": point}, "tuned": {"9": point}}
    sets = {name: {"measured_on": "dev", "metric": "pixel_ap", "families": families} for name in ("a", "b", "c", "d")}
    page = calls_page.markdown(sets, 1.0)
    assert page.count("Pixel AP on the labelled dev split: 9 images of 3 groups.") == 4
    assert page.count("Note: intervals and p rest on 3 groups") == 4
    for many in (FEW_GROUPS, 1):  # enough for an interval, and none to trust or not
        part = sets["a"] | {"families": {"default": {"4": point | {"groups": many}}}}
        assert "Note" not in calls_page.markdown({"a": part}, 1.0)
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    assert rows[:5] == ["| NFE", "| 1", "| 4", "| 9", "| 16"]
    assert "| 1 | 0.500 | - | - |" in page
    picture = calls_page.picture(sets)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000
