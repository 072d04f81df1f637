"""A model of named channels meets folders: it finds what its layout found, in its order, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anodiff.data.layouts import load_table
from anodiff.data.layouts.channels import ChannelNames
from anodiff.data.volumes import read_volume
from anodiff.data.volumes.inputs import expand_volumes
from anodiff.errors import DataError, InputError

FLAIR, T1, T1CE = 10, 20, 30


def put(path: Path, value: int, shape: tuple[int, ...] = (4, 5, 3)) -> Path:
    """A volume that begins with ``value``; of a 4-D one each volume begins with the next number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(shape, np.uint8)
    values[0, 0, 0] = value + np.arange(shape[3]) if len(shape) == 4 else value
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


def known(data: Path, layout: str) -> ChannelNames:
    """What a model trained on ``data`` knows, by way of what its file says."""
    said = json.loads(json.dumps(ChannelNames.provenance(load_table(data, layout))))
    return ChannelNames.of(len(said["channels"]), said)


def found(folder: Path, names: ChannelNames) -> dict[str, list[int]]:
    """The id of each volume that is found, with the first voxel of its channels."""
    return {each.id: read_volume(each).data[:, 0, 0, 0].tolist() for each in expand_volumes([folder], names).sources}


def nnunet(
    data: Path, cases: tuple[str, ...] = ("ms_001", "ms_002"), modalities: tuple[str, ...] = ("FLAIR", "T1")
) -> Path:
    data.mkdir(parents=True, exist_ok=True)
    values = {"FLAIR": FLAIR, "T1": T1}
    labels = {"background": 0, "lesion": 1}
    channels = {str(number): name for number, name in enumerate(modalities)}
    (data / "dataset.json").write_text(json.dumps({"channel_names": channels, "labels": labels}))
    for case, folder in zip(cases, ("imagesTr", "imagesTs"), strict=True):
        for number, name in enumerate(modalities):
            put(data / folder / f"{case}_{number:04d}.nii.gz", values[name])
    put(data / "labelsTr" / f"{cases[0]}.nii.gz", 1)
    return data


def test_cases_of_nnunet_in_the_set_in_a_part_and_without_a_description(tmp_path: Path) -> None:
    names = known(nnunet(tmp_path / "a"), "nnunet:T1,FLAIR")
    assert found(tmp_path / "a", names) == {"imagesTr__ms_001": [T1, FLAIR], "imagesTs__ms_002": [T1, FLAIR]}
    assert found(tmp_path / "a/imagesTs", names) == {"ms_002": [T1, FLAIR]}
    # Another set numbers them otherwise, and its description says so; without one the model's own numbers hold.
    nnunet(tmp_path / "b", modalities=("T1", "FLAIR"))
    assert found(tmp_path / "b/imagesTs", names) == {"ms_002": [T1, FLAIR]}
    (tmp_path / "b/dataset.json").unlink()
    assert found(tmp_path / "b/imagesTs", names) == {"ms_002": [FLAIR, T1]}


def test_channels_that_a_description_does_not_name_are_refused(tmp_path: Path) -> None:
    names = known(nnunet(tmp_path / "a"), "nnunet")
    other = nnunet(tmp_path / "b", modalities=("FLAIR",))
    with pytest.raises(DataError, match="expected channels of FLAIR, found T1"):
        expand_volumes([other], names)


def test_a_case_that_ends_in_four_digits_is_no_channel_of_another(tmp_path: Path) -> None:
    """IXI_0001, IXI_0002 ... of the Decathlon, where only those of imagesTr have a mask that says so."""
    nnunet(tmp_path, ("IXI_0001", "IXI_0002"), ())
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR"}, "labels": {"0": "background", "1": "edema"}}')
    for case, part in (("IXI_0001", "Tr"), ("IXI_0002", "Ts"), ("IXI_0003", "Ts")):
        put(tmp_path / f"images{part}" / f"{case}.nii.gz", FLAIR)
    table = load_table(tmp_path).table
    assert [Path(path).name for path in table["path"]] == [f"IXI_000{n}.nii.gz" for n in (1, 2, 3)]
    assert table["group"].tolist() == ["IXI_0001", "IXI_0002", "IXI_0003"]


def test_a_missing_number_is_no_shift_of_the_others(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr/ms_001_0001.nii.gz").rename(tmp_path / "imagesTr/ms_001_0002.nii.gz")
    with pytest.raises(DataError, match=r"expected 2 channels \(FLAIR, T1\) of ms_001, found 0000, 0002"):
        load_table(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"labels": ["background"]}', "labels as names"),
        ('{"labels": {"lesion": "x"}}', "labels as names"),
        ('{"channel_names": ["FLAIR"]}', "channel_names as numbers"),
        ('{"channel_names": {"FLAIR": 0}}', "channel_names as numbers"),
        ('{"channel_names": {"0": "FLAIR", "2": "T1"}}', "channel_names as numbers"),
    ],
)
def test_a_description_of_another_shape_is_named(tmp_path: Path, content: str, what: str) -> None:
    put(tmp_path / "imagesTr/a_0000.nii.gz", 1)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=f"dataset.json: expected {what}"):
        load_table(tmp_path)


def test_volumes_of_four_dimensions_are_one_volume_for_a_model_of_several_channels(tmp_path: Path) -> None:
    file = put(tmp_path / "x.nii.gz", 1, (4, 5, 3, 2))
    two = expand_volumes([tmp_path], ChannelNames(2)).sources
    assert [read_volume(each).data[:, 0, 0, 0].tolist() for each in two] == [[1, 2]]
    assert [each.path for each in expand_volumes([file], ChannelNames(2)).sources] == [str(file)]
    assert len(expand_volumes([file], ChannelNames(1)).sources) == 2


def brats(data: Path) -> Path:
    for number in (1, 2):
        for name, value in (("t1", T1), ("flair", FLAIR), ("t1ce", T1CE)):
            put(data / f"B_{number}/B_{number}_{name}.nii.gz", value)
        put(data / f"B_{number}/B_{number}_seg.nii.gz", 1)
    return data


def test_subjects_give_the_models_modalities_in_its_order(tmp_path: Path) -> None:
    names = known(brats(tmp_path), "brats:t1ce,flair")
    assert found(tmp_path, names) == {"B_1__B_1": [T1CE, FLAIR], "B_2__B_2": [T1CE, FLAIR]}
    assert found(tmp_path / "B_2", names) == {"B_2": [T1CE, FLAIR]}
    passed = {Path(path).name: reason for path, reason in expand_volumes([tmp_path / "B_2"], names).skipped}
    assert set(passed) == {"B_2_t1.nii.gz", "B_2_seg.nii.gz"}
    assert passed["B_2_t1.nii.gz"] == "not one of the channels t1ce, flair of a subject"


def test_a_subject_without_a_channel_is_found_and_reading_names_the_channel(tmp_path: Path) -> None:
    names = known(brats(tmp_path), "brats:t1ce,flair")
    (tmp_path / "B_1/B_1_t1ce.nii.gz").unlink()
    first, second = expand_volumes([tmp_path], names).sources
    with pytest.raises(InputError, match=r"B_1/t1ce: expected a volume, found no such file"):
        read_volume(first)
    assert read_volume(second).data[:, 0, 0, 0].tolist() == [T1CE, FLAIR]


def test_a_model_of_one_channel_takes_its_own_where_others_lie_beside_it(tmp_path: Path) -> None:
    names = known(brats(tmp_path / "brats"), "brats:flair")
    assert set(map(tuple, found(tmp_path / "brats", names).values())) == {(FLAIR,)}
    put(tmp_path / "plain/scan.nii.gz", 7)
    assert list(found(tmp_path / "plain", names).values()) == [[7]]


def test_a_table_takes_the_models_channels_where_nobody_names_others(tmp_path: Path) -> None:
    """Two modalities in the alphabet's order would be the model's two in the wrong one."""
    brats(tmp_path)
    samples = load_table(tmp_path, channels=["t1", "flair"])
    assert read_volume(samples.table["path"][0]).data[:, 0, 0, 0].tolist() == [T1, FLAIR]
    samples = load_table(tmp_path, "brats:t1ce", channels=["t1", "flair"])
    assert samples.channels == (("t1ce", "t1ce"),)
    with pytest.raises(DataError, match="found dwi"):
        load_table(tmp_path, channels=["t1", "dwi"])
    only = nnunet(tmp_path / "one", modalities=("FLAIR",))
    assert load_table(only, channels=["T2"]).channels == (("FLAIR", "0000"),)


def bids(data: Path) -> Path:
    for subject in ("01", "02"):
        for suffix, value in (("FLAIR", FLAIR), ("T1w", T1)):
            put(data / f"sub-{subject}/ses-a/anat/sub-{subject}_ses-a_{suffix}.nii.gz", value)
    return data


@pytest.mark.parametrize("place", ["", "sub-02", "sub-02/ses-a", "sub-02/ses-a/anat"])
def test_bids_trees_subjects_and_sessions_give_the_models_suffixes(tmp_path: Path, place: str) -> None:
    names = known(bids(tmp_path), "bids:T1w,FLAIR")
    got = found(tmp_path / place, names)
    assert len(got) == (1 if place else 2)
    assert set(map(tuple, got.values())) == {(T1, FLAIR)}


def test_subjects_of_one_folder_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for number, truth in ((1, 0), (2, 1)):
        put(tmp_path / f"p{number}_FLAIR.nii.gz", FLAIR + number)
        put(tmp_path / f"p{number}_T1.nii.gz", T1 + number)
        put(tmp_path / f"p{number}_FLAIR_mask.nii.gz", truth)
    table = load_table(tmp_path).table
    assert table["group"].tolist() == ["p1", "p2"]
    assert table["label"].tolist() == [0, 1]
    assert [read_volume(path).data[:, 0, 0, 0].tolist() for path in table["path"]] == [
        [FLAIR + number, T1 + number] for number in (1, 2)
    ]


def test_two_masks_of_a_subject_are_not_chosen_between(tmp_path: Path) -> None:
    put(brats(tmp_path) / "B_1/B_1_mask.nii.gz", 1)
    with pytest.raises(DataError, match=r"B_1: expected one mask of a subject, found B_1_mask.nii.gz, B_1_seg.nii.gz"):
        load_table(tmp_path)


@pytest.mark.parametrize(
    ("folders", "groups"),
    [
        (("HGG/A", "LGG/B"), ["A", "B"]),
        (("p1/ses1", "p1/ses2", "p2/ses1"), ["p1", "p1", "p2"]),
        (("train/p1", "test/p1"), ["p1", "p1"]),
        (("BraTS-GLI-00005-000", "BraTS-GLI-00005-001"), ["BraTS-GLI-00005", "BraTS-GLI-00005"]),
    ],
)
def test_scans_of_one_patient_are_one_group(tmp_path: Path, folders: tuple[str, ...], groups: list[str]) -> None:
    for folder in folders:
        for name in ("flair", "t1"):
            put(tmp_path / folder / f"{name}.nii.gz", 1)
    table = load_table(tmp_path).table
    group: dict[Any, Any] = {
        str(Path(path).parent.relative_to(tmp_path)): row
        for path, row in zip(table["path"], table["group"], strict=True)
    }
    assert [group[folder] for folder in folders] == groups


def test_a_subject_that_is_called_lesion_is_no_mask(tmp_path: Path) -> None:
    put(tmp_path / "sub-lesion1/anat/sub-lesion1_FLAIR.nii.gz", 1)
    put(tmp_path / "sub-lesion1/anat/sub-lesion1_label-lesion_mask.nii.gz", 1)
    table = load_table(tmp_path).table
    assert table["path"].str.endswith("_FLAIR.nii.gz").tolist() == [True]
    assert table["label"].tolist() == [1]
