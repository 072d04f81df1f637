"""Foregrounds made elsewhere: where they lie in the world, what their statistics are, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from pydicom.dataset import Dataset
from scipy.spatial import cKDTree

from anodiff.config import PreprocessConfig, VolumeConfig
from anodiff.data.volumes import read_volume, with_given
from anodiff.data.volumes.preprocess import VolumeIntensity, VolumePreprocessor, VolumeSettings
from anodiff.data.volumes.slices import VolumeSlicer
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError

CODES = ("RAS", "LPI", "ASL", "IRP", "SAR")
SHAPE = (7, 9, 8)
ZSCORE = {"kind": "zscore", "clip": None}


def oblique() -> np.ndarray:
    a, b = np.deg2rad(20), np.deg2rad(-30)
    about_k = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_i = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_i @ about_k @ np.diag([1.0, 1.5, 2.0])
    affine[:3, 3] = [-30.0, 12.5, 7.0]
    return affine


def turned(values: np.ndarray, affine: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    change = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(code)))
    return nibabel.orientations.apply_orientation(values, change), affine @ inv_ornt_aff(change, values.shape)


def save(path: Path, values: np.ndarray, affine: np.ndarray, units: str = "mm") -> Path:
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return path


def scan_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """Numbers without any symmetry, and a ragged lump off the middle."""
    rng = np.random.default_rng(3)
    values = rng.normal(50, 10, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:4, 2:8, 3:6] = rng.random((3, 6, 3)) < 0.8
    return values, mask


def centres(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """World coordinates (N, 3) of all voxels, in C order."""
    return nibabel.affines.apply_affine(affine, np.indices(shape).reshape(3, -1).T)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("affine", [np.diag([1.0, 2.0, 1.5, 1.0]), oblique()], ids=["straight", "oblique"])
def test_a_mask_lies_where_the_world_says(tmp_path: Path, code: str, affine: np.ndarray) -> None:
    values, mask = scan_and_mask()
    other = CODES[(CODES.index(code) + 2) % len(CODES)]
    scan = save(tmp_path / "x.nii.gz", *turned(values, affine, code))
    save(tmp_path / "m.nii.gz", *turned(mask.astype(np.uint8), affine, other))
    volume = with_given(read_volume(scan), tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(volume.foreground, turned(mask, affine, code)[0])
    intensity = VolumeIntensity("percentile", low=10, high=90)
    prepared = VolumePreprocessor(VolumeSettings("LPI", spacing=(1.7, 1.3, 1.9), intensity=intensity))(volume)
    assert prepared.given
    way = prepared.plan.model
    _, nearest = cKDTree(centres(SHAPE, affine)).query(centres(way.shape, way.affine))
    np.testing.assert_array_equal(prepared.foreground.numpy().ravel(), mask.ravel()[nearest])
    # statistics: of what is inside on the model's grid, and of nothing else
    resampled = prepared.plan.forward(volume.data)[0]
    low, high = np.percentile(resampled[prepared.foreground.numpy()].astype(np.float64), (10, 90))
    expected = np.clip((resampled - low) / (high - low) * 2 - 1, -1, 1)
    np.testing.assert_allclose(prepared.image[0].numpy(), expected, atol=1e-5)


def test_statistics_are_those_of_the_stored_voxels_inside(tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    values[~mask] += 500  # what a threshold would take for the body
    volume = with_given(read_volume(save(tmp_path / "x.nii", values, np.eye(4))), mask)
    for kind in ("zscore", "robust"):
        settings = VolumeSettings("RAS", intensity=VolumeIntensity(kind, clip=None if kind == "zscore" else 5.0))
        image = VolumePreprocessor(settings)(volume).image[0].numpy()
        inside = values[mask].astype(np.float64)
        if kind == "zscore":
            expected = (values - inside.mean()) / inside.std()
        else:
            low, middle, high = np.percentile(inside, (25, 50, 75))
            expected = np.clip((values - middle) / (5 * (high - low) / 1.3489795), -1, 1)
        np.testing.assert_allclose(image[mask], expected[mask], rtol=1e-3, atol=1e-4)


def test_the_crop_is_centred_on_it_and_the_rim_comes_off(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 5, (24, 20, 16)).astype(np.float32)
    mask = np.zeros(values.shape, dtype=bool)
    mask[14:21, 3:8, 5:12] = True
    volume = with_given(read_volume(save(tmp_path / "x.nii", values, np.eye(4))), mask)
    settings = VolumeSettings("RAS", size=(9, 7, 9), crop_to_foreground=True, foreground_erode_px=1)
    prepared = VolumePreprocessor(settings)(volume)
    np.testing.assert_allclose(prepared.plan.model.affine[:3, 3], [13, 2, 4])
    inner = np.zeros(values.shape, dtype=bool)
    inner[15:20, 4:7, 6:11] = True
    np.testing.assert_array_equal(prepared.foreground.numpy(), inner[13:22, 2:9, 4:13])


def test_slices_of_a_model_of_images_look_at_it(tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    volume = with_given(read_volume(save(tmp_path / "x.nii", values, np.eye(4))), mask)
    preprocess = PreprocessConfig(size=(9, 9), resize="pad", intensity=ZSCORE, foreground="otsu")
    slicer = VolumeSlicer(preprocess, VolumeConfig(axes=(2,), orientation="RAS", statistics="slice", min_foreground=0))
    stack = slicer.cut(slicer.prepare(volume), 2, volume)
    assert stack.index == tuple(np.flatnonzero(mask.any(axis=(0, 1))))
    for n, k in enumerate(stack.index):
        inside = values[:, :, k][mask[:, :, k]].astype(np.float64)
        box = (slice(0, 9), slice(1, 8))
        np.testing.assert_array_equal(stack.foreground[n].numpy()[box], mask[:, :, k].T)
        expected = (values[:, :, k] - inside.mean()) / inside.std()
        np.testing.assert_allclose(stack.images[n, 0].numpy()[box], expected.T, atol=1e-4)


def test_a_recipe_that_needs_one_says_what_it_looked_for(tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    volume = read_volume(save(tmp_path / "x.nii.gz", values, np.eye(4)))
    for statistics in ("volume", "slice"):
        section = VolumeConfig(axes=(2,), statistics=statistics)
        slicer = VolumeSlicer(PreprocessConfig(size=(9, 9), foreground="given", intensity=ZSCORE), section)
        with pytest.raises(InputError, match=r"x\.nii\.gz: expected a foreground mask.*x_brain_mask.*--foreground"):
            slicer.prepare(volume)
    slicer.prepare(with_given(volume, mask))


def test_what_cannot_be_used_is_refused_with_both_names(tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    volume = read_volume(save(tmp_path / "x.nii", values, oblique()))

    def refused(name: str, match: str, array: np.ndarray, affine: np.ndarray) -> None:
        save(tmp_path / name, array, affine)
        with pytest.raises(InputError, match=match) as error:
            with_given(volume, tmp_path / name)
        assert "x.nii" in str(error.value)
        assert name in str(error.value)

    bits = mask.astype(np.uint8)
    refused("short.nii", "expected 7 x 9 x 8 voxels", bits[:, :, :-1], oblique())
    moved = oblique()
    moved[0, 3] += 0.5
    refused("moved.nii", r"0\.5 mm away", bits, moved)
    mirrored = oblique() @ np.diag([-1, 1, 1, 1])
    refused("mirrored.nii", "mm away", bits, mirrored)
    refused("empty.nii", "found an empty one", bits * 0, oblique())
    refused("two.nii", "one channel", np.stack([bits, bits], axis=-1), oblique())
    with pytest.raises(InputError, match=r"x\.nii: its foreground.*no\.nii.*found no such file"):
        with_given(volume, tmp_path / "no.nii")
    with pytest.raises(InputError, match=r"x\.nii: .*7 x 9 x 8.*found 9 x 7 x 8"):
        with_given(volume, np.swapaxes(mask, 0, 1))
    # what is right is right in metres too
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ oblique()
    save(tmp_path / "metres.nii", bits, metres, "meter")
    np.testing.assert_array_equal(with_given(volume, tmp_path / "metres.nii").foreground, mask)


def test_one_that_vanishes_on_the_model_s_grid_is_refused(tmp_path: Path) -> None:
    values, _ = scan_and_mask()
    single = np.zeros(SHAPE, dtype=bool)
    single[0, 0, 0] = True
    volume = with_given(read_volume(save(tmp_path / "x.nii", values, np.eye(4))), single)
    with pytest.raises(InputError, match=r"no voxel left \(of 1\)"):
        VolumePreprocessor(VolumeSettings("RAS", spacing=(3.5, 3.5, 3.5)))(volume)


def test_one_without_spread_is_named_with_its_size(tmp_path: Path) -> None:
    values, mask = np.random.default_rng(0).normal(50, 10, SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
    mask[:3, :3, 0], values[:3, :3, 0] = 1, 0
    scan, file = save(tmp_path / "x.nii", values, np.eye(4)), save(tmp_path / "m.nii", mask, np.eye(4))
    settings = VolumeSettings("RAS", intensity=VolumeIntensity("robust", clip=5.0))
    with pytest.raises(InputError, match=r"x\.nii: .*no spread \(quartiles\); .* that of \S*m\.nii, 9 voxels"):
        VolumePreprocessor(settings)(with_given(read_volume(scan), file))


def test_a_skull_stripped_volume_serves_as_its_own(tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    path = save(tmp_path / "x.nii", np.where(mask, values, 0), np.eye(4))
    np.testing.assert_array_equal(with_given(read_volume(path), path).foreground, mask)


def test_values_that_are_no_numbers_are_outside(tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    hole = np.argwhere(mask)[0]
    values[tuple(hole)] = np.nan
    volume = with_given(read_volume(save(tmp_path / "x.nii", values, np.eye(4))), mask)
    inside = VolumePreprocessor(VolumeSettings("RAS"))(volume).foreground.numpy()
    assert not inside[tuple(hole)]
    assert inside.sum() == mask.sum() - 1


def test_a_nifti_mask_of_a_dicom_volume(write_slice: Callable[..., Path], tmp_path: Path) -> None:
    values, mask = scan_and_mask()
    folder = tmp_path / "study"
    folder.mkdir()
    for k in range(SHAPE[2]):
        write_slice(folder / f"{k}.dcm", (values[:, :, k].T * 10).astype(np.int16), (3.0, -4.0, 2.5 * k))
    volume: Volume = read_volume(folder)
    saved = save(tmp_path / "study_brain.nii", *turned(*_ras(volume, mask), "ASL"))
    np.testing.assert_array_equal(with_given(volume, saved).foreground, mask)
    with pytest.raises(InputError, match="mm away"):
        with_given(replace(volume, affine=volume.affine + _shift(2.5)), saved)


def _shift(far: float) -> np.ndarray:
    moved = np.zeros((4, 4))
    moved[2, 3] = far
    return moved


def _ras(volume: Volume, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mask stored like a volume, as nibabel turns it to RAS."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.uint8), volume.affine))
    return np.asarray(image.dataobj), image.affine


@pytest.fixture
def write_slice() -> Callable[..., Path]:
    def write(path: Path, pixels: np.ndarray, position: tuple[float, float, float]) -> Path:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, generate_uid

        one = Dataset()
        one.SOPClassUID, one.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
        one.Modality, one.SeriesNumber = "MR", 5
        one.PixelSpacing, one.ImageOrientationPatient = [2.0, 1.5], [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = list(position)
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelData = np.ascontiguousarray(pixels).tobytes()
        one["PixelData"].VR = "OW"
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.save_as(path, enforce_file_format=True)
        return path

    return write
