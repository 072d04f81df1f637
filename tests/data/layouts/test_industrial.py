"""The layouts of inspection sets: MVTec-like ones, VisA, magnetic tiles, Kolektor; small copies and the real ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.data.layouts import expand_inputs, load_table
from anodiff.data.layouts.magnetic_tile import tiles
from anodiff.data.readers import read_mask
from anodiff.errors import DataError, InputError

Put = Callable[..., Path]


def by_name(root: Path, column: str) -> dict[str, object]:
    """Path below the root -> one column of the table."""
    table = load_table(root).table
    return {str(Path(path).relative_to(root)): value for path, value in zip(table["path"], table[column], strict=True)}


def test_btad(tmp_path: Path, put: Put) -> None:
    for name in ("train/ok/1.bmp", "test/ok/2.bmp", "test/ko/3.bmp"):
        put(tmp_path / name)
    put(tmp_path / "ground_truth" / "ko" / "3.png", 255)
    assert load_table(tmp_path).layout == "mvtec"
    assert by_name(tmp_path, "label") == {"train/ok/1.bmp": 0, "test/ok/2.bmp": 0, "test/ko/3.bmp": 1}
    assert by_name(tmp_path, "mask")["test/ko/3.bmp"] == str(tmp_path / "ground_truth" / "ko" / "3.png")


@pytest.mark.parametrize("masks", [True, False])
def test_bmad(tmp_path: Path, put: Put, masks: bool) -> None:
    inside = "img/" if masks else ""
    names = ["train/good/1.png", f"valid/good/{inside}2.png", f"valid/Ungood/{inside}3.png"]
    names += [f"test/good/{inside}4.png", f"test/Ungood/{inside}5.png"]
    for name in names:
        put(tmp_path / name)
    if masks:
        put(tmp_path / "valid/Ungood/label/3.png", 255)
        put(tmp_path / "test/Ungood/label/5.png", 255)
        put(tmp_path / "test/good/label/4.png", 0)
    assert load_table(tmp_path).layout == "mvtec"
    assert by_name(tmp_path, "label") == dict(zip(names, [0, 0, 1, 0, 1], strict=True))
    assert by_name(tmp_path, "split") == dict(zip(names, ["train", "val", "val", "test", "test"], strict=True))
    expected = str(tmp_path / "test/Ungood/label/5.png") if masks else ""
    assert by_name(tmp_path, "mask")[names[-1]] == expected


def test_a_folder_of_categories_is_refused_by_name(tmp_path: Path, put: Put) -> None:
    for category in ("bottle", "cable"):
        put(tmp_path / category / "train" / "good" / "1.png")
        put(tmp_path / category / "test" / "broken" / "1.png")
    with pytest.raises(DataError, match=r"expected one data set, found a folder of 2 \(bottle, cable\)"):
        load_table(tmp_path)
    assert len(load_table(tmp_path, "folder")) == 4


def small_visa(root: Path, put: Put, listed: bool = True) -> Path:
    for k in range(3):
        put(root / "candle/Data/Images/Normal" / f"{k:04d}.jpg")
    for k in range(2):
        put(root / "candle/Data/Images/Anomaly" / f"{k:03d}.jpg")
    put(root / "candle/Data/Masks/Anomaly/000.png", 3)
    if listed:
        rows = ["object,split,label,image,mask"]
        rows += [f"candle,{s},normal,candle/Data/Images/Normal/000{k}.jpg," for k, s in ((0, "train"), (1, "test"))]
        rows += [
            f"candle,test,anomaly,candle/Data/Images/Anomaly/00{k}.jpg,candle/Data/Masks/Anomaly/00{k}.png"
            for k in (0, 1, 7)
        ]
        rows += ["pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,"]
        (root / "split_csv").mkdir()
        (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root / "candle"


def test_visa_takes_its_split_and_masks_of_defect_classes(tmp_path: Path, put: Put) -> None:
    root = small_visa(tmp_path, put)
    samples = load_table(root)
    assert samples.layout == "visa"
    images = "Data/Images"
    assert by_name(root, "split") == {
        f"{images}/Normal/0000.jpg": "train",
        f"{images}/Normal/0001.jpg": "test",
        f"{images}/Normal/0002.jpg": "",
        f"{images}/Anomaly/000.jpg": "test",
        f"{images}/Anomaly/001.jpg": "test",
        f"{images}/Anomaly/007.jpg": "test",  # listed, not on the disk: it fails by name
    }
    masks = by_name(root, "mask")
    marked = read_mask(str(masks[f"{images}/Anomaly/000.jpg"]), (16, 16))
    assert marked.sum() == 16
    with pytest.raises(InputError, match=r"001_mask\.png: expected an image, found no such file"):
        read_mask(str(masks[f"{images}/Anomaly/001.jpg"]))
    # The same mask read as one of 0 and 255 is refused, not guessed.
    with pytest.raises(InputError, match="expected a mask of 0 and 1"):
        read_mask(root / "Data/Masks/Anomaly/000.png")
    assert len(expand_inputs([root])) == 5


def test_visa_without_its_csv_and_with_a_wrong_one(tmp_path: Path, put: Put) -> None:
    root = small_visa(tmp_path, put, listed=False)
    table = load_table(root).table
    assert set(table["split"]) == {""}
    assert table["label"].tolist() == [0, 0, 0, 1, 1]
    (tmp_path / "split_csv").mkdir()
    file = tmp_path / "split_csv" / "1cls.csv"
    for text, message in (
        ("object,image\ncandle,x\n", "found no split"),
        ("object,split,image\ncandle,testing,candle/Data/Images/Normal/0000.jpg\n", "found 'testing'"),
        ("object,split,image\ncandle,test,pcb1/0.jpg\n", "an image below candle/"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_table(root)
    with pytest.raises(DataError, match="expected one data set"):
        load_table(tmp_path)


def small_tiles(root: Path, put: Put) -> Path:
    names = {"Free": ("exp1_num_100", "exp2_num_120", "exp1_num_9000"), "Crack": ("exp3_num_390", "exp1_num_5000")}
    for kind, stems in names.items():
        for stem in stems:
            put(root / f"MT_{kind}" / "Imgs" / f"{stem}.jpg")
            put(root / f"MT_{kind}" / "Imgs" / f"{stem}.png", 0 if kind == "Free" else 255)
    return root


def test_magnetic_tile(tmp_path: Path, put: Put) -> None:
    root = small_tiles(tmp_path, put)
    soft = np.zeros((16, 16), np.uint8)
    soft[4, 2:6] = (20, 127, 128, 255)
    Image.fromarray(soft).save(root / "MT_Crack/Imgs/exp1_num_5000.png")
    (root / "MT_Free/Imgs/exp1_num_9000.png").unlink()
    (root / "MT_Crack/Imgs/exp3_num_390.png").unlink()
    samples = load_table(root)
    assert samples.layout == "magnetic_tile"
    assert set(samples.table["split"]) == {""}
    assert by_name(root, "group") == {
        "MT_Crack/Imgs/exp1_num_5000.jpg": "tile_5000",
        "MT_Crack/Imgs/exp3_num_390.jpg": "tile_100",
        "MT_Free/Imgs/exp1_num_100.jpg": "tile_100",
        "MT_Free/Imgs/exp1_num_9000.jpg": "tile_9000",
        "MT_Free/Imgs/exp2_num_120.jpg": "tile_100",
    }
    masks = by_name(root, "mask")
    # The rim of a smoothed mask counts from 128 on.
    np.testing.assert_array_equal(read_mask(str(masks["MT_Crack/Imgs/exp1_num_5000.jpg"])), soft >= 128)
    assert masks["MT_Free/Imgs/exp1_num_9000.jpg"] == ""
    assert masks["MT_Crack/Imgs/exp3_num_390.jpg"] == str(root / "MT_Crack/Imgs/exp3_num_390.png")
    # No mask is taken for an input.
    assert len(expand_inputs([root])) == 5
    with pytest.raises(DataError, match="says by itself what is normal"):
        load_table(root, normal="MT_Free")


def test_tiles_chain_neighbours_whatever_their_order() -> None:
    paths = [f"x/exp1_num_{number}.jpg" for number in (700, 100, 1001, 400, 5)]
    expected = {700: "tile_5", 100: "tile_5", 1001: "tile_1001", 400: "tile_5", 5: "tile_5"}
    for order in (paths, paths[::-1]):
        assert {int(path[11:-4]): group for path, group in tiles(order).items()} == expected
    assert tiles(["x/other.jpg"]) == {}


def test_kolektor_sdd_groups_by_item(tmp_path: Path, put: Put) -> None:
    for item in ("kos01", "kos02"):
        for k in range(2):
            put(tmp_path / item / f"Part{k}.jpg")
            put(tmp_path / item / f"Part{k}_label.bmp", 255 if (item, k) == ("kos02", 1) else 0)
    put(tmp_path / "kos02" / "Part2.jpg")
    samples = load_table(tmp_path)
    assert samples.layout == "kolektor_sdd"
    assert samples.table["group"].tolist() == ["kos01"] * 2 + ["kos02"] * 3
    assert samples.table["label"].fillna(-1).tolist() == [0, 0, 0, 1, -1]
    # A missing mask leaves the label open and fails by name.
    assert samples.table["mask"].tolist()[-1] == str(tmp_path / "kos02" / "Part2_label.bmp")
    assert len(expand_inputs([tmp_path])) == 5


def test_kolektor_sdd2_keeps_its_split(tmp_path: Path, put: Put) -> None:
    for split, k, marked in (("train", 1, 0), ("train", 2, 255), ("test", 3, 0), ("test", 4, 255)):
        put(tmp_path / split / f"1000{k}.png")
        put(tmp_path / split / f"1000{k}_GT.png", marked)
    samples = load_table(tmp_path)
    assert samples.layout == "kolektor_sdd2"
    found = samples.table[["split", "label"]].values.tolist()
    assert found == [["train", 0], ["train", 1], ["test", 0], ["test", 1]]
    assert samples.table["mask"].str.endswith("_GT.png").all()


@pytest.mark.data
def test_real_magnetic_tiles_are_grouped_by_tile(data_root: Path) -> None:
    samples = load_table(data_root / "magnetic_tile")
    table = samples.table
    assert samples.layout == "magnetic_tile"
    assert table["label"].value_counts().to_dict() == {0: 420, 1: 287}
    assert not table["path"].str.endswith(".png").any()
    assert (table["mask"] != "").all()
    sizes = table["group"].value_counts()
    # Far fewer tiles than images, and none that swallows the set: a tile was photographed a handful of times.
    assert 100 < len(sizes) < 300
    assert sizes.max() < 20
    cracks = table[table["path"].str.contains("MT_Crack")].head(5)
    for _, row in cracks.iterrows():
        with Image.open(row["path"]) as picture:
            assert read_mask(row["mask"], picture.size[::-1]).any()


@pytest.mark.data
def test_real_tiles_of_one_group_look_alike_and_others_do_not(data_root: Path) -> None:
    """The evidence for the grouping: correlation of neighbours in number, within and across groups."""
    table = load_table(data_root / "magnetic_tile").table
    numbers = table["path"].str.extract(r"_num_(\d+)")[0].astype(int)
    rows = table.assign(number=numbers).sort_values("number").iloc[:120]

    def small(path: str) -> np.ndarray:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("L").resize((32, 32)), float).ravel()
        return (values - values.mean()) / values.std()

    pictures = [small(path) for path in rows["path"]]
    alike = np.array([np.mean(a * b) for a, b in pairwise(pictures)])
    same = rows["group"].to_numpy()[1:] == rows["group"].to_numpy()[:-1]
    assert np.median(alike[same]) > 0.9
    assert np.median(alike[~same]) < 0.6
