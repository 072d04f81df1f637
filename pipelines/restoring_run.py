"""The run of a restoring job: its loop, its table, its page, and what it says at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.engine.device import describe
from anodiff.engine.loop import Job, Summary, run_job
from anodiff.engine.progress import Progress
from anodiff.engine.stopping import Stop, Stopped
from anodiff.engine.store import Item, ResultStore
from anodiff.files import make_folder
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import Common, file_digest, say
from anodiff.pipelines.restoring_notes import chain_facts, run_notes, told_of
from anodiff.restoration import Restorer
from anodiff.restoration.chains import ChainStep, OnStep
from anodiff.restoration.report import Beside, RestoredRow, write_restoration_report

COLUMNS = ("id", "path", "nfe", "status", "error", "seconds")


@dataclass(frozen=True)
class ReportMore:
    """What a job adds to its report: facts and notes, a figure (PNG), and by id what is shown below a row's picture."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    figure: bytes | None = None
    beside: Mapping[str, Beside] = field(default_factory=dict)


#: from the rows of a complete run
Closing = Callable[[Sequence[Mapping[str, Any]]], ReportMore]


def said_after(
    closing: Closing | None, unit: str, masked: bool, quiet: bool, rows: Sequence[Mapping[str, Any]]
) -> ReportMore:
    """Says what a complete run has to say of its rows, see `run_notes`, and has it in the report, before what
    ``closing`` adds."""
    notes = run_notes(rows, unit, masked)
    for note in notes:
        say(f"note: {note}", quiet)
    more = ReportMore() if closing is None else closing(rows)
    return replace(more, notes=(*notes, *more.notes))


def run_items(
    job: Job[Any, Any],
    items: Sequence[Item],
    restorer: Restorer,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    name: str,
    common: Common,
    workers: int,
    pictures: Callable[[Any, Mapping[str, Any]], Callable[[], Any]],
    columns: Sequence[str] = (),
    hole: Callable[[Any, Mapping[str, Any]], NDArray[np.bool_] | None] | None = None,
    unit: str = "images",
    rows: list[dict[str, Any]] | None = None,
    closing: Closing | None = None,
) -> Summary:
    """The loop over items with its table and report, for inputs that are files and for numbers alike.

    Chains take long: their steps are shown, and Ctrl-C ends them after the one in hand. No more images are computed at
    once than one chain has rows, so that the others are recorded by then.

    hole: what of a row's picture could change, for the report. unit: what an item is; "volumes" are large, and computed
    one at a time. rows: is given the rows of the run. closing: looks at the rows of a run that is complete, and says
    what else the report shows.
    """
    alone = unit == "volumes"
    stop = Stop()
    for note in restorer.notes:
        say(f"note: {note}", common.quiet)
    with ResultStore.open(folder, {"job": name, **settings}, overwrite=common.overwrite) as store:
        make_folder(folder / "images")
        with Progress(len(items), unit, name, quiet=common.quiet) as progress:
            restorer.on_step = _watching(progress, stop)
            summary = run_job(
                job,
                items,
                store,
                workers=workers,
                batch_size=1 if alone else min(common.images_at_once, restorer.denoiser.chain_rows),
                ahead=1 if alone else None,
                progress=progress,
                stop=stop,
            )
        for note in restorer.denoiser.notes:
            say(f"note: {note}", common.quiet)
        store.export_csv(folder / "results.csv", (*COLUMNS[:3], *columns, *COLUMNS[3:]), items)
        if rows is not None:
            rows += store.rows(items)
        if not summary.interrupted:
            by_id = {item.id: item for item in items}
            more = ReportMore() if closing is None else closing(list(store.rows(items)))
            shown = [
                RestoredRow(
                    row["id"],
                    row["path"],
                    row["status"],
                    row.get("error", ""),
                    pictures(by_id[row["id"]], row) if row["status"] == "ok" else None,
                    more.beside.get(row["id"]),
                    row.get("animation"),
                    told_of(row),
                    None if hole is None else partial(hole, by_id[row["id"]], row),
                )
                for row in store.rows(items)
            ]
            device = describe(restorer.denoiser.device, restorer.denoiser.precision)
            facts = {unit: summary.ok, "failed": summary.failed, **settings, **device, **more.facts}
            facts |= chain_facts(settings, restorer)
            # what was not given is no fact; 0 is one
            given = {key: value for key, value in facts.items() if value is not None and value is not False}
            facts = {key: value for key, value in given.items() if not key.startswith(("preprocess.", "volume."))}
            notes = (*restorer.notes, *restorer.denoiser.notes, *more.notes)
            write_restoration_report(folder / "report.html", f"anodiff {name}", facts, shown, notes, more.figure)
    say(summary.sentence(unit), common.quiet)
    page = "" if summary.interrupted else f" and {folder / 'report.html'}"
    say(f"wrote {folder / 'results.csv'}{page}", common.quiet)
    return summary


def _watching(progress: Progress, stop: Stop) -> OnStep:
    """Shows each step of a chain, and ends the chain where the run was asked to stop, unless it was the last one."""

    def watch(step: ChainStep) -> None:
        if stop.asked and not step.last:
            raise Stopped
        progress.update(0, step=str(step))

    return watch


def computing(model: DiffusionModel, common: Common) -> dict[str, Any]:
    """The arguments of a `Restorer`: as `Common.computing`, and engine.network_batch where ``--set`` names it."""
    named = any("network_batch" in override for override in common.overrides or ())
    return {**common.computing, "network_batch": model.config.engine.network_batch if named else None}


def chain_settings(model_path: Path, model: DiffusionModel, restorer: Restorer) -> dict[str, Any]:
    """What decides the pixels of a result, of the model and the chain."""
    settings = {
        "model": file_digest(model_path),
        "seed": restorer.seed,
        "steps": restorer.steps,
        "sampler": restorer.sampler,
        "grid": restorer.grid_name,
        "device": restorer.denoiser.device.type,
        "precision": restorer.denoiser.precision,
        "network_batch": restorer.denoiser.network_batch,
    }
    engine = model.config.engine
    if engine.window is not None:
        settings |= {"window": list(engine.window), "overlap": engine.overlap}
    return settings | {
        f"preprocess.{key}": value for key, value in model.config.preprocess.model_dump(mode="json").items()
    }
