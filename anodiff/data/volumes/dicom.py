"""DICOM headers to frames: what lies in each file. Which frames make a volume is said by ``dicom_group``.

Only the tags named here are ever parsed, so nothing of the patient's name, identity or birth date reaches a message.
Coordinates stay DICOM's (LPS mm) here; ``dicom_read`` turns them into RAS+.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anodiff.data.volumes.dicom_length import lacking
from anodiff.data.volumes.dicom_quiet import gathered
from anodiff.data.volumes.volume import MAX_PARTS

Vector = tuple[float, float, float]

#: objects that hold numbers about an image, or drawings on it, but no image of the patient
NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose grid",
    "1.2.840.10008.5.1.4.1.1.66.1": "a spatial registration",
}
_DIRECTORY = "1.2.840.10008.1.3.10"
_PLAIN_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "InstanceNumber",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "BurnedInAnnotation",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "TriggerTime",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
#: what can tell two frames at one place apart, in the order in which it is tried
MARKS = ("temporal position", "echo", "echo time", "b-value", "image type", "acquisition", "trigger time")
_SERIES_TAG = 0x0020000E


class Damage(str):
    """The reason why a file that should be an image holds none: a fault of the file, which is an input that fails.

    series: the UID of its series, where its header still has it; never shown. frames: what it would hold, where only
    its pixels are damaged.
    """

    series: str = ""
    frames: tuple[Frame, ...] = ()

    @classmethod
    def of(cls, reason: str, series: str = "", frames: tuple[Frame, ...] = ()) -> Damage:
        """The reason with what is known of the file."""
        found = cls(reason)
        found.series, found.frames = series, frames
        return found


@dataclass(frozen=True, repr=False)
class Frame:
    """One slice of one file; lengths in mm, directions and positions in DICOM's patient frame (LPS).

    index: from 0, among ``count`` frames of the file. rows_direction, columns_direction: unit vectors along which the
    column and the row number grow; None where the object has no place in the patient. spacing: (between rows, between
    columns), None where unknown; at_detector: measured there, not in the patient. thickness: of the slice; between:
    from its middle to the next one's; None where not stated. padding: the lowest and highest stored value that mean
    "no pixel here". burned_in: whether text is burnt into the pixels, None where not stated. marks: values that may
    tell it from a frame at the same place. patient: its number, or its study where there is none; never to be shown.
    """

    path: str
    index: int
    count: int
    series: str
    instance: str
    reference: str
    series_number: int | None
    instance_number: int
    modality: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    spacing: tuple[float, float] | None
    at_detector: bool
    thickness: float | None
    rows_direction: Vector | None
    columns_direction: Vector | None
    position: Vector | None
    between: float | None = None
    lookup: bool = False
    padding: tuple[float, float] | None = None
    burned_in: bool | None = None
    marks: tuple[str, ...] = ()
    patient: str = ""

    @property
    def placed(self) -> bool:
        """Whether position, orientation and spacing are all known."""
        return None not in (self.rows_direction, self.position, self.spacing)

    @property
    def step(self) -> float | None:
        """What a slice alone says of the way to the next one: the stated spacing between slices, else its thickness."""
        return self.between or self.thickness

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) out of the slice, right-handed with rows and columns."""
        normal = np.cross(np.array(self.rows_direction), np.array(self.columns_direction))
        # Parallel directions have no normal; reading refuses them.
        return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-12))


def read_frames(path: str | os.PathLike[str]) -> list[Frame] | str:
    """The frames of a file from its header, or the reason why it holds none: `Damage` where it should. Nothing is
    decoded; pixels that are stored uncompressed are counted. What pydicom warns of is dropped, since it may quote the
    patient."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        # ``force`` reads files that lack the preamble; whether they are DICOM shows in what they hold.
        with gathered(), open(path, "rb") as stream:
            header = pydicom.dcmread(
                stream, stop_before_pixels=True, force=True, specific_tags=[*_PLAIN_TAGS, "DirectoryRecordSequence"]
            )
            found = _frames_of(header, str(path))
            if isinstance(found, str):
                return found
            reason = lacking(stream, header)
        return Damage.of(reason, found[0].series, tuple(found)) if reason else found
    except (InvalidDicomError, EOFError):
        return Damage.of("a damaged DICOM file: its header ends too early", _series_of(path))
    except OSError as error:
        return Damage.of(f"it cannot be read ({error.strerror or type(error).__name__})")
    except Exception as error:
        # The text of the error may quote the header, and with it the patient: only its kind is passed on.
        return Damage.of(f"a damaged DICOM header ({type(error).__name__})", _series_of(path))


def _series_of(path: str | os.PathLike[str]) -> str:
    """The UID of the series in a header that is damaged further on; "" where that cannot be read either."""
    from pydicom.filereader import read_partial

    try:
        with gathered(), open(path, "rb") as stream:
            header = read_partial(
                stream, stop_when=lambda tag, *_: tag > _SERIES_TAG, force=True, specific_tags=[_SERIES_TAG]
            )
        return str(header.get("SeriesInstanceUID", "") or "")
    except Exception:
        return ""


def _frames_of(header: Any, path: str) -> list[Frame] | str:
    sop = str(header.get("SOPClassUID", "") or "")
    stated = str(getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID", "") or "")
    if _DIRECTORY in (sop, stated) or "DirectoryRecordSequence" in header:
        return "a DICOM directory (an index of other files), not an image"
    if sop in NOT_IMAGES:
        return f"{NOT_IMAGES[sop]}, not an image of the patient"
    series = str(header.get("SeriesInstanceUID", "") or "")
    if not header.get("Rows") or not header.get("Columns"):
        return _without_pixels(header, sop or stated, series)
    missing = [name for name in ("BitsAllocated", "PhotometricInterpretation") if not header.get(name)]
    if missing:
        return Damage.of(f"an image whose header lacks {' and '.join(missing)}", series)
    count = max(1, _whole(header.get("NumberOfFrames"), 1))
    if count > MAX_PARTS:
        return Damage.of(f"a damaged DICOM file: it names {count:,} frames", series)
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) != count:
        return Damage.of(f"a damaged DICOM file: it names {count} frames and describes {len(per_frame)}", series)
    common = _common(header, path, count)
    places: Iterable[Any] = per_frame or [None] * count
    return [Frame(**common, index=index, **_place(header, shared, own)) for index, own in enumerate(places)]


def _without_pixels(header: Any, sop: str, series: str) -> str:
    """Why an object has no pixels: by its class it need not have any, or it is an image, or nothing that can be told,
    and then it is damaged."""
    from pydicom.uid import UID

    # As short as the standard has it: the length of a damaged element may reach over what follows.
    modality = str(header.get("Modality", "") or "")[:16]
    name = UID(sop).name if sop else ""
    legible = bool(sop and modality)
    if not name or name == sop:
        name = f"an object of modality {modality}" if modality else "an object of no named kind"
    else:
        # an image that was cut short looks the same as one that was saved without its pixels: it is not passed over
        legible = "Image Storage" not in name
    reason = f"{name}: it has no image size, so no pixels to read"
    return reason if legible else Damage.of(reason, series)


def _common(header: Any, path: str, count: int) -> dict[str, Any]:
    bits = _whole(header.get("BitsAllocated"), 8)
    number = header.get("SeriesNumber")
    return {
        "path": path,
        "count": count,
        "series": str(header.get("SeriesInstanceUID", "") or ""),
        "patient": str(header.get("PatientID", "") or header.get("StudyInstanceUID", "") or "").strip(),
        "instance": str(header.get("SOPInstanceUID", "") or ""),
        "reference": str(header.get("FrameOfReferenceUID", "") or ""),
        "series_number": None if number in (None, "") else _whole(number, 0),
        "instance_number": _whole(header.get("InstanceNumber"), 0),
        "modality": str(header.get("Modality", "") or "")[:16],
        "rows": int(header.Rows),
        "columns": int(header.Columns),
        "samples": _whole(header.get("SamplesPerPixel"), 1),
        "photometric": str(header.PhotometricInterpretation).strip()[:16],
        "bits_allocated": bits,
        "bits_stored": _whole(header.get("BitsStored"), bits),
        "signed": _whole(header.get("PixelRepresentation"), 0) == 1,
        "lookup": bool(header.get("ModalityLUTSequence")),
        "padding": _padding(header),
        "burned_in": {"YES": True, "NO": False}.get(str(header.get("BurnedInAnnotation", "") or "").strip().upper()),
    }


def _padding(header: Any) -> tuple[float, float] | None:
    first = header.get("PixelPaddingValue")
    last = header.get("PixelPaddingRangeLimit")
    # A value whose type the header leaves open stays bytes: nothing is assumed of it then.
    values = sorted(float(value) for value in (first, last) if isinstance(value, int | float))
    return (values[0], values[-1]) if values and isinstance(first, int | float) else None


def _place(header: Any, shared: Any, own: Any) -> dict[str, Any]:
    """Where a frame lies, from its functional groups where the object has them, else from the plain tags."""
    measures = _macro("PixelMeasuresSequence", own, shared) or header
    plane = _macro("PlaneOrientationSequence", own, shared) or header
    position = _macro("PlanePositionSequence", own, shared) or (header if own is None else {})
    values = _macro("PixelValueTransformationSequence", own, shared) or header
    spacing, at_detector = _numbers(measures.get("PixelSpacing"), 2), False
    if spacing is None:
        spacing, at_detector = _numbers(header.get("ImagerPixelSpacing"), 2), True
    axes = _numbers(plane.get("ImageOrientationPatient"), 6)
    # A multi-frame object that says one position for all its frames places none of them.
    places = own is not None or _whole(header.get("NumberOfFrames"), 1) == 1
    where = _numbers(position.get("ImagePositionPatient"), 3) if places else None
    return {
        "slope": _number(values.get("RescaleSlope"), 1.0),
        "intercept": _number(values.get("RescaleIntercept"), 0.0),
        "spacing": spacing,
        "at_detector": at_detector and spacing is not None,
        "thickness": abs(_number(measures.get("SliceThickness"), 0.0)) or None,
        "between": abs(_number(measures.get("SpacingBetweenSlices"), 0.0)) or None,
        "rows_direction": axes[:3] if axes else None,
        "columns_direction": axes[3:] if axes else None,
        "position": where,
        "marks": _marks(header, own),
    }


def _marks(header: Any, own: Any) -> tuple[str, ...]:
    content = _macro("FrameContentSequence", own, None) or {}
    echo = _macro("MREchoSequence", own, None) or {}
    diffusion = _macro("MRDiffusionSequence", own, None) or header
    kind = _macro("MRImageFrameTypeSequence", own, None) or _macro("CTImageFrameTypeSequence", own, None) or {}
    values = (
        content.get("TemporalPositionIndex") or header.get("TemporalPositionIdentifier"),
        header.get("EchoNumbers"),
        echo.get("EffectiveEchoTime") or header.get("EchoTime"),
        diffusion.get("DiffusionBValue"),
        kind.get("FrameType") or header.get("ImageType"),
        content.get("FrameAcquisitionNumber") or header.get("AcquisitionNumber"),
        header.get("TriggerTime"),
    )
    return tuple("" if value is None else str(value) for value in values)


def _macro(name: str, own: Any, shared: Any) -> Any:
    """The first item of a functional group, the frame's own before the shared one."""
    for groups in (own, shared):
        if groups is not None and groups.get(name):
            return groups.get(name)[0]
    return None


def _number(value: Any, default: float) -> float:
    return default if value in (None, "") else float(value)


def _whole(value: Any, default: int) -> int:
    return default if value in (None, "") else int(float(value))


def _numbers(values: Any, count: int) -> tuple[Any, ...] | None:
    """``count`` finite numbers, or None where the tag is absent, empty or of another length."""
    if values is None or isinstance(values, str) or not hasattr(values, "__len__") or len(values) != count:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if np.isfinite(numbers).all() else None
