"""What a command line's inputs are: volumes or images; and the volumes among files, folders, patterns and CSVs."""

from __future__ import annotations

import glob
import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anodiff.data.readers import image_suffix
from anodiff.data.volumes.dicom import Damage, Frame
from anodiff.data.volumes.dicom_group import identity
from anodiff.data.volumes.discover import DICOM_SUFFIXES, FourD, find_volumes, split_mark, with_ids
from anodiff.data.volumes.marks import channel_files
from anodiff.data.volumes.read import resolve
from anodiff.data.volumes.volume import Found, VolumeSource
from anodiff.errors import DataError, InputError

if TYPE_CHECKING:
    from anodiff.data.layouts.channels import ChannelNames

#: why `find_volumes` passes over a file without content
EMPTY = "an empty file"
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".mgh", ".mgz", *DICOM_SUFFIXES)


def first_volume(inputs: Sequence[str | os.PathLike[str]]) -> str | None:
    """The first input, or file below one, that looks like a volume by its name or first bytes; None where none does.

    Inputs that do not exist are none: who reads them says so.
    """
    return next((path for path in _files(inputs) if looks_like_volume(path)), None)


def first_image(inputs: Sequence[str | os.PathLike[str]]) -> str | None:
    """The first 2-D image among inputs and below folders, by its name; None where there is none."""
    marked = (path for path in _files(inputs) if not split_mark(path)[1])
    return next((path for path in marked if image_suffix(path)), None)


def looks_like_volume(path: str) -> bool:
    """Whether a path has the mark or suffix of a volume, or is a file without a suffix that begins as DICOM does."""
    if split_mark(path)[1] or path.lower().endswith(SUFFIXES):
        return True
    if Path(path).suffix and not Path(path).suffix[1:].isdecimal():
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def expand_volumes(inputs: Sequence[str | os.PathLike[str]], known: ChannelNames | None = None) -> Found:
    """The volumes that files, folders, patterns, CSVs (a column ``path``) and marked paths stand for.

    known: the channels of the model that they are for. A folder laid out by channels gives its cases or subjects with
    those channels; of a model of several channels a 4-D file is one volume, else each of its volumes is.

    Each once, with ids unique among all of them. DICOM files of a folder that are named one by one, as a shell's
    pattern does, make series where they are complete. What is named as a volume and is empty, or names one that is
    not there, is kept: reading it says what is wrong (its source has no files then); so is a damaged DICOM file of no
    series that can be read. What is no volume is passed over, and so is the foreground of another one by its name.
    Raises DataError for an input that does not exist, where there is no volume at all, and where a folder's channels
    have names, but not the model's.
    """
    from anodiff.data.layouts.foregrounds import foregrounds_among, home_of

    four_d: FourD = "channels" if known is not None and known.count > 1 else "each"
    sources: dict[str, VolumeSource] = {}
    skipped: list[tuple[str, str]] = []
    slices: dict[str, list[str]] = {}
    for item in (os.fspath(each) for each in inputs):
        for path in _named(item):
            if os.path.isdir(path):
                found = (None if known is None else _of_channels(path, known)) or find_volumes(path, four_d=four_d)
                sources |= {source.path: source for source in found.sources}
                skipped += found.skipped
            elif _is_dicom_file(path):
                slices.setdefault(os.path.dirname(path) or ".", []).append(path)
            else:
                sources |= {source.path: source for source in _of_file(path, skipped, four_d)}
    for folder, files in slices.items():
        sources |= {source.path: source for source in _of_slices(folder, files, skipped)}
    for path in [path for path, reason in skipped if is_broken(path, reason)]:
        sources[path] = VolumeSource(path, path, "nifti", "named by its path")
    # Where a volume and its brain mask are both among the inputs, the mask is none.
    for path, owner in foregrounds_among(sources, {path: home_of(each) for path, each in sources.items()}).items():
        skipped.append((path, f"the foreground mask of {owner}, by its name"))
        del sources[path]
    skipped = [(path, reason) for path, reason in skipped if path not in sources]
    if not sources:
        places = ", ".join(os.fspath(item) for item in inputs) or "no input"
        reason = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise DataError(f"{places}: expected volumes (NIfTI, MGH, DICOM), found none{reason}")
    return Found(with_ids(list(sources.values())), sorted(set(skipped)))


def _files(inputs: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Every path named, and every file below each folder."""
    for item in inputs:
        text = os.fspath(item)
        if (
            split_mark(text)[1]
            or channel_files(text)
            or not (os.path.isdir(text) or glob.has_magic(text) or text.lower().endswith(".csv"))
        ):
            yield text
            continue
        try:
            named = _named(text)
        except DataError:
            continue
        for path in named:
            if not os.path.isdir(path):
                yield path
                continue
            for current, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                yield from (os.path.join(current, name) for name in sorted(names) if not name.startswith("."))


def _named(item: str) -> list[str]:
    """The paths of one input: its own, those that match it as a pattern, or those listed in a CSV."""
    if item.lower().endswith(".csv") and os.path.isfile(item):
        from anodiff.data.layouts.manifest import read_manifest, resolve

        return [resolve(Path(item), sample.path) for sample in read_manifest(Path(item), paths_only=True)]
    if os.path.lexists(item) or split_mark(item)[1] or channel_files(item):
        return [item]
    if glob.has_magic(item):
        matched = sorted(glob.glob(item, recursive=True))
        if matched:
            return matched
        raise DataError(f"{item}: expected a pattern that matches files, found no match")
    raise DataError(f"{item}: expected a file, a folder, a pattern or a CSV of paths, found no such path")


def _is_dicom_file(path: str) -> bool:
    if split_mark(path)[1] or not os.path.isfile(path):
        return False
    if path.lower().endswith(DICOM_SUFFIXES):
        return True
    return looks_like_volume(path) and not path.lower().endswith(SUFFIXES)


def is_broken(path: str, reason: str) -> bool:
    """Whether what was passed over is a broken volume (also the rest of an interrupted copy), not another file."""
    return isinstance(reason, Damage) or (reason == EMPTY and path.lower().endswith(SUFFIXES))


def _of_channels(folder: str, known: ChannelNames) -> Found | None:
    """The cases or subjects of a folder that is laid out by channels; None for others."""
    from anodiff.data.layouts.channels import volumes_of_channels
    from anodiff.data.layouts.volume_files import volume_files

    sources = []
    for path in volumes_of_channels(Path(folder), known):
        files = tuple(channel_files(path))
        if files:
            sources.append(VolumeSource(path, path, "channels", f"{len(files)} files, one a channel", files))
        else:
            sources += _of_file(path, [], "channels")
    if not sources:
        return None
    taken = {os.path.abspath(split_mark(file)[0]) for source in sources for file in (*source.files, source.path)}
    reason = f"not one of the channels {', '.join(known.names)} of a subject"
    passed = [(file, reason) for file in volume_files(Path(folder)) if os.path.abspath(file) not in taken]
    return Found(sources, passed)


def _of_file(path: str, skipped: list[tuple[str, str]], four_d: FourD = "each") -> list[VolumeSource]:
    """The volumes of one file; the path itself where only reading it can say what it is."""
    if split_mark(path)[1]:
        try:
            return [resolve(path)]
        except InputError:
            return [VolumeSource(path, path, "nifti", "named by its path")]
    if not os.path.isfile(path):
        return [VolumeSource(path, path, "nifti", "named by its path")]
    found = find_volumes(path, four_d=four_d)
    if found.sources:
        return found.sources
    skipped += found.skipped
    return []


def _of_slices(folder: str, files: list[str], skipped: list[tuple[str, str]]) -> list[VolumeSource]:
    """DICOM files of a folder that were named one by one: series of which every slice was named, the rest alone.

    What else lies in the folder tells whether a series is complete, and is not spoken of.
    """
    left = dict.fromkeys(files)
    sources: list[VolumeSource] = []
    if len(left) > 1:
        wanted = {os.path.abspath(path): path for path in files}
        found = find_volumes(folder)
        sources = _named_series(found, wanted)
        for source in sources:
            for frame in (*source.frames, *source.copies):
                left.pop(wanted[os.path.abspath(frame.path)], None)
        # Of a series that was not named as a whole nobody else says that this file is damaged.
        noted = tuple(sentence for source in sources for sentence in source.damaged)
        for path, reason in found.skipped:
            named = wanted.get(os.path.abspath(path), "")
            if named in left and any(sentence.startswith(f"{path}, ") for sentence in noted):
                left.pop(named)
                skipped.append((named, reason))
    for path in left:
        sources += _of_file(path, skipped)
    return sources


def _named_series(found: Found, wanted: Container[str]) -> list[VolumeSource]:
    """The volumes of several files of which every slice, or a copy of it, is among ``wanted`` (absolute paths).

    Each is made of these files, and has to say of them alone how many copies are left out and which are damaged.
    """
    complete: list[VolumeSource] = []
    partly: set[str] = set()
    for source in found.sources:
        if source.kind != "dicom":
            continue
        named = [frame for frame in (*source.frames, *source.copies) if os.path.abspath(frame.path) in wanted]
        kept: dict[tuple[str, int], Frame] = {}
        for frame in named:
            kept.setdefault(identity(frame), frame)
        frames = tuple(kept[identity(frame)] for frame in source.frames if identity(frame) in kept)
        if len(frames) < len(source.frames):
            partly.add(source.frames[0].series)
        elif len(source.files) > 1:
            copies = tuple(frame for frame in named if kept[identity(frame)] is not frame)
            files = tuple(dict.fromkeys(frame.path for frame in frames))
            complete.append(replace(source, files=files, frames=frames, copies=copies))
    broken = [path for path, _ in found.skipped if os.path.abspath(path) in wanted]
    return [
        replace(
            source,
            remarks=() if source.frames[0].series in partly else source.remarks,
            damaged=tuple(text for text in source.damaged if any(text.startswith(f"{path}, ") for path in broken)),
        )
        for source in complete
    ]
