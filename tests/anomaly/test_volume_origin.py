"""What normal volumes were, and what of another one is unlike them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from anodiff.anomaly.volume_origin import Origin, raw_values
from anodiff.data.volumes.modality import modality_of_name
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError

SPACING = (1.0, 1.0, 1.0)


def volume(values: np.ndarray, valid: np.ndarray | None = None) -> Volume:
    data = values.astype(np.float32)[None]
    return Volume(data, np.eye(4), 0.0, 1.0, "float32", "v", "nifti", valid=valid)


def flair(seed: int, gain: float = 1.0) -> Volume:
    """Air around 0, tissue around 300."""
    rng = np.random.default_rng(seed)
    return volume(gain * np.abs(rng.normal(0, 10, (12, 12, 12)) + 300 * (rng.random((12, 12, 12)) < 0.5)))


def ct(seed: int = 0) -> Volume:
    """Air at -1000 HU, tissue around 40."""
    rng = np.random.default_rng(seed)
    return volume(np.where(rng.random((12, 12, 12)) < 0.5, -1000, 40) + rng.normal(0, 20, (12, 12, 12)))


def origin(volumes: list[Volume], modality: str = "") -> Origin:
    values = [raw_values(each) for each in volumes]
    return Origin.of([modality] * len(volumes), [SPACING] * len(volumes), values)


def test_raw_values_against_numpy() -> None:
    found = ct()
    low, high = np.percentile(found.data, (1, 99))
    assert raw_values(found) == {"span": pytest.approx(high - low), "negative": pytest.approx((found.data < 0).mean())}
    valid = np.zeros(found.shape, dtype=bool)
    valid[:6] = True
    assert raw_values(volume(found.data[0], valid)) == raw_values(volume(found.data[0, :6]))
    big = np.tile(found.data[0], (9, 9, 9))
    assert big.size > 1_000_000
    assert raw_values(volume(big))["negative"] == pytest.approx((big < 0).mean(), abs=0.005)
    assert raw_values(volume(big)) == raw_values(volume(big))


def test_another_modality_is_told_by_its_values_where_nobody_names_it() -> None:
    mr = origin([flair(n) for n in range(4)])
    assert mr.doubts("", SPACING, raw_values(flair(9))) == ()
    (said,) = mr.doubts("", SPACING, raw_values(ct()))
    share = float((ct().data < 0).mean())
    assert said.startswith(f"{share:.0%} of its raw values are negative, where the model's normal volumes have 0%")
    assert "another modality" in said
    # a modality that is named says nothing either, where the normals named none
    assert mr.doubts("CT", SPACING, raw_values(ct())) == (said,)
    of_ct = origin([ct(n) for n in range(4)])
    assert of_ct.doubts("", SPACING, raw_values(ct(9))) == ()
    assert "0% of its raw values are negative" in of_ct.doubts("", SPACING, raw_values(flair(0)))[0]


@pytest.mark.parametrize(("gain", "doubted"), [(0.001, True), (0.2, False), (5.0, False), (100.0, True)])
def test_mr_of_another_scanner_is_no_doubt_and_another_scale_is(gain: float, doubted: bool) -> None:
    said = origin([flair(n) for n in range(4)]).doubts("", SPACING, raw_values(flair(9, gain)))
    assert bool(said) == doubted
    assert all("raw values span" in each for each in said)


def test_names_of_modalities_come_first() -> None:
    values = raw_values(ct())
    named = Origin.of(["MR"], [SPACING], [raw_values(flair(0))])
    assert named.doubts("MR", SPACING, values) == ()
    assert named.foreign_modality("CT") is not None
    mixed = Origin.of(["MR", ""], [SPACING] * 2, [raw_values(flair(0))] * 2)
    assert mixed.foreign_modality("CT") is None
    assert mixed.doubts("CT", SPACING, values) == (
        "modality CT, where the model's normal volumes are MR as far as they say",
    )
    assert "voxels of 3 x 1 x 1 mm" in named.doubts("MR", (3.0, 1.0, 1.0), values)[0]


def test_a_volume_of_another_modality_is_refused_and_others_are_remarked() -> None:
    named = Origin.of(["MR"], [SPACING], [raw_values(flair(0))])
    scan = replace(ct(), modality="CT")
    with pytest.raises(InputError, match=r"^v: expected modality MR like the model's normal volumes, found CT$"):
        named.remarks(scan, "RAS")
    assert named.remarks(replace(scan, modality="MR"), "RAS") == ()
    assert named.remarks(replace(scan, modality=""), "RAS") == (named.foreign_sign(raw_values(scan)),)
    tall = replace(flair(1), modality="MR", affine=np.diag([1.0, 1.0, 4.0, 1.0]))
    assert "voxels of 1 x 1 x 4 mm" in named.remarks(tall, "RAS")[0]
    assert "voxels of 4 x 1 x 1 mm" in named.remarks(tall, "SRA")[0]


def test_it_is_kept_in_a_model_file_and_older_files_know_less() -> None:
    found = origin([flair(n) for n in range(3)], "MR")
    stored = json.loads(json.dumps(found.to_json()))
    assert Origin.from_json(stored) == found
    del stored["values"]
    older = Origin.from_json(stored)
    assert older.doubts("", SPACING, raw_values(ct())) == ()
    assert older.foreign_modality("CT") is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_ses-1_FLAIR.nii.gz", "MR"), ("sub-A1_acq-x_run-2_T1w.nii", "MR"), ("sub-01_pet.nii.gz", "PT"),
        ("sub-01_ct.nii.gz", "CT"), ("sub-01_desc-x_mask.nii.gz", ""), ("FLAIR.nii.gz", ""), ("x_sub-01_T1w.nii", ""),
        ("sub-01_T1w.png", ""),
    ],
)  # fmt: skip
def test_suffixes_of_bids_are_modalities(name: str, expected: str) -> None:
    assert modality_of_name(f"/data/sub-02_T1w/{name}") == expected
