"""Small volumes, models whose map is known in closed form, and a calibrated model of volumes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from anodiff.config import parse_config
from anodiff.engine.loop import Summary
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.pipelines import score

#: D = 0 whatever it is shown (a fresh network that predicts the image), so that a map is the image itself
MIRROR: dict[str, Any] = {
    "name": "mirror",
    "polarity": "brighter",
    "preset": "one-step",
    "presets": {"one-step": {"smooth_px": 0.0, "standardise": "none", "foreground": False, "antithetic": False}},
    "preprocess": {"size": [16, 16], "intensity": {"kind": "zscore"}},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "diffusion": {"prediction": "x0"},
    "engine": {"network_batch": 16},
}


def mirror(path: Path, *, lively: bool = False, **changes: Any) -> Path:
    """A model file of MIRROR; ``lively``: with weights such that its estimate depends on all that it sees."""
    config = parse_config({**MIRROR, **changes})
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    for parameter in denoiser.parameters() if lively else ():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    DiffusionModel(config, denoiser).save(path)
    return path


def oblique() -> np.ndarray:
    """RAS+ with unlike spacings, turned about two axes, the origin moved."""
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_k = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_i = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_i @ about_k @ np.diag([1.0, 1.5, 2.0])
    affine[:3, 3] = [-30.0, 12.5, 7.0]
    return affine


def head(seed: int, shape: tuple[int, int, int] = (16, 16, 16), lesion: bool = False) -> np.ndarray:
    """A ball of noise around 100 in air around 0; with ``lesion`` a bright cube of 3 voxels a side in it."""
    rng = np.random.default_rng(seed)
    middle = (np.array(shape) - 1) / 2
    inside = ((np.indices(shape) - middle[:, None, None, None]) ** 2).sum(axis=0) < (0.45 * min(shape)) ** 2
    values = np.where(inside, 100 + 6 * rng.normal(size=shape), np.abs(rng.normal(size=shape)))
    if lesion:
        values[6:9, 7:10, 5:8] += 120
    return values.astype(np.float32)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run(model: Path, output: Path, *inputs: Path | str, **options: Any) -> Summary:
    return score.run(model, [str(path) for path in inputs], output, device="cpu", quiet=True, **options)


def turned(values: np.ndarray, affine: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """The RAS volume (values, affine) stored in another order of axes, by nibabel."""
    change = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(code)))
    return nibabel.orientations.apply_orientation(values, change), affine @ inv_ornt_aff(change, values.shape)


@pytest.fixture(scope="session")
def scans() -> SimpleNamespace:
    """The helpers of this file, which test modules cannot import."""
    functions = (mirror, oblique, head, save, table, run, turned)
    return SimpleNamespace(recipe=MIRROR, replace=replace, **{function.__name__: function for function in functions})


@pytest.fixture(scope="session")
def volumes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of volumes, calibrated on 24 of them in two splits."""
    from anodiff.pipelines import calibrate

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("volumes")
    raw = mirror(root / "raw.safetensors", preprocess={"size": [16, 16], "intensity": {"kind": "robust", "clip": 5.0}},
                 volume={"axes": [2], "score_slices": 2, "min_foreground": 0.05, "statistics": "volume"})  # fmt: skip
    lines = ["path,label,group,split"]
    for n in range(26):
        save(root / f"n{n:02d}.nii.gz", head(n))
        lines.append(f"n{n:02d}.nii.gz,0,p{n},{'train' if n < 4 else 'val'}")
    (root / "normals.csv").write_text("\n".join(lines) + "\n")
    calibrate.run(raw, root / "normals.csv", root / "model.safetensors", device="cpu", quiet=True)
    return root / "model.safetensors"


@pytest.fixture
def ct(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CT series of 8 slices with a patient whose name must not appear."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True)
        values = head(3).astype(np.int16)
        for k in range(8):
            one = Dataset()
            one.PatientName, one.PatientID, one.PatientBirthDate = "SECRET^ANNA", "SECRETID", "19500101"
            one.SOPClassUID, one.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.2"), generate_uid()
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
            one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 5, 8 - k
            one.PixelSpacing, one.SliceThickness = [2.0, 1.5], 3.0
            one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * k]
            one.Rows, one.Columns, one.SamplesPerPixel = 16, 16, 1
            one.PhotometricInterpretation = "MONOCHROME2"
            one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
            one.PixelData = np.ascontiguousarray(values[:, :, k + 4].T).tobytes()
            one["PixelData"].VR = "OW"
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        return folder

    return write
