"""The quality table's runner: from a data set to a page, nothing done twice, nothing learnt from test."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

import anodiff as library
from anodiff.anomaly import PRESETS, DetectorSettings, baseline_choice, resolve
from anodiff.anomaly.planted import Normals, PlantedImages
from anodiff.anomaly.reduce import reduce_maps
from anodiff.anomaly.tuning_cache import ErrorCache
from anodiff.config import load_config
from anodiff.data.layouts import load_table
from anodiff.data.preprocess import Geometry
from anodiff.data.table import group_keys
from anodiff.model import build_denoiser
from anodiff.pipelines.truth import read_run
from benchmarks.quality import looks, oracle, pairs, results, rows, sets, table, table_page
from benchmarks.quality.models import VARIANTS

TINY = (
    "preprocess.size=[16,16]", "preprocess.channels=1", "network.channels=[8,8]", "network.attention=[false,false]",
    "network.blocks=1", "network.stem=2", "network.head_channels=8", "training.images=32", "training.batch_size=16",
    "training.warmup_images=16", "training.validation_images=4", "engine.network_batch=8",
)  # fmt: skip


def write_images(folder: Path, count: int, start: int, spot: bool = False, masks: Path | None = None) -> None:
    """Grey gradients of 20x16, on request with a bright spot."""
    for place in (folder, masks):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        values = np.random.default_rng(start + n).normal(80, 6, (20, 16)) + np.arange(16) * 4
        mask = np.zeros((20, 16), dtype=bool)
        mask[5:10, 4:9] = spot
        Image.fromarray((values + 90 * mask).clip(0, 255).astype(np.uint8)).save(folder / f"{n:03d}.png")
        if masks is not None:
            Image.fromarray(mask).save(masks / f"{n:03d}_mask.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets with one, in the layout and place of MVTec's bottle."""
    root = tmp_path_factory.mktemp("sets")
    bottle = root / "mvtec" / "bottle"
    write_images(bottle / "train" / "good", 30, 0)
    write_images(bottle / "test" / "good", 4, 100)
    write_images(bottle / "test" / "spot", 4, 200, spot=True, masks=bottle / "ground_truth" / "spot")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """The runner on bottle with a tiny network; ``run.root`` holds work/ and out/."""
    root = tmp_path_factory.mktemp("run")
    (root / "out").mkdir()

    def call(*words: str) -> int:
        torch.set_num_threads(1)
        tiny = [word for override in TINY for word in ("--set", override)]
        places = ["--data", str(data), "--work", str(root / "work"), "--output", str(root / "out")]
        return table.main([*places, "--sets", "bottle", "--device", "cpu", "--subset", "5", *tiny, *words])

    call.root = root  # type: ignore[attr-defined]
    return call


def section(run: Any) -> dict[str, Any]:
    found: dict[str, Any] = results.stored(run.root / "out")["table"]["sets"]["bottle"]
    return found


def test_a_row_is_trained_calibrated_measured_and_not_done_twice(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.root / "out" / "results.json").write_text(json.dumps({"main_job": results.stored()["main_job"]}))
    assert run("--rows", "default-white") == 0
    found = section(run)
    assert list(found["rows"]) == ["default-white"]
    assert found["models"]["white"]["images_seen"] == 32
    assert found["procedure"] == [rows.PROCEDURE, rows.BASELINES]
    assert {each["split"]: each["normal"] for each in found["counts"]} == {"train": 24, "val": 6, "test": 4}
    metrics = found["rows"]["default-white"]["metrics"]
    assert (metrics["n_images"], metrics["nfe"]) == (8, 16)
    page = (run.root / "out" / "RESULTS.md").read_text()
    assert page.startswith("# Main job")
    assert f"| default-white | 16 | **{metrics['pixel_auroc']:.3f} (" in page

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("done twice")

    for module, name in ((rows.evaluate, "run"), (rows.calibrate, "run"), (table.cell.__globals__["tune"], "run")):
        monkeypatch.setattr(module, name, again)
    assert run("--rows", "default-white") == 0
    assert section(run) == found
    monkeypatch.undo()
    assert run("--rows", "one-step", "--budget-minutes", "0") == 1
    assert "the time was up before one-step" in capsys.readouterr().out
    assert run("--rows", "one-step", "--set", "training.images=48") == 1
    assert "training.images: 32 -> 48" in capsys.readouterr().out
    assert run("--rows", "one-step") == 0
    assert list(section(run)["rows"]) == ["default-white", "one-step"]
    assert section(run)["rows"]["one-step"]["metrics"]["nfe"] == 2


def test_a_cell_of_another_model_is_measured_anew_and_the_look_is_counted(run: Any) -> None:
    assert run("--rows", "default-white") == 0
    assert section(run)["looks"] == 1
    path = run.root / "work" / "bottle" / "cells" / "default-white.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"made_from": {"model": "another"}}))
    assert run("--rows", "default-white", "--earlier-looks", "3") == 0
    assert section(run)["looks"] == 5
    assert section(run)["rows"]["default-white"]["metrics"]["pixel_ap"] == known["metrics"]["pixel_ap"]


def test_a_broken_off_look_is_counted_and_cells_from_before_tell_theirs(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    cells.mkdir()
    for name, count in (("default", 2), ("dae", 1)):
        (cells / f"{name}.json").write_text(json.dumps({"looks": count}))
    assert looks.counts(tmp_path) == {"default": 2, "dae": 1}
    looks.add(tmp_path, "dae")
    shutil.rmtree(cells)
    looks.add(tmp_path, "tuned")
    assert looks.counts(tmp_path) == {"default": 2, "dae": 2, "tuned": 1}


def test_a_calibrated_file_is_made_anew_where_its_record_is_of_something_else(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []
    calibrate = rows.calibrate.run
    monkeypatch.setattr(rows.calibrate, "run", lambda *a, **k: (made.append(k["preset"]), calibrate(*a, **k)))
    assert run("--rows", "one-step") == 0
    count = len(made)
    assert run("--rows", "one-step") == 0
    assert len(made) == count
    path = run.root / "work" / "bottle" / "white" / "one-step.safetensors"
    record = path.with_suffix(".made.json")
    settings = library.load(path).config
    assert resolve("one-step", settings)[1].smooth_px == 0.5  # 4 px of 128
    for broken in ({"seed": 7}, {"scoring": None}):
        record.write_text(json.dumps(json.loads(record.read_text()) | broken))
        assert run("--rows", "one-step") == 0
        count += 1
        assert made == ["one-step"] * count
    record.unlink()
    assert run("--rows", "default-white") == 0  # without a record the other cell cannot be trusted
    assert "one-step is left out" in capsys.readouterr().out
    assert list(section(run)["rows"]) == ["default-white"]
    assert run("--rows", "one-step", "--seed", "5") == 1
    assert "expected a split of seed 5, found one of 0" in capsys.readouterr().out


def test_memory_that_runs_out_ends_one_row(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = table.cell

    def short(row: Any, *rest: Any) -> Any:
        if row.name == "one-step":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cell(row, *rest)

    monkeypatch.setattr(table, "cell", short)
    assert run("--rows", "one-step", "default-white") == 1
    found = capsys.readouterr().out
    assert "one-step: expected more memory, found none left (CUDA out of memory)" in found
    assert "bottle: default-white (" in found
    monkeypatch.setattr(table, "cell", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        run("--rows", "one-step")


def test_baselines_are_a_row_of_their_own_in_pairs_with_ours(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_choice, "PLANTED_NORMALS", 4)
    white = rows.Row("baselines", "white", "default", baselines=True)
    monkeypatch.setattr(table, "ROWS", rows.ROWS | {"baselines": white})
    monkeypatch.setattr(table, "ours", lambda rows: "default-white")
    assert run("--rows", "default-white", "baselines") == 0
    found = section(run)
    beside = found["rows"]["baselines"]["baselines"]
    names = ["raw intensity", "blur residual", "intensity z-score", "PCA(30) residual", "feature memory (own encoder)"]
    assert list(beside) == list(found["paired"]) == names
    ours = found["rows"]["default-white"]["metrics"]["pixel_ap"]
    for name in names:
        theirs = beside[name]["metrics"]
        assert theirs["n_images"] == 8
        assert found["paired"][name]["pixel_ap"]["difference"] == pytest.approx(ours - theirs["pixel_ap"])
        assert 0 < beside[name]["settings"]["planted_ap"] <= 1
        assert beside[name]["settings"]["smooth_px"] <= 2
    assert beside["raw intensity"]["metrics"]["pixel_auroc"] > 0.9
    folder = run.root / "work" / "bottle" / "out" / "baselines" / beside["raw intensity"]["folder"]
    labels, scores = zip(*[(each.label, each.score) for each in read_run(folder).values()], strict=True)
    assert beside["raw intensity"]["metrics"]["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    page = (run.root / "out" / "RESULTS.md").read_text()
    assert "What each baseline chose:" in page
    assert "`default-white` minus each baseline" in page
    assert "| baselines |" not in page

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr(rows.baselines, "measure", again)
    monkeypatch.setattr(pairs, "against", again)
    assert run("--rows", "baselines") == 0
    assert section(run)["paired"] == found["paired"]
    measured: list[Any] = []
    monkeypatch.setattr(rows.baselines, "measure", lambda *a, **k: measured.append(a) or beside)  # type: ignore[func-returns-value]
    monkeypatch.setattr(pairs, "against", lambda *a: found["paired"]["raw intensity"])
    for name in ("PROCEDURE", "BASELINES"):
        monkeypatch.setattr(rows, name, getattr(rows, name) + 1)
        assert run("--rows", "default-white") == 0
        assert "baselines" not in section(run)["rows"]
        assert run("--rows", "baselines") == 0
    assert len(measured) == 2
    monkeypatch.undo()
    (run.root / "work" / "bottle" / "cells" / "baselines.json").unlink()


def test_the_best_of_a_column_is_bold_and_an_oracle_never_is() -> None:
    def method(value: float | None) -> dict[str, Any]:
        return {"image_auroc": value, "image_auroc_ci95": None, "nfe": 1}

    found = table_page.metric_table(
        [
            ("a", method(0.9001)),
            ("b", method(0.9004)),
            ("c", method(0.8)),
            ("oracle_d", method(0.99)),
            ("e", method(None)),
        ],
        ("image_auroc",),
    )
    cells = [line.split("|")[3].strip() for line in found.splitlines()[2:]]
    assert cells == ["**0.900**", "**0.900**", "0.800", "0.990", "-"]


def test_a_page_says_where_its_choices_are_of_an_earlier_procedure() -> None:
    part = {"procedure": [rows.PROCEDURE, rows.BASELINES]}
    assert table_page.outdated(part) == table_page.outdated({}) == ""
    for number in (0, 1):
        earlier = [now - (place == number) for place, now in enumerate(part["procedure"])]
        assert "`--rows tuned baselines` makes them anew" in table_page.outdated({"procedure": earlier})


def test_targets_are_those_of_the_row_that_planted_anomalies_prefer() -> None:
    def row(planted: float, value: float) -> dict[str, Any]:
        return {"tuning": {"planted_ap": planted}, "metrics": {"image_auroc": value}}

    text = "\n".join(table_page.targets("chest_xray", {"tuned": row(0.3, 0.9), "tuned-white": row(0.4, 0.74)}))
    assert "| image AUROC | 0.750 | 0.740 | -0.010 | missed |" in text
    assert "`tuned-white`" in text
    assert "| met |" in "\n".join(table_page.targets("chest_xray", {"tuned": row(0.3, 0.75)}))
    assert "no tuned preset is measured yet" in "\n".join(table_page.targets("chest_xray", {"default": row(0.3, 1.0)}))
    assert table_page.targets("mnist_in", {}) == []
    assert set(sets.TARGETS) < set(sets.SETS)


def test_widths_of_presets_fit_a_small_image() -> None:
    entry = sets.SETS["pneumoniamnist"]
    for variant, preset in (("white", "default"), ("auto-encoder", "dae"), ("white", "ddad-features")):
        row = rows.Row("x", variant, preset)
        config = load_config(entry.recipe, rows.recipe_of(row, entry, rows.Options(Path(), Path())))
        wanted = PRESETS[preset].smooth_px * 28 / 128
        assert resolve(preset, config)[1].smooth_px == pytest.approx(wanted, abs=1e-3)
    own = load_config(
        entry.recipe, rows.recipe_of(rows.Row("x", "coarse", "default"), entry, rows.Options(Path(), Path()))
    )
    assert resolve("default", own)[1].smooth_px == 1.0
    bottle = sets.SETS["bottle"]
    assert rows.in_proportion(load_config(bottle.recipe)) == ()
    assert rows.in_proportion(load_config(entry.recipe, ["presets.default.smooth_px=9"]))[0].endswith("=3.5")


def test_an_older_model_with_other_presets_is_taken_and_other_weights_are_not(run: Any) -> None:
    assert run("--rows", "default-white") == 0
    before = section(run)["rows"]["default-white"]
    work = run.root / "work" / "bottle"
    assert run("--rows", "default-white", "--set", "presets.default.smooth_px=1.5", "--set", "name=other") == 0
    after = section(run)["rows"]["default-white"]
    assert (before["settings"]["smooth_px"], after["settings"]["smooth_px"]) == (0.625, 1.5)
    assert (work / "white" / "default.made.json").exists()
    assert run("--rows", "default-white", "--set", "training.lr=1e-5") == 1
    assert run("--rows", "default-white") == 0


def test_a_page_holds_no_cell_of_another_polarity_or_of_weights_that_are_gone(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page says that all of its rows have one declared polarity."""
    assert run("--rows", "default-white", "one-step") == 0
    assert run("--rows", "default-white", "--set", "polarity=darker") == 0
    assert "one-step is left out, being of another model, polarity" in capsys.readouterr().out
    assert list(section(run)["rows"]) == ["default-white"]
    assert section(run)["polarity"] == "darker"
    assert run("--rows", "default-white") == 0
    assert list(section(run)["rows"]) == ["default-white", "one-step"]
    path = run.root / "work" / "bottle" / "white" / "model.safetensors"
    entry, options = sets.SETS["bottle"], rows.Options(run.root, run.root / "work", subset=5, overrides=TINY)
    cell = run.root / "work" / "bottle" / "cells" / "default-white.json"
    made_from = json.loads(cell.read_text())["made_from"]
    assert rows.is_current(rows.ROWS["default-white"], entry, options, made_from)
    hidden = path.rename(path.with_suffix(".hidden"))
    assert not rows.is_current(rows.ROWS["default-white"], entry, options, made_from)
    hidden.rename(path)


def test_absent_data_is_said_and_stops_nothing(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--sets", "mnist_in", "--rows", "default") == 0
    assert "mnist_in: left out, found no" in capsys.readouterr().out


def test_every_row_and_variant_is_of_recipes_and_presets_that_exist() -> None:
    for entry in sets.SETS.values():
        for row in rows.ROWS.values():
            config = load_config(entry.recipe, [*VARIANTS[row.model], *entry.overrides.get(row.model, ())])
            preset = row.tuned_from or row.preset
            assert preset in PRESETS
            settings = resolve(preset, config)[1]
            assert settings.polarity == load_config(entry.recipe).polarity
            assert row.subset == (settings.nfe_for(config.preprocess.size) > rows.MANY) or row.name == "tuned-subset"
            assert row.oracle == row.name.startswith("oracle_")


@pytest.mark.parametrize("name", ["brain_lgg", "pneumoniamnist"])
def test_the_transformer_of_the_table_differs_from_default_in_its_network_alone(name: str) -> None:
    entry, options = sets.SETS[name], rows.Options(Path(), Path())
    both = [load_config(entry.recipe, rows.recipe_of(rows.ROWS[row], entry, options)) for row in ("default", "dit")]
    unet, dit = (sum(each.numel() for each in build_denoiser(config).parameters()) for config in both)
    assert (both[0].network.kind, both[1].network.kind) == ("unet", "dit")
    assert dit == pytest.approx(unet, rel=0.02)
    assert both[1].model_copy(update={"network": both[0].network}) == both[0]


def test_a_split_keeps_groups_together_and_test_as_it_was(data: Path) -> None:
    entry = sets.SETS["bottle"]
    before = load_table(data / entry.path).table
    divided = entry.divided(data, 0)
    test = divided.table[divided.table["split"] == "test"]
    assert set(test["path"]) == set(before[before["split"] == "test"]["path"])
    keys = pd.Series(group_keys(divided))
    groups = [set(keys[divided.table["split"] == split]) for split in ("train", "val", "test")]
    assert [len(found) for found in groups] == [24, 6, 8]
    assert len(set.union(*groups)) == 38


def test_images_of_another_set_are_the_anomalies(data: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "other" / "train" / "good", 2, 900)
    write_images(tmp_path / "other" / "test" / "good", 5, 950)
    write_images(tmp_path / "own" / "train" / "good", 8, 0)
    write_images(tmp_path / "own" / "test" / "good", 4, 50)
    divided = sets.DataSet("x", "own", "bottle", others="other", most_test=3).divided(tmp_path, 0).table
    test = divided[divided["split"] == "test"]
    assert test["label"].value_counts().to_dict() == {0: 3, 1: 3}
    assert all(("/other/" in path) == bool(label) for path, label in zip(test["path"], test["label"], strict=True))
    assert not divided[divided["split"] != "test"]["path"].str.contains("/other/").any()


class Blur(torch.nn.Module):
    """Half of what it is shown."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_an_oracle_without_masks_takes_the_auroc_of_the_scores() -> None:
    from types import SimpleNamespace

    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = tuple(f"g{n}" for n in range(12))
    inside = torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    labels = np.arange(12) % 3 == 0
    found = PlantedImages(images, torch.zeros(12, 8, 8, dtype=torch.bool), inside, (oracle.LABELLED,) * 12, names)
    base = DetectorSettings(noise="none", noise_scale="unit", levels=(0.5,), standardise="none", residual="absolute")
    model = SimpleNamespace(denoiser=Blur(), calibrations={})
    cache = ErrorCache(model, base, Normals(images, names), found, ("absolute",), device="cpu")
    cache.compute("none", (0.5,))
    measure = oracle.ImageMeasure(cache, labels, "topk", 0.1)
    scores = reduce_maps((images / 2).abs()[:, 0], "topk", topk=0.1, foreground=inside)
    assert measure.value(base) == pytest.approx(roc_auc_score(labels, scores.numpy()), abs=1e-6)


def test_masks_come_to_the_models_grid_and_mark_no_padding() -> None:
    mask = np.zeros((20, 10), dtype=bool)
    mask[10:] = True
    found = oracle.on_model_grid(mask, Geometry((20, 10), (16, 16), (0, 4, 16, 8)))
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[8:, 4:12] = True
    assert torch.equal(found, expected)
    assert not oracle.on_model_grid(None, Geometry((20, 10), (16, 16), (0, 4, 16, 8))).any()


def test_the_gap_to_the_oracle_is_told_as_it_is() -> None:
    def row(value: float) -> dict[str, Any]:
        return {"metrics": {"pixel_ap": value, "image_auroc": value}}

    def cells(has_masks: bool, **values: float) -> list[str]:
        part = {
            "has_masks": has_masks,
            "rows": {name.replace("_white", "-white"): row(v) for name, v in values.items()},
        }
        return [cell.strip() for cell in table_page.gaps({"x": part})[-2].splitlines()[-1].split("|")[1:-1]]

    assert cells(True, default=0.5, tuned=0.6, oracle_tuned=0.61) == [
        "x", "pixel AP", "0.500", "0.600", "0.610", "+0.010", "yes", "+0.100", "yes",
    ]  # fmt: skip
    assert cells(False, default_white=0.62, tuned_white=0.6, oracle_tuned_white=0.65) == [
        "x-white", "image AUROC", "0.620", "0.600", "0.650", "+0.050", "no", "-0.020", "no",
    ]  # fmt: skip
    assert cells(True, default=0.5, tuned=0.6)[4:7] == ["-", "-", "-"]
    assert table_page.gaps({"x": {"has_masks": True, "rows": {"default": row(0.5)}}}) == []
