"""Which volumes lie in a path: files, folders, DICOM series, and on request folders of 2-D images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from anodiff.data.readers import image_suffix
from anodiff.data.table import make_ids
from anodiff.data.volumes.dicom import Damage, Frame, read_frames
from anodiff.data.volumes.dicom_group import Group, group_frames, group_key
from anodiff.data.volumes.marks import CHANNELS_MARK, CUT_OFF
from anodiff.data.volumes.nifti import count_volumes, sniff
from anodiff.data.volumes.stack import STACK_MARK, find_stacks
from anodiff.data.volumes.volume import Found, VolumeSource
from anodiff.errors import DataError, InputError

FourD = Literal["each", "channels"]
VOLUME_MARK, SERIES_MARK, FRAME_MARK = "#volume=", "#series=", "#frame="
# Only at the end, and of one part of a path: folders and files may have "#" in their own names.
_MARKED = re.compile(r"(.*)(#(?:volume|frame)=[^#/\\]+|#series=[^#/\\]+|#stack(?:=[^#/\\]+)?)", re.DOTALL)
#: names that say DICOM where the preamble is missing
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_NIFTI_SUFFIXES = (".nii", ".hdr", ".mgh", ".mgz")
_COMPANIONS = (".img", ".bval", ".bvec")
#: by their names: volumes of formats that are told apart only to say what to do with them
OTHER_FORMATS = {
    ".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage", ".mnc": "MINC", ".head": "AFNI",
    ".brik": "AFNI",
}  # fmt: skip


def find_volumes(
    path: str | os.PathLike[str],
    *,
    four_d: FourD = "each",
    stacks: bool = False,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Found:
    """The volumes of a file or a folder (and all below it) by content, and what was passed over with the reason.

    A 4-D file is one source a volume (``four_d="each"``) or one source with its volumes as channels. DICOM files below
    a folder are grouped into series, wherever they lie; a DICOM file named itself is one image, or the volumes of its
    frames. With ``stacks`` a folder of 2-D images, or a multi-page TIFF, is one volume of ``spacing`` mm; without,
    images are passed over. Files are not decoded: what is wrong with their voxels is said by ``read_volume``. The
    reason of a DICOM file that is damaged, as far as that shows before decoding, is a `Damage`; where its series is
    known, its volumes' sources name it too.

    Raises DataError where the path does not exist.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{path}: expected a file or a folder, found neither")
    sources: list[VolumeSource] = []
    skipped: list[tuple[str, str]] = []
    frames: list[Frame] = []
    images: list[str] = []
    for file in _files(root):
        if stacks and image_suffix(file):
            images.append(file)
            continue
        kind = _kind(file)
        if kind == "dicom":
            found = read_frames(file)
            skipped.extend([(file, found)] if isinstance(found, str) else [])
            frames.extend([] if isinstance(found, str) else found)
        elif kind in ("nifti", "mgh"):
            sources.extend(_file_sources(file, kind, four_d))  # type: ignore[arg-type]
        elif kind:
            skipped.append((file, kind))
    groups = group_frames(frames)
    skipped, damaged = _by_series(skipped, {group.frames[0].series for group in groups} - {""})
    sources.extend(_series_source(group, root, tuple(damaged.get(group.frames[0].series, ()))) for group in groups)
    if stacks:
        more, passed = find_stacks(images, spacing)
        sources.extend(more)
        skipped.extend(passed)
    return Found(with_ids(sources), sorted(skipped))


def _by_series(skipped: list[tuple[str, str]], known: set[str]) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """(files passed over with their reasons, for each known series a sentence on each damaged file of it)."""
    passed: list[tuple[str, str]] = []
    damaged: dict[str, list[str]] = {}
    for file, reason in skipped:
        if isinstance(reason, Damage) and reason.series in known:
            text = f"{file}, of this series, is left out: {reason}"
            damaged.setdefault(reason.series, []).append(Damage.of(text, reason.series, reason.frames))
            passed.append((file, f"{reason}; the rest of its series is read"))
        else:
            passed.append((file, reason))
    return passed, damaged


def split_mark(text: str) -> tuple[str, str]:
    """("scan.nii", "#volume=3") for "scan.nii#volume=3"; (text, "") where it ends in no mark of a volume."""
    found = _MARKED.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def _files(root: Path) -> Iterator[str]:
    """Every file below a folder in the order of its path, hidden ones apart; the file itself where it is one."""
    if root.is_file():
        yield str(root)
        return
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))


def _kind(file: str) -> str:
    """``nifti``, ``mgh``, ``dicom``, "" for a companion of another file, or a sentence why the file is none of them."""
    name = Path(file).name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    try:
        head = _head(file)
        if not head:
            return "an empty file"
        if head[128:132] == b"DICM" or _looks_like_dicom(head, suffix):
            return "dicom"
        kind = sniff(file)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or type(error).__name__})"
        return Damage.of(reason) if suffix in DICOM_SUFFIXES else reason
    if kind in ("nifti1", "nifti2", "pair1", "pair2"):
        return "nifti"
    if kind == "mgh":
        return "mgh"
    if suffix in _NIFTI_SUFFIXES and (kind == "analyze" or suffix != ".hdr"):
        # By its name it should be one: a source, so that reading says what is wrong with it.
        return "nifti"
    if suffix in _COMPANIONS:
        return ""
    if image_suffix(file):
        return "a 2-D image: folders of them are volumes only where stacks are asked for"
    if suffix in OTHER_FORMATS:
        return f"{OTHER_FORMATS[suffix]}, which is not read: convert it to NIfTI"
    if head[:2] == b"\x1f\x8b":
        return "a compressed file that holds neither NIfTI nor MGH"
    return "not a volume of a known format"


def _head(file: str) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(132)


def _looks_like_dicom(head: bytes, suffix: str) -> bool:
    """A data set without its preamble: named so, or beginning with an element of group 2 or 8 in either byte order."""
    if suffix in DICOM_SUFFIXES:
        return True
    element = head[:4]
    begins = element[:2] in (b"\x02\0", b"\x08\0") or element[:2] in (b"\0\x02", b"\0\x08")
    return begins and suffix == "" and len(head) == 132


def _file_sources(file: str, kind: Literal["nifti", "mgh"], four_d: FourD) -> list[VolumeSource]:
    label = "NIfTI" if kind == "nifti" else "MGH"
    try:
        count = count_volumes(file)
    except InputError:
        count = 1  # reading says what is wrong
    if count < 2 or four_d == "channels":
        text = f"{label} file" if count < 2 else f"{label} file of {count} volumes, read as channels"
        return [VolumeSource(file, file, kind, text, (file,))]
    return [
        VolumeSource(
            file, f"{file}{VOLUME_MARK}{number}", kind, f"volume {number} of {count} of a {label} file", (file,), number
        )
        for number in range(1, count + 1)
    ]


def _series_source(group: Group, root: Path, damaged: tuple[str, ...]) -> VolumeSource:
    frames, first = group.frames, group.frames[0]
    files = tuple(dict.fromkeys(frame.path for frame in frames))
    if len(files) == 1 and len(frames) == first.count:
        path = files[0]
    elif len(files) == 1 and len(frames) == 1:
        path = f"{files[0]}{FRAME_MARK}{first.index + 1}"
    else:
        home = root if root.is_dir() else root.parent
        path = f"{files[0] if len(files) == 1 else home}{SERIES_MARK}{group_key(group)}"
    text = _describe(group)
    return VolumeSource(
        path, path, "dicom", text, files, frames=frames, copies=group.copies, remarks=group.remarks, damaged=damaged
    )


def _describe(group: Group) -> str:
    first, count = group.frames[0], len(group.frames)
    number = f" series {first.series_number}" if first.series_number is not None else ""
    size = f"{first.columns} x {first.rows}"
    if first.count > 1 and count == 1:
        return f"DICOM {first.modality}{number}: frame {first.index + 1} of {first.count}, {size} pixels".replace(
            "  ", " "
        )
    what = f"{count} slices of {size} pixels" if count > 1 else f"one image of {size} pixels"
    return f"DICOM {first.modality}{number}: {what}".replace(" :", ":")


def with_ids(sources: list[VolumeSource]) -> list[VolumeSource]:
    """The sources with ids that are safe as file names and unique among them."""
    from dataclasses import replace

    ids = make_ids([_plain_name(source) for source in sources])
    return [replace(source, id=name) for source, name in zip(sources, ids, strict=True)]


def _plain_name(source: VolumeSource) -> str:
    """A path whose last extension can be cut off: the mark moves before it."""
    if CHANNELS_MARK in source.path:
        return f"{source.path.rpartition(CHANNELS_MARK)[0].rstrip(CUT_OFF)}.volume"
    file, mark = split_mark(source.path)
    path = Path(file)
    if source.kind == "stack":
        # An output's name does not change with the spacing that was asked for.
        mark = STACK_MARK if path.is_dir() else ""
    stem, suffix = path.name, ""
    for ending in (".nii.gz", ".hdr.gz", ".nii", ".hdr", ".mgh", ".mgz", *DICOM_SUFFIXES, ".tiff", ".tif"):
        if path.name.lower().endswith(ending):
            stem, suffix = path.name[: -len(ending)], ending.replace(".", "")
            break
    if source.kind == "dicom" and mark.startswith(SERIES_MARK):
        first = source.frames[0]
        return str(path / f"{first.modality or 'series'}_{mark[-8:]}.series")
    return str(path.parent / f"{stem}{mark.replace('#', '_').replace('=', '_')}.{suffix or 'none'}")
