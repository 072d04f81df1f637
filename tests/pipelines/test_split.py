"""anodiff split: the CSV it writes is a data set for the other jobs; what evaluate says of splits and empty masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from anodiff.data.findings import mask_finding, masked_rows
from anodiff.data.layouts import load_table
from anodiff.data.readers import MAX_PIXELS
from anodiff.data.splits import DEFAULT, assign_splits
from anodiff.pipelines.evaluate import chosen_split, split_notes
from anodiff.pipelines.split import manifest_path

Run = Callable[..., int]


@pytest.fixture
def pair(world: Any, tmp_path: Path) -> Path:
    """good/ of 12 patients with two images each, bad/ of 6 with masks, three of whom are also in good/."""
    root = tmp_path / "pair"
    for k in range(24):
        world.write_images(root / "tmp", 1, k)
        (root / "good").mkdir(exist_ok=True)
        (root / "tmp" / "i000.png").rename(root / "good" / f"p{k // 2:02d}_{k % 2}.png")
    for k in range(6):
        world.write_images(root / "tmp", 1, 50 + k, lesion=True, masks=root / "masks")
        (root / "bad").mkdir(exist_ok=True)
        (root / "tmp" / "i000.png").rename(root / "bad" / f"p{9 + k:02d}_9.png")
        (root / "masks" / "i000_mask.png").rename(root / "masks" / f"p{9 + k:02d}_9.png")
    (root / "tmp").rmdir()
    return root


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_split_by_patients_is_written_told_and_read_again(
    anodiff: Run, pair: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = pair / "split.csv"
    assert anodiff("split", pair, "--group-by", r"(p\d+)_", "--seed", 1, "--output", file) == 0
    said = capfd.readouterr()
    assert "layout classes; a new split by seed 1; 15 groups are known" in said.err
    rows = rows_of(file)
    assert list(rows[0]) == ["path", "label", "mask", "group", "split", "class"]
    assert len(rows) == 30
    by_split = {name: [row for row in rows if row["split"] == name] for name in ("train", "val", "test", "")}
    assert all(row["label"] == "0" for name in ("train", "val") for row in by_split[name])
    groups = {name: {row["group"] for row in by_split[name]} for name in ("train", "val", "test")}
    assert not groups["train"] & groups["test"] | groups["train"] & groups["val"] | groups["val"] & groups["test"]
    # Paths below the CSV's own folder, so that both may move together.
    assert all(row["path"] == f"{'bad' if row['label'] == '1' else 'good'}/{Path(row['path']).name}" for row in rows)
    moved = pair.rename(pair.with_name("moved"))
    samples = load_table(moved / "split.csv")
    assert samples.table["mask"].ne("").sum() == 6
    for name, part in by_split.items():
        assert len(samples.rows(split=name)) == len(part)
    for line in said.out.splitlines()[1:]:
        name, normal, anomalous, _ = line.replace("(left out)", "left").split()
        part = by_split["" if name == "left" else name]
        assert (int(normal), int(anomalous)) == tuple(sum(row["label"] == label for row in part) for label in "01")


def test_the_split_is_a_data_set_for_evaluate(anodiff: Run, world: Any, pair: Path, tmp_path: Path) -> None:
    assert anodiff("split", pair, "--group-by", r"(p\d+)_", "--output", tmp_path / "s.csv") == 0
    assert anodiff("evaluate", world.model, tmp_path / "s.csv", "--output", tmp_path / "out", "--no-heatmaps") == 0
    test = [row for row in rows_of(tmp_path / "s.csv") if row["split"] == "test"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n_images"] == len(test)


def test_an_existing_csv_is_the_truth_and_stays(
    anodiff: Run, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.csv").write_text("mine")
    assert anodiff("split", pair, "--output", tmp_path / "s.csv") == 2
    assert "expected a new file" in capfd.readouterr().err
    assert (tmp_path / "s.csv").read_text() == "mine"


def test_what_is_wrong_with_masks_is_said_by_name(
    anodiff: Run, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (pair / "masks" / "p09_9.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(pair / "masks" / "p10_9.png")
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(pair / "masks" / "p11_9.png")
    assert anodiff("split", pair, "--output", tmp_path / "s.csv") == 1
    said = capfd.readouterr().err
    assert "2 images that cannot be used" in said
    assert "p09_9_mask.png: expected an image, found no such file" in said
    assert "p10_9.png: expected a mask of 24x20 pixels like its image, found 9x9" in said
    assert "1 image anomalous, with an empty mask" in said
    # They are in the CSV all the same: evaluate fails them by name.
    assert len(rows_of(tmp_path / "s.csv")) == 30


def test_anomalous_images_without_a_mask_are_counted_where_others_have_one(
    anodiff: Run, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(
        f"pair/bad/p{k:02d}_9.png,1,{f'pair/masks/p{k:02d}_9.png' if k < 12 else ''}\n" for k in range(9, 15)
    )
    rows += "".join(f"pair/good/p{k:02d}_0.png,0,\n" for k in range(12))
    (tmp_path / "list.csv").write_text("path,label,mask\n" + rows)
    assert anodiff("split", tmp_path / "list.csv", "--output", tmp_path / "s.csv") == 0
    assert "3 images anomalous, without a mask" in capfd.readouterr().err


def test_a_set_keeps_its_split_unless_fractions_are_given(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("split", world.data, "--output", tmp_path / "kept.csv") == 0
    assert "the set's own split, kept; no groups are known" in capfd.readouterr().err
    kept = rows_of(tmp_path / "kept.csv")
    assert [sum(row["split"] == name for row in kept) for name in ("train", "val", "test")] == [30, 24, 14]
    shares = "train=0.5,dev=0.2,test=0.3"
    assert anodiff("split", world.data, "--fractions", shares, "--output", tmp_path / "new.csv") == 0
    new = rows_of(tmp_path / "new.csv")
    normal = [row["split"] for row in new if row["label"] == "0"]
    assert [normal.count(name) for name in ("train", "dev", "test")] == [31, 12, 19]


def test_names_that_a_spreadsheet_would_run_come_back(anodiff: Run, world: Any, tmp_path: Path) -> None:
    names = ["=cmd.png", "-rf.png", "@x.png", "'q.png", "a,b.png", "new\nline.png", "é.png"]
    world.write_images(tmp_path / "d", len(names))
    for k, name in enumerate(names):
        (tmp_path / "d" / f"i{k:03d}.png").rename(tmp_path / "d" / name)
    assert anodiff("split", tmp_path / "d", "--output", tmp_path / "d" / "s.csv") == 0
    assert not any(row["path"].startswith(("=", "-", "@", "'")) for row in rows_of(tmp_path / "d" / "s.csv"))
    paths = load_table(tmp_path / "d" / "s.csv").table["path"].tolist()
    assert sorted(Path(path).name for path in paths) == sorted(names)
    assert all(Path(path).is_file() for path in paths)


def test_paths_elsewhere_are_absolute(tmp_path: Path) -> None:
    assert manifest_path(str(tmp_path / "a" / "x.png"), tmp_path / "s.csv") == "a/x.png"
    assert manifest_path(str(tmp_path / "a" / "x.png"), tmp_path / "out" / "s.csv") == str(tmp_path / "a" / "x.png")
    assert manifest_path("", tmp_path / "s.csv") == ""


def test_images_of_an_npz_go_through_split_evaluate_and_score(anodiff: Run, world: Any, tmp_path: Path) -> None:
    pictures = np.stack([world.picture(k, lesion=k % 3 == 0)[0] for k in range(6)])
    labels = np.array([[int(k % 3 == 0)] for k in range(6)])
    arrays = {f"{s}_images": pictures for s in ("train", "test")} | {f"{s}_labels": labels for s in ("train", "test")}
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    assert anodiff("split", tmp_path / "set.npz", "--output", tmp_path / "s.csv") == 0
    assert sum(row["split"] == "train" for row in rows_of(tmp_path / "s.csv")) == 4
    assert anodiff("evaluate", world.model, tmp_path / "s.csv", "--output", tmp_path / "out", "--no-heatmaps") == 0
    scored = {row["path"]: float(row["score"]) for row in world.read_table(tmp_path / "out" / "scores.csv")}
    assert anodiff("score", world.model, tmp_path / "set.npz", "--output", tmp_path / "all", "--no-heatmaps") == 0
    every = world.read_table(tmp_path / "all" / "scores.csv")
    assert len(every) == 12
    assert {row["id"] for row in every} >= {"set_test_images_0", "set_train_images_5"}
    assert {row["path"]: float(row["score"]) for row in every if "#index=test_images" in row["path"]} == scored
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = [scored[f"{tmp_path}/set.npz#index=test_images/{k}"] for k in range(6)]
    assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels.ravel(), found))


def test_evaluate_refuses_groups_that_straddle(
    anodiff: Run, world: Any, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{pair}/good/p00_0.png,0,anna,train",
        f"{pair}/good/p00_1.png,0,anna,test",
        f"{pair}/bad/p09_9.png,1,b,test",
    ]
    (tmp_path / "s.csv").write_text("path,label,group,split\n" + "\n".join(rows) + "\n")
    assert anodiff("evaluate", world.model, tmp_path / "s.csv", "--output", tmp_path / "out") == 2
    assert "expected each group in one split only, found 1 both in test and in train: anna" in capfd.readouterr().err
    assert anodiff("split", tmp_path / "s.csv", "--output", tmp_path / "kept.csv") == 2


def test_evaluate_says_what_no_split_may_mean_and_leaves_out_the_pixels_of_an_empty_mask(
    anodiff: Run, world: Any, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(pair / "masks" / "p11_9.png")
    out = tmp_path / "out"
    assert anodiff("evaluate", world.model, pair, "--output", out, "--no-heatmaps") == 0
    said = capfd.readouterr().err
    assert "layout classes; 30 images to measure" in said
    assert "these images are in no split: if the model was trained on them, the metrics flatter it" in said
    assert "1 anomalous image has an empty mask: the pixels are left out" in said
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["n_images"], metrics["n_anomalous"], metrics["n_pixel_images"]) == (30, 6, 29)
    maps, masks = [], []
    for row in world.read_table(out / "scores.csv"):
        path = Path(row["path"])
        if path.name == "p11_9.png":
            continue
        maps.append(np.load(out / "maps" / f"{row['id']}.npy"))
        lesion = path.parent.name == "bad"
        masks.append(np.asarray(Image.open(pair / "masks" / path.name)) > 127 if lesion else np.zeros((20, 24), bool))
    assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(maps)))


def test_only_a_split_that_may_have_been_learnt_from_is_doubted(world: Any) -> None:
    samples = load_table(world.data)
    assert split_notes(samples, chosen_split(samples, None)) == ()
    assert split_notes(samples, chosen_split(samples, "val")) == ()
    assert "of split train" in split_notes(samples, chosen_split(samples, "train"))[0]


def test_normal_and_group_by_reach_calibrate_and_evaluate(
    anodiff: Run, world: Any, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for job, rest in (
        ("calibrate", ("--output", tmp_path / "m.safetensors")),
        ("evaluate", ("--output", tmp_path / "o")),
    ):
        assert anodiff(job, world.raw, pair, "--normal", "nobody", *rest) == 2
        assert "expected --normal to name a class, found nobody" in capfd.readouterr().err
        assert anodiff(job, world.raw, pair, "--group-by", "x([0-9])", *rest) == 2
        assert "expected a group in every path, found none in 30" in capfd.readouterr().err


@pytest.mark.data
def test_the_real_magnetic_tiles_are_divided_by_tile_and_their_empty_masks_found(data_root: Path) -> None:
    samples = assign_splits(load_table(data_root / "magnetic_tile"), DEFAULT, seed=0)
    table = samples.table
    tiles = {name: set(table["group"][table["split"] == name]) for name in DEFAULT}
    assert not tiles["train"] & tiles["test"] | tiles["val"] & tiles["test"] | tiles["train"] & tiles["val"]
    assert table[table["split"].isin(["train", "val"])]["label"].eq(0).all()
    uneven = [row for row in masked_rows(samples) if "MT_Uneven" in row[0]]
    found = [finding for row in uneven if (finding := mask_finding(*row, MAX_PIXELS)) is not None]
    empty = {row[1] for row in uneven if not (np.asarray(Image.open(row[1])) > 127).any()}
    assert empty
    assert {finding.kind for finding in found} == {"empty"}
    assert {finding.sentence.partition(":")[0] for finding in found} == empty
