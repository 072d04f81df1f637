"""Each layout on a small set of its own, on the real sets where they are, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.data.layouts import LAYOUTS, expand_inputs, load_table
from anodiff.data.readers import read_image, read_mask
from anodiff.data.table import select
from anodiff.errors import DataError, InputError


def put(path: Path, *, mask: bool = False, empty: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((16, 16), dtype=np.uint8)
    if mask:
        values[4:8, 4:8] = 0 if empty else 255
    else:
        values[:] = np.arange(256).reshape(16, 16)
    format_name = "TIFF" if path.suffix.startswith(".tif") else "PNG"
    Image.fromarray(values).save(path, format=format_name)
    return path


def small_mvtec(root: Path) -> Path:
    for k in (1, 2, 10):
        put(root / "train" / "good" / f"{k}.png")
    put(root / "test" / "good" / "1.png")
    put(root / "test" / "crack" / "1.png")
    put(root / "test" / "crack" / "2.png")
    put(root / "ground_truth" / "crack" / "1_mask.png", mask=True)
    put(root / "ground_truth" / "crack" / "2.png", mask=True)
    return root


def relative(paths: list[str], root: Path) -> list[str]:
    return [str(Path(path).relative_to(root)) if path else "" for path in paths]


def test_mvtec(tmp_path: Path) -> None:
    samples = load_table(small_mvtec(tmp_path))
    table = samples.table
    assert samples.layout == "mvtec"
    assert relative(table["path"].tolist(), tmp_path) == [
        "train/good/1.png",
        "train/good/2.png",
        "train/good/10.png",
        "test/crack/1.png",
        "test/crack/2.png",
        "test/good/1.png",
    ]
    assert table["label"].tolist() == [0, 0, 0, 1, 1, 0]
    assert table["split"].tolist() == ["train"] * 3 + ["test"] * 3
    masks = relative(table["mask"].tolist(), tmp_path)
    assert masks == ["", "", "", "ground_truth/crack/1_mask.png", "ground_truth/crack/2.png", ""]
    assert table["id"].tolist()[-1] == "test__good__1"
    assert set(table["group"]) == {""}


def test_mvtec_with_val_dev_and_groups(tmp_path: Path) -> None:
    small_mvtec(tmp_path)
    put(tmp_path / "val" / "good" / "7.png")
    put(tmp_path / "dev" / "crack" / "8.png")
    put(tmp_path / "dev_ground_truth" / "crack" / "8_mask.png", mask=True)
    (tmp_path / "manifest.csv").write_text("path,group\nval/good/7.png,patient A\ndev/crack/8.png,patient B\n")
    samples = load_table(tmp_path)
    assert samples.layout == "mvtec"
    assert samples.rows(split="val").table["group"].tolist() == ["patient A"]
    dev = samples.rows(split="dev").table.iloc[0]
    assert (dev["label"], dev["group"]) == (1, "patient B")
    assert dev["mask"] == str(tmp_path / "dev_ground_truth" / "crack" / "8_mask.png")


def test_mvtec_mask_that_is_missing_fails_its_own_row_only(tmp_path: Path) -> None:
    small_mvtec(tmp_path)
    put(tmp_path / "test" / "crack" / "3.png")
    put(tmp_path / "test" / "unannotated" / "1.png")
    table = load_table(tmp_path).table.set_index("id")
    missing = table.loc["test__crack__3", "mask"]
    with pytest.raises(InputError, match=r"3_mask\.png: expected an image, found no such file"):
        read_mask(missing)
    # A class without any annotation has image labels only.
    assert table.loc["test__unannotated__1", "mask"] == ""


def test_mvtec_without_normals_is_named_when_normals_are_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "test" / "crack" / "1.png")
    put(tmp_path / "ground_truth" / "crack" / "1_mask.png", mask=True)
    with pytest.raises(DataError, match="expected normal images, found 1 images and none normal"):
        select(load_table(tmp_path), normal_only=True)


def test_lgg_tif(tmp_path: Path) -> None:
    for patient, empty in (("P_2", True), ("P_10", False)):
        for k in (1, 2, 10):
            put(tmp_path / "kaggle_3m" / patient / f"{patient}_{k}.tif")
            put(tmp_path / "kaggle_3m" / patient / f"{patient}_{k}_mask.tif", mask=True, empty=empty or k == 1)
    (tmp_path / "kaggle_3m" / "P_10" / "P_10_2_mask.tif").write_bytes(b"")
    put(tmp_path / "kaggle_3m" / "P_10" / "P_10_11.tif")
    samples = load_table(tmp_path)
    table = samples.table
    assert samples.layout == "lgg_tif"
    assert table["group"].tolist() == ["P_2"] * 3 + ["P_10"] * 4
    assert [Path(path).stem for path in table["path"]] == [
        "P_2_1",
        "P_2_2",
        "P_2_10",
        "P_10_1",
        "P_10_2",
        "P_10_10",
        "P_10_11",
    ]
    # An unreadable mask and an absent one leave the label unknown.
    assert table["label"].fillna(-1).tolist() == [0, 0, 0, 0, -1, 1, -1]
    assert table["mask"].ne("").tolist() == [True] * 6 + [False]


def test_manifest(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a b.png")
    absolute = put(tmp_path / "elsewhere" / "c.png")
    file = tmp_path / "list.csv"
    file.write_text(
        "\ufeffPath, label ,mask,group,split,comment\n"
        "images/a b.png,0,,p1,train,x\n"
        f"{absolute},1,images/m.png,p2,test,y\n"
        "images/missing.png,,,,,\n"
        '"images/new\nline.png",normal,,,val,\n',
        encoding="utf-8",
    )
    samples = load_table(file)
    table = samples.table
    assert samples.layout == "manifest"
    assert table["path"].tolist() == [
        str(tmp_path / "images" / "a b.png"),
        str(absolute),
        str(tmp_path / "images" / "missing.png"),
        str(tmp_path / "images" / "new\nline.png"),
    ]
    assert table["label"].fillna(-1).tolist() == [0, 1, -1, 0]
    assert table["mask"].tolist() == ["", str(tmp_path / "images" / "m.png"), "", ""]
    assert table["split"].tolist() == ["train", "test", "", "val"]


def test_manifest_in_a_folder_is_found(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text("path\na.png\n")
    assert load_table(tmp_path).layout == "manifest"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,0\n", "expected a column 'path' .*found file, label"),
        ("", "expected a column 'path' .*found nothing"),
        ("path\n", "expected rows below the header, found none"),
        ("path,label\na.png,maybe\n", "line 2: expected a label 0 .*found 'maybe'"),
        ("path,split\na.png,train\nb.png,testing\n", "line 3: expected a split .*found 'testing'"),
        ("path,label\n,1\n", "line 2: expected a path"),
        ('path,label\n"a.png,1\n', "expected a readable CSV"),
    ],
)
def test_manifest_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_table(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path\nGröße.png\n".encode("latin-1"))
    with pytest.raises(DataError, match="expected a readable CSV file in UTF-8"):
        load_table(tmp_path / "list.csv")


def test_folder(tmp_path: Path) -> None:
    for name in ("s10.png", "s2.png", "sub/s2.png", ".hidden.png", ".cache/s3.png", "notes.txt", "new\nline.png"):
        put(tmp_path / name)
    samples = load_table(tmp_path)
    assert samples.layout == "folder"
    assert relative(samples.table["path"].tolist(), tmp_path) == ["new\nline.png", "s2.png", "s10.png", "sub/s2.png"]
    assert samples.table["label"].isna().all()
    assert samples.table["id"].tolist() == ["new_line", "s2", "s10", "sub__s2"]


def test_empty_folder_and_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected images .*found none"):
        load_table(tmp_path)
    with pytest.raises(DataError, match="found no such path"):
        load_table(tmp_path / "nowhere")
    picture = put(tmp_path / "a.png")
    with pytest.raises(DataError, match="found another kind of file"):
        load_table(picture)
    with pytest.raises(DataError, match="unknown layout 'mvtek'; did you mean 'mvtec'"):
        load_table(tmp_path, "mvtek")
    with pytest.raises(DataError, match="expected the layout 'mvtec', found another"):
        load_table(tmp_path, "mvtec")
    assert load_table(tmp_path, "folder").layout == "folder"


def test_expand_files_folders_patterns_and_lists(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "a/b/3.png", "c/x[1].png", "c/y.jpg"):
        put(tmp_path / name)
    (tmp_path / "c" / "notes.txt").write_text("x")
    (tmp_path / "list.csv").write_text("path\na/2.png\nmissing.png\n")

    def names(*inputs: str) -> list[str]:
        return relative(expand_inputs([str(tmp_path / item) for item in inputs]), tmp_path)

    assert names("a") == ["a/1.png", "a/2.png", "a/b/3.png"]
    assert names("a/*.png", "c/y.jpg") == ["a/1.png", "a/2.png", "c/y.jpg"]
    assert names("**/*") == ["a/1.png", "a/2.png", "a/b/3.png", "c/x[1].png", "c/y.jpg"]
    assert names("c/x[1].png") == ["c/x[1].png"]
    assert names("a", "a/1.png", "list.csv") == ["a/1.png", "a/2.png", "a/b/3.png", "missing.png"]
    # A file named by hand is an input whatever it is: its row will say why it failed.
    assert names("c/notes.txt") == ["c/notes.txt"]


def test_expand_tells_of_files_below_a_folder_that_are_no_images(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/1_mask.png", "a/b/2.png"):
        put(tmp_path / name)
    for name in ("a/notes10.txt", "a/notes9.txt", "a/b/readme.md", "a/.hidden"):
        (tmp_path / name).write_text("x")
    told: list[str] = []
    expand_inputs([tmp_path / "a"], told.append)
    assert relative(told, tmp_path) == ["a/notes9.txt", "a/notes10.txt", "a/b/readme.md"]


def test_expand_leaves_masks_out_of_folders(tmp_path: Path) -> None:
    small_mvtec(tmp_path)
    put(tmp_path / "p" / "s_1.tif")
    put(tmp_path / "p" / "s_1_mask.tif")
    put(tmp_path / "p" / "lone_mask.png")
    found = relative(expand_inputs([tmp_path]), tmp_path)
    assert "p/s_1.tif" in found
    assert "p/lone_mask.png" in found
    assert "p/s_1_mask.tif" not in found
    assert not [name for name in found if name.startswith("ground_truth")]


def test_expand_gives_each_page(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.roll(np.arange(256, dtype=np.uint8).reshape(16, 16), k)) for k in range(11)]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
    found = expand_inputs([tmp_path])
    assert found == [f"{tmp_path}/s.tif#page={k}" for k in range(1, 12)]
    assert [read_image(path).pixels[0, 1, 0] for path in found[:3]] == [1, 0, 255]
    assert expand_inputs([found[4]]) == [found[4]]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_expand_keeps_a_broken_stack_as_one_row(tmp_path: Path) -> None:
    (tmp_path / "s.tif").write_bytes(b"II\x2a\x00broken")
    assert expand_inputs([tmp_path]) == [str(tmp_path / "s.tif")]


@pytest.mark.parametrize("item", ["nowhere.png", "*.png", "empty"])
def test_expand_of_nothing(tmp_path: Path, item: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected .*found no"):
        expand_inputs([str(tmp_path / item)])


def test_one_wrong_argument_is_named_among_good_ones(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"typo\.png: expected .*found no such path"):
        expand_inputs([tmp_path / "a.png", tmp_path / "typo.png"])


@pytest.mark.data
def test_brain_lgg_has_the_counts_of_its_readme(data_root: Path) -> None:
    samples = load_table(data_root / "brain_lgg")
    assert samples.layout == "mvtec"
    counts = samples.table.groupby(["split", "label"]).size().to_dict()
    assert counts == {
        ("train", 0): 1186,
        ("val", 0): 198,
        ("dev", 0): 86,
        ("dev", 1): 107,
        ("test", 0): 234,
        ("test", 1): 108,
    }
    groups = samples.table.groupby("split")["group"].agg(set)
    assert {name: len(group) for name, group in groups.items()} == {"train": 60, "val": 8, "dev": 6, "test": 12}
    assert sum(len(group) for group in groups) == len(set.union(*groups))
    tumours = samples.rows(split="dev", label=1).table
    for _, row in tumours.head(10).iterrows():
        assert read_mask(row["mask"], read_image(row["path"]).pixels.shape[:2]).any()


@pytest.mark.data
def test_real_sets_in_their_own_layouts(data_root: Path) -> None:
    lgg = load_table(data_root / "lgg_layout")
    assert lgg.layout == "lgg_tif"
    assert lgg.table["group"].nunique() == 2
    assert read_image(lgg.table["path"][0]).pixels.shape[2] == 3
    bottle = load_table(data_root / "mvtec" / "bottle")
    assert len(bottle.rows(split="train")) == 209
    assert len(bottle.rows(split="test")) == 83
    assert bottle.rows(label=1).table["mask"].map(lambda mask: Path(mask).is_file()).all()


def test_every_layout_is_offered() -> None:
    # The first that matches is taken: a folder's own manifest wins over what its folders look like, MVTec over both.
    assert list(LAYOUTS) == [
        "mvtec", "manifest", "visa", "magnetic_tile", "kolektor_sdd", "kolektor_sdd2", "medmnist", "idx", "nnunet",
        "open_ms", "bids", "brats", "volumes", "lgg_tif", "classes", "folder",
    ]  # fmt: skip


@pytest.fixture
def unlisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two images, with one inside that the system does not let be listed."""
    put(tmp_path / "data" / "1.png")
    put(tmp_path / "data" / "2.png")
    put(tmp_path / "data" / "locked" / "3.png")
    scandir = os.scandir

    def refuse(place: str = ".") -> object:
        if os.fspath(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    return tmp_path / "data"


def test_a_folder_that_cannot_be_listed_is_named_when_data_is_loaded(unlisted: Path) -> None:
    with pytest.raises(DataError, match=r"locked: expected a folder that can be listed, found Permission denied"):
        load_table(unlisted)


@pytest.mark.parametrize("name", ["train", "train/good"])
def test_so_is_one_of_a_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    small_mvtec(tmp_path)
    listdir, scandir = os.listdir, os.scandir

    def refuse(function: Callable[..., object]) -> Callable[..., object]:
        def refused(place: str = ".") -> object:
            if os.fspath(place).endswith(name):
                raise PermissionError(13, "Permission denied", os.fspath(place))
            return function(place)

        return refused

    monkeypatch.setattr(os, "listdir", refuse(listdir))
    monkeypatch.setattr(os, "scandir", refuse(scandir))
    with pytest.raises(DataError, match=rf"{name}: expected a folder .* found Permission denied"):
        load_table(tmp_path)


def test_linked_folders_are_followed_but_not_back_to_where_they_lie(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "2.png")
    put(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path, target_is_directory=True)
    found = relative(expand_inputs([tmp_path / "data"]), tmp_path / "data")
    assert "linked/2.png" in found
    assert found.count("1.png") == 1
    assert all(name.count("round") < 2 for name in found)


def test_a_folder_that_cannot_be_listed_is_a_row_of_its_own_when_scored(unlisted: Path) -> None:
    found = expand_inputs([unlisted])
    assert relative(found, unlisted) == ["1.png", "2.png", "locked"]
    with pytest.raises(InputError, match=r"locked: .* found a folder that cannot be listed \(Permission denied\)"):
        read_image(found[2])


def test_score_needs_only_the_paths_of_a_list(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    file = tmp_path / "day.csv"
    file.write_text("path,label,split\na.png,tumour,monday\n")
    assert expand_inputs([file]) == [str(tmp_path / "a.png")]
    with pytest.raises(DataError, match=r"line 2: expected a label 0 .*found 'tumour'"):
        load_table(file)


def test_groups_by_folder_by_part_of_the_path_and_by_column(tmp_path: Path) -> None:
    names = ["left/p1_1.png", "left/p1_2.png", "right/p2_1.png"]
    for name in names:
        put(tmp_path / name)
    file = tmp_path / "list.csv"
    file.write_text("path,group,Patient\n" + "".join(f"{name},g,{name[-7:-4]}\n" for name in names))
    assert load_table(file).table["group"].tolist() == ["g"] * 3
    assert load_table(file, group_by="patient").table["group"].tolist() == ["1_1", "1_2", "2_1"]
    for data in (file, tmp_path / "left"):
        found = load_table(data, group_by=r"p([0-9])_").table["group"].tolist()
        assert found == (["1", "1", "2"] if data is file else ["1", "1"])
    assert load_table(file, group_by="path").table["group"].tolist() == ["left", "left", "right"]
    assert load_table(tmp_path / "left", group_by="path").table["group"].tolist() == [".", "."]


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("p([0-9]", "expected a regular expression, found"),
        ("patient", "expected 'path', a column of the CSV manifest, or .* found 0 groups"),
        ("(p)([0-9])", "found 2 groups"),
        ("x([0-9])", r"expected a group in every path, found none in 1, p1\.png first"),
    ],
)
def test_groups_that_cannot_be_found(tmp_path: Path, group_by: str, message: str) -> None:
    put(tmp_path / "p1.png")
    with pytest.raises(DataError, match=message):
        load_table(tmp_path, group_by=group_by)
