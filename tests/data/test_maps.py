"""Maps and masks of any software: found, paired by name, read on one grid, or refused in a sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from anodiff.anomaly.reduce import reduce_maps
from anodiff.anomaly.settings import DetectorSettings
from anodiff.data.maps import TOPK, find_maps, find_masks, map_score, pair_up, read_map, read_pair
from anodiff.errors import DataError, InputError

RNG = np.random.default_rng(0)


def touch(folder: Path, *names: str) -> Path:
    """Empty files, for finding only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def save(path: Path, values: np.ndarray, affine: Any = None) -> Path:
    """An array in the format of the name."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, values, photometric="minisblack")
    else:
        Image.fromarray(values).save(path)
    return path


def test_maps_pair_with_masks_by_name_nested_or_flat(tmp_path: Path) -> None:
    maps = touch(tmp_path / "maps", "good/000.tiff", "cut/000.tiff", "cut/001.b.nii.gz", "notes.txt", ".hidden/x.npy")
    masks = touch(tmp_path / "masks", "cut/000_mask.png", "cut__001.b.bmp")
    pairs = {pair.id: pair for pair in pair_up(find_maps(maps), find_masks(masks))}
    assert {id_: Path(pair.mask).name for id_, pair in pairs.items()} == {
        "good__000": "",
        "cut__000": "000_mask.png",
        "cut__001.b": "cut__001.b.bmp",
    }
    assert not any(pair.error for pair in pairs.values())


def test_folders_that_all_maps_share_need_not_be_in_the_masks_names(tmp_path: Path) -> None:
    maps = touch(tmp_path / "maps", "test__cut__000.npy", "test__good__000.npy", "test__cut__001.npy")
    masks = touch(tmp_path / "masks", "cut/000_mask.png", "test/cut/001.png")
    assert {pair.id: Path(pair.mask).name for pair in pair_up(find_maps(maps), find_masks(masks))} == {
        "test__cut__000": "000_mask.png",
        "test__cut__001": "001.png",
        "test__good__000": "",
    }


def test_a_mask_without_a_map_and_two_files_of_one_name_are_errors_by_name(tmp_path: Path) -> None:
    maps = touch(tmp_path / "maps", "a.npy", "b.npy", "b.tiff", "c.npy")
    masks = touch(tmp_path / "masks", "a.png", "c.png", "c.npy", "d_mask.png")
    errors = {pair.id: pair.error for pair in pair_up(find_maps(maps), find_masks(masks)) if pair.error}
    assert set(errors) == {"b", "c", "d_mask"}
    assert "b.npy" in errors["b"]
    assert "b.tiff" in errors["b"]
    assert "one mask" in errors["c"]
    assert "d_mask.png: expected a map of the same name" in errors["d_mask"]


def test_the_nearest_name_and_the_rule_are_told_where_names_differ(tmp_path: Path) -> None:
    maps = touch(tmp_path / "maps", "bottle_001.npy", "scan-17.npy")
    masks = touch(tmp_path / "masks", "bottle_001.png", "scan17_mask.png")
    (error,) = [pair.error for pair in pair_up(find_maps(maps), find_masks(masks)) if pair.error]
    assert "scan17_mask.png: expected a map of the same name, found none, the nearest is" in error
    assert "scan-17.npy; a mask has its map's path below the folder without extension" in error
    others = touch(tmp_path / "others", "zebra.png", "bottle-001.png")
    with pytest.raises(DataError, match=r"nearest are the mask \S*bottle-001\.png and the map \S*bottle_001\.npy"):
        pair_up(find_maps(maps), find_masks(others))


def test_an_image_beside_its_mask_is_not_a_mask(tmp_path: Path) -> None:
    masks = touch(tmp_path / "masks", "a.tif", "a_mask.tif", "b.tif")
    assert set(find_masks(masks)) == {"a_mask"}
    both = touch(tmp_path / "both", "a.npy", "a_mask.npy", "b.npy")
    assert set(find_maps(both)) == {"a", "b"}


def test_folders_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    maps, masks = touch(tmp_path / "maps", "a.npy"), touch(tmp_path / "masks", "x.png")
    with pytest.raises(DataError, match=r"none for any of 1 masks.*x\.png.*a\.npy"):
        pair_up(find_maps(maps), find_masks(masks))
    with pytest.raises(DataError, match=r"expected anomaly maps .* found none"):
        find_maps(masks)
    with pytest.raises(DataError, match="expected a folder of masks, found a file"):
        find_masks(maps / "a.npy")


@pytest.mark.parametrize("name", ["m.npy", "m.tiff", "m.tif", "m.nii", "m.nii.gz"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16"])
def test_maps_come_back_bit_for_bit(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    values = (RNG.normal(size=shape) * 40 + 100).astype(dtype)
    found = read_map(save(tmp_path / name, values))
    assert found.dtype == dtype or not dtype.startswith("float")
    assert found.dtype in (np.float32, np.float64)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("shape", [(1, 5, 7), (5, 7, 1), (1, 1, 5, 7)])
def test_axes_of_length_one_are_dropped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RNG.normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(read_map(save(tmp_path / "m.npy", values)), values.reshape(5, 7))


def test_a_map_in_the_other_byte_order_and_in_half_precision_is_read(tmp_path: Path) -> None:
    values = RNG.normal(size=(5, 7))
    for dtype in (">f4", "<f2"):
        found = read_map(save(tmp_path / "m.npy", values.astype(dtype)))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.astype(dtype))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("nan.npy", lambda p: np.save(p, np.array([[0.0, np.nan]])), r"1 of 2 that are NaN or infinite"),
        ("inf.npy", lambda p: np.save(p, np.array([[0.0, np.inf]])), r"NaN or infinite"),
        ("short.npy", lambda p: p.write_bytes(b"\x93NUMPY"), "damaged or unreadable"),
        ("object.npy", lambda p: np.save(p, np.array([[{}]], dtype=object), allow_pickle=True), "damaged or unread"),
        ("text.npy", lambda p: np.save(p, np.array([["a"]])), "expected numbers"),
        ("line.npy", lambda p: np.save(p, np.zeros(4)), "two or three dimensions, found 4"),
        ("empty.npy", lambda p: np.save(p, np.zeros((0, 4))), "damaged|dimensions"),
        ("colour.tiff", lambda p: Image.new("RGB", (5, 5)).save(p), "colours of the mode RGB"),
        ("zero.tiff", lambda p: p.write_bytes(b""), "damaged or unreadable"),
        ("cut.nii.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08"), "damaged or unreadable"),
        ("gone.npy", lambda p: None, "no such file"),
        ("gone.nii", lambda p: None, "no such file"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(tmp_path: Path, name: str, write: Any, words: str) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        read_map(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("t.png", np.uint8(255)),
        ("t.bmp", np.uint8(255)),
        ("t.tif", np.uint8(255)),
        ("t.npy", np.bool_(True)),
        ("t.npy", np.uint8(1)),
        ("t.npy", np.int64(255)),
        ("t.npy", np.float32(1)),
        ("t.nii.gz", np.float64(1)),
        ("t.nii", np.int16(255)),
    ],
)
def test_masks_of_every_format_mark_the_same_pixels(tmp_path: Path, name: str, marked: Any) -> None:
    truth = RNG.random((5, 7)) > 0.7
    mask = save(tmp_path / name, np.where(truth, marked, marked * 0).astype(marked.dtype))
    values = save(tmp_path / "m.npy", np.zeros((5, 7), np.float32))
    np.testing.assert_array_equal(read_pair(values, str(mask))[1], truth)
    assert read_pair(values)[1] is None


def test_volumes_pair_voxel_by_voxel(tmp_path: Path) -> None:
    values, truth = RNG.normal(size=(4, 5, 6)).astype(np.float32), RNG.random((4, 5, 6)) > 0.5
    for name, mark in (("m.npy", 1), ("m.nii.gz", 1), ("m.tiff", 255)):
        found = read_pair(
            save(tmp_path / name, values), str(save(tmp_path / f"t{name[1:]}", truth.astype(np.uint8) * mark))
        )
        np.testing.assert_array_equal(found[0], values)
        np.testing.assert_array_equal(found[1], truth)


def test_soft_masks_are_cut_in_the_middle_and_label_maps_refused(tmp_path: Path) -> None:
    values = str(save(tmp_path / "m.npy", np.zeros((1, 3), np.float32)))
    soft = save(tmp_path / "t.npy", np.array([[0.0, 0.49, 0.5]]))
    np.testing.assert_array_equal(read_pair(values, str(soft))[1], [[False, False, True]])
    for labels in ([[0, 1, 4]], [[0.0, 2.0, 1.0]], [[-1, 0, 1]]):
        with pytest.raises(InputError, match=r"t\.npy: expected a mask of 0 and 1 .* label map"):
            read_pair(values, str(save(tmp_path / "t.npy", np.array(labels))))


@pytest.mark.parametrize("kind", ["uint8", "int16", "int64", "float64"])
def test_classes_beside_an_ignored_one_are_no_rim(tmp_path: Path, kind: str) -> None:
    values = str(save(tmp_path / "m.npy", np.zeros((1, 4), np.float32)))
    mask = save(tmp_path / "t.npy", np.array([[0, 1, 2, 255]], kind))
    with pytest.raises(InputError, match=r"t\.npy: expected a mask .* found the values 0, 1, 2, 255: a label map\?"):
        read_pair(values, str(mask))


@pytest.mark.parametrize(
    ("marks", "kind", "marked"),
    [
        ([0, 65535, 0, 65535], "uint16", [0, 1, 0, 1]),
        ([0, 1, 0, 65535], "uint16", None),
        ([0, 4095, 0, 0], "int16", [0, 1, 0, 0]),
        ([0, 127, 128, 255], "uint8", [0, 0, 1, 1]),  # a smooth rim
        ([3, 100, 250, 255], "uint8", [0, 0, 1, 1]),  # the noise of a JPEG around one
        ([0, 127, 128, 255], "int16", None),
        ([0, 4, 0, 4], "uint8", None),
        ([0, -1, 0, 0], "int16", None),
    ],
)
def test_what_a_mask_of_whole_numbers_may_hold(tmp_path: Path, marks: Any, kind: str, marked: Any) -> None:
    values = str(save(tmp_path / "m.npy", np.zeros((1, 4), np.float32)))
    mask = str(save(tmp_path / "t.npy", np.array([marks], kind)))
    if marked is None:
        with pytest.raises(InputError, match="a label map"):
            read_pair(values, mask)
    else:
        np.testing.assert_array_equal(read_pair(values, mask)[1], np.array([marked], bool))


def test_linked_folders_are_followed_but_not_back_to_where_they_lie(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "000_mask.png", "deeper/001_mask.png")
    masks = touch(tmp_path / "masks", "good/002_mask.png")
    (masks / "cut").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "round").symlink_to(masks, target_is_directory=True)
    assert set(find_masks(masks)) == {"cut__000_mask", "cut__deeper__001_mask", "good__002_mask"}


def test_a_mask_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = touch(tmp_path / "masks", "good/000_mask.png", "locked/001_mask.png")
    scandir = os.scandir

    def refuse(place: str = ".") -> object:
        if os.fspath(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"locked: expected a folder that can be listed, found Permission denied"):
        find_masks(masks)


def test_sizes_that_differ_name_both_files_and_both_sizes(tmp_path: Path) -> None:
    values = save(tmp_path / "m.npy", np.zeros((20, 24), np.float32))
    mask = save(tmp_path / "t.png", np.zeros((9, 8), np.uint8))
    with pytest.raises(InputError, match=r"t\.png: expected a mask of 24x20 pixels like .*m\.npy, found 8x9 pixels"):
        read_pair(values, str(mask))
    volume = save(tmp_path / "v.nii.gz", np.zeros((4, 5, 6), np.float32))
    wrong = save(tmp_path / "t.nii.gz", np.zeros((6, 5, 4), np.uint8))
    with pytest.raises(InputError, match=r"4x5x6 voxels like .*v\.nii\.gz, found 6x5x4 voxels"):
        read_pair(volume, str(wrong))


def test_nifti_files_must_lie_in_one_place(tmp_path: Path) -> None:
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    values = save(tmp_path / "m.nii.gz", np.zeros((4, 5, 6), np.float32), affine)
    truth = np.zeros((4, 5, 6), np.uint8)
    nudged = affine.copy()
    nudged[:3, 3] += 0.5  # mm: less than half a voxel, as rounded headers are
    for good in (affine, nudged, np.eye(4)):
        assert read_pair(values, str(save(tmp_path / "t.nii.gz", truth, good)))[1] is not None
    for bad in (np.diag([2.0, 2.0, 3.0, 1.0]), affine @ np.diag([1, 1, 1.3, 1])):
        with pytest.raises(InputError, match="expected a mask in the place of"):
            read_pair(values, str(save(tmp_path / "t.nii.gz", truth, bad)))


@pytest.mark.parametrize(("map_name", "mask_name"), [("m.nii.gz", "t.png"), ("m.nii", "t.tif"), ("m.tiff", "t.nii.gz")])
def test_pictures_and_nifti_do_not_mix(tmp_path: Path, map_name: str, mask_name: str) -> None:
    values = save(tmp_path / map_name, np.zeros((8, 8), np.float32))
    with pytest.raises(InputError, match="in another order"):
        read_pair(values, str(save(tmp_path / mask_name, np.zeros((8, 8), np.uint8))))


@pytest.mark.parametrize("reduction", ["max", "mean", "topk"])
@pytest.mark.parametrize("topk", [TOPK, 0.1, 1.0])
def test_image_scores_are_those_of_the_detector(reduction: Any, topk: float) -> None:
    values = RNG.normal(size=(3, 16, 24)).astype(np.float32)
    expected = reduce_maps(torch.from_numpy(values), reduction, topk=topk)
    found = [map_score(each, reduction, topk) for each in values]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_the_default_share_is_the_detectors() -> None:
    assert DetectorSettings.model_fields["topk"].default == TOPK
    assert DetectorSettings.model_fields["reduction"].default == "topk"
