"""The volumes that a model of named channels finds in a folder: cases and subjects, as the layouts of volumes do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anodiff.data.layouts import bids, nnunet, open_ms, subjects
from anodiff.data.table import SampleTable


@dataclass(frozen=True)
class ChannelNames:
    """What a model knows of its channels.

    count: how many a voxel has. names: in their order; empty where the data did not name them. files: the word by
    which a file's name said each. layout: of the data that it was trained on.
    """

    count: int = 1
    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    layout: str = ""

    @classmethod
    def of(cls, count: int, provenance: Mapping[str, Any]) -> ChannelNames:
        """Those of a model with ``count`` channels."""
        names, files = (tuple(map(str, provenance.get(key) or ())) for key in ("channels", "channel_files"))
        return cls(count, names, files, str(provenance.get("layout", "")))

    @staticmethod
    def provenance(samples: SampleTable) -> dict[str, Any]:
        """What a model file says of the channels that it was trained on."""
        if not samples.channels:
            return {"layout": samples.layout}
        names, files = zip(*samples.channels, strict=True)
        return {"layout": samples.layout, "channels": list(names), "channel_files": list(files)}


def volumes_of_channels(folder: Path, known: ChannelNames) -> list[str]:
    """Names of the volumes below a folder that is laid out by channels, see `marks.channels_path`; empty for others.

    Raises DataError where the data name their channels, but not those of the model.
    """
    if not known.names:
        return []
    several = len(known.names) > 1
    if nnunet.matches(folder) or nnunet.is_part(folder) or (known.layout == "nnunet" and several):
        numbers = known.files if known.layout == "nnunet" else ()
        found = nnunet.to_score(folder, known.names, numbers)
        if found:
            return found
    if bids.matches(folder) or folder.absolute().name == "anat":
        return bids.to_score(folder, known.names)
    # A model of one channel takes a volume of any name, where nothing says that there are others beside it.
    if several or subjects.matches(folder) or open_ms.matches(folder):
        return subjects.to_score(folder, known.names)
    return []
