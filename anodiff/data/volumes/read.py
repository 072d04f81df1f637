"""One way in for every kind of volume."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from anodiff.data.foreground import checked
from anodiff.data.volumes.dicom import Damage
from anodiff.data.volumes.dicom_group import Group, copied, hole
from anodiff.data.volumes.dicom_read import read_group
from anodiff.data.volumes.discover import SERIES_MARK, VOLUME_MARK, find_volumes, split_mark
from anodiff.data.volumes.geometry import Grid, Reorient, reorient
from anodiff.data.volumes.marks import SAME_PLACE, channel_files, check_same_grid, join_channels, marked, split_labels
from anodiff.data.volumes.nifti import read_nifti
from anodiff.data.volumes.stack import STACK_MARK, read_stack, stack_mark, stack_spacing
from anodiff.data.volumes.volume import MAX_VOXELS, UNIT_MM, Volume, VolumeSource
from anodiff.errors import DataError, InputError

#: one made elsewhere: a file, or bool (I, J, K) like its volume
Foreground = str | os.PathLike[str] | np.ndarray | None


def read_volume(source: VolumeSource | str | os.PathLike[str], *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode one volume, on its own grid and with its own values.

    ``source``: from ``find_volumes``, or a path: a file, a folder of one volume, or a source's ``path``. A 4-D file
    named without ``#volume=`` is read whole, its volumes as channels.

    Raises InputError, one sentence that names the file: missing, damaged or truncated, not a volume, without pixels, a
    compression no installed decoder reads, missing or doubled or uneven slices, an affine that is not usable, more
    than ``max_voxels`` voxels (checked before decoding), a constant volume (nothing in it can be scored), a folder of
    several volumes. ``x#channels=a,b`` is a volume whose channels are files of their own, see ``marks``.
    """
    volume = _read(source, max_voxels)
    if volume.data.min() == volume.data.max():
        raise InputError(
            f"{volume.path}: expected a volume with content, found a constant one "
            f"(every value is {volume.data.flat[0]:g}), which cannot be scored"
        )
    return volume


def read_mask(
    source: VolumeSource | str | os.PathLike[str], like: Volume, *, max_voxels: int = MAX_VOXELS
) -> np.ndarray:
    """Decode an annotation on the grid of ``like`` to bool (I, J, K): every value above 0 is anomalous, none that is
    NaN, infinite or padding. ``mask#labels=1,4`` is that of the values 1 and 4 only.

    Raises InputError for what cannot be decoded, several channels, and a grid of another size or place.
    """
    name, labels = ("", ()) if isinstance(source, VolumeSource) else split_labels(os.fspath(source))
    mask = _read(name or source, max_voxels)
    if len(mask.data) != 1:
        raise InputError(f"{mask.path}: expected a mask of one channel, found {len(mask.data)}")
    check_same_grid(mask, like, "a mask")
    return marked(mask, labels)


def read_given(source: VolumeSource | str | os.PathLike[str], foreground: str | os.PathLike[str] = "") -> Volume:
    """`read_volume`, and `with_given` where there is a foreground."""
    return with_given(read_volume(source), foreground)


def with_given(volume: Volume, foreground: Foreground, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """The volume with a foreground made elsewhere: bool (I, J, K) like it, or a file; as it is for None or "".

    Of a file every value above 0 is inside, so that a volume whose background was set to 0 serves as well. It lies on
    the volume's grid, stored in whatever order and directions of the axes: what counts is where its voxels are.

    Raises InputError, naming both files, for what cannot be decoded, another grid (size or place), an empty mask.
    """
    if foreground is None or (not isinstance(foreground, np.ndarray) and not os.fspath(foreground)):
        return volume
    try:
        if isinstance(foreground, np.ndarray):
            return replace(volume, foreground=checked(foreground, volume.shape))
        name, labels = split_labels(os.fspath(foreground))
        mask = _read(name, max_voxels)
        if len(mask.data) != 1:
            raise ValueError(f"expected a mask of one channel, found {len(mask.data)}")
        inside = checked(_in_order_of(volume, mask, marked(mask, labels)), volume.shape)
        return replace(volume, foreground=inside, foreground_file=os.fspath(foreground))
    except InputError as error:
        raise InputError(f"{volume.path}: its foreground cannot be used: {error}") from None
    except ValueError as error:
        named = "" if isinstance(foreground, np.ndarray) else f" {os.fspath(foreground)}"
        raise InputError(f"{volume.path}: its foreground{named} cannot be used: {error}") from None


def _in_order_of(volume: Volume, mask: Volume, inside: np.ndarray) -> np.ndarray:
    """bool (I, J, K) of a mask in the volume's order of voxels. Raises ValueError where it lies on another grid."""
    theirs, ours = _canonical(mask), _canonical(volume)
    if theirs.target.shape != ours.target.shape:
        found, expected = (" x ".join(map(str, each.target.shape)) for each in (theirs, ours))
        raise ValueError(f"expected {expected} voxels (from right to left, back to front, foot to head), found {found}")
    sides = [max(side - 1, 1) for side in ours.target.shape]
    shift = float(np.abs((theirs.target.affine - ours.target.affine) @ np.diag([*sides, 1.0])).sum(axis=1).max())
    if shift > SAME_PLACE * min(ours.target.spacing):
        raise ValueError(f"expected it at the place of its volume, found it up to {shift:.3g} mm away")
    return ours.back(theirs.forward(inside), 0)


def _canonical(volume: Volume) -> Reorient:
    """The way to the order in which voxels run nearest to right, anterior and superior, in mm."""
    scale = np.diag([*([UNIT_MM[volume.units]] * 3), 1.0])
    return reorient(Grid(volume.shape, scale @ volume.affine), "RAS")


def _read(source: VolumeSource | str | os.PathLike[str], max_voxels: int) -> Volume:
    if not isinstance(source, VolumeSource):
        files = channel_files(source)
        if files:
            return join_channels([_read(file, max_voxels) for file in files], os.fspath(source), max_voxels)
        source = resolve(source)
    if source.kind == "channels":
        return join_channels([_read(file, max_voxels) for file in source.files], source.path, max_voxels)
    if source.kind == "dicom":
        group = Group(source.frames, (*copied(source.copies), *source.remarks, *source.damaged))
        try:
            _refuse_hole(source)
            return read_group(group, source.path, max_voxels=max_voxels)
        except InputError as error:
            # What is missing may be in the file that could not be read.
            raise InputError("; ".join((str(error), *source.damaged))) from None
    if source.kind == "stack":
        return read_stack(source, max_voxels=max_voxels)
    return read_nifti(source.files[0], source.volume, max_voxels=max_voxels)


def _refuse_hole(source: VolumeSource) -> None:
    """Raises InputError where a damaged slice lies between the others, also where the rest has even steps.

    Of every second slice, or of two, the distances do not show that one is missing.
    """
    lost = [frame for text in source.damaged if isinstance(text, Damage) for frame in text.frames]
    found = hole(source.frames, lost)
    if found is not None:
        raise InputError(f"{source.path}: expected every slice, found 1 missing between others: {found.path}")


def resolve(path: str | os.PathLike[str]) -> VolumeSource:
    """The one volume that a path names. Raises InputError where there is none or several."""
    text = os.fspath(path)
    file, mark = _split(text)
    stacks, spacing = mark.startswith(STACK_MARK), (1.0, 1.0, 1.0)
    if stacks:
        spacing = stack_spacing(text, mark)
        mark = stack_mark(spacing)
    try:
        found = find_volumes(
            file, four_d="each" if mark.startswith(VOLUME_MARK) else "channels", stacks=stacks, spacing=spacing
        )
    except DataError:
        raise InputError(f"{text}: expected a volume, found no such file or folder") from None
    named = [source for source in found.sources if not mark or _named(source, file, mark)]
    if len(named) == 1:
        return replace(named[0], path=text)
    if named:
        names = ", ".join(source.path for source in named[:3]) + (", ..." if len(named) > 3 else "")
        raise InputError(f"{text}: expected one volume, found {len(named)}; name one of them: {names}")
    if len(found.skipped) == 1 and not found.sources:
        raise InputError(f"{text}: expected a volume, found {found.skipped[0][1]}")
    raise InputError(f"{text}: expected a volume{' of that name' if mark else ''}, found none")


def _named(source: VolumeSource, file: str, mark: str) -> bool:
    # A find writes "s#stack" for what a user may call "./s/#stack".
    return source.path == f"{Path(file)}{mark}" or (mark.startswith(SERIES_MARK) and source.path.endswith(mark))


def _split(text: str) -> tuple[str, str]:
    """("scan.nii", "#volume=3"); a file whose own name ends so wins."""
    if os.path.lexists(text):
        return text, ""
    name, mark = split_mark(text)
    return (name, mark) if mark and Path(name).exists() else (text, "")
