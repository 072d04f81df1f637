"""Every real file is read, or refused with a sentence that names the reason: the table of outcomes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.nicom import dicomwrappers

from anodiff.data.volumes import find_volumes, read_volume, write_map
from anodiff.data.volumes.dicom_read import LPS_TO_RAS
from anodiff.data.volumes.geometry import plan
from anodiff.errors import InputError

pytestmark = pytest.mark.data

#: pattern of the path below medical_io -> the reason why it is passed over or refused; all other files are read
REFUSED = {
    "dicom/dicomdirtests/**/DICOMDIR*": "a DICOM directory",
    "dicom/dicomdirtests/TINY_ALPHA/PT*/**/IM*": "CT Image Storage: it has no image size",
    "dicom/dicomdirtests/**/README*": "not a volume of a known format",
    "dicom/ExplVR_*NoMeta.dcm": "RT Ion Plan Storage: it has no image size",
    "dicom/UN_sequence.dcm": "CT Image Storage: it has no image size",
    "dicom/badVR.dcm": "a radiotherapy dose grid",
    "dicom/crayons.icc": "not a volume of a known format",
    "dicom/empty_charset_LEI.dcm": "an object of no named kind",
    "dicom/liver*.dcm": "a segmentation",
    "dicom/meta_missing_tsyntax.dcm": "an object of no named kind",
    "dicom/n*_priv_SQ.dcm": "an object of no named kind",
    "dicom/priv_SQ.dcm": "MR Image Storage: it has no image size",
    "dicom/no_meta.dcm": "an object of no named kind",
    "dicom/no_meta_group_length.dcm": "RT Image Storage: it has no image size",
    "dicom/reportsi*.dcm": "Basic Text SR Storage: it has no image size",
    "dicom/rtdose*.dcm": "a radiotherapy dose grid",
    "dicom/rtplan*.dcm": "RT Plan Storage: it has no image size",
    "dicom/rtstruct.dcm": "RT Structure Set Storage: it has no image size",
    "dicom/*.dump": "not a volume of a known format",
    "dicom/*.json": "not a volume of a known format",
    "dicom/test-SR.dcm": "Comprehensive SR Storage: it has no image size",
    "dicom/waveform_ecg.dcm": "12-lead ECG Waveform Storage: it has no image size",
    "dicom/zipMR.gz": "a compressed file that holds neither NIfTI nor MGH",
    "dicom/MR_truncated.dcm": "a damaged DICOM file: expected 8,192 bytes of pixels, found 8,130",
    "dicom/JPEG2000-embedded-sequence-delimiter.dcm": "found a damaged file",
    "nifti_and_friends/.gitignore": "not a volume of a known format",
    "nifti_and_friends/analyze.hdr": "found Analyze 7.5",
    "nifti_and_friends/nifti?.hdr": "a file of the same name that ends in .img",
    "nifti_and_friends/row_major.dconn.nii": "found CIFTI-2",
}
#: needs the extra ``dicom``: without it, the extra is named
EXTRA = (
    "dicom/GDCMJ2K_TextGBR.dcm",
    "dicom/JPEGLSNearLossless_*.dcm",
    "dicom/MR_small_jpeg_ls_lossless.dcm",
    "dicom/SC_rgb_jls_*.dcm",
    "dicom/SC_rgb_jpeg_gdcm.dcm",
)
#: 12-bit JPEG: not in the extra either (the only decoder is under the GPL); JPEG-lossy.dcm is damaged besides
OTHER = ("dicom/JPGExtended.dcm", "dicom/JPEG-lossy.dcm")


@pytest.fixture(scope="module")
def medical(data_root: Path) -> Path:
    folder = data_root / "medical_io"
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder {folder}")
    return folder


def _outcome(path: Path) -> str:
    """ "" where every volume in the file is read, else the sentence that says why not."""
    found = find_volumes(path)
    if not found.sources:
        assert len(found.skipped) == 1
        return found.skipped[0][1]
    for source in found.sources:
        try:
            volume = read_volume(source)
        except InputError as error:
            return str(error) if str(path) in str(error) else f"a message without the file: {error}"
        assert np.isfinite(volume.data).all()
        assert volume.low < volume.high
        assert np.linalg.matrix_rank(volume.affine) == 4
    return ""


@pytest.mark.filterwarnings("ignore")
def test_table_of_outcomes(medical: Path) -> None:
    files = [p for part in ("dicom", "nifti_and_friends") for p in sorted((medical / part).rglob("*")) if p.is_file()]
    expected = {path: reason for pattern, reason in REFUSED.items() for path in medical.glob(pattern)}
    for pattern in EXTRA:
        if find_spec("gdcm") is None:
            expected |= dict.fromkeys(medical.glob(pattern), "anodiff[dicom]")
    other = [medical / name for name in OTHER] if find_spec("libjpeg") is None else [medical / OTHER[1]]
    expected |= dict.fromkeys(other, "found a damaged file")
    assert len(files) == 190
    wrong = []
    for path in files:
        outcome = _outcome(path)
        reason = expected.get(path, "")
        if not (reason in outcome if reason else not outcome):
            wrong.append(f"{path.relative_to(medical)}: expected {reason or 'to be read'!r}, found {outcome!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_whole_folders_are_grouped(medical: Path) -> None:
    by_description = {source.description: source for source in find_volumes(medical / "dicom").sources}
    five = read_volume(by_description["DICOM CT series 5: 5 slices of 16 x 16 pixels"])
    assert five.spacing_mm[2] == pytest.approx(2.5, abs=1e-4)
    gap = by_description["DICOM CT series 2: 4 slices of 16 x 16 pixels"]
    with pytest.raises(InputError, match=r"161 missing: slices 1 and 2 are 202\.5 mm apart where 1\.25 mm is usual"):
        read_volume(gap)


def test_ct_series_has_nibabels_world(medical: Path) -> None:
    volume = read_volume(medical / "ct_series")
    assert volume.shape == (88, 128, 17)
    assert volume.modality == "CT"
    for k in (0, 8, 16):
        dataset = pydicom.dcmread(volume.frames[k].path)
        reference = LPS_TO_RAS @ dicomwrappers.wrapper_from_data(dataset).affine
        for i, j in ((0, 0), (87, 0), (3, 127)):
            assert np.allclose(volume.affine @ [i, j, k, 1], reference @ [j, i, 0, 1], atol=1e-3)
        assert np.array_equal(volume.data[0, :, :, k].T, dataset.pixel_array)


def test_two_dimensional_brats(medical: Path, tmp_path: Path) -> None:
    path = sorted((medical / "brats_slices").rglob("*flair*.nii.gz"))[0]
    volume = read_volume(path)
    assert volume.shape == (240, 240, 1)
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii.gz"))
    assert out.shape == (240, 240)
    assert np.array_equal(out.affine, nib.load(path).affine)


def test_mni_flair_there_and_back(data_root: Path, tmp_path: Path) -> None:
    paths = sorted((data_root / "open_ms").rglob("patient19/FLAIR*.nii.gz"))
    if not paths:
        pytest.skip("real data absent: open_ms")
    volume = read_volume(paths[0])
    assert volume.shape == (182, 218, 182)
    way = plan(volume, "LPS", size=(160, 200, 160))
    back = way.back(way.forward(volume.data[0]), fill=np.nan)
    kept = np.isfinite(back)
    assert np.array_equal(back[kept], volume.data[0][kept])
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii"))
    source = nib.load(paths[0])
    assert np.array_equal(out.affine, source.affine)
    assert out.header.get_zooms() == source.header.get_zooms()
