"""Small DICOM files made here: one slice at a time, with a patient whose data must never appear anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

#: what stands in the tags of the patient, malformed on purpose where a library might want to quote it
SECRETS = {
    "PatientName": "SECRETNAME^ANNA",
    "PatientID": "SECRETID-0042",
    "PatientBirthDate": "19SECRETDATE",
    "OtherPatientIDs": "SECRETOTHER",
    "PatientAddress": "SECRETSTREET 7",
}
CT = "1.2.840.10008.5.1.4.1.1.2"
SliceWriter = Callable[..., Path]


def make_slice(
    pixels: np.ndarray,
    position: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
    orientation: tuple[float, ...] | None = (1, 0, 0, 0, 1, 0),
    **tags: Any,
) -> Dataset:
    """A CT slice of (rows, columns) samples; ``tags`` are set last, None deletes one."""
    dataset = Dataset()
    for name, value in SECRETS.items():
        dataset.add_new(name, {"PatientName": "PN", "PatientBirthDate": "LT"}.get(name, "LO"), value)
    if "PatientBirthDate" in SECRETS:
        dataset["PatientBirthDate"].VR = "DA"
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200101", "101010", "7", "A1"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 5, 1
    dataset.PixelSpacing, dataset.SliceThickness = [2.0, 1.5], 3.0
    if orientation is not None:
        dataset.ImageOrientationPatient = list(orientation)
    if position is not None:
        dataset.ImagePositionPatient = list(position)
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Write it, its meta information filled in."""
    dataset.file_meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(name="make_slice")
def make_slice_fixture() -> Callable[..., Dataset]:
    return make_slice


@pytest.fixture
def write_slice() -> SliceWriter:
    """(path, pixels, ...) -> the written path; see ``make_slice``."""

    def write(path: Path, pixels: np.ndarray, *args: Any, **tags: Any) -> Path:
        return save(make_slice(pixels, *args, **tags), path)

    return write


@pytest.fixture
def write_series(write_slice: SliceWriter) -> Callable[..., np.ndarray]:
    """Write slices at ``positions`` into a folder, file names in reverse; returns their samples (K, rows, columns)."""

    def write(folder: Path, positions: list[tuple[float, float, float]], **tags: Any) -> np.ndarray:
        seed = tags.pop("seed", 0)
        samples = np.random.default_rng(seed).integers(0, 1000, (len(positions), 4, 5)).astype(np.int16)
        for number, (position, pixels) in enumerate(zip(positions, samples, strict=True)):
            own = {name: value[number] if isinstance(value, list) else value for name, value in tags.items()}
            name = f"{own.get('SeriesInstanceUID', 's')}_{99 - number:02d}.dcm"
            orientation = own.pop("orientation", (1, 0, 0, 0, 1, 0))
            own.setdefault("InstanceNumber", 50 - number)
            write_slice(folder / name, pixels, position, orientation, **own)
        return samples

    return write


@pytest.fixture
def secrets() -> tuple[str, ...]:
    """Words of the patient that no message may hold."""
    return ("SECRET", "ANNA")


@pytest.fixture(name="save_dicom")
def save_fixture() -> Callable[[Dataset, Path], Path]:
    return save
