"""What is wrong with the masks of a data set, found by reading them, and said by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anodiff.data.readers import read_image, read_mask
from anodiff.data.table import SampleTable
from anodiff.errors import InputError

#: findings of a kind that are named one by one
NAMED = 5


@dataclass(frozen=True)
class Finding:
    """kind: "unusable" (the row will fail), "empty" (an anomalous image's mask marks nothing: its pixels are left out)
    or "none" (an anomalous image has no mask where others have); sentence: names the file."""

    kind: str
    sentence: str


def mask_finding(path: str, mask: str, label: int | None, max_pixels: int) -> Finding | None:
    """Reads an image and its mask; what is wrong with them, if anything."""
    try:
        shape = read_image(path, max_pixels=max_pixels).pixels.shape
        marked = read_mask(mask, (shape[0], shape[1]), max_pixels=max_pixels).any()
    except InputError as error:
        return Finding("unusable", str(error))
    if label == 0 and marked:
        return Finding("unusable", f"{mask}: expected no marked pixel in the mask of a normal image, found some")
    if label == 1 and not marked:
        return Finding("empty", f"{mask}: expected a marked pixel in the mask of an anomalous image, found none")
    return None


def unmasked(samples: SampleTable) -> list[Finding]:
    """Anomalous images without a mask, where others of the set have one."""
    table = samples.table
    anomalous = table[table["label"].eq(1).fillna(False)]
    if not (anomalous["mask"] != "").any():
        return []
    return [
        Finding("none", f"{path}: expected a mask of this anomalous image, found none named")
        for path in anomalous["path"][anomalous["mask"] == ""]
    ]


def masked_rows(samples: SampleTable) -> list[tuple[str, str, int | None]]:
    """(path, mask, label) of each image that names a mask."""
    import pandas as pd

    table = samples.table[samples.table["mask"] != ""]
    labels = [None if pd.isna(label) else int(label) for label in table["label"]]
    return list(zip(table["path"], table["mask"], labels, strict=True))


def summaries(findings: Iterable[Finding]) -> list[str]:
    """For each kind one line with its number and what it means, and the first few by name."""
    meanings = {
        "unusable": "that cannot be used, or whose mask is missing or cannot; evaluate will fail them by name",
        "empty": "anomalous, with an empty mask; their pixels will be left out, their image scores count",
        "none": "anomalous, without a mask; their pixels will be left out, their image scores count",
    }
    by_kind: dict[str, list[str]] = {kind: [] for kind in meanings}
    for finding in findings:
        by_kind[finding.kind].append(finding.sentence)
    return [_summary(sentences, meanings[kind]) for kind, sentences in by_kind.items() if sentences]


def _summary(sentences: Sequence[str], meaning: str) -> str:
    images = "image" if len(sentences) == 1 else "images"
    more = [f"  and {len(sentences) - NAMED} more"] if len(sentences) > NAMED else []
    return "\n".join([f"{len(sentences)} {images} {meaning}:", *(f"  {text}" for text in sentences[:NAMED]), *more])
