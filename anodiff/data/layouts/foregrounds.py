"""Which file is the foreground (brain mask) of an image or volume: by the command line, a table, or its name.

One rule for every job: what the command line says, else what the data's table says, else, of volumes, what lies beside
under a name of its own. Files that are found so are no inputs and no masks of anomalies themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anodiff.data.readers import file_of
from anodiff.data.table import SampleTable
from anodiff.errors import ConfigError

if TYPE_CHECKING:
    from anodiff.data.volumes.volume import VolumeSource

#: what a foreground's name has after the stem of the volume beside it, in the order in which they are taken
ENDS = ("_brain_mask", "_brainmask", "_foreground", "_bet_mask", "_brain")
#: those of masks alone, which several volumes of a subject may share: x_brainmask beside x_flair and x_t1
SHARED_ENDS = (*ENDS[:-1], "_desc-brain_mask")
#: names of the foreground of every volume in a folder
FOLDER_NAMES = ("brain_mask", "brainmask", "foreground")
SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
#: what ``--foreground`` says where none is to be taken
NONE = "none"
STEM, FOLDER = "{stem}", "{folder}"


def beside(path: str) -> str:
    """The foreground of a volume by its name, "" where there is none.

    Of ``x``, or of a folder ``x`` of DICOM files: ``x_brain_mask`` and the other ENDS beside it, then SHARED_ENDS after
    the beginning of its name up to any "_" or "-", then FOLDER_NAMES in its folder, as NIfTI or MGH.
    """
    own = {_full(file) for file in _files(path)}
    for stem in _candidates(path):
        for suffix in SUFFIXES:
            file = f"{stem}{suffix}"
            if os.path.isfile(file) and os.path.abspath(file) not in own:
                return file
    return ""


def looked_for(path: str) -> str:
    """Half a sentence on what `beside` looks for."""
    folder, stem = _places(path)[0]
    names = ", ".join(f"{stem}{end}" for end in ENDS)
    return f"neither {names} nor {' or '.join(FOLDER_NAMES)} ({', '.join(SUFFIXES)}) in {folder or '.'}"


def home_of(source: VolumeSource) -> str:
    """The path by which a foreground of a volume is named: its own; of a DICOM series the folder of its files."""
    if source.kind != "dicom" or len(source.files) < 2:
        return source.path
    return os.path.commonpath([os.path.dirname(file) for file in source.files]) or os.curdir


def foregrounds_among(paths: Iterable[str], homes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of the paths of volumes that are the foreground of another one of them by their name, and of which.

    homes: what each is known by, where that is not its path; see `home_of`.
    """
    every, known = list(paths), homes or {}
    whole: dict[tuple[str, str], str] = {}
    begun: dict[tuple[str, str], str] = {}
    folders: dict[str, str] = {}
    for path in every:
        home = known.get(path, path)
        for folder, stem in _places(home):
            if _is_mask(stem):
                continue
            whole.setdefault((folder, stem), path)
            for beginning in (stem, *_beginnings(stem)):
                begun.setdefault((folder, beginning), path)
            folders.setdefault(folder, path)
        if os.path.isdir(_plain(home)):
            folders.setdefault(_plain(home), path)
    found = {}
    for path in every:
        suffix = next((each for each in SUFFIXES if path.lower().endswith(each)), "")
        if not suffix or len(_files(path)) > 1:
            continue
        folder, name = os.path.split(path)
        stem = name[: -len(suffix)]
        owners = [begun.get((folder, stem[: -len(end)])) for end in SHARED_ENDS if stem.endswith(end)]
        owners += [whole.get((folder, stem[: -len(end)])) for end in ENDS if stem.endswith(end)]
        owners += [folders.get(folder)] if stem in FOLDER_NAMES else []
        owner = next((each for each in owners if each and each != path), None)
        if owner:
            found[path] = owner
    return found


def foregrounds_of(
    paths: Sequence[str], option: str = "", listed: Mapping[str, str] | None = None, *, by_name: bool = False
) -> dict[str, str]:
    """The foreground of each path that has one; what is one of another path's is left out, see `without`.

    option: of ``--foreground``: "" (as listed, else ``by_name``), NONE, a pattern with ``{stem}`` or ``{folder}`` taken
    from the folder of each path, or the one file of a single input. Raises ConfigError for anything else, also for a
    file that is not there and a pattern of which no path has one.
    """
    if option == NONE:
        return {}
    if not option:
        known, found = listed or {}, {}
        for path in paths:
            file = known.get(path) or known.get(_plain(path)) or (beside(path) if by_name else "")
            if file:
                found[path] = file
        return found
    if STEM in option or FOLDER in option:
        named = {path: of_pattern(path, option) for path in paths}
        if named and not any(map(_exists, named.values())):
            raise ConfigError(
                f"--foreground {option}: expected files of that pattern, found none for any of {len(named)} inputs "
                f"(the first would be {next(iter(named.values()))})"
            )
        return named
    if "{" in option or "}" in option:
        raise ConfigError(f"--foreground {option}: expected {STEM} or {FOLDER} in a pattern, found other braces")
    inputs = {_full(path) for path in paths} - {_full(option)}
    if len(inputs) != 1:
        raise ConfigError(
            f"--foreground {option}: expected a pattern such as '{STEM}_brain.nii.gz' for several inputs, found one "
            f"file for {len(inputs)}"
        )
    if not _exists(option):
        raise ConfigError(f"--foreground {option}: expected a file, found none of that name")
    return dict.fromkeys(paths, option)


def of_pattern(path: str, pattern: str) -> str:
    """The file that a pattern names for a path: ``{stem}`` is its name without ending, ``{folder}`` its folder."""
    folder, stem = _places(path)[0]
    named = pattern.replace(STEM, stem).replace(FOLDER, folder or os.curdir)
    # The folder is named already: from there on it would be named twice.
    return named if pattern.startswith(FOLDER) else os.path.join(folder, named)


def _exists(path: str) -> bool:
    """Whether a path is there, as it is or without marks at its end."""
    while path and not os.path.exists(path):
        path = path.rpartition("#")[0]
    return bool(path)


def without(paths: Iterable[str], found: Mapping[str, str]) -> list[str]:
    """The paths that are not the foreground of another one."""
    taken = {_full(file) for path, file in found.items() if _full(file) != _full(path)}
    return [path for path in paths if _full(path) not in taken]


def given(samples: SampleTable, option: str) -> SampleTable:
    """The table with the foregrounds that the command line names in place of its own, and without their rows.

    Raises ConfigError, see `foregrounds_of`.
    """
    paths = [str(path) for path in samples.table["path"]]
    own = {path: file for path, file in zip(paths, samples.table["foreground"], strict=True) if file}
    found = foregrounds_of(paths, option) if option else own
    kept = set(without(paths, found))
    table = samples.table.assign(foreground=[found.get(path, "") for path in paths])
    return replace(samples, table=table[[path in kept for path in paths]].reset_index(drop=True))


def listed_in(inputs: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Path -> foreground, of the CSVs among the inputs of a command that have a column of that name."""
    from anodiff.data.layouts import manifest

    found: dict[str, str] = {}
    for item in map(Path, inputs):
        if item.suffix.lower() == ".csv" and item.is_file() and "foreground" in manifest.column_names(item):
            for sample in manifest.read_manifest(item, paths_only=True):
                if sample.foreground:
                    found[manifest.resolve(item, sample.path)] = manifest.resolve(item, sample.foreground)
    return found


def _candidates(path: str) -> Iterator[str]:
    places = _places(path)
    for folder, stem in places:
        yield from (os.path.join(folder, f"{stem}{end}") for end in ENDS)
    for folder, stem in places:
        for beginning in _beginnings(stem):
            yield from (os.path.join(folder, f"{beginning}{end}") for end in SHARED_ENDS)
    whole = [_plain(path)] if os.path.isdir(_plain(path)) else [folder for folder, _ in places]
    for folder in dict.fromkeys(whole):
        yield from (os.path.join(folder, name) for name in FOLDER_NAMES)


def _beginnings(stem: str) -> list[str]:
    """``x_1`` and ``x`` of ``x_1-flair``."""
    return [stem[:at] for at in range(len(stem) - 1, 0, -1) if stem[at] in "_-"]


def _is_mask(stem: str) -> bool:
    return stem in FOLDER_NAMES or stem.endswith(SHARED_ENDS)


def _plain(path: str) -> str:
    """The file or folder that a path stands for, without the mark of a part of it."""
    from anodiff.data.volumes.discover import split_mark

    return path if os.path.lexists(path) else split_mark(file_of(path))[0]


def _full(path: str) -> str:
    return os.path.abspath(_plain(path))


def _files(path: str) -> list[str]:
    from anodiff.data.volumes.marks import channel_files

    return channel_files(path) or [_plain(path)]


def _places(path: str) -> list[tuple[str, str]]:
    """(folder, stem) by which a volume is known: its file's; of several channels first what their names share."""
    from anodiff.data.layouts.volume_files import stem_of
    from anodiff.data.volumes.marks import CHANNELS_MARK, CUT_OFF, channel_files

    files = channel_files(path)
    if not files:
        file = _plain(path)
        return [(os.path.dirname(file), os.path.basename(file) if os.path.isdir(file) else stem_of(file))]
    folder, name = os.path.split(path.rpartition(CHANNELS_MARK)[0])
    common = (folder, name.rstrip(CUT_OFF) or os.path.basename(os.path.abspath(folder)))
    return list(dict.fromkeys([common, *((os.path.dirname(file), stem_of(file)) for file in files)]))
