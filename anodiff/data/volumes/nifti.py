"""NIfTI-1, NIfTI-2 and FreeSurfer MGH files to volumes, and maps back to NIfTI.

The format is found from the first bytes, compressed or not, never from the name. World coordinates are nibabel's: the
sform where its code is not 0, else the qform, else voxel sizes alone.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anodiff.data.volumes.modality import modality_of_name
from anodiff.data.volumes.volume import (
    MAX_PARTS,
    MAX_VOXELS,
    UNIT_MM,
    Volume,
    check_affine,
    check_voxels,
    finite_values,
    is_ranged,
    is_sheared,
    value_range,
)
from anodiff.errors import InputError, StorageError
from anodiff.files import atomic_write

HEADER_BYTES = 544
MAP_SUFFIXES = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
#: intent codes of CIFTI-2: matrices over surfaces and parcels in a NIfTI-2 shell
_CIFTI_INTENTS = range(3000, 3100)
#: sform and qform that place a corner further apart than so many of the smallest voxel's side are reported
_DISAGREEMENT = 0.01
_SCANNER = 1


def sniff(path: str | os.PathLike[str]) -> str:
    """``nifti1``, ``nifti2``, ``pair1``, ``pair2`` (.hdr/.img), ``analyze``, ``mgh`` or "" by content.

    Raises OSError where the file cannot be opened; a damaged compressed file gives "".
    """
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    if head.startswith(_GZIP):
        try:
            with gzip.open(path, "rb") as packed:
                head = packed.read(HEADER_BYTES)
        except (OSError, EOFError, zlib.error):
            return ""
    return _kind_of(head, Path(path).suffix.lower())


def _kind_of(head: bytes, suffix: str) -> str:
    if head[128:132] == b"DICM":
        return ""
    if head[4:12] == b"n+2\0\r\n\x1a\n":
        return "nifti2"
    if head[4:12] == b"ni2\0\r\n\x1a\n":
        return "pair2"
    if head[344:348] == b"n+1\0":
        return "nifti1"
    if head[344:348] == b"ni1\0":
        return "pair1"
    if len(head) >= 348 and 348 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
        return "analyze"
    # MGH has no magic number: version 1, big-endian, and a name that says so.
    if suffix in (".mgh", ".mgz") and head[:4] == b"\0\0\0\1":
        return "mgh"
    return ""


def count_volumes(path: str | os.PathLike[str]) -> int:
    """Volumes along the fourth axis (1 for 2-D and 3-D). Raises InputError for a header that cannot be read."""
    with _opened(path) as image:
        count = _shape4(image.shape, str(path))[3]
    if count > MAX_PARTS:
        raise InputError(f"{path}: expected at most {MAX_PARTS:,} volumes, found {count:,}")
    return count


def read_nifti(path: str | os.PathLike[str], volume: int | None = None, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a file, ``volume`` (from 1) of its fourth axis or, with None, all of them as channels.

    Raises InputError: missing, damaged or truncated, Analyze, CIFTI, complex values, more than four dimensions, an
    affine that is not usable, no such volume, more than ``max_voxels`` voxels (checked before anything is decoded).
    """
    name = str(path)
    with _opened(path) as image:
        shape = _shape4(image.shape, name)
        if volume is not None and not 1 <= volume <= shape[3]:
            raise InputError(f"{name}: expected a volume from 1 to {shape[3]}, found {volume}")
        affine = check_affine(image.affine, name)
        stored = image.get_data_dtype()
        colours = len(stored.names or ())
        check_voxels(int(np.prod(shape[:3])) * (shape[3] if volume is None else 1) * max(colours, 1), name, max_voxels)
        if stored.kind == "c":
            raise InputError(f"{name}: expected real numbers, found complex ones (magnitude and phase)")
        if colours and shape[3] > 1:
            raise InputError(f"{name}: expected one colour volume, found {shape[3]}")
        array = _decode(image, volume)
        # nibabel keeps the scaling with the data, and clears it in the header
        scale = (float(image.dataobj.slope), float(image.dataobj.inter))
        units, remarks = _units(image)
        remarks += _form_remarks(image, name)
        header = image.header.copy() if type(image).__name__ != "MGHImage" else None
        kind = "nifti" if header is not None else "mgh"
    data = _channels_first(array, shape, colours)
    data, valid, more = finite_values(data, name)
    low, high = _range(data, array.dtype, stored, scale)
    return Volume(
        np.ascontiguousarray(data),
        affine,
        low,
        high,
        "rgb" if colours else stored.newbyteorder("=").name,
        name if volume is None else f"{name}#volume={volume}",
        kind,  # type: ignore[arg-type]
        units=units,
        ranged=bool(colours) or is_ranged(stored),
        modality=modality_of_name(path),
        valid=valid,
        stored_shape=tuple(int(side) for side in image.shape),
        header=header,
        remarks=remarks + more,
    )


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A nibabel image whose data is not decoded yet; every failure inside becomes an InputError."""
    try:
        kind = sniff(path)
        if not os.path.getsize(path):
            raise InputError(f"{path}: expected a volume, found an empty file")
        if kind == "analyze":
            raise InputError(
                f"{path}: expected NIfTI, found Analyze 7.5, which does not say which side is left; convert it to NIfTI"
            )
        if not kind:
            raise InputError(f"{path}: expected NIfTI or MGH, found a file of another format or a damaged one")
        with contextlib.ExitStack() as stack:
            image = _load(path, kind, stack)
            if kind in ("nifti2", "pair2") and int(image.header["intent_code"]) in _CIFTI_INTENTS:
                raise InputError(f"{path}: expected a volume, found CIFTI-2 (values on surfaces or parcels)")
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a volume, found no such file") from None
    except Exception as error:
        # A hostile or damaged file can raise nearly anything inside a decoder; none of it may stop a batch.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: expected a readable volume, found a damaged file ({reason})") from None


def _load(path: str | os.PathLike[str], kind: str, stack: contextlib.ExitStack) -> Any:
    import nibabel
    from nibabel.fileholders import FileHolder

    header = stack.enter_context(_plain(path))
    if kind in ("nifti1", "nifti2"):
        single: Any = nibabel.Nifti1Image if kind == "nifti1" else nibabel.Nifti2Image
        return single.from_file_map({"header": FileHolder(fileobj=header), "image": FileHolder(fileobj=header)})
    if kind == "mgh":
        return nibabel.MGHImage.from_file_map({"image": FileHolder(fileobj=header)})
    data = _data_file(Path(path))
    if data is None:
        raise InputError(f"{path}: expected its voxels in a file of the same name that ends in .img, found none")
    pair: Any = nibabel.Nifti1Pair if kind == "pair1" else nibabel.Nifti2Pair
    image = stack.enter_context(_plain(data))
    return pair.from_file_map({"header": FileHolder(fileobj=header), "image": FileHolder(fileobj=image)})


def _data_file(header: Path) -> Path | None:
    """The .img or .img.gz beside a .hdr or .hdr.gz."""
    stem = header.name.removesuffix(".gz").removesuffix(".GZ")[:-4]
    names = (f"{stem}{suffix}" for suffix in (".img", ".img.gz", ".IMG"))
    return next((header.with_name(name) for name in names if header.with_name(name).is_file()), None)


def _plain(path: str | os.PathLike[str]) -> io.BufferedIOBase:
    """The file opened for reading, through gzip where its first bytes say so."""
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.GzipFile(path, "rb") if packed else open(path, "rb")


def _shape4(shape: tuple[int, ...], name: str) -> tuple[int, int, int, int]:
    sides = tuple(int(side) for side in shape)
    while len(sides) > 4 and sides[-1] == 1:
        sides = sides[:-1]
    if not 2 <= len(sides) <= 4:
        raise InputError(f"{name}: expected 2 to 4 dimensions, found {len(sides)} ({' x '.join(map(str, sides))})")
    i, j, k, volumes = (*sides, 1, 1)[:4]
    return i, j, k, volumes


def _decode(image: Any, volume: int | None) -> np.ndarray:
    """The scaled values, of one volume or all, in whatever type nibabel gives them."""
    if volume is None or len(image.shape) < 4:
        return np.asarray(image.dataobj)
    index: tuple[Any, ...] = (slice(None),) * 3 + (volume - 1,) + (0,) * (len(image.shape) - 4)
    return np.asarray(image.dataobj[index])


def _channels_first(array: np.ndarray, shape: tuple[int, int, int, int], colours: int) -> np.ndarray:
    """float32 (C, I, J, K)."""
    if colours:
        channels = [array[name].reshape(shape[:3]) for name in (array.dtype.names or ())[:3]]
        return np.stack(channels).astype(np.float32)
    with np.errstate(over="ignore"):
        return np.moveaxis(array.reshape(*shape[:3], -1), 3, 0).astype(np.float32)


def _range(
    data: np.ndarray, given: np.dtype[Any], stored: np.dtype[Any], scale: tuple[float, float]
) -> tuple[float, float]:
    """The range of the stored type, through the file's slope and intercept where it has any."""
    if stored.names:
        return 0.0, 255.0
    if not is_ranged(stored):
        return value_range(data, given)
    low, high = sorted(end * scale[0] + scale[1] for end in value_range(data, stored))
    return low, high


def _units(image: Any) -> tuple[str, tuple[str, ...]]:
    if not hasattr(image.header, "get_xyzt_units"):
        return "mm", ()
    unit = str(image.header.get_xyzt_units()[0])
    if unit not in UNIT_MM:
        unit = "unknown"
    return unit, ("the file does not name its unit of length: taken as mm",) if unit == "unknown" else ()


def _form_remarks(image: Any, name: str) -> tuple[str, ...]:
    header = image.header
    remarks: tuple[str, ...] = ()
    if not hasattr(header, "get_sform"):
        return ("the voxel axes are not perpendicular",) if is_sheared(image.affine) else ()
    sform, s_code = header.get_sform(coded=True)
    qform, q_code = header.get_qform(coded=True)
    if not s_code and not q_code:
        return ("neither sform nor qform is set: position and orientation are unknown, only voxel sizes are used",)
    if s_code and q_code:
        distance = _corner_distance(sform, qform, image.shape)
        if distance > _DISAGREEMENT * float(min(header.get_zooms()[:3])):
            remarks += (
                f"sform and qform disagree by up to {distance:.3g} in the file's unit of length: the sform is used",
            )
    if is_sheared(image.affine):
        remarks += ("the voxel axes are not perpendicular",)
    return remarks


def _corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance between the places that two affines give to a corner of the volume."""
    sides = [max(side - 1, 0) for side in (*shape, 1, 1)[:3]]
    corners = np.array([[i, j, k, 1] for i in (0, sides[0]) for j in (0, sides[1]) for k in (0, sides[2])])
    return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())


def write_map(volume: Volume, values: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write a map (I, J, K) or (C, I, J, K) on the grid of ``volume`` as NIfTI float32, atomically.

    Voxel (i, j, k) of the file is voxel (i, j, k) of the input; affine, zooms, units, sform and qform with their codes
    are the input's, a 2-D input gives a 2-D map. Free text and extensions of the input's header are left behind: they
    may name the patient. Of an input that is not NIfTI, the affine goes to the sform (code 1) and, where its axes are
    perpendicular, to the qform.

    Raises ValueError for a map on another grid, StorageError where it cannot be written or the name ends in anything
    but ``.nii`` or ``.nii.gz``.
    """
    target = Path(path)
    if not target.name.lower().endswith(MAP_SUFFIXES):
        raise StorageError(f"cannot write {str(path)!r}: expected a name that ends in {' or '.join(MAP_SUFFIXES)}")
    array = np.asarray(values, dtype=np.float32)
    if array.shape[-3:] != volume.shape or array.ndim not in (3, 4):
        raise ValueError(f"expected a map on the grid {volume.shape}, found {array.shape}")
    if array.ndim == 4:
        array = array[0] if len(array) == 1 else np.moveaxis(array, 0, 3)
    if array.ndim == 3 and len(volume.stored_shape) == 2:
        array = array[:, :, 0]
    content = _map_image(volume, array).to_bytes()
    if target.name.lower().endswith(".gz"):
        buffer = io.BytesIO()
        # No time of writing: the same map gives the same bytes.
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as stream:
            stream.write(content)
        content = buffer.getvalue()
    return atomic_write(target, content)


def _map_image(volume: Volume, array: np.ndarray) -> Any:
    import nibabel

    if volume.header is None:
        image = nibabel.Nifti1Image(array, volume.affine)
        image.set_sform(volume.affine, code=_SCANNER)
        if is_sheared(volume.affine):
            image.set_qform(None, code=0)
        else:
            image.set_qform(volume.affine, code=_SCANNER)
        image.header.set_xyzt_units(volume.units, "unknown")
        return image
    second = type(volume.header).__name__.startswith("Nifti2")
    single: Any = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    fresh = single.header_class()
    # The bytes alone: extensions stay behind, and a pair's header keeps its codes.
    header = single.header_class(volume.header.binaryblock, volume.header.endianness, check=False)
    header["magic"], header["vox_offset"] = fresh["magic"], 0
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str"):
        if field in header:
            header[field] = b""
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(np.float32)
    header["scl_slope"], header["scl_inter"] = 1, 0
    # With no affine given, the header's own sform and qform stay untouched, bit for bit.
    return single(array, None, header)
