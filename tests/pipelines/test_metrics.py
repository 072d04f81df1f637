"""anodiff metrics: maps of any software against masks, and every file that cannot be used by name."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anodiff.metrics import evaluate_maps

Run = Callable[..., int]
CONTRACT = (
    "image_auroc image_ap pixel_auroc pixel_ap aupro aupimo dice_at_fpr5 oracle_max_dice oracle_f1 n_images "
    "n_anomalous nfe seconds_per_image"
)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class Set:
    """Maps good/000.tiff ..., cut/000.tiff ... and masks of the cuts, with the arrays they hold."""

    def __init__(self, root: Path, good: int = 6, cut: int = 6) -> None:
        rng = np.random.default_rng(0)
        self.maps, self.masks = root / "maps", root / "masks"
        self.values: dict[str, np.ndarray] = {}
        self.truths: dict[str, np.ndarray] = {}
        for kind, count in (("good", good), ("cut", cut)):
            (self.maps / kind).mkdir(parents=True)
            for n in range(count):
                truth = np.zeros((10, 12), bool)
                if kind == "cut":
                    truth[2 : 4 + n % 3, 3:6] = True
                self.truths[f"{kind}__{n:03d}"] = truth
                self.values[f"{kind}__{n:03d}"] = (rng.normal(size=truth.shape) + 1.5 * truth).astype(np.float32)
                tifffile.imwrite(self.maps / kind / f"{n:03d}.tiff", self.values[f"{kind}__{n:03d}"])
        (self.masks / "cut").mkdir(parents=True)
        for n in range(cut):
            self.write_mask(n, self.truths[f"cut__{n:03d}"])

    def write_mask(self, n: int, truth: np.ndarray) -> Path:
        path = self.masks / "cut" / f"{n:03d}_mask.png"
        Image.fromarray(truth.astype(np.uint8) * 255).save(path)
        return path


@pytest.fixture
def made(tmp_path: Path) -> Set:
    return Set(tmp_path)


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("reduction", ["max", "mean", "topk"])
def test_the_numbers_are_those_of_scikit_learn(
    anodiff: Run, made: Set, tmp_path: Path, reduction: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--reduction", reduction, "--topk", 0.05) == 0
    found = metrics_of(out)
    assert set(CONTRACT.split()) <= set(found)
    reduce = {
        "max": np.max,
        "mean": lambda v: v.mean(dtype=float),
        "topk": lambda v: np.sort(v, axis=None)[-6:].mean(dtype=float),
    }[reduction]
    labels = [truth.any() for truth in made.truths.values()]
    scores = [reduce(values) for values in made.values.values()]
    pixels, marked = np.ravel(list(made.values.values())), np.ravel(list(made.truths.values()))
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores))
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(marked, pixels))
    assert found["pixel_ap"] == pytest.approx(average_precision_score(marked, pixels))
    assert (found["n_images"], found["n_anomalous"], found["n_unlabelled"], found["failed"]) == (12, 6, 0, [])
    rows = {row["id"]: float(row["score"]) for row in read_table(out / "scores.csv")}
    assert rows == pytest.approx(dict(zip(made.values, scores, strict=True)))
    table = capfd.readouterr().out
    assert f"{found['pixel_auroc']:.3f}" in table
    assert "12 images, 6 anomalous" in table
    for name in ("nfe", "seconds_per_image", "dice_at_fpr5", "aupimo"):
        assert found[name] is None
        assert found["reasons"][name]
    assert "--normals" in found["reasons"]["dice_at_fpr5"]


def test_normals_set_the_pixel_thresholds(anodiff: Run, made: Set, tmp_path: Path) -> None:
    normals = np.random.default_rng(1).normal(size=(5, 10, 10)).astype(np.float32)
    (tmp_path / "normals").mkdir()
    for n, values in enumerate(normals):
        np.save(tmp_path / "normals" / f"{n}.npy", values)
    out = tmp_path / "out"
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--normals", tmp_path / "normals") == 0
    found = metrics_of(out)
    threshold = found["pixel_threshold_fpr5"]
    assert np.count_nonzero(normals > threshold) == 25  # 5 % of 500
    predicted, marked = np.ravel(list(made.values.values())) > threshold, np.ravel(list(made.truths.values()))
    dice = 2 * np.count_nonzero(predicted & marked) / (predicted.sum() + marked.sum())
    assert found["dice_at_fpr5"] == pytest.approx(dice)
    assert found["n_normals"] == 5


def test_normals_of_the_test_set_and_unreadable_ones_are_told(
    anodiff: Run, made: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--normals", made.maps / "good") == 2
    assert "6 that are" in capfd.readouterr().err
    normals = tmp_path / "normals"
    normals.mkdir()
    (normals / "bad.npy").write_bytes(b"bad")
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--normals", normals) == 2
    assert "bad.npy" in capfd.readouterr().err
    np.save(normals / "fine.npy", np.linspace(0, 1, 100).reshape(10, 10))
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--normals", normals) == 1
    found = metrics_of(out)
    assert [entry["id"] for entry in found["failed"]] == ["bad"]
    assert found["dice_at_fpr5"] is not None


def test_one_bad_pair_is_named_and_does_not_stop_the_others(
    anodiff: Run, made: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made.write_mask(1, np.ones((9, 9), bool))
    made.write_mask(7, np.ones((10, 12), bool))
    nan = np.full((10, 12), np.nan, np.float32)
    tifffile.imwrite(made.maps / "good" / "002.tiff", nan)
    (made.maps / "cut" / "003.tiff").write_bytes(b"II*\0 half a file")
    out = tmp_path / "out"
    assert anodiff("metrics", made.maps, made.masks, "--output", out) == 1
    found = metrics_of(out)
    errors = {entry["id"]: entry["error"] for entry in found["failed"]}
    assert set(errors) == {"cut__001", "cut__003", "cut__007_mask", "good__002"}
    assert found["n_failed"] == 4
    for words in ("001_mask.png", "001.tiff", "9x9 pixels", "12x10 pixels"):
        assert words in errors["cut__001"]
    assert "120 of 120 that are NaN" in errors["good__002"]
    assert "007_mask.png: expected a map" in errors["cut__007_mask"]
    said = capfd.readouterr().err
    assert all(error in said for error in errors.values())
    # what is left is measured as if the others had never been there
    left = [id_ for id_ in made.values if id_ not in errors]
    pixels, marked = (np.ravel([each[id_] for id_ in left]) for each in (made.values, made.truths))
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(marked, pixels))
    assert (found["n_images"], found["n_unlabelled"], found["n_without_score"]) == (9, 0, 0)
    rows = {row["id"]: row for row in read_table(out / "scores.csv")}
    assert {id_ for id_, row in rows.items() if row["status"] == "failed"} == set(errors) - {"cut__007_mask"}
    assert rows["cut__003"]["error"] == errors["cut__003"]


def test_when_nothing_is_left_every_metric_is_null_with_a_reason(anodiff: Run, tmp_path: Path) -> None:
    made = Set(tmp_path, good=0, cut=1)
    made.write_mask(0, np.ones((9, 9), bool))
    assert anodiff("metrics", made.maps, made.masks, "--output", tmp_path / "out") == 1
    found = metrics_of(tmp_path / "out")
    assert found["image_auroc"] is None
    assert found["reasons"]["pixel_ap"]
    assert found["n_images"] == 0


def test_scores_of_a_table_stand_in_for_the_reduction(anodiff: Run, made: Set, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    scores = {id_: float(rng.normal()) for id_ in made.values}
    lines = [f"{id_.replace('__', '/')}.png,{score},true,x" for id_, score in scores.items()]
    (tmp_path / "scores.csv").write_text("id,score,is_anomalous,more\n" + "\n".join(lines[:-1]) + "\ncut/999,1,,\n")
    out = tmp_path / "out"
    options = ("--output", out, "--scores", tmp_path / "scores.csv")
    assert anodiff("metrics", made.maps, made.masks, *options) == 1
    found, last = metrics_of(out), list(scores)[-1]
    errors = {entry["id"]: entry["error"] for entry in found["failed"]}
    assert set(errors) == {last, "cut__999"}
    assert f"score of {last}" in errors[last]
    labels = [made.truths[id_].any() for id_ in list(scores)[:-1]]
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, list(scores.values())[:-1]))
    assert {row["is_anomalous"] for row in read_table(out / "scores.csv")} == {"true", ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,score\na,1\n", "expected the columns id, score, found name, score"),
        ("id,score\ncut/000,1\ncut__000,2\n", "found two for cut__000"),
        ("id,score\nother,1\n", "found other and none that has a map"),
        ("id,score\n", "no row"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    anodiff: Run, made: Set, tmp_path: Path, text: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(text)
    options = ("--output", tmp_path / "out", "--scores", tmp_path / "t.csv")
    assert anodiff("metrics", made.maps, made.masks, *options) == 2
    error = capfd.readouterr().err
    assert words in error
    assert "t.csv" in error


def test_the_bootstrap_goes_over_the_groups_of_the_table(
    anodiff: Run, made: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = sorted(made.values)
    groups = {id_: f"p{n % 3}" for n, id_ in enumerate(ids[:-1])}
    lines = [f"{id_},{group}" for id_, group in groups.items()]
    (tmp_path / "g.csv").write_text("id,group\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    options = ("--output", out, "--groups", tmp_path / "g.csv", "--resamples", 200)
    assert anodiff("metrics", made.maps, made.masks, *options) == 0
    found = metrics_of(out)
    expected = evaluate_maps(
        [(id_, made.values[id_], made.truths[id_]) for id_ in ids],
        [None] * len(ids),
        [float(row["score"]) for row in read_table(out / "scores.csv")],
        [groups.get(id_, "") for id_ in ids],
        pixel_threshold_fpr5=None,
        n_boot=200,
    )
    assert found["n_groups"] == 4
    assert f"1 maps have no group in {tmp_path / 'g.csv'}" in capfd.readouterr().err
    assert found["pixel_ap_ci95"] == pytest.approx(expected["pixel_ap_ci95"])


def test_volumes_count_their_voxels(anodiff: Run, tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    (tmp_path / "maps").mkdir()
    (tmp_path / "masks").mkdir()
    values, truths = [], []
    for n in range(3):
        truth = np.zeros((6, 5, 4), np.uint8)
        truth[1:3, 2:4, 1:3] = n > 0
        values.append((rng.normal(size=truth.shape) + truth).astype(np.float32))
        truths.append(truth)
        nibabel.save(nibabel.Nifti1Image(values[-1], np.eye(4)), tmp_path / "maps" / f"{n}.nii.gz")
        if n:
            nibabel.save(nibabel.Nifti1Image(truth, np.eye(4)), tmp_path / "masks" / f"{n}_mask.nii.gz")
    assert anodiff("metrics", tmp_path / "maps", tmp_path / "masks", "--output", tmp_path / "out") == 0
    found = metrics_of(tmp_path / "out")
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(np.ravel(truths), np.ravel(values)))
    assert (found["n_images"], found["n_anomalous"]) == (3, 2)


def test_the_maps_of_a_scored_run_measure_as_evaluate_does(anodiff: Run, world: Any, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert anodiff("evaluate", world.model, world.data, "--output", out, "--no-heatmaps") == 0
    masks = world.data / "ground_truth"
    assert anodiff("metrics", out / "maps", masks, "--output", again, "--scores", out / "scores.csv") == 0
    ours, theirs = metrics_of(out), metrics_of(again)
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "oracle_max_dice"):
        assert theirs[name] == pytest.approx(ours[name]), name
    assert anodiff("metrics", out / "maps", masks, "--output", out) == 2  # scores.csv of the run would be lost


def test_unusable_arguments(anodiff: Run, made: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert anodiff("metrics", tmp_path / "nothing", made.masks, "--output", out) == 2
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--topk", 0) == 2
    assert anodiff("metrics", made.maps, made.masks, "--output", out, "--reduction", "median") == 2
    assert "median" in capfd.readouterr().err
    assert not out.exists()


def test_the_job_needs_no_torch(made: Set, tmp_path: Path) -> None:
    words = ["metrics", str(made.maps), str(made.masks), "--output", str(tmp_path / "out")]
    code = (
        f"import sys; from anodiff.pipelines.cli import main; code = main({words!r})\n"
        "sys.exit(code or ', '.join({'torch', 'matplotlib', 'anodiff.diffusion'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
