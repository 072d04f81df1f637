"""What a medical volume is once it is read, and the name by which it can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from anodiff.errors import InputError

if TYPE_CHECKING:
    from anodiff.data.volumes.dicom import Frame

Kind = Literal["nifti", "mgh", "dicom", "stack", "channels"]
#: voxels of one volume, all channels together; 1024 x 1024 x 512 fits
MAX_VOXELS = 600_000_000
#: frames of one DICOM file, volumes of one 4-D file: a header that claims more is damaged
MAX_PARTS = 100_000
#: millimetres in one spatial unit of a file; "unknown" is taken as mm
UNIT_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
#: cosine between two axes of the grid from which the affine counts as sheared
SHEAR_COSINE = 1e-3


@dataclass(frozen=True)
class VolumeSource:
    """One volume that can be read.

    id: safe as a file name, unique within the find; path: the file, or ``file#volume=3``, ``file#frame=3`` (from 1),
    ``folder#series=<8 hex digits>``, ``folder#stack``, ``pages.tif#stack=0.5x0.5x2`` (mm along i, j and k where they
    are not 1), ``x_#channels=flair.nii,t1.nii``: a name from which ``read_volume`` finds it again; description: a
    sentence without anything of the patient; copies: DICOM frames that say the same as one of ``frames``, left out;
    remarks: what the reader has to say already; damaged: a sentence for each file of its series that cannot be read.
    """

    id: str
    path: str
    kind: Kind
    description: str
    files: tuple[str, ...] = field(default=(), repr=False)
    volume: int | None = None
    frames: tuple[Frame, ...] = field(default=(), repr=False)
    copies: tuple[Frame, ...] = field(default=(), repr=False)
    spacing: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0), repr=False)
    remarks: tuple[str, ...] = field(default=(), repr=False)
    damaged: tuple[str, ...] = field(default=(), repr=False)


class Found(NamedTuple):
    """The volumes below a path, and what was passed over: (path, reason)."""

    sources: list[VolumeSource]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True, repr=False)
class Volume:
    """A decoded volume, before any normalisation.

    data: float32 (C, I, J, K), the axes after the first as nibabel's (i, j, k); C is 1, 3 for colour, or the number of
    volumes of a 4-D file read whole. A volume of one slice has K = 1.
    affine: float64 (4, 4), (i, j, k) to RAS+ coordinates in ``units``.
    low, high: the value range of the stored type after scaling (8- and 16-bit unsigned integers, DICOM's stored bits),
    else 0..1 where the values lie within it, else their minimum and maximum; ranged: whether it is the type's.
    valid: bool (I, J, K), False where the file holds NaN, infinity or DICOM's padding (``data`` has the smallest other
    value there); None where it holds none.
    foreground: bool (I, J, K), where one was made elsewhere (a brain mask); None: it is found as the recipe says;
    foreground_file: where it was read from.
    stored_shape: as in the file; header: the nibabel header to write maps with, None for other formats; frames: the
    DICOM frames, one a k; remarks: sentences for the report.
    """

    data: np.ndarray
    affine: np.ndarray
    low: float
    high: float
    dtype: str
    path: str
    kind: Kind
    units: str = "mm"
    ranged: bool = False
    modality: str = ""
    valid: np.ndarray | None = None
    foreground: np.ndarray | None = None
    foreground_file: str = ""
    stored_shape: tuple[int, ...] = ()
    header: Any = None
    frames: tuple[Frame, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        _, i, j, k = self.data.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j and k, in mm."""
        i, j, k = voxel_sizes(self.affine) * UNIT_MM[self.units]
        return float(i), float(j), float(k)

    def __repr__(self) -> str:
        size = " x ".join(str(side) for side in self.shape)
        spacing = " x ".join(f"{step:.4g}" for step in self.spacing_mm)
        return f"Volume({self.path!r}, {self.kind}, {self.data.shape[0]} channel(s), {size} voxels of {spacing} mm)"


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Lengths (3,) of the steps along i, j and k, in the affine's units."""
    return np.asarray(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def is_sheared(affine: np.ndarray) -> bool:
    """Whether two axes of the grid are not perpendicular, which a NIfTI qform cannot say."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_COSINE)


def check_affine(affine: np.ndarray, path: str) -> np.ndarray:
    """float64 (4, 4). Raises InputError where it is not finite or flattens the volume."""
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: expected a finite affine, found NaN or infinity in it")
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise InputError(f"{path}: expected an affine of three independent axes, found one that flattens the volume")
    return affine


def check_voxels(count: int, path: str, max_voxels: int = MAX_VOXELS) -> None:
    """Raises InputError, before anything is decoded, for an empty volume or one over the limit."""
    if count <= 0:
        raise InputError(f"{path}: expected a volume with voxels, found none")
    if count > max_voxels:
        raise InputError(f"{path}: expected at most {max_voxels:,} voxels, found {count:,}")


def finite_values(
    data: np.ndarray, path: str, what: str = "NaN or infinite"
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """(data, valid, remarks): NaN and infinity of float32 ``data`` (C, I, J, K) become its smallest finite value.

    ``what`` names them in the remark. Raises InputError where no value is finite.
    """
    finite = np.isfinite(data)
    if finite.all():
        return data, None, ()
    count = int(data.size - finite.sum())
    if count == data.size:
        raise InputError(f"{path}: expected finite values, found only {what} ones")
    lowest = data[finite].min()
    remark = f"{count:,} of {data.size:,} values are {what}: they were set to {lowest:g} and count as outside"
    return np.where(finite, data, lowest), finite.all(axis=0), (remark,)


def is_ranged(dtype: np.dtype[Any]) -> bool:
    """Whether a stored type has a range of its own: bool, uint8 and uint16, where black is 0 and white the largest."""
    return dtype.kind == "b" or (dtype.kind == "u" and dtype.itemsize <= 2)


def value_range(data: np.ndarray, dtype: np.dtype[Any]) -> tuple[float, float]:
    """The range of a type without scaling: its own where it has one, else 0..1 or the minimum and maximum."""
    if is_ranged(dtype):
        return 0.0, 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max)
    low, high = float(data.min()), float(data.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
