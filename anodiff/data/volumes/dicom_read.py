"""DICOM frames to a volume: pixels decoded, intensities rescaled, the affine from positions, RAS+ mm.

Array axes: i along a row (the column number), j down a column (the row number), k along the slice normal. In DICOM's
patient frame (PS3.3 C.7.6.2.1.1) the centre of pixel (column i, row j) of slice k is

    position_k + i * column spacing * rows_direction + j * row spacing * columns_direction;

nibabel's RAS+ has the first two coordinates reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anodiff.data.volumes.dicom import Frame
from anodiff.data.volumes.dicom_group import Group, distance, shared_places
from anodiff.data.volumes.dicom_quiet import gathered
from anodiff.data.volumes.volume import (
    MAX_VOXELS,
    Volume,
    check_affine,
    check_voxels,
    finite_values,
    is_sheared,
)
from anodiff.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
EXTRA = "pip install 'anodiff[dicom]'"
#: reads 12-bit JPEG, which the extra does not; under the GPL, so its user's choice
OTHER_DECODER = "pip install pylibjpeg pylibjpeg-libjpeg"
#: slices may lie off an even grid by so large a part of their step: the first is silent, the second is refused
EVEN_SILENT, EVEN_LIMIT = 0.01, 0.1
#: a direction's length may differ from 1, and two directions' cosine from 0, by so much
_DIRECTION_ERROR = 0.01
_QUOTED = 200  # characters of another library's sentence
_GREY, _INVERTED = "MONOCHROME2", "MONOCHROME1"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_group(group: Group, path: str, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read frames (sorted along their normal) as one volume named ``path``.

    Greys are rescaled by slope and intercept or the lookup table, MONOCHROME1 is turned so that larger is brighter,
    palettes become RGB. Tilted series keep every position by a sheared affine; frames without a place get voxel sizes
    only. Raises InputError: a syntax no installed decoder reads, damaged or missing pixels, several slices at one
    place, missing slices, uneven spacing, directions that are none, more than ``max_voxels`` voxels.
    """
    frames = group.frames
    first = frames[0]
    check_voxels(len(frames) * first.rows * first.columns * max(first.samples, 1), path, max_voxels)
    affine, remarks = _affine(frames, path)
    pixels, low, high, doubts = _intensities(frames, path)
    data, valid, more = finite_values(pixels, path, "padding, NaN or infinite" if first.padding else "NaN or infinite")
    return Volume(
        np.ascontiguousarray(data),
        check_affine(LPS_TO_RAS @ affine, path),
        low,
        high,
        f"{'int' if first.signed else 'uint'}{first.bits_allocated}",
        path,
        "dicom",
        ranged=True,
        modality=first.modality,
        valid=valid,
        stored_shape=(first.columns, first.rows, len(frames)),
        frames=frames,
        remarks=group.remarks + remarks + _pixel_remarks(frames) + doubts + more,
    )


def _affine(frames: tuple[Frame, ...], path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """float64 (4, 4) to LPS mm, and remarks."""
    first = frames[0]
    rows, columns = first.spacing or (1.0, 1.0)
    if min(rows, columns) <= 0:
        raise InputError(f"{path}: expected positive pixel spacing, found {rows:g} x {columns:g} mm")
    affine = np.eye(4)
    if not first.placed:
        affine[:3, :3] = np.diag([columns, rows, first.step or 1.0])
        return affine, _unplaced_remarks(first)
    _check_directions(first, path)
    affine[:3, 0] = np.array(first.rows_direction) * columns
    affine[:3, 1] = np.array(first.columns_direction) * rows
    affine[:3, 3] = np.array(first.position)
    if len(frames) == 1:
        affine[:3, 2] = first.normal * (first.step or 1.0)
        return affine, () if first.step else ("the slice names no thickness: 1 mm is used along its normal",)
    affine[:3, 2], remarks = _step(frames, path)
    return affine, remarks


def _unplaced_remarks(frame: Frame) -> tuple[str, ...]:
    if frame.spacing is None:
        return ("the image has no position in the patient and no pixel spacing: 1 mm is used",)
    where = "at the detector" if frame.at_detector else "in the image"
    return (f"the image has no position in the patient: the affine holds the pixel spacing {where} only",)


def _check_directions(frame: Frame, path: str) -> None:
    across, down = np.array(frame.rows_direction), np.array(frame.columns_direction)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if max(abs(length - 1) for length in lengths) > _DIRECTION_ERROR or abs(across @ down) > _DIRECTION_ERROR:
        raise InputError(
            f"{path}: expected an image orientation of two perpendicular unit vectors, found lengths "
            f"{lengths[0]:.3g} and {lengths[1]:.3g} and a scalar product of {across @ down:.3g}"
        )


def _step(frames: tuple[Frame, ...], path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The vector (3,) from slice to slice in LPS mm, and remarks; InputError where there is no such one vector."""
    most, places = shared_places(frames)
    if most > 1:
        raise InputError(
            f"{path}: expected one slice at each position, found {len(frames)} slices at {places} positions, "
            "and neither time, echo, b-value, image type nor acquisition tells them apart"
        )
    normal = frames[0].normal
    positions = np.array([frame.position for frame in frames])
    gaps = np.diff([distance(frame, normal) for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    off = np.linalg.norm(positions - (positions[0] + np.arange(len(frames))[:, None] * step), axis=1)
    error = float(off.max() / (step @ normal))
    if error > EVEN_LIMIT:
        raise InputError(f"{path}: {_uneven(gaps)}")
    remarks: tuple[str, ...] = ()
    if error > EVEN_SILENT:
        remarks += (
            f"slices lie up to {off.max():.3g} mm off even steps of {step @ normal:.4g} mm: even steps are used",
        )
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    axes = (np.array(frames[0].rows_direction), np.array(frames[0].columns_direction), step)
    if is_sheared(np.column_stack(axes)):
        remarks += (f"the gantry was tilted by {tilt:.1f} degrees: the voxel axes are not perpendicular",)
    return step, remarks


def _uneven(gaps: np.ndarray) -> str:
    """What is wrong with distances between slices that are not even."""
    for usual in (float(np.median(gaps)), float(gaps.min())):
        steps = gaps / usual
        wide = np.flatnonzero(steps > 1.5)
        if len(wide) and steps.min() > 0.5 and np.abs(steps - np.rint(steps)).max() < EVEN_LIMIT:
            missing = int(np.rint(steps[wide]).sum() - len(wide))
            return (
                f"expected every slice, found {missing} missing: slices {wide[0] + 1} and {wide[0] + 2} are "
                f"{gaps[wide[0]]:.4g} mm apart where {usual:.4g} mm is usual"
            )
    if np.abs(gaps / np.median(gaps) - 1).max() < EVEN_LIMIT:
        return "expected slices on one straight line, found some shifted sideways"
    return f"expected evenly spaced slices, found distances from {gaps.min():.4g} to {gaps.max():.4g} mm"


def _pixel_remarks(frames: tuple[Frame, ...]) -> tuple[str, ...]:
    first = frames[0]
    remarks: tuple[str, ...] = ()
    if first.photometric == _INVERTED:
        remarks += ("stored with dark as large (MONOCHROME1): turned so that larger is brighter",)
    if first.photometric == "PALETTE COLOR":
        remarks += ("stored with a palette: read as RGB",)
    if any(frame.burned_in for frame in frames):
        remarks += ("the file says that text is burnt into its pixels",)
    return remarks


def _intensities(frames: tuple[Frame, ...], path: str) -> tuple[np.ndarray, float, float, tuple[str, ...]]:
    """(float32 (C, I, J, K) with NaN where DICOM says that there is no pixel, low, high, remarks)."""
    first = frames[0]
    if first.photometric not in (_GREY, _INVERTED, *_COLOURS, "PALETTE COLOR"):
        raise InputError(f"{path}: expected grey, palette or colour pixels, found {first.photometric!r}")
    wanted: dict[str, list[Frame]] = {}
    for frame in frames:
        wanted.setdefault(frame.path, []).append(frame)
    planes, ends = {}, []
    doubts: dict[str, list[str]] = {}
    for file in wanted.values():
        with gathered() as said:
            decoded = _decode(file[0], [frame.index for frame in file])
        for text in said:
            doubts.setdefault(text, []).append(file[0].path)
        for frame in file:
            pixels, lookup_range = decoded[frame.index]
            if first.photometric in (_GREY, _INVERTED):
                planes[frame], low, high = _rescaled(pixels, lookup_range, frame)
            else:
                bits = 8 * pixels.itemsize if first.photometric == "PALETTE COLOR" else frame.bits_stored
                planes[frame], low, high = pixels.astype(np.float32), 0.0, float(2**bits - 1)
            ends.append((low, high))
    data = np.stack([planes[frame] for frame in frames])
    # (K, J, I) or (K, J, I, C) -> (C, I, J, K)
    data = data.transpose(2, 1, 0)[None] if data.ndim == 3 else data.transpose(3, 2, 1, 0)
    return data, min(low for low, _ in ends), max(high for _, high in ends), _doubts(doubts)


def _doubts(said: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A remark on each warning of pydicom's, with the first of the files that it is about."""
    more = {text: f" (and in {len(paths) - 1} more)" if len(paths) > 1 else "" for text, paths in said.items()}
    return tuple(f"{paths[0]}{more[text]}: pydicom warns: {text[:_QUOTED]}" for text, paths in said.items())


def _rescaled(
    stored: np.ndarray, lookup_range: tuple[float, float] | None, frame: Frame
) -> tuple[np.ndarray, float, float]:
    """(float32 (J, I), low, high): slope * stored + intercept, turned about the middle of its range if MONOCHROME1."""
    low, high = lookup_range or _stored_range(frame)
    slope, intercept = (1.0, 0.0) if lookup_range else (frame.slope, frame.intercept)
    if not slope or not np.isfinite([slope, intercept]).all():
        raise InputError(f"{frame.path}: expected a finite rescale slope other than 0, found {slope:g}")
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    values = stored.astype(np.float64) * slope + intercept
    if frame.photometric == _INVERTED:
        values = low + high - values
    if frame.padding is not None and not lookup_range:
        values[(stored >= frame.padding[0]) & (stored <= frame.padding[1])] = np.nan
    return values.astype(np.float32), low, high


def _stored_range(frame: Frame) -> tuple[float, float]:
    if frame.signed:
        return -float(2 ** (frame.bits_stored - 1)), float(2 ** (frame.bits_stored - 1) - 1)
    return 0.0, float(2**frame.bits_stored - 1)


def _decode(frame: Frame, wanted: list[int]) -> dict[int, tuple[np.ndarray, tuple[float, float] | None]]:
    """frame number -> (pixels (rows, columns) or (rows, columns, 3), range of the lookup table if one was applied)."""
    import pydicom
    from pydicom.pixels import pixel_array

    hint = ""
    try:
        dataset = pydicom.dcmread(frame.path, force=True, specific_tags=[*_PIXEL_TAGS])
        hint = _check_decodable(dataset, frame.path)
        if not any(name in dataset for name in _PIXEL_DATA):
            raise InputError(f"{frame.path}: expected pixels, found an image header without any")
        if frame.count == 1:
            arrays = {0: pixel_array(dataset)}
        elif len(wanted) == frame.count:
            arrays = dict(enumerate(pixel_array(dataset)))
        else:
            arrays = {index: pixel_array(dataset, index=index) for index in wanted}
        return {index: _looked_up(array, dataset, frame) for index, array in arrays.items()}
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:_QUOTED] or type(error).__name__
        raise InputError(f"{frame.path}: expected readable pixels, found a damaged file{hint} ({reason})") from None


_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Only what describes pixels is parsed, so that no message of a decoder can quote the patient.
_PIXEL_TAGS = (
    *_PIXEL_DATA,
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SmallestImagePixelValue",
    "ModalityLUTSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelDataProviderURL",
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)


def _check_decodable(dataset: Any, path: str) -> str:
    """What to say if decoding fails although a decoder is there: another might do it, or "".

    Raises InputError where no installed decoder reads the file's transfer syntax.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if not syntax:
        implicit, little = dataset.original_encoding
        # A file without meta information: pydicom has worked out its encoding, which cannot be a compressed one.
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        dataset.file_meta = dataset.file_meta if hasattr(dataset, "file_meta") else _meta()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        raise InputError(f"{path}: expected still images, found {UID(syntax).name}, which is not supported") from None
    if not decoder.is_available:
        raise InputError(f"{path}: expected pixels that can be decoded, found {UID(syntax).name}; {EXTRA} reads it")
    if not decoder.missing_dependencies or not UID(syntax).is_compressed:
        return ""
    cure = OTHER_DECODER if "gdcm" in decoder.available_plugins else EXTRA
    return f" or {UID(syntax).name} of a kind that needs another decoder: {cure}"


def _meta() -> Any:
    from pydicom.dataset import FileMetaDataset

    return FileMetaDataset()


def _looked_up(array: np.ndarray, dataset: Any, frame: Frame) -> tuple[np.ndarray, tuple[float, float] | None]:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    if frame.photometric == "PALETTE COLOR":
        return apply_color_lut(array, dataset), None
    if frame.lookup:
        values = apply_modality_lut(array, dataset)
        table = dataset.ModalityLUTSequence[0]
        entries = table.LUTData
        if isinstance(entries, bytes):
            entries = np.frombuffer(entries, dtype="<u2" if table.LUTDescriptor[2] > 8 else "u1")
        return values, (float(np.min(entries)), float(np.max(entries)))
    return array, None
