"""Dividing a data set into train, val, dev and test by whole groups, by rules that can be said in four sentences.

Groups never straddle. Train and val hold normal images only. Shares are of the normal images; who goes where is a
function of the seed and the names of the groups. Groups without a normal image go to dev and test, and the anomalous
images of a group that was drawn for train or val are left out (in no split).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from anodiff.data.layouts.grouping import relative_paths
from anodiff.data.table import SPLITS, SampleTable, refuse_shared_groups
from anodiff.errors import ConfigError, DataError

LEARNING, MEASURING = ("train", "val"), ("dev", "test")
NAMES = tuple(name for name in SPLITS if name)
LEFT_OUT = ""
DEFAULT = {"train": 0.7, "val": 0.1, "test": 0.2}
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds."""

    split: str
    normal: int
    anomalous: int
    unlabelled: int
    groups: int


def parse_fractions(text: str) -> dict[str, float]:
    """``{"train": 0.7, "val": 0.1, "test": 0.2}`` of ``train=0.7,val=0.1,test=0.2``.

    Raises ConfigError: an unknown or repeated split, a share outside (0, 1], shares that do not add up to 1.
    """
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            share = float(number)
        except ValueError:
            raise ConfigError(f"--fractions {text}: expected SPLIT=SHARE, found {part.strip()!r}") from None
        if name not in NAMES or name in fractions:
            raise ConfigError(f"--fractions {text}: expected each of {', '.join(NAMES)} at most once, found {name!r}")
        if not 0 < share <= 1:
            raise ConfigError(f"--fractions {text}: expected shares above 0 and up to 1, found {number}")
        fractions[name] = share
    total = sum(fractions.values())
    if abs(total - 1) > _TOLERANCE:
        raise ConfigError(f"--fractions {text}: expected shares that add up to 1, found {total:g}")
    return fractions


def has_splits(samples: SampleTable) -> bool:
    """Whether any image is in a split already."""
    return bool((samples.table["split"] != LEFT_OUT).any())


def assign_splits(samples: SampleTable, fractions: Mapping[str, float], seed: int = 0) -> SampleTable:
    """The table with a new split; see the rules above. Where no image has a label, all count as normal.

    Raises DataError where there are fewer groups with normal images than splits.
    """
    groups, normal = _group_names(samples), _is_normal(samples)
    weights: dict[str, int] = {}
    for group, is_normal in zip(groups, normal, strict=True):
        weights[group] = weights.get(group, 0) + int(is_normal)
    with_normals = {group: count for group, count in weights.items() if count}
    if len(with_normals) < len(fractions):
        raise DataError(
            f"{samples.root}: expected at least {len(fractions)} groups with normal images, one for each split, "
            f"found {len(with_normals)}"
        )
    drawn = _dealt(with_normals, fractions, seed)
    without = {group: groups.count(group) for group, count in weights.items() if not count}
    measuring = {name: share for name, share in fractions.items() if name in MEASURING}
    drawn |= _dealt(without, measuring, seed) if measuring else dict.fromkeys(without, LEFT_OUT)
    return _with_splits(samples, [drawn[group] for group in groups])


def keep_splits(samples: SampleTable) -> SampleTable:
    """The table with the split it came with, less the images of train and val that are not normal.

    Raises DataError where a group straddles.
    """
    for split in NAMES:
        refuse_shared_groups(samples, split, NAMES)
    return _with_splits(samples, samples.table["split"].tolist())


def count_splits(samples: SampleTable) -> list[SplitCounts]:
    """What each split holds, in the order train, val, dev, test; the images left out last, where there are any."""
    table = samples.table.assign(key=_group_names(samples))
    counts = []
    for split in (*NAMES, LEFT_OUT):
        part = table[table["split"] == split]
        if len(part):
            normal, anomalous = int(part["label"].eq(0).sum()), int(part["label"].eq(1).sum())
            rest = len(part) - normal - anomalous
            counts.append(SplitCounts(split, normal, anomalous, rest, part["key"].nunique()))
    return counts


def _with_splits(samples: SampleTable, splits: list[str]) -> SampleTable:
    kept = [
        split if is_normal or split not in LEARNING else LEFT_OUT
        for split, is_normal in zip(splits, _is_normal(samples), strict=True)
    ]
    return replace(samples, table=samples.table.assign(split=kept))


def _is_normal(samples: SampleTable) -> list[bool]:
    labels = samples.table["label"]
    if labels.isna().all():
        return [True] * len(labels)
    return [bool(value) for value in labels.eq(0).fillna(False)]


def _group_names(samples: SampleTable) -> list[str]:
    """The group of each image, or its path below the data's folder, so that moving the data changes nothing."""
    pairs = zip(samples.table["group"], relative_paths(samples), strict=True)
    return [f"group {group}" if group else f"image {path}" for group, path in pairs]


def _dealt(weights: Mapping[str, int], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Group -> split, in an order drawn by the seed.

    Of the first groups each split gets one, the largest split the largest group; then the one that lacks most the next.
    """
    order = sorted(weights, key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "replace")).digest())
    total, share = sum(weights.values()), sum(fractions.values())
    lacking = {split: total * fraction / share for split, fraction in fractions.items()}
    largest = sorted(lacking, key=lambda split: lacking[split], reverse=True)
    first = sorted(order[: len(largest)], key=lambda name: weights[name], reverse=True)
    drawn = dict(zip(first, largest, strict=False))
    for group, split in drawn.items():
        lacking[split] -= weights[group]
    for group in order[len(largest) :]:
        drawn[group] = max(lacking, key=lambda name: lacking[name])
        lacking[drawn[group]] -= weights[group]
    return drawn
