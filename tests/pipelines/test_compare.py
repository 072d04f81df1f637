"""anodiff compare: the same images of two runs in pairs; other images, labels or masks are refused by name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anodiff.metrics import dice_at_threshold

Run = Callable[..., int]
SHAPE = (10, 12)


class Method:
    """An output folder of `anodiff metrics`: maps of one method on images whose masks lie in `masks`.

    Images are n0 ... (normal) and c0 ... (cut), two a patient; strength says how bright a cut is in the maps.
    """

    def __init__(self, anodiff: Run, root: Path, name: str, strength: float, seed: int, shape: Any = SHAPE) -> None:
        self.anodiff, self.root, self.out = anodiff, root, root / name
        self.maps, self.masks = root / f"{name}_maps", root / "masks"
        self.maps.mkdir()
        self.masks.mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        self.truths = {f"{kind}{n}": truth_of(kind, n, shape) for n in range(8) for kind in "cn"}
        self.values: dict[str, np.ndarray] = {}
        for id_, truth in self.truths.items():
            self.values[id_] = (rng.normal(size=shape) + strength * truth).astype(np.float32)
            np.save(self.maps / f"{id_}.npy", self.values[id_])
            if truth.any():
                Image.fromarray(truth).save(self.masks / f"{id_}.png")
        rows = "".join(f"{id_},p{id_[1:]}\n" for id_ in self.truths)
        (root / "groups.csv").write_text("id,group\n" + rows)

    def measure(self, *options: object) -> Path:
        groups = () if "--groups" in options else ("--groups", self.root / "groups.csv")
        options = ("--output", self.out, "--resamples", 100, *groups, *options)
        assert self.anodiff("metrics", self.maps, self.masks, *options) == 0
        return self.out

    def decide(self, decisions: dict[str, bool]) -> Path:
        """Scores and decisions as a detector's scores.csv has them."""
        path = self.root / f"{self.out.name}_scores.csv"
        rows = [f"{id_},{values.max()},{decisions[id_]}" for id_, values in self.values.items()]
        path.write_text("id,score,is_anomalous\n" + "\n".join(rows) + "\n")
        return path


def truth_of(kind: str, n: int, shape: Any) -> np.ndarray:
    truth = np.zeros(shape, bool)
    if kind == "c":
        truth[2:5, 3 : 6 + n % 2] = True
    return truth


@pytest.fixture
def methods(anodiff: Run, tmp_path: Path) -> tuple[Method, Method]:
    return Method(anodiff, tmp_path, "strong", 3.0, 0), Method(anodiff, tmp_path, "weak", 1.0, 1)


def test_differences_are_those_of_the_two_runs_with_their_interval(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "normals").mkdir()
    np.save(tmp_path / "normals" / "n.npy", np.random.default_rng(5).normal(size=(20, 20)))
    outs = [method.measure("--normals", tmp_path / "normals") for method in methods]
    file = tmp_path / "new" / "difference.json"
    assert anodiff("compare", *outs, "--output", file) == 0
    found = json.loads(file.read_text())
    assert (found["n_images"], found["n_anomalous"], found["n_groups"]) == (16, 8, 8)
    marked = np.ravel(list(methods[0].truths.values()))
    pixels = [np.ravel(list(method.values.values())) for method in methods]
    metrics = found["metrics"]
    threshold = json.loads((outs[0] / "metrics.json").read_text())["pixel_threshold_fpr5"]
    for name, measure in (
        ("pixel_auroc", roc_auc_score),
        ("pixel_ap", average_precision_score),
        ("dice_at_fpr5", lambda truth, values: dice_at_threshold(truth, values, threshold)),
    ):
        a, b = (measure(marked, values) for values in pixels)
        assert metrics[name]["difference"] == pytest.approx(a - b), name
    for name, out in zip("ab", outs, strict=True):
        single = json.loads((out / "metrics.json").read_text())
        for key in set(metrics) & set(single):
            assert metrics[key][name] == pytest.approx(single[key]), key
    low, high = metrics["pixel_ap"]["ci95"]
    assert 0 < low < metrics["pixel_ap"]["difference"] < high
    assert metrics["pixel_ap"]["p"] < 0.05
    assert metrics["aupimo"]["difference"] is None
    assert "too few normal pixels" in metrics["aupimo"]["reason"]
    text, said = capfd.readouterr()
    assert "note: intervals and p rest on 8 groups (patients, parts), and are too narrow" in said
    assert f"{metrics['pixel_ap']['difference']:.3f}" in text
    assert "No decisions to compare" in text


def test_a_run_does_not_differ_from_itself_and_sides_change_sign(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path
) -> None:
    one, other = (method.measure() for method in methods)
    found = {}
    for name, outs in (("same", (one, one)), ("ab", (one, other)), ("ba", (other, one))):
        assert anodiff("compare", *outs, "--output", tmp_path / f"{name}.json", "--resamples", 200) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
    for key, each in found["same"].items():
        if each["difference"] is not None:
            assert (each["difference"], each["ci95"], each["p"]) == (0, [0, 0], 1), key
            low, high = found["ab"][key]["ci95"]
            assert found["ba"][key]["ci95"] == pytest.approx([-high, -low])
            assert found["ba"][key]["p"] == found["ab"][key]["p"]


def test_images_that_changed_sides_are_listed_with_the_run_that_is_right(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = methods
    right = {id_: bool(truth.any()) for id_, truth in one.truths.items()}
    wrong = right | {"c0": False, "n1": True, "c2": False}
    outs = one.measure("--scores", one.decide(right | {"n3": True})), other.measure("--scores", other.decide(wrong))
    assert anodiff("compare", *outs, "--output", tmp_path / "d.json", "--resamples", 100) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    rows = {row["id"]: row for row in found["changed_sides"]}
    assert {id_: row["right"] for id_, row in rows.items()} == {"c0": "a", "n1": "a", "c2": "a", "n3": "b"}
    assert (rows["c0"]["label"], rows["n1"]["label"], rows["n1"]["anomalous_in"]) == (1, 0, "b")
    assert rows["c0"]["score1"] == pytest.approx(one.values["c0"].max())
    assert rows["c0"]["score2"] == pytest.approx(other.values["c0"].max())
    assert "4 of 16 images changed sides; a is right on 3, b on 1" in capfd.readouterr().out


def test_other_images_are_refused_unless_the_common_ones_will_do(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = methods
    for id_ in ("c6", "c7", "n5", "n6", "n7"):
        (other.maps / f"{id_}.npy").unlink()
        if id_[0] == "c":
            (other.masks / f"{id_}.png").rename(tmp_path / f"{id_}.png")
    out2 = other.measure()
    for id_ in ("c6", "c7"):
        (tmp_path / f"{id_}.png").rename(other.masks / f"{id_}.png")
    outs = one.measure(), out2
    assert anodiff("compare", *outs) == 2
    error = capfd.readouterr().err
    for words in ("11 in both", "5 only in", "(c6, c7, n5, ...)", "--common", str(outs[0])):
        assert words in error
    assert anodiff("compare", *outs, "--common", "--output", tmp_path / "d.json", "--resamples", 100) == 0
    assert json.loads((tmp_path / "d.json").read_text())["n_images"] == 11


def test_other_labels_groups_masks_and_sizes_are_refused_by_name(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = methods
    out1 = one.measure()
    (tmp_path / "other.csv").write_text("id,group\nc0,p5\nc1,p1\n")
    other.measure("--groups", tmp_path / "other.csv")
    assert anodiff("compare", out1, other.out) == 2
    assert "same groups in" in (error := capfd.readouterr().err)
    assert "1 images that differ (c0: p0 and p5)" in error
    copy = tmp_path / "masks2"
    other.masks.rename(copy)
    other.masks = copy
    one.masks.mkdir()
    for id_, truth in one.truths.items():
        if truth.any():
            Image.fromarray(truth if id_ != "c3" else np.roll(truth, 1)).save(one.masks / f"{id_}.png")
    other.measure()
    assert anodiff("compare", out1, other.out) == 2
    assert "same masks in" in (error := capfd.readouterr().err)
    assert "1 images that differ (c3: " in error
    (copy / "c3.png").unlink()
    other.measure()
    assert anodiff("compare", out1, other.out) == 2
    assert "same labels in" in (error := capfd.readouterr().err)
    assert "c3: 1 and 0" in error


def test_maps_of_another_size_are_refused(anodiff: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = Method(anodiff, tmp_path, "small", 1.0, 0, shape=(8, 9))
    small.masks.rename(tmp_path / "small_masks")
    small.masks = tmp_path / "small_masks"
    outs = small.measure(), Method(anodiff, tmp_path, "large", 1.0, 0).measure()
    assert anodiff("compare", *outs) == 2
    error = capfd.readouterr().err
    assert "16 images that differ" in error
    assert "9x8 pixels and 12x10 pixels" in error


def test_an_image_that_failed_in_one_run_is_left_out_of_both(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = methods
    out1 = one.measure()
    np.save(other.maps / "c0.npy", np.full(SHAPE, np.nan))
    groups = ("--groups", tmp_path / "groups.csv")
    assert anodiff("metrics", other.maps, other.masks, "--output", other.out, *groups) == 1
    assert anodiff("compare", out1, other.out, "--output", tmp_path / "d.json", "--resamples", 100) == 1
    found = json.loads((tmp_path / "d.json").read_text())
    assert [entry["id"] for entry in found["left_out"]] == ["c0"]
    assert found["n_images"] == 15
    kept = [id_ for id_ in one.values if id_ != "c0"]
    marked, pixels = (np.ravel([each[id_] for id_ in kept]) for each in (one.truths, one.values))
    assert found["metrics"]["pixel_auroc"]["a"] == pytest.approx(roc_auc_score(marked, pixels))
    assert "1 images are left out, the first is c0" in capfd.readouterr().err


def test_pixels_of_an_anomalous_image_with_an_empty_mask_are_left_out(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path
) -> None:
    """As evaluate does; anodiff metrics knows no label but the mask's, so the labels are set in its table here."""
    one, other = methods
    for method in methods:
        path = method.measure() / "truth.csv"
        text = path.read_text()
        assert f"\nn3,,0,,p3,{method.maps}" in text
        Image.fromarray(np.zeros(SHAPE, bool)).save(tmp_path / "empty.png")
        path.write_text(text.replace("\nn3,,0,,", f"\nn3,,1,{tmp_path / 'empty.png'},"))
    assert anodiff("compare", one.out, other.out, "--output", tmp_path / "d.json", "--resamples", 100) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["n_anomalous"] == 9
    kept = [id_ for id_ in one.values if id_ != "n3"]
    marked, pixels = (np.ravel([each[id_] for id_ in kept]) for each in (one.truths, one.values))
    assert found["metrics"]["pixel_ap"]["a"] == pytest.approx(average_precision_score(marked, pixels))


def test_a_folder_without_its_truth_is_refused(
    anodiff: Run, methods: tuple[Method, Method], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = methods[0].measure()
    (tmp_path / "empty").mkdir()
    assert anodiff("compare", out, tmp_path / "empty") == 2
    assert "found no truth.csv" in capfd.readouterr().err


def test_two_evaluations_and_a_peers_maps_are_paired(anodiff: Run, world: Any, tmp_path: Path) -> None:
    """The ids of a run begin with test__, those of maps measured from the test folder do not."""
    outs = []
    for seed in (0, 1):
        outs.append(tmp_path / f"seed{seed}")
        options = ("--output", outs[-1], "--no-heatmaps", "--seed", seed)
        assert anodiff("evaluate", world.model, world.data, *options) == 0
    with (outs[0] / "truth.csv").open(newline="") as stream:
        truths = {row["id"]: row for row in csv.DictReader(stream)}
    assert {row["label"] for row in truths.values()} == {"0", "1"}
    assert all(Path(row["path"]).is_file() and (outs[0] / row["map"]).is_file() for row in truths.values())
    assert anodiff("compare", *outs, "--output", tmp_path / "d.json", "--resamples", 100) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    assert (found["n_images"], found["n_decided"]) == (14, 14)
    for side, out in zip("ab", outs, strict=True):
        single = json.loads((out / "metrics.json").read_text())
        for key in ("image_auroc", "pixel_ap", "dice_at_fpr5"):
            assert found["metrics"][key][side] == pytest.approx(single[key]), key
    for path in (outs[1] / "maps").iterdir():
        folder, name = path.name.removeprefix("test__").split("__")
        (tmp_path / "peer" / folder).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "peer" / folder / name)
    assert anodiff("metrics", tmp_path / "peer", world.data / "ground_truth", "--output", tmp_path / "out") == 0
    assert anodiff("compare", outs[0], tmp_path / "out", "--output", tmp_path / "d.json", "--resamples", 100) == 0
    again = json.loads((tmp_path / "d.json").read_text())
    assert again["metrics"]["pixel_ap"]["difference"] == pytest.approx(found["metrics"]["pixel_ap"]["difference"])
    assert "recorded in b" in again["metrics"]["dice_at_fpr5"]["reason"]
