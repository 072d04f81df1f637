"""What the restoring jobs share for volumes: NIfTI on each input's own grid, a table, a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anodiff.data.layouts.channels import ChannelNames
from anodiff.data.volumes.inputs import expand_volumes, first_volume
from anodiff.engine.loop import Summary
from anodiff.errors import ConfigError
from anodiff.files import write_csv
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import Common, open_model, say
from anodiff.pipelines.restoring_notes import LOST_COLUMNS
from anodiff.pipelines.restoring_options import OPEN_KEYS
from anodiff.pipelines.restoring_run import Closing, ReportMore, chain_settings, run_items, said_after
from anodiff.pipelines.scoring import foreground_notes
from anodiff.pipelines.volume_restoring_job import VolumeRestoringJob
from anodiff.pipelines.volume_scoring import (
    items_of_sources,
    open_volume_model,
    outside,
    refuse_images,
    remark_notes,
    skipped_notes,
)
from anodiff.restoration import Restorer

SLICE_COLUMNS = ("id", "axis", "slice", "sigma", "sigma_file", "sigma_from")


def open_restoring(
    path: Path, inputs: Sequence[str], common: Common, *, average: bool = False
) -> tuple[DiffusionModel, bool]:
    """The model, and whether the run is about volumes: one is among the inputs, or the model sees nothing else.

    average: whether slices of all its axes are averaged, see `VolumeRestorer`: for what the user is told.
    Raises what `open_model` does; ConfigError for a model of clips; DataError for images among volumes.
    """
    model = open_model(path, None, ())
    section = model.config.volume
    if model.config.video is not None:
        raise ConfigError("expected a model of images or volumes, found one of clips")
    only = section is not None and (section.mode == "patches" or section.neighbours > 0)
    if not only and first_volume(inputs) is None:
        return open_model(path, common.overrides, OPEN_KEYS), False
    if not only:
        refuse_images(inputs)
        if model.config.preprocess.resize == "none":
            raise ConfigError(
                f"{path}: expected a model that may resize slices, found one of preprocess.resize none, which takes "
                "images alone"
            )
    model, plain = open_volume_model(path, common.overrides, OPEN_KEYS)
    if plain:
        assert model.config.volume is not None
        axes = model.config.volume.axes
        along = " and ".join("ijk"[axis] for axis in (axes if average else axes[:1]))
        say(f"note: the model is of 2-D images: slices along {along} of each volume are restored as such", common.quiet)
    return model, True


def run_volumes(
    job: VolumeRestoringJob,
    model_path: Path,
    model: DiffusionModel,
    restorer: Restorer,
    inputs: Sequence[str],
    settings: Mapping[str, Any],
    *,
    name: str,
    common: Common,
    npy: bool,
    columns: Sequence[str] = (),
    closing: Closing | None = None,
) -> Summary:
    """Runs the job over the volumes: OUTPUT/images/, results.csv and report.html; the same command resumes it.

    settings, columns, closing: see `anodiff.pipelines.restoring.run_restoring`. Where noise levels are of slices
    slices.csv has them. Raises ConfigError for ``npy``, DataError where there is no volume.
    """
    if npy:
        raise ConfigError("--npy: expected none for volumes, which are written as float32 NIfTI, unrounded")
    found = expand_volumes(inputs, ChannelNames.of(model.config.preprocess.channels, model.provenance))
    sources = outside(found.sources, job.folder)
    items = items_of_sources(sources, inputs)
    about = foreground_notes(items, model.config.preprocess.foreground)
    for note in (*skipped_notes(found.skipped), *about):
        say(f"note: {note}", common.quiet)
    settings = {
        **settings,
        **chain_settings(model_path, model, restorer),
        **{f"volume.{key}": value for key, value in job.config.model_dump(mode="json").items()},
    }
    rows: list[dict[str, Any]] = []

    def closed(done: Sequence[Mapping[str, Any]]) -> ReportMore:
        masked = job.mask_of is not None or "where_anomalous" in settings
        more = said_after(closing, "volumes", masked, common.quiet, done)
        return replace(more, notes=(*about, *more.notes))

    summary = run_items(
        job,
        items,
        restorer,
        job.folder,
        settings,
        name=name,
        common=common,
        workers=min(model.config.engine.workers, 2),
        columns=(*columns, *LOST_COLUMNS),
        pictures=job.pictures,
        hole=job.hole,
        unit="volumes",
        rows=rows,
        closing=closed,
    )
    if found.skipped:
        skipped = [{"path": path, "reason": reason} for path, reason in found.skipped]
        write_csv(job.folder / "skipped.csv", ("path", "reason"), skipped)
    if any(row.get("slices") for row in rows):
        write_csv(job.folder / "slices.csv", SLICE_COLUMNS, slice_rows(rows))
    for remark in remark_notes(rows):
        say(f"note: {remark}", common.quiet)
    return summary


def slice_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """slices.csv: the noise level of each slice; axis and slice (from 0) are those of the file."""
    for row in rows:
        for each in sorted(row.get("slices", ()), key=lambda found: (found["axis"], found["slice"])):
            yield {"id": row["id"], **each}
