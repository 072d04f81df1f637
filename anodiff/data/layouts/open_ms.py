"""The layout of the open multiple sclerosis set (Lesjak et al. 2017): patientNN/FLAIR*.nii.gz and GOLD_STANDARD*."""

from __future__ import annotations

import os
from pathlib import Path

from anodiff.data.layouts.volume_files import chosen_channels, tokens_of, volume_files, volume_table
from anodiff.data.table import Sample, SampleTable
from anodiff.data.volumes.marks import channels_path

TRUTH = "GOLD_STANDARD"
#: folders between the root and a patient's at most: cross_sectional/MNI
DEEPEST = 3


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder patient..., or has one below it, that holds a lesion volume GOLD_STANDARD...."""
    places = [f"{'*/' * depth}patient*/{TRUTH}*.nii*" for depth in range(DEEPEST)]
    if path.resolve().name.startswith("patient"):
        places.append(f"{TRUTH}*.nii*")
    return path.is_dir() and any(any(True for _ in path.glob(place)) for place in places)


def load(path: Path, channels: tuple[str, ...] = ()) -> SampleTable:
    """The sample table: one row a patient, ``channels`` are modalities (FLAIR, T1W, ...; by default FLAIR).

    Raises DataError where a patient lacks a modality or the data have none of that name.
    """
    folders: dict[str, list[str]] = {}
    for file in volume_files(path):
        folders.setdefault(os.path.dirname(file), []).append(file)
    samples, chosen = [], []
    for folder, files in folders.items():
        truth = [file for file in files if os.path.basename(file).startswith(TRUTH)]
        by_name = {tokens_of(file)[0].upper(): file for file in files if file not in truth}
        patient = os.path.basename(os.path.realpath(folder))
        if not by_name or not patient.startswith("patient"):
            continue
        names = chosen_channels(list(by_name), channels or ("FLAIR",), Path(folder), "open_ms")
        chosen = [(name, name) for name in names]
        mask = truth[0] if truth else ""
        samples.append(Sample(channels_path([by_name[name] for name in names]), None, mask, patient))
    return volume_table(samples, "open_ms", path, chosen)
