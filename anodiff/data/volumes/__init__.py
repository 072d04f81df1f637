"""Medical volumes in and out: NIfTI, MGH, DICOM and stacks of images, on one grid with an exact way back.

>>> from anodiff.data.volumes import find_volumes, read_volume, write_map
>>> sources, skipped = find_volumes("scans")            # doctest: +SKIP
>>> volume = read_volume(sources[0])                    # doctest: +SKIP
>>> write_map(volume, anomaly_map, "map.nii.gz")        # doctest: +SKIP
"""

from __future__ import annotations

from anodiff.data.volumes.discover import find_volumes
from anodiff.data.volumes.nifti import write_map
from anodiff.data.volumes.read import read_mask, read_volume, with_given
from anodiff.data.volumes.volume import Found, Volume, VolumeSource

__all__ = ["Found", "Volume", "VolumeSource", "find_volumes", "read_mask", "read_volume", "with_given", "write_map"]
