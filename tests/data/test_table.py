"""Ids, selection and group-disjoint splits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.data.table import (
    COLUMNS,
    MAX_ID_BYTES,
    Sample,
    SampleTable,
    build_table,
    group_keys,
    make_ids,
    select,
    split_groups,
)
from anodiff.errors import DataError


def table_of(count: int, groups: int, **fields: object) -> SampleTable:
    samples = [Sample(f"/data/{k:03d}.png", group=f"p{k % groups}" if groups else "", **fields) for k in range(count)]
    return build_table(samples, "folder", "/data")


def test_ids_are_paths_below_the_common_folder() -> None:
    assert make_ids(["/a/b/c/x.png", "/a/b/d/y.tif"]) == ["c__x", "d__y"]
    assert make_ids(["/a/b/c/x.png"]) == ["x"]
    assert make_ids([]) == []
    assert make_ids(["/a/scan.v2.png", "/a/other.png"]) == ["scan.v2", "other"]


def test_same_names_in_different_folders_stay_apart() -> None:
    ids = make_ids(["/d/left/1.png", "/d/right/1.png"])
    assert ids == ["left__1", "right__1"]


def test_collisions_get_a_hash_each() -> None:
    paths = ["/d/x.png", "/d/x.jpg", "/d/a/b.png", "/d/a__b.png", "/d/é t.png", "/d/é_t.png", "/d/Y.png", "/d/y.png"]
    ids = make_ids(paths)
    assert len({name.casefold() for name in ids}) == len(paths)
    stems = ["x", "x", "a__b", "a__b", "é_t", "é_t", "Y", "y"]
    for name, stem in zip(ids, stems, strict=True):
        assert name.startswith(f"{stem}-")
        assert len(name) == len(stem) + 9


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("with space", "with_space"),
        ("Größe_脳", "Größe_脳"),
        ("new\nline\ttab", "new_line_tab"),
        ("q\"u'o<t>e|?*:", "q_u_o_t_e____"),
        ("=cmd()", "_cmd__"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("back\\slash", "back__slash"),
        ("\udcff", "_"),
    ],
)
def test_ids_are_safe_as_file_names(name: str, expected: str) -> None:
    assert make_ids([f"/d/{name}.png", "/d/other.png"])[0] == expected


def test_decomposed_and_composed_names_are_the_same_letter() -> None:
    composed, decomposed = make_ids(["/d/\u00e9.png", "/d/e\u0301.png"])
    assert composed.startswith("\u00e9-")
    assert decomposed.startswith("\u00e9-")
    assert composed != decomposed


def test_long_names_are_cut_within_the_limit() -> None:
    paths = [f"/d/{'脳' * 80}{k}.png" for k in range(3)]
    ids = make_ids(paths)
    assert len(set(ids)) == 3
    assert max(len(name.encode()) for name in ids) <= MAX_ID_BYTES


def test_device_names_of_windows_are_avoided() -> None:
    assert make_ids(["/d/CON.png", "/d/a.png"])[0].startswith("CON-")


def test_ids_do_not_depend_on_order_and_a_file_can_be_made_of_each(tmp_path: Path) -> None:
    random.seed(0)
    letters = "aA .-_/é\n=\\:脳"
    paths = sorted({"/r/" + "".join(random.choices(letters, k=6)).strip("/") + "z.png" for _ in range(400)})
    ids = dict(zip(paths, make_ids(paths), strict=True))
    shuffled = random.sample(paths, len(paths))
    assert dict(zip(shuffled, make_ids(shuffled), strict=True)) == ids
    assert len({name.casefold() for name in ids.values()}) == len({str(Path(path)) for path in paths})
    for name in ids.values():
        (tmp_path / f"{name}.npy").touch()
    assert len(list(tmp_path.iterdir())) == len(ids)


def test_a_path_listed_twice_gets_two_ids() -> None:
    assert len(set(make_ids(["/d/a.png", "/d/a.png", "/d/b.png"]))) == 3


def test_pages_have_ids_of_their_own() -> None:
    assert make_ids(["/d/s.tif#page=1", "/d/s.tif#page=2"]) == ["s_page_1", "s_page_2"]


def test_build_table_columns_and_types() -> None:
    samples = build_table([Sample("/d/a.png"), Sample("/d/b.png", 1, "/m/b.png", "p", "test")], "folder", "/d")
    assert tuple(samples.table.columns) == COLUMNS
    assert str(samples.table["label"].dtype) == "Int64"
    assert samples.table["label"].isna().tolist() == [True, False]
    assert samples.table.iloc[1][["path", "mask", "group", "split"]].tolist() == ["/d/b.png", "/m/b.png", "p", "test"]
    assert len(samples) == 2
    assert len(samples.rows(label=1, split="test")) == 1
    assert len(samples.rows(label=0)) == 0


def test_no_sample_is_an_error() -> None:
    with pytest.raises(DataError, match=r"/d: expected images .*found none"):
        build_table([], "folder", "/d")


def test_a_stack_becomes_one_row_a_page_with_its_masks(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((9, 9), k, dtype=np.uint8)) for k in range(3)]
    for name in ("s.tif", "m.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    path, mask = str(tmp_path / "s.tif"), str(tmp_path / "m.tif")
    table = build_table([Sample(path, 1, mask)], "manifest", tmp_path).table
    assert table["path"].tolist() == [f"{path}#page={k}" for k in (1, 2, 3)]
    assert table["mask"].tolist() == [f"{mask}#page={k}" for k in (1, 2, 3)]
    assert table["id"].tolist() == [f"s_page_{k}" for k in (1, 2, 3)]
    # Pages of one file belong together, whatever else is known.
    assert table["group"].nunique() == 1


def test_select_by_split_and_label() -> None:
    samples = build_table(
        [Sample("/d/a.png", 0, split="train"), Sample("/d/b.png", 1, split="test"), Sample("/d/c.png", split="test")],
        "manifest",
        "/d",
    )
    assert select(samples).table["path"].tolist() == ["/d/a.png", "/d/b.png", "/d/c.png"]
    assert select(samples, "test").table["path"].tolist() == ["/d/b.png", "/d/c.png"]
    assert select(samples, ("train", "test"), normal_only=True).table["path"].tolist() == ["/d/a.png"]
    with pytest.raises(DataError, match="expected images of split val, found test 2, train 1"):
        select(samples, "val")
    with pytest.raises(DataError, match="expected normal images in split test, found 2 images and none normal"):
        select(samples, "test", normal_only=True)


def test_a_folder_without_any_label_counts_as_normal() -> None:
    assert len(select(table_of(5, 0), normal_only=True)) == 5


def test_split_is_disjoint_by_group_and_independent_of_order() -> None:
    samples = table_of(100, 20)
    kept, held = split_groups(samples, 0.2, seed=3)
    assert len(kept) + len(held) == 100
    assert len(held) == 20
    assert not set(group_keys(kept)) & set(group_keys(held))
    shuffled = SampleTable(samples.table.sample(frac=1, random_state=1), samples.layout, samples.root)
    assert set(split_groups(shuffled, 0.2, seed=3)[1].table["path"]) == set(held.table["path"])
    assert set(split_groups(samples, 0.2, seed=4)[1].table["path"]) != set(held.table["path"])


def test_split_of_images_without_groups_and_of_few_groups() -> None:
    kept, held = split_groups(table_of(10, 0), 0.3)
    assert (len(kept), len(held)) == (7, 3)
    for fraction in (0.01, 0.99):
        kept, held = split_groups(table_of(10, 2), fraction)
        assert (len(kept), len(held)) == (5, 5)
    with pytest.raises(DataError, match="at least two groups"):
        split_groups(table_of(10, 1), 0.3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_groups(table_of(10, 2), 1.5)
