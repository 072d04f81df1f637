"""Results back into DICOM: secondary captures (pydicom alone), parametric maps and segmentations (highdicom).

Every object belongs to the study, the patient and the frame of reference of its source and opens a series of its own.
The patient's data goes from file to file and is never put into a message: errors of the writing libraries may quote
it, so only their kind is passed on.
"""

from __future__ import annotations

import datetime
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from anodiff.data.volumes.dicom import Frame
from anodiff.data.volumes.dicom_quiet import gathered
from anodiff.data.volumes.volume import Volume
from anodiff.errors import StorageError
from anodiff.files import atomic_write, make_folder

#: of the secondary captures, the parametric map and the segmentation: viewers sort and name series by them
CAPTURES, MAP, SEGMENTS = 9100, 9101, 9102
MANUFACTURER = "anodiff"
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_EXPLICIT = "1.2.840.10008.1.2.1"
#: copied as they are stored; those that every object must hold are left empty where the source lacks them
_COPIED = (
    "SpecificCharacterSet",
    "StudyDescription",
    "IssuerOfPatientID",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)
_REQUIRED = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
)
#: of them, what the library needs to see
_REFERENCES = ("StudyInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator")


def write_secondary_capture(
    volume: Volume, rgb: np.ndarray, folder: str | os.PathLike[str], description: str = "anodiff overlay"
) -> list[Path]:
    """Write pictures uint8 (I, J, K, 3), one a slice, as secondary-capture images ``0001.dcm`` ... into ``folder``.

    Each picture keeps the position, orientation and spacing of its slice, so that viewers scroll it beside the source.
    Raises ValueError for pictures on another grid, StorageError where the volume is not DICOM or cannot be written.
    """
    frames = _dicom_frames(volume, folder)
    rgb = np.asarray(rgb, dtype=np.uint8)
    if rgb.shape != (*volume.shape, 3):
        raise ValueError(f"expected pictures {(*volume.shape, 3)}, found {rgb.shape}")
    from pydicom.uid import generate_uid

    target, series = make_folder(folder), generate_uid()
    written, headers = [], {}
    for number, frame in enumerate(frames, start=1):
        if frame.path not in headers:
            headers[frame.path] = _header(frame.path, [*_COPIED, *_REQUIRED, "SOPClassUID", "SOPInstanceUID"])
        # (I, J, 3) -> rows, columns, colours
        picture = np.ascontiguousarray(rgb[:, :, number - 1].transpose(1, 0, 2))
        dataset = _capture(headers[frame.path], frame, picture, series, number, description)
        written.append(atomic_write(target / f"{number:04d}.dcm", _file_bytes(dataset)))
    return written


def write_parametric_map(volume: Volume, values: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write a map (I, J, K) as a DICOM Parametric Map of 32-bit floats (needs the extra ``dicom``).

    NaN, infinity and what 32 bits cannot hold are written as 0. Raises ValueError for a map on another grid,
    StorageError where the volume is not DICOM, has no place in the patient, highdicom is missing or refuses the source,
    or the file cannot be written.
    """
    import_highdicom(path)
    import highdicom
    from pydicom.sr.coding import Code

    with np.errstate(over="ignore"):
        array = _planes(volume, values, path).astype(np.float32)
    array[~np.isfinite(array)] = 0
    low, high = float(array.min()), float(array.max())
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="1",
        lut_explanation="anomaly map as computed",
        unit=Code("1", "UCUM", "no units"),
        value_range=(low, max(high, low + 1e-6)),
        slope=1.0,
        intercept=0.0,
    )
    return _write_with_highdicom(
        highdicom.pm.ParametricMap,
        volume,
        array,
        path,
        number=MAP,
        description="anodiff anomaly map",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        window_center=(high + low) / 2,
        window_width=max(high - low, 1e-6),
        content_label="ANOMALY_MAP",
        content_description="Anomaly map",
    )


def write_segmentation(volume: Volume, mask: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write a mask bool (I, J, K), True = anomalous, as a binary DICOM Segmentation (needs the extra ``dicom``).

    Raises what ``write_parametric_map`` does.
    """
    import_highdicom(path)
    import highdicom
    from pydicom.sr.codedict import codes

    array = _planes(volume, mask, path) > 0
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=MANUFACTURER, version=_version(), family=codes.cid7162.ArtificialIntelligence
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    return _write_with_highdicom(
        highdicom.seg.Segmentation,
        volume,
        array,
        path,
        number=SEGMENTS,
        description="anodiff segmentation",
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        omit_empty_frames=bool(array.any()),
        content_label="ANOMALY",
        content_description="Voxels above the threshold",
    )


def import_highdicom(path: str | os.PathLike[str]) -> None:
    """Raises StorageError with the extra's name where highdicom is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise StorageError(f"cannot write {str(path)!r}: expected highdicom; pip install 'anodiff[dicom]'") from None


def _dicom_frames(volume: Volume, path: str | os.PathLike[str]) -> tuple[Frame, ...]:
    if volume.kind != "dicom":
        raise StorageError(f"cannot write {str(path)!r}: expected a volume read from DICOM, found {volume.kind}")
    return volume.frames


def _planes(volume: Volume, values: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """(K, rows, columns) of an array (I, J, K)."""
    frames = _dicom_frames(volume, path)
    if np.shape(values) != volume.shape:
        raise ValueError(f"expected a map on the grid {volume.shape}, found {np.shape(values)}")
    if not frames[0].placed:
        raise StorageError(f"cannot write {str(path)!r}: expected slices with a position in the patient, found none")
    return np.ascontiguousarray(np.asarray(values).transpose(2, 1, 0))


def _header(path: str, tags: list[str] | None = None) -> Any:
    import pydicom

    with gathered():
        return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)


def _capture(header: Any, frame: Frame, picture: np.ndarray, series: str, number: int, description: str) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    result = Dataset()
    for keyword in (*_COPIED, *_REQUIRED):
        _copy(header, result, keyword)
    if not header.get("StudyInstanceUID"):
        result.StudyInstanceUID = generate_uid(entropy_srcs=[frame.series or frame.path])
    now = datetime.datetime.now()
    result.ContentDate, result.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    result.SOPClassUID, result.SOPInstanceUID, result.SeriesInstanceUID = UID(_CAPTURE), generate_uid(), series
    result.Modality, result.ConversionType, result.ImageType = "OT", "WSD", ["DERIVED", "SECONDARY"]
    result.SeriesNumber, result.InstanceNumber, result.SeriesDescription = CAPTURES, number, description
    result.Manufacturer, result.SoftwareVersions = MANUFACTURER, _version()
    result.PatientOrientation = None
    # The pictures are drawn over the source: they hold whatever is burnt into it.
    if frame.burned_in is not None:
        result.BurnedInAnnotation = "YES" if frame.burned_in else "NO"
    result.DerivationDescription = "Anomaly map drawn over the source image"
    if frame.instance and header.get("SOPClassUID"):
        source = Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = header.SOPClassUID, frame.instance
        if frame.count > 1:
            source.ReferencedFrameNumber = frame.index + 1
        result.SourceImageSequence = [source]
    if frame.placed:
        result.ImagePositionPatient = _decimals(frame.position)
        result.ImageOrientationPatient = _decimals((*(frame.rows_direction or ()), *(frame.columns_direction or ())))
    if frame.spacing:
        result.PixelSpacing = _decimals(frame.spacing)
        if frame.at_detector:
            # both, and equal: measured at the detector, not calibrated to the patient (PS3.3, 10.7.1.3)
            result.ImagerPixelSpacing = result.PixelSpacing
    if frame.thickness:
        result.SliceThickness = _decimals((frame.thickness,))[0]
    if frame.between:
        result.SpacingBetweenSlices = _decimals((frame.between,))[0]
    result.Rows, result.Columns = picture.shape[:2]
    result.SamplesPerPixel, result.PhotometricInterpretation, result.PlanarConfiguration = 3, "RGB", 0
    result.BitsAllocated, result.BitsStored, result.HighBit, result.PixelRepresentation = 8, 8, 7, 0
    content = picture.tobytes()
    result.PixelData = content + b"\0" * (len(content) % 2)
    result["PixelData"].VR = "OB"
    result.file_meta = FileMetaDataset()
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    result.file_meta.TransferSyntaxUID = UID(_EXPLICIT)
    return result


def _copy(header: Any, result: Any, keyword: str) -> None:
    """Copy an element as its stored bytes: not parsed, so nothing can warn of what it says."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(tag_for_keyword(keyword) or 0)
    if tag in header:
        element = header.get_item(tag)
        if isinstance(element, RawDataElement) and element.VR is None:
            element = element._replace(VR=dictionary_VR(tag))
        result[tag] = element
    elif keyword in _REQUIRED:
        setattr(result, keyword, None)


def _decimals(values: Any) -> list[Any]:
    """Decimal strings of at most 16 characters, as DICOM stores numbers."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def _file_bytes(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _write_with_highdicom(
    build: Any,
    volume: Volume,
    array: np.ndarray,
    path: str | os.PathLike[str],
    *,
    number: int,
    description: str,
    **settings: Any,
) -> Path:
    import highdicom
    from pydicom.uid import generate_uid

    frames, first = volume.frames, volume.frames[0]
    step = float(np.linalg.norm(volume.affine[:3, 2]))
    axes = (*(first.rows_direction or ()), *(first.columns_direction or ()))
    patient = highdicom.CoordinateSystemNames.PATIENT
    try:
        with gathered():
            dataset = build(
                source_images=[_anonymous(name) for name in dict.fromkeys(frame.path for frame in frames)],
                pixel_array=array,
                series_instance_uid=generate_uid(),
                series_number=number,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MANUFACTURER,
                software_versions=_version(),
                device_serial_number="1",
                pixel_measures=highdicom.PixelMeasuresSequence(
                    pixel_spacing=_decimals(first.spacing),
                    slice_thickness=_decimals((first.thickness or step,))[0],
                    spacing_between_slices=_decimals((step,))[0],
                ),
                plane_orientation=highdicom.PlaneOrientationSequence(patient, _decimals(axes)),
                plane_positions=[highdicom.PlanePositionSequence(patient, _decimals(f.position)) for f in frames],
                **settings,
            )
            dataset.SeriesDescription = description
            _without_more(dataset)
            original = _header(first.path)
            for keyword in (*_COPIED, *_REQUIRED):
                if keyword not in _REFERENCES:
                    _copy(original, dataset, keyword)
            content = _file_bytes(dataset)
    except Exception as error:
        # The name of a missing attribute says nothing of the patient; the text of the error might.
        lacking = f", it lacks {error.name}" if isinstance(error, AttributeError) and error.name else ""
        reason = f"{type(error).__name__}{lacking}"
        raise StorageError(f"cannot write {str(path)!r}: highdicom refuses {volume.path!r} ({reason})") from None
    return atomic_write(path, content)


def _without_more(dataset: Any) -> None:
    """Delete what the library has copied of the patient (comments, weight) beyond what every object here holds."""
    kept = (*_COPIED, *_REQUIRED)
    for element in list(dataset.group_dataset(0x0010)):
        if element.keyword not in kept:
            del dataset[element.tag]


def _anonymous(path: str) -> Any:
    """The header of a source with what is copied afterwards left empty.

    The library would check those values, refuse files for a date that is none, and quote it.
    """
    header = _header(path)
    for keyword in _COPIED:
        if keyword in header and keyword not in _REFERENCES:
            delattr(header, keyword)
    for keyword in _REQUIRED:
        if keyword not in _REFERENCES:
            setattr(header, keyword, None)
    return header


def _version() -> str:
    from anodiff import __version__

    return __version__
