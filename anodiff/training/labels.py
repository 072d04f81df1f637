"""Which class each training image is of, and which images a model with classes learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anodiff.config import ConditioningConfig
from anodiff.data.layouts.named_classes import plain_name
from anodiff.data.table import SampleTable, group_keys
from anodiff.errors import DataError


def class_numbers(samples: SampleTable, conditioning: ConditioningConfig) -> list[int]:
    """The number of each image's class in ``conditioning.classes``.

    The data's own names decide where one of them is a class of the recipe; else the labels, for two classes. Raises
    DataError for an image of no or another class, or where images of the normal class are labelled anomalous.
    """
    known = {plain_name(name): number for number, name in enumerate(conditioning.classes)}
    names = [str(name) for name in samples.table["class_name"]]
    labels = _labels(samples)
    if any(plain_name(name) in known for name in names):
        numbers = [known.get(plain_name(name)) for name in names]
    elif len(known) == 2:
        normal = conditioning.normal_index
        numbers = [None if label is None else (1 - normal if label else normal) for label in labels]
    else:
        numbers = [None] * len(names)
    _refuse_unknown(samples, conditioning, names, numbers)
    found = [number for number in numbers if number is not None]
    wrong = sum(a == conditioning.normal_index and b == 1 for a, b in zip(found, labels, strict=True))
    if wrong:
        raise DataError(
            f"{samples.root}: expected normal images in the class {conditioning.classes[conditioning.normal_index]!r} "
            f"(conditioning.normal), found {wrong} that are labelled anomalous"
        )
    return found


@dataclass(frozen=True)
class Labelled:
    """Images with the numbers of their classes: of all classes to learn from, and of the normal one held out."""

    learnt: SampleTable
    labels: list[int]
    held: SampleTable
    held_labels: list[int]


def labelled(samples: SampleTable, kept: SampleTable, held: SampleTable, conditioning: ConditioningConfig) -> Labelled:
    """What a model with classes learns from, normal or not: of the split and the groups of ``kept``.

    ``kept`` and ``held`` are the normal images to learn from and those held out (``split_normals``), the same as of a
    model without classes; anomalous images of held-out groups are left out. Raises DataError as `class_numbers`, where
    a class has no image to learn from, and where none of the normal class is held out.
    """
    import pandas as pd

    of_split = samples.table["split"].isin(set(kept.table["split"])).to_numpy()
    apart = ~np.isin(group_keys(samples).astype(str), np.unique(group_keys(held).astype(str)))
    learnt = _rows(samples, of_split & apart)
    both = replace(samples, table=pd.concat([learnt.table, held.table], ignore_index=True))
    numbers = class_numbers(both, conditioning)
    labels, rest = numbers[: len(learnt)], numbers[len(learnt) :]
    normal = np.asarray(rest) == conditioning.normal_index
    empty = [name for name, count in count_classes(labels, conditioning).items() if not count]
    if empty:
        raise DataError(
            f"{samples.root}: expected images of every class to learn from, found none of {', '.join(empty)}"
        )
    if not normal.any():
        name = conditioning.classes[conditioning.normal_index]
        raise DataError(f"{samples.root}: expected held-out images of the class {name!r}, found none of {len(held)}")
    return Labelled(learnt, labels, _rows(held, normal), [conditioning.normal_index] * int(normal.sum()))


def count_classes(numbers: Sequence[int], conditioning: ConditioningConfig) -> dict[str, int]:
    """Images of each class, by name."""
    found = Counter(numbers)
    return {name: found[number] for number, name in enumerate(conditioning.classes)}


def _rows(samples: SampleTable, keep: np.ndarray) -> SampleTable:
    return replace(samples, table=samples.table[keep].reset_index(drop=True))


def _labels(samples: SampleTable) -> list[int | None]:
    column = samples.table["label"]
    return [int(value) if known else None for value, known in zip(column.fillna(0), column.notna(), strict=True)]


def _refuse_unknown(
    samples: SampleTable, conditioning: ConditioningConfig, names: Sequence[str], numbers: Sequence[int | None]
) -> None:
    missing = [name for name, number in zip(names, numbers, strict=True) if number is None]
    if not missing:
        return
    others = Counter(name or "(none)" for name in missing)
    listed = ", ".join(f"{name} {count}" for name, count in others.most_common(5))
    raise DataError(
        f"{samples.root}: expected images of the classes {', '.join(conditioning.classes)} (conditioning.classes), "
        f"found {len(missing)} of others or of none: {listed}"
    )
