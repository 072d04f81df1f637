"""Data sets of volumes as their owners lay them out, and the names by which a row is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anodiff.data.layouts import load_table
from anodiff.data.volumes import read_mask, read_volume
from anodiff.data.volumes.marks import channel_files, channels_path, labels_path, split_labels
from anodiff.errors import DataError, InputError

SHAPE = (4, 5, 3)
AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


def put(path: Path, value: int = 0, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> Path:
    """A volume that begins with ``value``; with value 0, what marks nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(shape, np.uint8)
    values[0, 0, 0] = value
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def rows(data: Path, layout: str = "auto", **options: Any) -> list[dict[str, Any]]:
    table = load_table(data, layout, **options).table
    return [
        {
            "id": row["id"],
            "path": Path(row["path"]).relative_to(data).as_posix(),
            "label": None if row["label"] is None or row["label"] != row["label"] else row["label"],
            "mask": Path(row["mask"]).relative_to(data).as_posix() if row["mask"] else "",
            "group": row["group"],
            "split": row["split"],
        }
        for row in table.astype(object).where(table.notna(), None).to_dict("records")
    ]


def describe(data: Path, **content: Any) -> Path:
    data.mkdir(parents=True, exist_ok=True)
    (data / "dataset.json").write_text(json.dumps(content))
    return data


def nnunet(data: Path, labels: dict[str, Any]) -> Path:
    describe(data, channel_names={"0": "FLAIR", "1": "T1"}, labels=labels, file_ending=".nii.gz")
    for case, truth in (("ms_001", 1), ("ms_002", 0)):
        for channel in range(2):
            put(data / "imagesTr" / f"{case}_{channel:04d}.nii.gz", 10 + channel)
        put(data / "labelsTr" / f"{case}.nii.gz", truth)
    put(data / "imagesTs" / "ms_009_0000.nii.gz", 10)
    put(data / "imagesTs" / "ms_009_0001.nii.gz", 11)
    return data


def test_nnunet_cases_are_rows_and_their_channels_are_read_in_order(tmp_path: Path) -> None:
    found = rows(nnunet(tmp_path, {"background": 0, "lesion": 1}))
    assert found[0] == {
        "id": "imagesTr__ms_001", "path": "imagesTr/ms_001_#channels=0000.nii.gz,0001.nii.gz", "label": 1,
        "mask": "labelsTr/ms_001.nii.gz", "group": "ms_001", "split": "train",
    }  # fmt: skip
    assert [(row["id"], row["label"], row["split"]) for row in found] == [
        ("imagesTr__ms_001", 1, "train"), ("imagesTr__ms_002", 0, "train"), ("imagesTs__ms_009", None, "test"),
    ]  # fmt: skip
    volume = read_volume(tmp_path / found[0]["path"])
    assert volume.data[:, 0, 0, 0].tolist() == [10, 11]
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert read_mask(tmp_path / found[0]["mask"], volume).sum() == 1


def test_channels_are_chosen_by_name_and_order(tmp_path: Path) -> None:
    nnunet(tmp_path, {"background": 0, "lesion": 1})
    assert rows(tmp_path, "nnunet:t1")[0]["path"] == "imagesTr/ms_001_0001.nii.gz"
    assert rows(tmp_path, "nnunet:T1,FLAIR")[0]["path"].endswith("#channels=0001.nii.gz,0000.nii.gz")
    with pytest.raises(DataError, match="expected channels of FLAIR, T1, found DWI"):
        load_table(tmp_path, "nnunet:DWI")


def test_labels_that_may_be_organs_have_to_be_named(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 1, "tumour": 2}
    nnunet(tmp_path, labels)
    with pytest.raises(DataError, match=r"found liver, which may be normal anatomy: .* --normal liver"):
        load_table(tmp_path)
    found = rows(tmp_path, normal="liver")
    assert found[0]["mask"] == "labelsTr/ms_001.nii.gz#labels=2"
    assert [row["label"] for row in found] == [0, 0, None]
    assert [row["label"] for row in rows(tmp_path, normal="background")] == [1, 0, None]
    with pytest.raises(DataError, match="expected --normal labels of background, liver, tumour, found kidney"):
        load_table(tmp_path, normal="kidney")


def test_decathlon_files_hold_all_channels(tmp_path: Path) -> None:
    describe(tmp_path, modality={"0": "FLAIR", "1": "T1w"}, labels={"0": "background", "1": "edema", "2": "tumor"})
    put(tmp_path / "imagesTr" / "BRATS_001.nii.gz", 5, shape=(*SHAPE, 2))
    put(tmp_path / "imagesTr" / "._BRATS_001.nii.gz", 5)
    put(tmp_path / "labelsTr" / "BRATS_001.nii.gz", 2)
    (row,) = rows(tmp_path)
    assert (row["path"], row["label"], row["group"]) == ("imagesTr/BRATS_001.nii.gz", 1, "BRATS_001")
    assert read_volume(tmp_path / row["path"]).data.shape == (2, *SHAPE)
    (row,) = rows(tmp_path, "nnunet:flair")
    assert row["path"] == "imagesTr/BRATS_001.nii.gz#volume=1"
    assert read_volume(tmp_path / row["path"]).data.shape == (1, *SHAPE)


def test_a_dataset_json_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json: expected a readable JSON file"):
        load_table(tmp_path)


def brats(data: Path) -> Path:
    for number in (1, 2):
        for modality in ("t1", "flair", "t1ce"):
            put(data / f"training/BraTS_{number}/BraTS_{number}_{modality}.nii.gz", 7)
        put(data / f"training/BraTS_{number}/BraTS_{number}_seg.nii.gz", number - 1)
    return data


def test_subject_folders_give_their_modalities_as_channels(tmp_path: Path) -> None:
    found = rows(brats(tmp_path))
    assert found[1] == {
        "id": "training__BraTS_2__BraTS_2".removeprefix("training__"),
        "path": "training/BraTS_2/BraTS_2_#channels=flair.nii.gz,t1.nii.gz,t1ce.nii.gz",
        "label": 1, "mask": "training/BraTS_2/BraTS_2_seg.nii.gz", "group": "BraTS_2", "split": "train",
    }  # fmt: skip
    assert found[0]["label"] == 0
    assert rows(tmp_path, "brats:flair")[0]["path"] == "training/BraTS_1/BraTS_1_flair.nii.gz"
    assert load_table(tmp_path).layout == "brats"


def test_a_subject_without_a_modality_is_named_with_the_way_out(tmp_path: Path) -> None:
    (brats(tmp_path) / "training/BraTS_2/BraTS_2_t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"BraTS_2: .* found no t1; --layout brats:NAME,... chooses \(flair, t1ce"):
        load_table(tmp_path)
    assert len(load_table(tmp_path, "brats:flair,t1ce")) == 2


def bids(data: Path) -> Path:
    for subject, session in (("01", "a"), ("02", "a")):
        folder = data / f"sub-{subject}/ses-{session}/anat"
        for suffix in ("FLAIR", "T1w"):
            put(folder / f"sub-{subject}_ses-{session}_{suffix}.nii.gz", 3)
    put(data / "derivatives/lesions/sub-02/ses-a/anat/sub-02_ses-a_label-lesion_mask.nii.gz", 1)
    return data


def test_bids_trees_ask_for_the_suffix_and_find_lesion_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found FLAIR, T1w; choose with --layout bids:FLAIR"):
        load_table(bids(tmp_path))
    found = rows(tmp_path, "bids:flair")
    assert [row["path"] for row in found] == [f"sub-0{n}/ses-a/anat/sub-0{n}_ses-a_FLAIR.nii.gz" for n in (1, 2)]
    assert [(row["group"], row["label"]) for row in found] == [("sub-01", None), ("sub-02", 1)]
    both = rows(tmp_path, "bids:FLAIR,T1w")
    assert both[0]["path"].endswith("sub-01_ses-a_#channels=FLAIR.nii.gz,T1w.nii.gz")


def test_bids_trees_of_pet_are_found_and_anatomy_comes_first(tmp_path: Path) -> None:
    for subject in ("01", "02"):
        put(tmp_path / f"sub-{subject}/pet/sub-{subject}_pet.nii.gz", 3)
    found = rows(tmp_path)
    assert [row["path"] for row in found] == [f"sub-0{n}/pet/sub-0{n}_pet.nii.gz" for n in (1, 2)]
    assert [row["group"] for row in found] == ["sub-01", "sub-02"]
    put(tmp_path / "sub-01/anat/sub-01_FLAIR.nii.gz", 3)
    assert [row["path"] for row in rows(tmp_path)] == ["sub-01/anat/sub-01_FLAIR.nii.gz"]
    assert [row["group"] for row in rows(tmp_path, "bids:pet")] == ["sub-01", "sub-02"]


def test_plain_folders_and_manifests_hold_volumes_too(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz", 3)
    put(tmp_path / "b.nii.gz", 3)
    put(tmp_path / "b_mask.nii.gz", 1)
    assert [(row["id"], row["label"], row["mask"]) for row in rows(tmp_path)] == [
        ("a", None, ""), ("b", 1, "b_mask.nii.gz"),
    ]  # fmt: skip
    (tmp_path / "list.csv").write_text(
        "path,label,mask,group\na.nii.gz,normal,,p1\nb.nii.gz,,b_mask.nii.gz,p2\na.nii.gz#volume=1,,,p3\n"
    )
    table = load_table(tmp_path / "list.csv").table
    assert table["id"].tolist() == ["a", "b", "a_volume_1"]
    assert table["label"].tolist()[:2] == [0, 1]
    assert table["group"].tolist() == ["p1", "p2", "p3"]


def test_images_are_still_images(tmp_path: Path) -> None:
    from PIL import Image

    put(tmp_path / "a.nii.gz", 3)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "x.png")
    assert load_table(tmp_path).layout == "folder"
    with pytest.raises(DataError, match="expected no channels after the layout 'folder', found flair"):
        load_table(tmp_path, "folder:flair")


def test_names_of_channels_and_labels_go_there_and_back() -> None:
    files = ["d/case_0000.nii.gz", "d/case_0001.nii.gz"]
    assert channel_files(channels_path(files)) == files
    assert channels_path(files[:1]) == files[0]
    assert channel_files("d/case.nii.gz") == []
    assert split_labels(labels_path("m.nii.gz", (4, 1))) == ("m.nii.gz", (1, 4))
    assert split_labels(labels_path("m.nii.gz", ())) == ("m.nii.gz", ())


def test_channels_of_another_grid_are_refused_by_name(tmp_path: Path) -> None:
    files = [str(put(tmp_path / "c_t1.nii", 1)), str(put(tmp_path / "c_t2.nii", 1, AFFINE @ np.diag([1, 1, 2, 1.0])))]
    with pytest.raises(InputError, match=r"c_t2.nii: expected a channel at the place of its volume"):
        read_volume(channels_path(files))
    put(tmp_path / "c_t2.nii", 1, shape=(4, 5, 4))
    with pytest.raises(InputError, match=r"c_t2.nii: expected a channel of 4 x 5 x 3 voxels .* found 4 x 5 x 4"):
        read_volume(channels_path(files))


@pytest.mark.data
def test_the_real_sets_are_read_as_they_lie(data_root: Path) -> None:
    """open_ms from its root and from one patient; BraTS slices with four modalities; the marked voxels are lesions."""
    whole = load_table(data_root / "open_ms")
    assert whole.layout == "open_ms"
    assert whole.table["group"].tolist() == ["patient19", "patient26"]
    assert whole.table["label"].tolist() == [1, 1]
    one = load_table(data_root / "open_ms/cross_sectional/MNI/patient26")
    assert one.layout == "open_ms"
    assert one.table["path"].tolist() == [whole.table["path"][1]]
    slices = load_table(data_root / "medical_io/brats_slices/training")
    assert slices.layout == "brats"
    volume = read_volume(slices.table["path"][0])
    single = read_volume(load_table(data_root / "medical_io/brats_slices/training", "brats:t1ce").table["path"][0])
    np.testing.assert_array_equal(volume.data[2], single.data[0])
    assert read_mask(slices.table["mask"][0], volume).any()
