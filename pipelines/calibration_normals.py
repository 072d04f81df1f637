"""The normals of a calibration or a tuning: which tell the size of normal error, and which set the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from anodiff.errors import DataError
from anodiff.pipelines.common import drawn, say

if TYPE_CHECKING:
    from anodiff.data.table import SampleTable
    from anodiff.model import DiffusionModel
    from anodiff.training.image_files import ImageFiles
    from anodiff.training.images import ImageSet

#: a larger share of normals that the model has learnt from is refused
MOST_TRAINED = 0.5
#: fewer images that it has not learnt from than these are no threshold's worth
FEWEST_NEW = 8


@dataclass(frozen=True)
class CalibrationNormals:
    """Normals read for a calibration, or looked through where they may have any size.

    deciding: set the threshold. fitting: for the normal error, None where `deciding` is to be split. failed: a sentence
    for each image left out.
    """

    deciding: ImageSet | ImageFiles
    fitting: ImageSet | ImageFiles | None

    @property
    def failed(self) -> tuple[str, ...]:
        return (*self.deciding.failed, *(() if self.fitting is None else self.fitting.failed))


def read_normals(
    model: DiffusionModel,
    normals: Path,
    *,
    layout: str,
    normal: str,
    group_by: str,
    allow_trained: bool,
    seed: int,
    quiet: bool,
    foreground: str = "",
) -> CalibrationNormals:
    """The normals of a data set, at most as many as the recipe says; says which of them the model has learnt from.

    Where it has learnt from most of them, and from no image of enough other groups, the first tell the size of normal
    error and the others set the threshold, as `train` itself does it. Raises DataError, see `trained_note`.
    """
    from anodiff.data.layouts import load_table
    from anodiff.data.layouts.foregrounds import given
    from anodiff.training.image_files import look_through
    from anodiff.training.images import load_images

    config, limits = model.config, model.config.calibration

    def read(part: SampleTable, count: int) -> ImageSet | ImageFiles:
        load = look_through if config.any_size else load_images
        return load(
            drawn(part, count, seed), model.scorable, config.preprocess.max_pixels, config.engine.workers, quiet
        )

    samples = given(load_table(normals, layout, normal=normal, group_by=group_by), foreground)
    say(f"{normals}: layout {samples.layout}", quiet)
    fitting, threshold = normal_parts(samples)
    deciding = read(threshold, limits.threshold_images)
    if fitting is None and not allow_trained and learnt_from_most(model, deciding.hashes):
        every = deciding if len(threshold) <= limits.threshold_images else read(threshold, len(threshold))
        new = rows_of_new_groups(model, every)
        if len(new) >= FEWEST_NEW:
            old = sorted(set(range(len(every))) - set(new))
            say(
                f"the model has learnt from {len(old)} of these {len(every)} normals, or from others of their group: "
                f"they tell the size of normal error, and the {len(new)} others set the threshold",
                quiet,
            )
            return CalibrationNormals(
                every.take(new).sample(limits.threshold_images, seed),
                replace(every.take(old), failed=()).sample(limits.standardise_images, seed),
            )
    for note in trained_note(model, deciding.hashes, normals, allow_trained):
        say(f"note: {note}", quiet)
    first = None if fitting is None else read(fitting, limits.standardise_images)
    return CalibrationNormals(deciding, first)


def learnt_from_most(model: DiffusionModel, hashes: Sequence[int]) -> bool:
    """Whether the model has learnt from more than MOST_TRAINED of the images of which that can be told."""
    count, told = (0, 0) if model.seen is None else model.seen.count(hashes)
    return count > MOST_TRAINED * told


def rows_of_new_groups(model: DiffusionModel, normals: ImageSet | ImageFiles) -> list[int]:
    """The rows of groups (patients, parts) of which the model has learnt from no image, as far as can be told."""
    assert model.seen is not None
    learnt = [model.seen.contains(value) is not False for value in normals.hashes]
    old = {group for group, seen in zip(normals.groups, learnt, strict=True) if seen}
    return [row for row, group in enumerate(normals.groups) if group not in old]


def trained_note(
    model: DiffusionModel, hashes: Sequence[int], normals: Path, allowed: bool, what: str = "image"
) -> tuple[str, ...]:
    """A sentence where the model has learnt from some of the normals that set the threshold.

    Raises DataError where it has learnt from more than MOST_TRAINED of them, unless that is allowed.
    """
    count, told = (0, 0) if model.seen is None else model.seen.count(hashes)
    if not count:
        return ()
    if learnt_from_most(model, hashes) and not allowed:
        raise DataError(
            f"{normals}: expected normal {what}s that the model has not learnt from, found {count} of {told} that it "
            "has: their error is smaller than that of new ones, so false alarms would be more than promised; give "
            "others, or --allow-trained"
        )
    return (
        f"the model has learnt from {count} of {told} of these normals, so that the false-alarm rate will be higher "
        "than promised",
    )


def normal_parts(samples: SampleTable) -> tuple[SampleTable | None, SampleTable]:
    """(normals for the standardisation, or None to split the others; normals for the threshold); never test images."""
    from anodiff.data.table import select

    splits = set(samples.table["split"])
    if {"train", "val"} <= splits:
        return select(samples, "train", normal_only=True), select(samples, "val", normal_only=True)
    only = next((split for split in ("val", "train", "") if split in splits), None)
    if only is None:
        found = ", ".join(sorted(splits))
        raise DataError(f"{samples.root}: expected normal images of split train or val, or of none, found {found}")
    return None, select(samples, only, normal_only=True)
