"""nnU-Net and Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs; channels case_0000 ...

Of their labels some may be organs: a label whose name does not say that it is an anomaly has to be named as normal.
"""

from __future__ import annotations

import json
import os
import re
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


def load(path: Path, normal: Sequence[str] = (), channels: tuple[str, ...] = ()) -> SampleTable:
    """The sample table: one row a case; imagesTr are split train, imagesTs are split test.

    normal: labels that are normal anatomy. Without it every label but the background must have a name that says that
    it is an anomaly. ``ignore`` counts as neither. channels: by name, or all.

    Raises DataError: a dataset.json that is none, labels that nobody says the meaning of, a case without a channel.
    """
    description = _description(path)
    labels = _anomalous(path, _labels(description), normal)
    names = _channel_names(description)
    samples = []
    for images, truths, split in PARTS:
        folder = path / images
        if not folder.is_dir():
            continue
        files = volume_files(folder)
        masks = {stem_of(file): file for file in volume_files(path / truths)} if (path / truths).is_dir() else {}
        for case, paths in _cases(files, set(masks)).items():
            file = _volume_of(case, paths, names, chosen_channels(names, channels, path, "nnunet"), path)
            mask = labels_path(masks[case], labels) if case in masks else ""
            samples.append(Sample(file, None, mask, case, split))
    return volume_table(samples, "nnunet", path)


def _description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a readable JSON file, found {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


def _labels(description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> values: {"0": "background"} in the Decathlon, {"background": 0, "whole tumor": [1, 2]} in nnU-Net."""
    labels: dict[str, tuple[int, ...]] = {}
    for key, value in (description.get("labels") or {}).items():
        name, numbers = (str(value), [key]) if str(key).isdigit() else (str(key), value)
        several = numbers if isinstance(numbers, list) else [numbers]
        labels[name] = tuple(int(number) for number in several)
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


def _channel_names(description: dict[str, Any]) -> list[str]:
    """In the order of their numbers."""
    found = description.get("channel_names") or description.get("modality") or {"0": "image"}
    return [str(found[key]) for key in sorted(found, key=int)]


def _cases(files: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    """Case -> its files in the order of their channels; without _0000 in every name a file is a case."""
    stems = [stem_of(file) for file in files]
    numbered = [re.fullmatch(r"(.+)_(\d{4})", stem) for stem in stems]
    whole = not all(numbered) or (known and not any(found and found[1] in known for found in numbered))
    cases: dict[str, list[str]] = {}
    for file, stem, found in zip(files, stems, numbered, strict=True):
        cases.setdefault(stem if whole or not found else found[1], []).append(file)
    return cases


def _volume_of(case: str, files: list[str], names: list[str], wanted: list[str], path: Path) -> str:
    """The name of a case's volume with the wanted channels."""
    if len(files) == 1 and len(names) > 1:  # one file with all channels
        if wanted == names:
            return files[0]
        if len(wanted) == 1:
            return f"{files[0]}{VOLUME_MARK}{names.index(wanted[0]) + 1}"
        raise DataError(f"{path}: expected one channel or all of a file that holds {len(names)}, found {len(wanted)}")
    if len(files) != len(names):
        raise DataError(
            f"{os.path.dirname(files[0])}: expected {len(names)} channels ({', '.join(names)}) of {case}, found "
            f"{len(files)}"
        )
    return channels_path([files[names.index(name)] for name in wanted])
