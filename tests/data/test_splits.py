"""Splits: groups never straddle, no anomalous image where a model learns, and nothing depends on order or place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anodiff.data.splits import assign_splits, count_splits, keep_splits, parse_fractions
from anodiff.data.table import Sample, SampleTable, build_table, group_keys, refuse_shared_groups
from anodiff.errors import ConfigError, DataError

SHARES = {"train": 0.6, "val": 0.1, "dev": 0.1, "test": 0.2}


def patients(root: str = "/data", count: int = 60) -> SampleTable:
    """Patients of 1 to 6 images: healthy ones, ill ones, and some with both kinds."""
    rng = np.random.default_rng(3)
    samples = []
    for patient in range(count):
        kind = ("healthy", "ill", "both")[int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
        for k in range(int(rng.integers(1, 7))):
            label = {"healthy": 0, "ill": 1, "both": k % 2}[kind]
            samples.append(Sample(f"{root}/p{patient:02d}/{k}.png", label, group=f"p{patient:02d}"))
    return build_table(samples, "manifest", root)


def split_of(samples: SampleTable) -> dict[str, str]:
    return dict(zip(samples.table["path"].map(lambda path: path[-9:]), samples.table["split"], strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_rules(seed: int) -> None:
    divided = assign_splits(patients(), SHARES, seed)
    table = divided.table
    drawn = table[table["split"] != ""].groupby("group")["split"].nunique()
    assert drawn.max() == 1
    assert set(table["split"]) == {*SHARES, ""}
    learning = table[table["split"].isin(["train", "val"])]
    assert learning["label"].eq(0).all()
    # Left out are the anomalous images of groups that a model learns from, and only these.
    left = table[table["split"] == ""]
    assert left["label"].eq(1).all()
    assert set(left["group"]) <= set(learning["group"])
    # Groups without a normal image are all measured on.
    ill = table.groupby("group")["label"].min()
    assert set(table[table["group"].isin(ill[ill == 1].index)]["split"]) <= {"dev", "test"}
    normal = table[table["label"] == 0]
    largest = normal["group"].value_counts().max()
    for split, share in SHARES.items():
        assert abs((normal["split"] == split).sum() - share * len(normal)) <= largest


def test_depends_on_seed_and_names_not_on_order_or_place() -> None:
    samples = patients()
    first = split_of(assign_splits(samples, SHARES, 1))
    shuffled = replace(samples, table=samples.table.sample(frac=1, random_state=5).reset_index(drop=True))
    assert split_of(assign_splits(shuffled, SHARES, 1)) == first
    assert split_of(assign_splits(patients("/elsewhere/deep"), SHARES, 1)) == first
    assert split_of(assign_splits(samples, SHARES, 2)) != first


def test_images_without_groups_are_divided_one_by_one_wherever_they_lie() -> None:
    def plain(root: str) -> SampleTable:
        return build_table([Sample(f"{root}/{k:03d}.png", int(k >= 80)) for k in range(100)], "classes", root)

    one, other = (assign_splits(plain(root), {"train": 0.7, "val": 0.1, "test": 0.2}, 0) for root in ("/a", "/b/c"))
    assert one.table["split"].tolist() == other.table["split"].tolist()
    assert one.table.groupby(["split", "label"]).size().to_dict() == {
        ("train", 0): 56,
        ("val", 0): 8,
        ("test", 0): 16,
        ("test", 1): 20,
    }


def test_every_split_gets_a_group_and_the_largest_gets_the_largest() -> None:
    sizes = {"small": 2, "large": 50, "middle": 10}
    samples = [Sample(f"/d/{name}/{k}.png", 0, group=name) for name, size in sizes.items() for k in range(size)]
    table = assign_splits(build_table(samples, "manifest", "/d"), {"train": 0.7, "val": 0.1, "test": 0.2}).table
    assert table.groupby("group")["split"].first().to_dict() == {"large": "train", "middle": "test", "small": "val"}
    with pytest.raises(DataError, match="expected at least 4 groups with normal images, one for each split, found 3"):
        assign_splits(build_table(samples, "manifest", "/d"), SHARES)


def test_without_dev_or_test_anomalous_groups_are_left_out_and_without_labels_all_are_normal() -> None:
    divided = assign_splits(patients(), {"train": 0.9, "val": 0.1})
    assert set(divided.table["split"][divided.table["label"] == 1]) == {""}
    plain = build_table([Sample(f"/d/{k}.png") for k in range(20)], "folder", "/d")
    counts = {count.split: count.unlabelled for count in count_splits(assign_splits(plain, {"train": 0.5, "val": 0.5}))}
    assert counts == {"train": 10, "val": 10}


def test_a_split_that_is_there_is_kept_less_its_anomalous_training_images() -> None:
    rows = [("a", 0, "train"), ("b", 1, "train"), ("c", 1, "test"), ("d", None, "val"), ("e", 0, "test")]
    samples = build_table([Sample(f"/d/{n}.png", label, split=split) for n, label, split in rows], "manifest", "/d")
    assert keep_splits(samples).table["split"].tolist() == ["train", "", "test", "", "test"]
    counts = {count.split: (count.normal, count.anomalous) for count in count_splits(keep_splits(samples))}
    assert counts == {"train": (1, 0), "test": (1, 1), "": (0, 1)}


def test_groups_on_both_sides_are_named() -> None:
    rows = [("a", "p1", "train"), ("b", "p1", "test"), ("c", "p2", "val"), ("d", "p2", "test"), ("e", "p3", "dev")]
    samples = build_table([Sample(f"/d/{n}.png", 0, group=g, split=s) for n, g, s in rows], "manifest", Path("/d"))
    with pytest.raises(DataError, match="found 1 both in test and in train: p1"):
        refuse_shared_groups(samples, "test")
    with pytest.raises(DataError, match="expected each group in one split only"):
        keep_splits(samples)
    refuse_shared_groups(samples, "dev")
    twice = build_table([Sample("/d/a.png", 0, split=split) for split in ("train", "test")], "manifest", "/d")
    with pytest.raises(DataError, match=r"/d/a\.png"):
        refuse_shared_groups(twice, "test")
    assert list(group_keys(twice)) == ["/d/a.png"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.7,test=0.2", "add up to 1, found 0.9"),
        ("train=0.7,exam=0.3", "at most once, found 'exam'"),
        ("train=0.5,train=0.5", "at most once, found 'train'"),
        ("train=1.2,test=-0.2", "above 0 and up to 1, found 1.2"),
        ("train=nan,test=0.2", "above 0 and up to 1, found nan"),
        ("0.7,0.3", "expected SPLIT=SHARE, found '0.7'"),
        ("", "expected SPLIT=SHARE"),
    ],
)
def test_fractions_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_fractions(text)


def test_fractions() -> None:
    assert parse_fractions(" train=0.7, val=0.1,test=0.2") == {"train": 0.7, "val": 0.1, "test": 0.2}
    assert parse_fractions("test=1") == {"test": 1.0}
