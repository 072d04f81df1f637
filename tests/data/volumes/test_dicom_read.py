from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.nicom import dicomwrappers
from pydicom.dataset import Dataset

from anodiff.data.volumes import find_volumes, read_volume, write_map
from anodiff.data.volumes.dicom_read import LPS_TO_RAS
from anodiff.errors import InputError

TILTED = tuple(np.round(np.concatenate([[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]]), 6))
SAMPLES = np.random.default_rng(1).integers(-500, 900, (4, 5)).astype(np.int16)


def test_world_coordinates_are_nibabels_with_axes_turned(write_slice: Any, make_slice: Any, tmp_path: Path) -> None:
    """nibabel's DICOM affine maps (row, column) to LPS; ours maps (column, row) to RAS."""
    position = (-11.5, 7.0, 42.25)
    volume = read_volume(write_slice(tmp_path / "a.dcm", SAMPLES, position, TILTED))
    reference = dicomwrappers.wrapper_from_data(make_slice(SAMPLES, position, TILTED))
    assert volume.shape == (5, 4, 1)
    for i, j in np.ndindex(5, 4):
        place = LPS_TO_RAS @ reference.affine @ np.array([j, i, 0, 1.0])
        assert np.allclose(volume.affine @ np.array([i, j, 0, 1.0]), place, atol=1e-5)
        assert volume.data[0, i, j, 0] == SAMPLES[j, i]
    assert volume.spacing_mm == pytest.approx((1.5, 2.0, 3.0), abs=1e-5)
    assert np.linalg.det(volume.affine[:3, :3]) > 0


def test_series_is_sorted_by_position_and_mapped_back(write_series: Any, tmp_path: Path) -> None:
    normal = np.cross(TILTED[:3], TILTED[3:])
    positions = [tuple(np.array([1.0, 2.0, 3.0]) + 2.5 * k * normal) for k in range(4)]
    samples = write_series(tmp_path / "s", positions, orientation=TILTED)
    volume = read_volume(tmp_path / "s")
    assert volume.data.shape == (1, 5, 4, 4)
    assert np.array_equal(volume.data[0], samples.transpose(2, 1, 0))
    for k, position in enumerate(positions):
        assert np.allclose(volume.affine @ [0, 0, k, 1], [-position[0], -position[1], position[2], 1], atol=1e-4)
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii.gz"))
    assert np.allclose(out.affine, volume.affine, atol=1e-4)
    assert np.allclose(out.get_qform(), volume.affine, atol=1e-3)
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (1, 1)
    assert np.array_equal(out.get_fdata(dtype=np.float32), volume.data[0])
    assert not volume.remarks


def test_tilted_gantry_keeps_every_position(write_series: Any, tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    orientation = (1, 0, 0, 0, np.cos(angle), -np.sin(angle))
    positions = [(0.0, 0.0, 5.0 * k) for k in range(4)]
    write_series(tmp_path / "s", positions, orientation=orientation)
    volume = read_volume(tmp_path / "s")
    assert any("tilted by 20.0 degrees" in remark for remark in volume.remarks)
    for k, position in enumerate(positions):
        assert np.allclose((volume.affine @ [0, 0, k, 1])[:3], position)
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii"))
    assert np.allclose(out.affine, volume.affine, atol=1e-5)
    assert int(out.header["qform_code"]) == 0


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ([0, 2, 4, 8, 10], "1 missing: slices 3 and 4 are 4 mm apart where 2 mm"),
        ([0, 2, 8], "2 missing"),
        ([0, 2, 4, 6, 13], "evenly spaced slices, found distances from 2 to 7 mm"),
        ([0, 2, 2, 4], "4 slices at 3 positions"),
    ],
)
def test_uneven_series_are_refused_by_name(
    write_series: Any, tmp_path: Path, heights: list[float], reason: str
) -> None:
    write_series(tmp_path / "s", [(0.0, 0.0, float(height)) for height in heights])
    (source,) = find_volumes(tmp_path / "s").sources
    with pytest.raises(InputError, match=reason):
        read_volume(source)


def test_sideways_shift_is_refused_and_rounding_is_not(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "shifted", [(0.0, 0, 0), (0, 0, 2), (3, 0, 4), (0, 0, 6)])
    with pytest.raises(InputError, match="shifted sideways"):
        read_volume(tmp_path / "shifted")
    write_series(tmp_path / "rounded", [(0.0, 0, 0), (0, 0, 1.2), (0, 0, 2.5), (0, 0, 3.8), (0, 0, 5)])
    volume = read_volume(tmp_path / "rounded")
    assert volume.spacing_mm[2] == pytest.approx(1.25)
    assert any("off even steps" in remark for remark in volume.remarks)


def test_intensities(write_slice: Any, tmp_path: Path) -> None:
    def read(name: str, pixels: np.ndarray = SAMPLES, **tags: Any) -> Any:
        return read_volume(write_slice(tmp_path / f"{name}.dcm", pixels, **tags))

    scaled = read("scaled", RescaleSlope=2, RescaleIntercept=-1024, BitsStored=12, HighBit=11)
    assert np.array_equal(scaled.data[0, :, :, 0].T, SAMPLES * 2.0 - 1024)
    assert (scaled.low, scaled.high, scaled.ranged) == (-2048 * 2 - 1024, 2047 * 2 - 1024, True)

    grey = SAMPLES.astype(np.uint16) % 4096
    dark = read("dark", grey, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    assert np.array_equal(dark.data[0, :, :, 0].T, 4095.0 - grey)
    assert any("MONOCHROME1" in remark for remark in dark.remarks)

    inverted = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    turned = read("turned", grey, **inverted, RescaleSlope=2, RescaleIntercept=100)
    assert np.array_equal(turned.data[0, :, :, 0].T, 2 * (4095.0 - grey) + 100)

    padded = read("padded", PixelPaddingValue=int(SAMPLES.min()))
    assert padded.valid is not None
    assert np.array_equal(padded.valid[:, :, 0].T, SAMPLES.min() != SAMPLES)
    assert padded.data.min() == np.unique(SAMPLES)[1]

    colours = np.random.default_rng(2).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    assert np.array_equal(read("rgb", colours).data[:, :, :, 0], colours.transpose(2, 1, 0))

    index = np.arange(20).reshape(4, 5).astype(np.uint8)
    table = np.random.default_rng(3).integers(0, 2**16, (3, 256)).astype("<u2")
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]  # type: ignore[assignment]
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()  # type: ignore[assignment]
    assert np.array_equal(read("palette", index, **tags).data[:, :, :, 0], table[:, index].transpose(0, 2, 1))

    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData, lut.ModalityLUTType = [256, 0, 16], table[0].tobytes(), "US"
    lut["LUTData"].VR, lut["LUTDescriptor"].VR = "OW", "US"
    looked = read("lut", index, ModalityLUTSequence=[lut])
    assert np.array_equal(looked.data[0, :, :, 0].T, table[0][index])
    assert (looked.low, looked.high) == (table[0].min(), table[0].max())

    with pytest.raises(InputError, match="slope other than 0"):
        read("zero", RescaleSlope=0)
    with pytest.raises(InputError, match="'HSV'"):
        read("hsv", colours, PhotometricInterpretation="HSV")


def test_images_without_a_place(write_slice: Any, tmp_path: Path) -> None:
    pixels = SAMPLES.astype(np.uint16) % 1000
    tags = {"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": None, "SliceThickness": None, "Modality": "DX"}
    volume = read_volume(write_slice(tmp_path / "a.dcm", pixels, None, None, **tags))
    assert np.array_equal(volume.affine, np.diag([-0.1, -0.2, 1, 1]))
    assert (volume.modality, volume.shape) == ("DX", (5, 4, 1))
    assert any("at the detector" in remark for remark in volume.remarks)
    with pytest.raises(InputError, match="two perpendicular unit vectors"):
        read_volume(write_slice(tmp_path / "b.dcm", pixels, (0, 0, 0), (1, 0, 0, 1, 0, 0)))


def _enhanced(make_slice: Callable[..., Dataset], order: list[int], times: int = 1) -> tuple[Dataset, np.ndarray]:
    """A multi-frame object whose frames lie 2.5 mm apart and are stored in ``order``; samples by (time, place)."""
    count = len(order)
    samples = np.random.default_rng(4).integers(0, 900, (times, count, 4, 5)).astype(np.int16)
    stored = [(time, place) for time in range(times) for place in order]
    dataset = make_slice(np.zeros((4, 5), np.int16), None, None, PixelSpacing=None, SliceThickness=None)
    dataset.PixelData = b"".join(samples[time, place].tobytes() for time, place in stored)
    dataset.NumberOfFrames = len(stored)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.4.1", "MR"
    shared, per_frame = Dataset(), []
    measures, plane, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, plane.ImageOrientationPatient = [2.0, 1.5], 2.5, list(TILTED)
    values.RescaleSlope, values.RescaleIntercept = 0.5, 3
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [values]
    normal = np.cross(TILTED[:3], TILTED[3:])
    for time, place in stored:
        own, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [round(float(v), 6) for v in 2.5 * place * normal]
        content.TemporalPositionIndex, content.StackID, content.InStackPositionNumber = time + 1, "1", place + 1
        own.PlanePositionSequence, own.FrameContentSequence = [position], [content]
        per_frame.append(own)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], per_frame
    return dataset, samples * 0.5 + 3


def test_enhanced_frames_are_sorted_by_place(make_slice: Any, save_dicom: Any, tmp_path: Path) -> None:
    dataset, values = _enhanced(make_slice, [2, 0, 3, 1])
    volume = read_volume(save_dicom(dataset, tmp_path / "a.dcm"))
    assert np.array_equal(volume.data[0], values[0].transpose(2, 1, 0))
    assert volume.spacing_mm == pytest.approx((1.5, 2.0, 2.5), abs=1e-4)
    across, down = np.array(TILTED[:3]), np.array(TILTED[3:])
    for i, j, k in np.ndindex(volume.shape):
        place = 2.5 * k * np.cross(across, down) + 1.5 * i * across + 2.0 * j * down
        assert np.allclose(volume.affine @ [i, j, k, 1], LPS_TO_RAS @ [*place, 1], atol=1e-4)


def test_enhanced_times_are_volumes(make_slice: Any, save_dicom: Any, tmp_path: Path) -> None:
    dataset, values = _enhanced(make_slice, [1, 0, 2], times=2)
    path = save_dicom(dataset, tmp_path / "a.dcm")
    sources = find_volumes(path).sources
    assert len({source.id for source in sources}) == 2
    assert len(sources) == 2
    for time, source in enumerate(sources):
        assert np.array_equal(read_volume(source).data[0], values[time].transpose(2, 1, 0))
        assert np.array_equal(read_volume(source.path).data, read_volume(source).data)
    with pytest.raises(InputError, match="expected one volume, found 2"):
        read_volume(path)


def test_frames_without_places_are_images(make_slice: Any, save_dicom: Any, tmp_path: Path) -> None:
    frames = np.random.default_rng(5).integers(0, 255, (3, 4, 5)).astype(np.uint8)
    dataset = make_slice(frames[0], None, None, NumberOfFrames=3, Modality="US")
    dataset.PixelData = frames.tobytes()
    sources = find_volumes(save_dicom(dataset, tmp_path / "clip.dcm")).sources
    assert [source.id for source in sources] == ["clip_frame_1", "clip_frame_2", "clip_frame_3"]
    for frame, source in zip(frames, sources, strict=True):
        assert np.array_equal(read_volume(source.path).data[0, :, :, 0].T, frame)


def test_compressed_pixels(make_slice: Any, save_dicom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGLSLossless, RLELossless

    dataset = make_slice(SAMPLES)
    dataset.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(read_volume(save_dicom(dataset, tmp_path / "rle.dcm")).data[0, :, :, 0].T, SAMPLES)
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    path = save_dicom(dataset, tmp_path / "jls.dcm")
    monkeypatch.setattr(get_decoder(JPEGLSLossless), "_available", {})
    with pytest.raises(InputError, match=r"JPEG-LS Lossless.*anodiff\[dicom\]"):
        read_volume(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    with pytest.raises(InputError, match="expected still images, found MPEG2"):
        read_volume(save_dicom(dataset, tmp_path / "film.dcm"))


def test_the_extra_decodes_what_the_core_cannot(make_slice: Any, save_dicom: Any, tmp_path: Path) -> None:
    pytest.importorskip("jpeg_ls", reason="the extra dicom is not installed")
    from pydicom.uid import JPEGLSLossless

    dataset = make_slice((SAMPLES + 500).astype(np.uint16))
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    volume = read_volume(save_dicom(dataset, tmp_path / "jls.dcm"))
    assert np.array_equal(volume.data[0, :, :, 0].T, SAMPLES + 500)


def test_no_preamble_and_damage(write_slice: Any, tmp_path: Path) -> None:
    content = write_slice(tmp_path / "a.dcm", SAMPLES).read_bytes()
    (tmp_path / "bare.dcm").write_bytes(content[132:])
    assert np.array_equal(read_volume(tmp_path / "bare.dcm").data[0, :, :, 0].T, SAMPLES)
    (tmp_path / "cut.dcm").write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"cut\.dcm: .*expected 40 bytes of pixels, found 30"):
        read_volume(tmp_path / "cut.dcm")
    (tmp_path / "noise.dcm").write_bytes(b"\xff" * 400)
    with pytest.raises(InputError, match=r"noise\.dcm"):
        read_volume(tmp_path / "noise.dcm")
    with pytest.raises(InputError, match="names 2,000,000,000 frames"):
        read_volume(write_slice(tmp_path / "many.dcm", SAMPLES, NumberOfFrames=2_000_000_000))
    with pytest.raises(InputError, match="at most 10 voxels"):
        read_volume(tmp_path / "a.dcm", max_voxels=10)


def test_nothing_of_the_patient_is_said(
    write_series: Any, write_slice: Any, tmp_path: Path, secrets: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "good", [(0.0, 0, 0), (0, 0, 2), (0, 0, 4)])
    write_series(tmp_path / "missing", [(0.0, 0, 0), (0, 0, 2), (0, 0, 8)], SeriesInstanceUID="1.2.3.2")
    content = write_slice(tmp_path / "cut.dcm", SAMPLES).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[:-10])
    for length in (200, 300, 400, 500, 600, 700):
        (tmp_path / f"head{length}.dcm").write_bytes(content[:length])
    write_slice(tmp_path / "bad.dcm", SAMPLES, RescaleSlope=0)
    said = []
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        found = find_volumes(tmp_path)
        said.extend([repr(found), repr(found.sources), *(repr(source.frames) for source in found.sources)])
        for source in found.sources:
            try:
                volume = read_volume(source)
                said.extend([repr(volume), *volume.remarks])
                write_map(volume, volume.data[0], tmp_path / "out.nii")
                assert b"SECRET" not in (tmp_path / "out.nii").read_bytes()
            except InputError as error:
                said.append(str(error))
    assert b"SECRET" in content
    assert sum(" missing" in text for text in said) >= 1
    text = "\n".join([*said, caplog.text, *(str(warning.message) for warning in caught)])
    assert not [word for word in secrets if word in text]
