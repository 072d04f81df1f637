"""Class folders, folder pairs, MedMNIST and MNIST: which class is normal, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anodiff.data.layouts import expand_inputs, load_table
from anodiff.data.readers import read_image, read_mask
from anodiff.errors import DataError, InputError

Put = Callable[..., Path]
WriteIdx = Callable[[Path, np.ndarray], Path]
PICTURES = np.random.default_rng(0).integers(0, 255, (5, 9, 10), dtype=np.uint8)


def labels_of(samples: object) -> dict[str, int]:
    table = samples.table  # type: ignore[attr-defined]
    return {Path(path).name: label for path, label in zip(table["path"], table["label"], strict=True)}


@pytest.mark.parametrize("name", ["good", "NORMAL", "No_findings", "no finding", "healthy", "defect-free"])
def test_a_class_of_a_well_known_name_is_normal(tmp_path: Path, put: Put, name: str) -> None:
    put(tmp_path / name / "1.png")
    put(tmp_path / "Pneumonia" / "2.png")
    samples = load_table(tmp_path)
    assert samples.layout == "classes"
    assert labels_of(samples) == {"1.png": 0, "2.png": 1}
    assert set(samples.table["mask"]) == {""}


def test_normal_classes_are_chosen_by_name(tmp_path: Path, put: Put) -> None:
    for k, name in enumerate(("cat", "dog", "Owl")):
        put(tmp_path / name / f"{k}.png")
    # Folders of other names may as well be patients: without a word on what is normal they are one plain folder.
    assert load_table(tmp_path).layout == "folder"
    assert labels_of(load_table(tmp_path, normal="cat, owl")) == {"0.png": 0, "1.png": 1, "2.png": 0}
    with pytest.raises(DataError, match=r"expected --normal CLASS .* found the classes Owl, cat, dog"):
        load_table(tmp_path, "classes")
    with pytest.raises(DataError, match=r"expected --normal to name a class, found cow; the classes are .*dog"):
        load_table(tmp_path, normal=["cow"])


def test_a_named_class_wins_over_a_well_known_name(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "good" / "1.png")
    put(tmp_path / "bad" / "2.png")
    assert labels_of(load_table(tmp_path, normal="bad")) == {"1.png": 1, "2.png": 0}


def test_class_folders_below_splits(tmp_path: Path, put: Put) -> None:
    for split in ("train", "val", "test"):
        put(tmp_path / split / "NORMAL" / f"{split}1.png")
        put(tmp_path / split / "PNEUMONIA" / f"{split}2.png")
    samples = load_table(tmp_path)
    assert samples.layout == "classes"
    assert samples.table.groupby("split")["label"].apply(list).to_dict() == {
        "train": [0, 1],
        "val": [0, 1],
        "test": [0, 1],
    }


def test_pairs_with_masks(tmp_path: Path, put: Put) -> None:
    for name in ("normal/1.png", "normal/2.png", "anomalous/1.png", "anomalous/2.png"):
        put(tmp_path / name)
    put(tmp_path / "masks" / "1.png", 255)
    samples = load_table(tmp_path)
    assert samples.layout == "classes"
    assert samples.rows(label=0).table["mask"].tolist() == ["", ""]  # although a mask of the same name is there
    masks = samples.rows(label=1).table["mask"].tolist()
    assert read_mask(masks[0], (16, 16)).any()
    with pytest.raises(InputError, match="found no such file"):
        read_mask(masks[1])


def test_pairs_with_masks_by_class(tmp_path: Path, put: Put) -> None:
    for name in ("good/1.png", "bad/1.png", "worse/1.png"):
        put(tmp_path / name)
    put(tmp_path / "masks" / "bad" / "1_mask.png", 255)
    put(tmp_path / "masks" / "good" / "1.png", 0)
    table = load_table(tmp_path).table.set_index("id")
    assert table.loc["bad__1", "mask"] == str(tmp_path / "masks" / "bad" / "1_mask.png")
    assert table.loc["good__1", "mask"] == str(tmp_path / "masks" / "good" / "1.png")
    assert table.loc["worse__1", "mask"] == str(tmp_path / "masks" / "1_mask.png")


def test_a_folder_with_images_of_its_own_has_no_classes(tmp_path: Path, put: Put) -> None:
    for name in ("1.png", "good/2.png", "bad/3.png"):
        put(tmp_path / name)
    assert load_table(tmp_path).layout == "folder"
    with pytest.raises(DataError, match="expected class folders for --normal good, found none"):
        load_table(tmp_path, normal="good")


def write_medmnist(path: Path, **more: np.ndarray) -> Path:
    arrays = {f"{split}_images": PICTURES for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.array([[0], [1], [2], [0], [1]], np.uint8) for split in ("train", "val", "test")}
    np.savez_compressed(path, **{**arrays, **more})
    return path


def test_medmnist(tmp_path: Path) -> None:
    samples = load_table(write_medmnist(tmp_path / "set.npz"))
    assert samples.layout == "medmnist"
    assert samples.table["label"].tolist() == [0, 1, 1, 0, 1] * 3
    assert samples.table["split"].tolist() == ["train"] * 5 + ["val"] * 5 + ["test"] * 5
    assert samples.table["id"].tolist()[7] == "set_val_images_2"
    assert samples.table["path"].tolist()[7] == f"{tmp_path}/set.npz#index=val_images/2"
    np.testing.assert_array_equal(read_image(samples.table["path"][7]).pixels[:, :, 0], PICTURES[2])
    assert load_table(tmp_path / "set.npz", normal="1,2").table["label"].tolist()[:5] == [1, 0, 0, 1, 0]
    with pytest.raises(DataError, match="found 7; the classes are 0, 1, 2"):
        load_table(tmp_path / "set.npz", normal="7")
    assert expand_inputs([tmp_path / "set.npz"]) == samples.table["path"].tolist()


def test_medmnist_of_several_labels_an_image(tmp_path: Path) -> None:
    several = np.array([[0, 0], [0, 1], [1, 1], [0, 0], [1, 0]])
    path = write_medmnist(tmp_path / "set.npz", train_labels=several)
    assert load_table(path).rows(split="train").table["label"].tolist() == [0, 1, 1, 0, 1]
    with pytest.raises(DataError, match=r"one label an image where --normal .* found 2 columns in train_labels"):
        load_table(path, normal="1")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PICTURES}, "expected arrays train_images, .* found images"),
        ({"test_images": PICTURES}, "expected an array test_labels"),
        ({"test_images": PICTURES, "test_labels": np.zeros(4, int)}, "expected 5 whole numbers in test_labels"),
        ({"test_images": PICTURES, "test_labels": np.zeros(5)}, "whole numbers .* of type float64"),
    ],
)
def test_an_npz_of_another_kind(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / "set.npz")


def write_mnist(folder: Path, write_idx: WriteIdx, end: str = ".gz", plain: str = "-") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, labels in (("train", [3, 4, 3, 9, 4]), ("t10k", [4, 3, 9, 9, 3])):
        write_idx(folder / f"{part}-images{plain}idx3-ubyte{end}", PICTURES)
        write_idx(folder / f"{part}-labels{plain}idx1-ubyte{end}", np.array(labels, np.uint8))
    return folder


@pytest.mark.parametrize(("end", "plain", "inside"), [(".gz", "-", ""), ("", "-", "raw"), ("", ".", "")])
def test_mnist(tmp_path: Path, write_idx: WriteIdx, end: str, plain: str, inside: str) -> None:
    write_mnist(tmp_path / inside, write_idx, end, plain)
    samples = load_table(tmp_path, normal="3,9")
    assert samples.layout == "idx"
    assert samples.rows(split="train").table["label"].tolist() == [0, 1, 0, 0, 1]
    assert samples.rows(split="test").table["label"].tolist() == [1, 0, 0, 0, 0]
    last = samples.rows(split="train").table.iloc[4]
    assert last["path"].endswith(f"train-images{plain}idx3-ubyte{end}#index=4")
    np.testing.assert_array_equal(read_image(last["path"]).pixels[:, :, 0], PICTURES[4])
    assert last["id"] == ("train-images_4" if plain == "." else "train-images-idx3-ubyte_4")
    with pytest.raises(DataError, match=r"expected --normal CLASS .* found the classes 3, 4, 9"):
        load_table(tmp_path)


def test_mnist_of_one_file_and_of_files_both_plain_and_packed(tmp_path: Path, write_idx: WriteIdx) -> None:
    write_mnist(tmp_path, write_idx)
    one = load_table(tmp_path / "t10k-images-idx3-ubyte.gz", normal="4")
    assert one.table["label"].tolist() == [0, 1, 1, 1, 1]
    assert set(one.table["split"]) == {"test"}
    write_mnist(tmp_path, write_idx, end="")
    both = load_table(tmp_path, normal="4")
    assert len(both) == 10
    assert not both.table["path"].str.contains(".gz").any()


def test_mnist_labels_that_are_missing_or_too_few(tmp_path: Path, write_idx: WriteIdx) -> None:
    write_mnist(tmp_path, write_idx)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"expected 5 labels for train-images-idx3-ubyte.gz, found 4"):
        load_table(tmp_path, normal="3")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"expected its labels in train-labels-idx1-ubyte.gz beside it"):
        load_table(tmp_path, normal="3")


@pytest.mark.data
def test_real_chest_xrays_are_grouped_by_patient(data_root: Path) -> None:
    samples = load_table(data_root / "chest_xray", group_by=r"([0-9]+)_[0-9]+\.png$")
    assert samples.layout == "classes"
    assert samples.table["label"].value_counts().to_dict() == {0: 378, 1: 357}
    names = samples.table["path"].map(lambda path: Path(path).name.partition("_")[0])
    assert samples.table["group"].tolist() == names.tolist()
    # Some patients are in both classes, which is why a split by image would leak.
    assert (samples.table.groupby("group")["label"].nunique() == 2).sum() == 17


@pytest.mark.data
def test_real_medmnist(data_root: Path) -> None:
    samples = load_table(data_root / "pneumoniamnist.npz")
    counts = samples.table.groupby(["split", "label"]).size().to_dict()
    with np.load(data_root / "pneumoniamnist.npz") as arrays:
        for split in ("train", "val", "test"):
            normal = int((arrays[f"{split}_labels"] == 0).sum())
            assert (counts[split, 0], counts[split, 1]) == (normal, len(arrays[f"{split}_labels"]) - normal)
        row = samples.rows(split="test").table.iloc[17]
        np.testing.assert_array_equal(read_image(row["path"]).pixels[:, :, 0], arrays["test_images"][17])
        assert row["label"] == int(arrays["test_labels"][17, 0] != 0)
