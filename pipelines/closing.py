"""What a job says besides its summary: what was passed over, how many are anomalous, how far numbers can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anodiff.pipelines.common import NAMED, say

#: with fewer groups the bootstrap has too few different resamples for its intervals to cover what they promise
FEW_GROUPS = 10


def say_anomalous(rows: Iterable[Mapping[str, Any]], unit: str, quiet: bool = False) -> None:
    """How many of the inputs that were decided on are anomalous; nothing where there is no threshold."""
    decisions = [row["is_anomalous"] for row in rows if row.get("is_anomalous") is not None]
    if decisions:
        say(f"{sum(decisions)} of {len(decisions)} {unit} anomalous (score above the threshold)", quiet)


def few_groups_note(groups: int) -> tuple[str, ...]:
    """A sentence where the bootstrap over so many groups says too little; of one group there is no interval at all."""
    if not 1 < groups < FEW_GROUPS:
        return ()
    return (
        f"intervals and p rest on {groups} groups (patients, parts), and are too narrow to trust with fewer than "
        f"{FEW_GROUPS}",
    )


def passed_over_note(paths: Sequence[str]) -> tuple[str, ...]:
    """A sentence on the files among the inputs that are no images."""
    if not paths:
        return ()
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    files = "1 file that is no image was" if len(paths) == 1 else f"{len(paths)} files that are no images were"
    return (f"{files} passed over: {', '.join(paths[:NAMED])}{more}",)
