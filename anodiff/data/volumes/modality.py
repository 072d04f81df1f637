"""The modality of a volume that only its name tells: the suffix of the Brain Imaging Data Structure (BIDS)."""

from __future__ import annotations

import os
import re

#: DICOM's modality (PS3.3 C.7.3.1.1.1) -> suffixes of BIDS 1.10 that are images of it; CT is common usage beside it
_SUFFIXES = {
    "MR": (
        "T1w", "T2w", "PDw", "T2starw", "FLAIR", "PDT2", "inplaneT1", "inplaneT2", "angio", "UNIT1", "T1map", "T2map",
        "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "Chimap", "VFA", "MEGRE", "MESE", "MP2RAGE",
        "MPM", "MTS", "MTR", "bold", "cbv", "sbref", "dwi", "asl", "m0scan",
    ),
    "PT": ("pet",),
    "CT": ("CT", "ct"),
}  # fmt: skip
_MODALITY = {suffix: modality for modality, suffixes in _SUFFIXES.items() for suffix in suffixes}
_NAME = re.compile(r"sub-[A-Za-z0-9]+(?:_[A-Za-z0-9]+-[A-Za-z0-9]+)*_([A-Za-z0-9]+)\.(?:nii|nii\.gz|mgh|mgz)")


def modality_of_name(path: str | os.PathLike[str]) -> str:
    """MR of ``sub-01_ses-1_FLAIR.nii.gz``; "" of a name that is not BIDS's, or whose suffix is of no known modality."""
    found = _NAME.fullmatch(os.path.basename(path))
    return _MODALITY.get(found[1], "") if found else ""
