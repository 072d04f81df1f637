"""nnU-Net and Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs; channels case_0000 ...

Of their labels some may be organs: a label whose name does not say that it is an anomaly has to be named as normal.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anodiff.data.layouts.volume_files import chosen_channels, stem_of, volume_files, volume_table
from anodiff.data.table import Sample, SampleTable
from anodiff.data.volumes.discover import VOLUME_MARK
from anodiff.data.volumes.marks import channels_path, labels_path
from anodiff.errors import DataError

DESCRIPTION = "dataset.json"
PARTS = (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))
BACKGROUND, IGNORE = "background", "ignore"
#: parts of names of what is no normal anatomy
ANOMALIES = (
    "tumor", "tumour", "cancer", "carcinoma", "glioma", "lesion", "edema", "oedema", "necro", "enhanc", "metasta",
    "nodule", "cyst", "polyp", "stroke", "infarct", "ischem", "ischaem", "hemorrhage", "haemorrhage", "bleed",
    "aneurysm", "plaque", "fracture", "infection", "covid", "effusion", "wmh", "hyperintens", "anomal", "abnormal",
    "patholog",
)  # fmt: skip


def matches(path: Path) -> bool:
    """Whether ``path`` has a dataset.json beside imagesTr or imagesTs."""
    return (path / DESCRIPTION).is_file() and any((path / images).is_dir() for images, _, _ in PARTS)


def is_part(path: Path) -> bool:
    """Whether ``path`` is the imagesTr or imagesTs of such a data set."""
    whole = path.absolute()
    return whole.name in [images for images, _, _ in PARTS] and matches(whole.parent)


def load(path: Path, normal: Sequence[str] = (), channels: tuple[str, ...] = ()) -> SampleTable:
    """The sample table: one row a case; imagesTr are split train, imagesTs are split test.

    normal: labels that are normal anatomy. Without it every label but the background must have a name that says that
    it is an anomaly. ``ignore`` counts as neither. channels: by name, or all.

    Raises DataError: a dataset.json that is none, labels that nobody says the meaning of, a case without a channel.
    """
    description = _description(path)
    labels = _anomalous(path, _labels(description, path), normal)
    names = _channel_names(description, path)
    wanted = chosen_channels(names, channels, path, "nnunet")
    files, masks = _files(path)
    known = {case for found in masks.values() for case in found}
    samples = []
    for images, _, split in PARTS:
        for case, found in _cases(files[images], known).items():
            file = _volume_of(case, found, names, wanted, path)
            mask = labels_path(masks[images][case], labels) if case in masks[images] else ""
            samples.append(Sample(file, None, mask, case, split))
    return volume_table(samples, "nnunet", path, [(name, f"{names.index(name):04d}") for name in wanted])


def to_score(path: Path, channels: Sequence[str], numbers: Sequence[str] = ()) -> list[str]:
    """The volumes of a data set, of its imagesTr or imagesTs, or of a folder of numbered files; empty for others.

    channels: by the names of the dataset.json; where there is none, ``numbers`` are those of their files. A volume
    whose files are not all there is named all the same: reading it says which is not.
    """
    home = path if matches(path) else path.absolute().parent if is_part(path) else None
    parts = [images for images, _, _ in PARTS]
    if home is None:
        cases = _cases(volume_files(path), set())
        if not numbers or any(None in found for found in cases.values()):
            return []
        return [_numbered_volume(path, case, found, [int(n) for n in numbers]) for case, found in cases.items()]
    names = _channel_names(_description(home), home)
    wanted = chosen_channels(names, channels, home, "nnunet")
    files, masks = _files(home)
    known = {case for found in masks.values() for case in found}
    volumes = []
    for images in parts if home == path else [path.absolute().name]:
        for case, found in _cases(files[images], known).items():
            if None in found:
                volumes.append(_volume_of(case, found, names, wanted, home))
            else:
                volumes.append(_numbered_volume(home / images, case, found, [names.index(name) for name in wanted]))
    return volumes


def _files(path: Path) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """For each images folder its files, and the masks of its cases."""
    files, masks = {}, {}
    for images, truths, _ in PARTS:
        there = {name: volume_files(path / name) if (path / name).is_dir() else [] for name in (images, truths)}
        files[images] = there[images]
        masks[images] = {stem_of(file): file for file in there[truths]}
    return files, masks


def _numbered_volume(folder: Path, case: str, files: dict[int | None, str], numbers: Sequence[int]) -> str:
    return channels_path([files.get(number) or str(folder / f"{case}_{number:04d}") for number in numbers])


def _description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a readable JSON file, found {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


def _labels(description: dict[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> values: {"0": "background"} in the Decathlon, {"background": 0, "whole tumor": [1, 2]} in nnU-Net."""
    labels: dict[str, tuple[int, ...]] = {}
    given = description.get("labels") or {}
    try:
        for key, value in given.items():
            name, numbers = (str(value), [key]) if str(key).isdigit() else (str(key), value)
            several = numbers if isinstance(numbers, list) else [numbers]
            labels[name] = labels.get(name, ()) + tuple(int(number) for number in several)
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{path / DESCRIPTION}: expected labels as names with values, found {given!r:.80}") from None
    return labels


def _anomalous(path: Path, labels: dict[str, tuple[int, ...]], normal: Sequence[str]) -> tuple[int, ...]:
    """Values that are anomalous; () where that is every value above 0."""
    known = {name.lower(): name for name in labels}
    wrong = [name for name in normal if name.lower() not in known]
    if wrong:
        raise DataError(f"{path}: expected --normal labels of {', '.join(labels)}, found {', '.join(wrong)}")
    passed = {BACKGROUND, IGNORE, *(name.lower() for name in normal)}
    others = [name for name in labels if name.lower() not in passed and any(labels[name])]
    unsure = [name for name in others if not any(part in name.lower() for part in ANOMALIES)]
    if unsure and not normal:
        raise DataError(
            f"{path}: expected labels of anomalies, found {', '.join(unsure)}, which may be normal anatomy: name those "
            f"that are, such as --normal {unsure[0]}, or --normal background where none is"
        )
    values = {value for name in others for value in labels[name] if value}
    spared = {value for name, found in labels.items() if name.lower() in passed for value in found if value}
    return tuple(sorted(values - spared)) if spared else ()


def _channel_names(description: dict[str, Any], path: Path) -> list[str]:
    """In the order of their numbers, from 0; a name that is there twice gets its number."""
    found = description.get("channel_names") or description.get("modality") or {"0": "image"}
    try:
        names = [str(found[key]) for key in sorted(found, key=int)]
        if sorted(map(int, found)) != list(range(len(names))):
            raise ValueError
    except (AttributeError, TypeError, ValueError, KeyError):
        raise DataError(
            f"{path / DESCRIPTION}: expected channel_names as numbers from 0 with names, found {found!r:.80}"
        ) from None
    seen = Counter(name.lower() for name in names)
    return [f"{name}{number}" if seen[name.lower()] > 1 else name for number, name in enumerate(names)]


def _cases(files: Sequence[str], known: set[str]) -> dict[str, dict[int | None, str]]:
    """Case -> its files by the number of their channel; without _0000 in every name a file is a case, number None.

    known: cases by the names of their masks, where there are any.
    """
    stems = [stem_of(file) for file in files]
    numbered = [re.fullmatch(r"(.+)_(\d{4})", stem) for stem in stems]
    # "case_0001" is a case of its own where a mask is called so: in imagesTs, too, whose cases have no masks.
    whole = not all(numbered) or any(stem in known for stem in stems)
    whole = whole or (bool(known) and all(re.search(r"_\d{4}$", case) for case in known) and _singles(numbered))
    cases: dict[str, dict[int | None, str]] = {}
    for file, stem, found in zip(files, stems, numbered, strict=True):
        case, number = (stem, None) if whole or not found else (found[1], int(found[2]))
        cases.setdefault(case, {})[number] = file
    return cases


def _singles(numbered: Sequence[re.Match[str] | None]) -> bool:
    """Whether what stands before the last number does not end in four digits as well, so that it names no channel."""
    return not any(found and re.search(r"_\d{4}$", found[1]) for found in numbered)


def _volume_of(case: str, files: dict[int | None, str], names: list[str], wanted: list[str], path: Path) -> str:
    """The name of a case's volume with the wanted channels."""
    if None in files:
        if wanted == names:
            return files[None]
        if len(wanted) == 1:
            return f"{files[None]}{VOLUME_MARK}{names.index(wanted[0]) + 1}"
        raise DataError(f"{path}: expected one channel or all of a file that holds {len(names)}, found {len(wanted)}")
    if set(files) != set(range(len(names))):
        there = ", ".join(f"{number:04d}" for number in sorted(number for number in files if number is not None))
        raise DataError(
            f"{os.path.dirname(next(iter(files.values())))}: expected {len(names)} channels ({', '.join(names)}) of "
            f"{case}, found {there}"
        )
    return channels_path([files[names.index(name)] for name in wanted])
