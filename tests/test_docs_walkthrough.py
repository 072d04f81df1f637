"""docs/medical.md: its way from a folder of DICOM to an overlay, walked by the page's own commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from anodiff.data.volumes import find_volumes, read_volume
from anodiff.pipelines import cli

PAGE = Path(__file__).parents[1] / "docs" / "medical.md"
SECTION = "## From a folder of DICOM to an overlay in a viewer"
#: what makes the page's training one of seconds; everything else is the page's
SMALLER = (
    "preprocess.size=[24,24]", "volume.spacing=[3,3,3]", "volume.neighbours=1", "network.channels=[8,16]",
    "network.blocks=1", "network.attention=[false,false]", "network.stem=1", "training.images=256",
    "training.warmup_images=64", "training.ema_halflife_images=64", "training.validation_images=8",
    "training.validate_every_images=256", "training.batch_size=8", "augment.shift_px=1",
)  # fmt: skip
ROWS, COLUMNS, SLICES = 22, 20, 12
SIDE_MM = 3.0
#: rows, columns and slices of the bright cube
LESION = (slice(6, 10), slice(11, 15), slice(5, 8))


def lines() -> Iterator[str]:
    """Every command of the section, without what a shell takes for a comment."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index(SECTION) + len(SECTION) :]
    section = section[: section.index("\n## ")]
    for block in re.findall(r"^```bash\n(.*?)^```$", section, re.M | re.S):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def head(seed: int) -> np.ndarray:
    """(rows, columns, slices) int16: tissue around 300 in air."""
    rng = np.random.default_rng(seed)
    places = np.indices((ROWS, COLUMNS, SLICES)).astype(float)
    middle = (np.array((ROWS, COLUMNS, SLICES)) - 1) / 2
    radius = np.array((9.5, 8.5, 8.0))[:, None, None, None] + rng.normal(0, 0.2, (3, 1, 1, 1))
    inside = (((places - middle[:, None, None, None]) / radius) ** 2).sum(axis=0) < 1
    tissue = 300 + 30 * np.cos(places[0] / 3) + 12 * rng.normal(size=inside.shape)
    return np.where(inside, tissue, np.abs(3 * rng.normal(size=inside.shape))).astype(np.int16)


def write_study(folder: Path, values: np.ndarray, patient: int) -> None:
    """An axial MR series; the names of its files say nothing of their order."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(SLICES):
        one = Dataset()
        one.PatientName, one.PatientID, one.PatientBirthDate = f"SECRET^{patient}", f"SECRET{patient}", "19500101"
        one.SOPClassUID, one.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.4"), generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.SeriesNumber, one.InstanceNumber = "MR", 3, k + 1
        one.PixelSpacing, one.SliceThickness = [SIDE_MM, SIDE_MM], SIDE_MM
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [-30.0, -32.0, 10.0 + SIDE_MM * k]
        one.Rows, one.Columns, one.SamplesPerPixel = ROWS, COLUMNS, 1
        one.PhotometricInterpretation = "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelData = np.ascontiguousarray(values[:, :, k]).tobytes()
        one["PixelData"].VR = "OW"
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
            one.SOPClassUID,
            one.SOPInstanceUID,
        )
        one.save_as(folder / f"IM{(k * 7) % SLICES:03d}", enforce_file_format=True)


def walk(line: str) -> str:
    """Runs one command of the page in this process; the name of what ran, "" for what is outside of anodiff."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-c"]:
        exec(compile(words[2], str(PAGE), "exec"), {})
        return "python"
    if words[0] != "anodiff":
        return ""
    if words[1] == "train":
        words += [part for each in SMALLER for part in ("--set", each)]
    if words[1] in ("train", "score"):
        words += ["--device", "cpu", "--precision", "fp32"]
    assert cli.main(words[1:]) == 0, line
    return words[1]


@pytest.mark.slow
def test_the_page_leads_from_a_folder_of_dicom_to_an_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for patient in range(8):
        write_study(Path("normals") / f"{patient}", head(patient), patient)
    values = head(100)
    values[LESION] += 260
    write_study(Path("study"), values, 100)
    commands = list(lines())
    assert len(commands) < 10
    ran = [walk(line) for line in commands]
    assert [name for name in ran if name] == ["configs", "train", "score", "python"]
    # what the page names without running it lies where the page says
    assert any(line.startswith("open out/study/report.html") for line in commands)
    assert Path("out/study/report.html").stat().st_size > 10_000
    assert "SECRET" not in "".join(capsys.readouterr()) + Path("out/study/report.html").read_text()
    [source] = find_volumes("study").sources
    [mapped] = Path("out/study/maps").glob("*.nii.gz")
    assert any("-o out/study/maps/ID.nii.gz" in line for line in commands)

    marked = np.zeros(values.shape, bool)
    marked[LESION] = True
    # the map and the scan that the page writes beside it are one grid, on which the lesion is
    found, scan = nibabel.load(mapped), nibabel.load("scan.nii.gz")
    assert np.array_equal(found.affine, scan.affine)
    assert np.allclose(found.affine, read_volume(source).affine)
    volume = found.get_fdata().transpose(1, 0, 2)
    assert np.array_equal(scan.get_fdata().transpose(1, 0, 2), values)
    assert marked[np.unravel_index(volume.argmax(), volume.shape)]
    rows, columns, slices = np.argwhere(marked).mean(axis=0)
    centre = np.array([-(-30.0 + SIDE_MM * columns), -(-32.0 + SIDE_MM * rows), 10.0 + SIDE_MM * slices])  # RAS+
    peak = found.affine @ np.array([*np.unravel_index(found.get_fdata().argmax(), found.shape), 1.0])
    assert np.linalg.norm(peak[:3] - centre) < 2 * SIDE_MM

    # the overlay: a picture a slice, at its slice's place, coloured where the lesion is
    pictures = sorted(Path("out/study/dicom").rglob("*.dcm"))
    assert len(pictures) == SLICES
    colour = np.zeros(values.shape)
    for path in pictures:
        picture = pydicom.dcmread(path)
        k = round((float(picture.ImagePositionPatient[2]) - 10.0) / SIDE_MM)
        rgb = picture.pixel_array.astype(int)
        colour[:, :, k] = rgb.max(axis=2) - rgb.min(axis=2)
    # the top of the scale over a bright pixel is pale, the lesion's blurred rim is more colourful than its middle
    assert colour[marked].min() > 20
    assert colour[marked].mean() > 5 * colour[~marked].mean()
    middle = [np.average(axis, weights=colour) for axis in np.indices(colour.shape)]
    assert np.linalg.norm(np.array(middle) - (rows, columns, slices)) < 2
