"""Volumes without a layout of their own: every volume below a folder, or one file; a mask may lie beside its volume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anodiff.data.layouts.folder import list_images
from anodiff.data.layouts.volume_files import only_volumes, stem_of, volume_suffix, volume_table
from anodiff.data.table import Sample, SampleTable

if TYPE_CHECKING:
    from anodiff.data.volumes.volume import VolumeSource

#: what a mask's name has after the stem of the volume beside it
MASK_ENDS = ("_mask", "_seg", "_label", "_lesion", "_lesions", "_gt", "-mask", "-seg", "-label")


def matches(path: Path) -> bool:
    """Whether ``path`` is a volume, or a folder of volumes without 2-D images.

    DICOM often has no file ending: of such a folder the first bytes of its files decide.
    """
    from anodiff.data.volumes.inputs import first_volume

    if (path.is_file() and bool(volume_suffix(path))) or only_volumes(path):
        return True
    return path.is_dir() and not list_images(path) and first_volume([path]) is not None


def load(path: Path) -> SampleTable:
    """Every volume (NIfTI, MGH, DICOM series) of a path; ``x_mask``, ``x_seg`` ... are the masks of a volume ``x``.

    Broken ones are among them: reading says what is wrong. Foregrounds (``x_brain`` ...) are not. DICOM series of one
    patient are a group. Raises DataError where there is no volume.
    """
    from anodiff.data.layouts.foregrounds import beside, foregrounds_among, home_of
    from anodiff.data.volumes.discover import find_volumes
    from anodiff.data.volumes.inputs import is_broken

    sources, skipped = find_volumes(path, four_d="channels")
    paths = [source.path for source in sources] + [file for file, reason in skipped if is_broken(file, reason)]
    groups = _groups(sources)
    homes = {source.path: home_of(source) for source in sources}
    brains = foregrounds_among(paths, homes)
    paths = [found for found in paths if found not in brains]
    stems = {os.path.join(os.path.dirname(found), stem_of(found)): found for found in paths if volume_suffix(found)}
    masks = {
        stems[stem.removesuffix(end)]: found
        for stem, found in stems.items()
        for end in MASK_ENDS
        if stem.endswith(end) and stem.removesuffix(end) in stems
    }
    taken = set(masks.values())
    return volume_table(
        [
            Sample(found, None, masks.get(found, ""), groups.get(found, ""), foreground=beside(homes.get(found, found)))
            for found in paths
            if found not in taken
        ],
        "volumes",
        path,
    )


def _groups(sources: Sequence[VolumeSource]) -> dict[str, str]:
    """Path -> a name of its DICOM patient (or study, where that is all it says) that tells nothing of them."""
    patients = {source.path: source.frames[0].patient for source in sources if source.frames}
    numbers = {patient: number for number, patient in enumerate(sorted(set(patients.values()) - {""}), start=1)}
    return {path: f"patient {numbers[patient]}" for path, patient in patients.items() if patient}
