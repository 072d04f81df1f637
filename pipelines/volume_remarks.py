"""What a volume's candidates, and what the model has learnt from, leave in doubt: a sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anodiff.anomaly.candidates import Candidate

#: provenance of a model of volumes: share of the foreground of its normal volumes that it has learnt from
SEEN_KEY = "foreground_seen"
#: a smaller share is remarked
LEAST_SEEN = 0.5
#: a candidate that holds more of the foreground is remarked: it is hardly one lesion
LARGEST_SHARE = 0.1


def seen_share(provenance: Mapping[str, Any]) -> float | None:
    """Share of the normal volumes' foreground that the model has learnt from; None where the model does not say."""
    found = provenance.get(SEEN_KEY)
    return None if found is None else float(found)


def seen_remark(share: float | None) -> str | None:
    """A sentence where the model has learnt from little of the foreground."""
    if share is None or share >= LEAST_SEEN:
        return None
    return (
        f"the model has learnt from only {share:.0%} of the foreground of its normal volumes: what it never saw may be "
        "called anomalous for that reason"
    )


def merged_remark(candidates: Sequence[Candidate], foreground_voxels: int) -> str | None:
    """A sentence where one of the candidates holds much of the foreground."""
    if not candidates or not foreground_voxels:
        return None
    largest = max(candidates, key=lambda candidate: candidate.voxels)
    share = largest.voxels / foreground_voxels
    if share <= LARGEST_SHARE:
        return None
    return (
        f"candidate {largest.number} holds {share:.0%} of the foreground ({largest.volume_mm3:,.0f} mm3): lesions and "
        "tissue that the model does not know may have run together in it"
    )
