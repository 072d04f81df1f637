"""anodiff evaluate: the metrics of the same job, the baselines beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

import anodiff as library
from anodiff.metrics import froc

Run = Callable[..., int]


def test_metrics_are_those_of_the_stored_scores_and_maps(anodiff: Run, world: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert anodiff("evaluate", world.model, world.data, "--output", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    rows = world.read_table(out / "scores.csv")
    assert (metrics["n_images"], metrics["n_anomalous"], metrics["n_failed"], metrics["nfe"]) == (14, 6, 0, 2)
    assert metrics["seconds_per_image"] > 0
    labels = np.array(["spot" in row["path"] for row in rows])
    found = np.array([float(row["score"]) for row in rows])
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, found))
    low, high = metrics["image_auroc_ci95"]
    assert low <= metrics["image_auroc"] <= high
    maps, masks = [], []
    for row, label in zip(rows, labels, strict=True):
        maps.append(np.load(out / "maps" / f"{row['id']}.npy"))
        truth = world.data / "ground_truth" / "spot" / Path(row["path"]).name.replace(".png", "_mask.png")
        masks.append(np.asarray(Image.open(truth)) > 127 if label else np.zeros((20, 24), bool))
    assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(maps)))
    assert metrics["pixel_ap"] == pytest.approx(average_precision_score(np.ravel(masks), np.ravel(maps)))
    calibration = library.load(world.model).calibrations["one-step"]
    for name in ("fpr1", "fpr5"):
        threshold = getattr(calibration, f"pixel_threshold_{name}")
        assert metrics[f"pixel_threshold_{name}"] == threshold
        assert metrics[f"dice_at_{name}"] == pytest.approx(f1_score(np.ravel(masks), np.ravel(maps) > threshold))
    assert metrics["froc"] == froc(maps, masks, calibration.pixel_threshold_fpr1).score()
    assert "Pixel AUROC" in (out / "report.html").read_text()


def test_baselines_are_measured_on_the_same_images_in_pairs(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("evaluate", world.model, world.data, "--output", out, "--baselines") == 0
    found = json.loads((out / "baselines.json").read_text())
    names = ["raw intensity", "blur residual", "intensity z-score", "PCA(30) residual"]
    names.append("feature memory (own encoder)")
    assert list(found["metrics"]) == ["anodiff one-step", *names]
    assert found["fitted_on"]["normals"] == 30
    assert list(found["settings"]) == names
    for chosen in found["settings"].values():
        assert chosen["smooth_px"] <= 20 / 8
        assert 0 < chosen["planted_ap"] <= 1
    ours = json.loads((out / "metrics.json").read_text())
    for name in names:
        theirs, pair = found["metrics"][name], found["paired"][name]["pixel_ap"]
        assert theirs["n_images"] == 14
        assert theirs["nfe"] == (1 if "encoder" in name else 0)
        assert pair["difference"] == pytest.approx(ours["pixel_ap"] - theirs["pixel_ap"])
        assert pair["ci95"][0] <= pair["ci95"][1]
    # A bright spot on a dark ground is what raw intensity sees: a baseline that measured nothing would fail here.
    assert found["metrics"]["raw intensity"]["pixel_auroc"] > 0.9
    table = capfd.readouterr().out
    assert all(name in table for name in names)
    assert "minus the best baseline" in table


def test_a_random_subset_is_a_function_of_the_seed(anodiff: Run, world: Any, tmp_path: Path) -> None:
    chosen = []
    for run, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(run)
        anodiff("evaluate", world.model, world.data, "--output", out, "--subset", 7, "--seed", seed)
        chosen.append([row["path"] for row in world.read_table(out / "scores.csv")])
    assert len(chosen[0]) == 7
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_broken_image_or_mask_fails_its_row_and_the_rest_is_measured(
    anodiff: Run, world: Any, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(world.data, data)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "ground_truth" / "spot" / "i001_mask.png")
    (data / "ground_truth" / "spot" / "i002_mask.png").unlink()
    (data / "test" / "good" / "i003.png").write_bytes(b"")
    assert anodiff("evaluate", world.model, data, "--output", out) == 1
    errors = {row["path"]: row["error"] for row in world.read_table(out / "scores.csv") if row["status"] == "failed"}
    assert len(errors) == 3
    assert any("9x9" in error and "24x20" in error for error in errors.values())
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["n_images"], metrics["n_failed"]) == (11, 3)


def test_without_calibration_or_masks_metrics_are_null_with_a_reason(anodiff: Run, world: Any, tmp_path: Path) -> None:
    rows = [f"{world.data}/test/{kind}/i00{n}.png,{int(kind == 'spot')}" for kind in ("good", "spot") for n in range(5)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    assert anodiff("evaluate", world.raw, tmp_path / "labels.csv", "--output", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["image_auroc"] is not None
    for name in ("pixel_auroc", "pixel_ap", "dice_at_fpr5"):
        assert metrics[name] is None
        assert metrics["reasons"][name]
    assert not {"dice_at_fpr1", "froc"} & set(metrics)


def test_unlabelled_data_or_a_missing_split_is_refused(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("evaluate", world.model, world.data / "test" / "good", "--output", out) == 2
    assert "expected labels or masks" in capfd.readouterr().err
    assert anodiff("evaluate", world.model, world.data, "--output", out, "--split", "dev") == 2
    assert "split dev" in capfd.readouterr().err
