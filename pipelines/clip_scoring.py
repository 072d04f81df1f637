"""`anodiff score` and `anodiff evaluate` for a model of clips: scores, frames, events, pictures, metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anodiff.anomaly.clips import ClipDetector
from anodiff.engine.loop import Summary, run_job
from anodiff.engine.progress import Progress
from anodiff.engine.stopping import Stop
from anodiff.engine.store import Item, ResultStore
from anodiff.errors import ConfigError, DataError
from anodiff.files import make_folder, write_csv, write_json
from anodiff.pipelines import clip_baselines, clip_journal
from anodiff.pipelines.clip_job import FRAMES, THUMBNAILS, ClipJob, ClipOutputs, FrameTable, event_of
from anodiff.pipelines.clip_reporting import facts_of, remarks, write_report
from anodiff.pipelines.clip_tracks import has_places, tracks_measured
from anodiff.pipelines.common import file_digest, missing_text, say, table_text
from anodiff.pipelines.event_files import frame_rows, write_events_csv, write_frames_csv
from anodiff.pipelines.scoring import COLUMNS

if TYPE_CHECKING:
    from anodiff.data.video.table import ClipRow, ClipTable
    from anodiff.metrics.frames import ClipScores
    from anodiff.model import DiffusionModel

SHOWN = ("frame_auroc_micro", "frame_auroc_macro", "frame_ap_micro")
CLIP_COLUMNS = ("clip", "frames", "anomalous_frames", "seconds", "auroc", "ap", "highest", "reason")


def run(
    model: DiffusionModel,
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    preset: str | None = None,
    maps: bool = False,
    heatmaps: bool = True,
    annotate: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
) -> Summary:
    """Score recorded clips; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from anodiff.data.video.clip import expand_clips, is_live
    from anodiff.pipelines.clip_annotating import annotate_clips, refuse_uncalibrated
    from anodiff.pipelines.closing import say_anomalous
    from anodiff.pipelines.score import outside

    sources = expand_clips(inputs)
    streams = [source.path for source in sources if is_live(source.path)]
    if streams:
        raise DataError(f"{streams[0]}: expected files or folders, found a stream; anodiff watch scores streams")
    inside = set(outside([source.path for source in sources], output))
    items = [Item(source.id, source.path, file=stamped(source.path)) for source in sources if source.path in inside]
    detector = ClipDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    job = job_of(model, detector, ClipOutputs(output, maps, heatmaps), batch_size)
    if annotate:
        refuse_uncalibrated(job)
    for note in job.notes:
        say(f"note: {note}", quiet)
    with ResultStore.open(output, run_settings(model_path, job), overwrite=overwrite) as store:
        summary = score_items(job, items, store, workers=model.config.engine.workers, quiet=quiet)
        if not summary.interrupted:
            rows = list(store.rows(items))
            write_report(output / "report.html", job, items, rows, facts=facts_of(job, summary, rows))
            if annotate:
                annotate_clips(job, items, store, quiet=quiet)
            say_anomalous(rows, "clips", quiet)
    say(f"{summary.sentence('clips')}; {detector.nfe} denoiser calls a frame", quiet)
    report = "" if summary.interrupted else ", report.html"
    say(f"wrote {output / 'scores.csv'}, frames.csv, events.csv{report}", quiet)
    return summary


def evaluate(
    model: DiffusionModel,
    model_path: Path,
    data: Path,
    output: Path,
    *,
    preset: str | None = None,
    split: str | None = None,
    subset: int | None = None,
    baselines: bool = False,
    layout: str = "auto",
    heatmaps: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[Summary, dict[str, Any]]:
    """Score and measure labelled clips; returns what was done and the metrics (empty where the run was interrupted).

    metrics.json holds the metrics of frame scores as they are, those smoothed over time under ``smoothed``, and what
    the events at the calibrated threshold have reached under ``events``; where boxes or masks are known, rbdc and tbdc.
    With ``baselines``, baselines.json has the same of the baselines, without events and places, and baselines.csv a row
    a method and clip, those that could not be read with their error. Nothing is normalised within a clip.
    """
    from anodiff.data.video.layouts import load_clips

    table = load_clips(data, layout)
    rows = chosen(table, split, subset, seed)
    say(f"{data}: layout {table.layout}; {len(rows)} clips to measure", quiet)
    items = [Item(row.id, row.path, row, file=stamped(row.path)) for row in rows]
    detector = ClipDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    job = job_of(model, detector, ClipOutputs(output, heatmaps=heatmaps, boxes=has_places(rows)), batch_size)
    for note in job.notes:
        say(f"note: {note}", quiet)
    with ResultStore.open(output, run_settings(model_path, job), overwrite=overwrite) as store:
        summary = score_items(job, items, store, workers=model.config.engine.workers, quiet=quiet)
        recorded = list(store.rows(items))
    if summary.interrupted:
        say(f"{summary.sentence('clips')}; wrote {output / 'scores.csv'}", quiet)
        return summary, {}
    raw, smoothed = truths_of(job, items, recorded)
    seconds = [row["seconds"] for row in recorded if row["status"] == "ok"]
    places, frames = tracks_measured(job, items, recorded), measured(raw, smoothed)
    metrics = {
        **frames,
        **places,
        "reasons": {**frames["reasons"], **places["reasons"]},
        "nfe": detector.nfe,
        "seconds_per_frame": sum(seconds) / len(seconds),
        "n_failed": sum(row["status"] == "failed" for row in recorded),
    }
    if job.rule is not None and job.rule.high is not None:
        metrics["events"] = events_measured(smoothed, recorded)
    write_json(output / "metrics.json", metrics)
    write_csv(output / "clips.csv", CLIP_COLUMNS, clip_rows(smoothed))
    facts = facts_of(job, summary, recorded)
    write_report(output / "report.html", job, items, recorded, facts=facts, metrics=metrics)
    typer.echo(table_text(["metric", "value", "95 % low", "high"], metric_rows(metrics)))
    for sentence in missing_text(metrics, SHOWN):
        typer.echo(sentence)
    if baselines:
        clip_baselines.run(table, rows, recorded, model, metrics, output, detector.denoiser.device, quiet=quiet)
    say(f"{summary.sentence('clips')}; {detector.nfe} denoiser calls a frame", quiet)
    say(f"wrote {output / 'metrics.json'} and report.html", quiet)
    return summary, metrics


def refuse_foreign(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option, {name: value}, that is set and about images or volumes alone."""
    for name, value in options.items():
        if value:
            raise ConfigError(f"{name}: expected to be left out for clips, since it is about images or volumes")


def job_of(model: DiffusionModel, detector: ClipDetector, outputs: ClipOutputs, batch_size: int) -> ClipJob:
    """The job of a model and its detector."""
    return ClipJob(detector, outputs, model.config.preprocess.max_pixels, batch_size=batch_size)


def score_items(
    job: ClipJob, items: Sequence[Item], store: ResultStore, *, workers: int, quiet: bool = False
) -> Summary:
    """Runs the job over the clips and writes scores.csv, frames.csv and events.csv of all that are recorded."""
    outputs = job.outputs
    pictured = outputs.heatmaps and job.scale is not None
    for name in (FRAMES, *["maps"] * outputs.maps, *["heatmaps", THUMBNAILS] * pictured):
        make_folder(outputs.folder / name)
    before, said = job.detector.busy, len(job.detector.denoiser.notes)
    with Progress(len(items), "clips", "scoring", quiet=quiet) as progress:
        job.progress, job.stop = progress, Stop()
        summary = run_job(job, items, store, workers=workers, batch_size=1, progress=progress, stop=job.stop)
    for note in job.detector.denoiser.notes[said:]:
        say(f"note: {note}", quiet)
    # A clip is read while it is computed: what counts is the time in which the device had work.
    summary = replace(summary, device_busy_share=(job.detector.busy - before) / summary.seconds, processor_seconds=0.0)
    store.export_csv(outputs.folder / "scores.csv", COLUMNS, items)
    recorded = list(store.rows(items))
    clip_journal.remove(outputs.folder / FRAMES, (row["id"] for row in recorded))
    rows = [row for row in recorded if row["status"] == "ok"]
    for sentence in (*(row["error"] for row in rows if row["error"]), *remarks(job, rows)):
        say(f"note: {sentence}", quiet)
    write_frames_csv(outputs.folder / "frames.csv", every_frame(job, rows))
    write_events_csv(outputs.folder / "events.csv", (event_of(event) for row in rows for event in row["events"]))
    return summary


def every_frame(job: ClipJob, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """frames.csv: every frame of the recorded clips; anomalous inside an event, where a threshold makes events."""
    judged = job.rule is not None and job.rule.high is not None
    for row in rows:
        frames = FrameTable.load(job.outputs.folder / row["frames"])
        columns = (frames.index, frames.time, frames.score, frames.smoothed)
        cells = zip(*(column.tolist() for column in columns), strict=True)
        spans = [(event["start"], event["end"]) for event in row["events"]] if judged else None
        yield from frame_rows(row["id"], cells, spans)


def run_settings(model_path: Path, job: ClipJob) -> dict[str, Any]:
    """Everything that decides what a run writes, flat: a run is resumed only where all of it is the same."""
    detector = job.detector
    settings = {
        "model": file_digest(model_path),
        "preset": detector.name,
        "seed": detector.seed,
        "device": detector.denoiser.device.type,
        "precision": detector.denoiser.precision,
        "network_batch": detector.denoiser.network_batch,
        "compiled": detector.denoiser.compiled,
        "maps": job.outputs.maps,
        "heatmaps": job.outputs.heatmaps,
        "false_alarms_per_hour": detector.video.false_alarms_per_hour,
    }
    settings |= {f"preprocess.{key}": value for key, value in detector.preprocess.items()}
    settings |= {f"video.{key}": value for key, value in detector.video_settings().items()}
    # Runs from before there were boxes go on where none are kept.
    settings |= {"boxes": True} if job.box_level is not None else {}
    return settings | {f"detector.{key}": value for key, value in detector.settings.to_json().items()}


def stamped(path: str) -> str:
    """The file whose size and time tell whether a clip has changed: of a folder of frames the newest one."""
    from anodiff.data.video.clip import list_frames

    return max(list_frames(path), key=changed, default=path) if Path(path).is_dir() else path


def changed(path: str) -> int:
    """When a file was written, in ns; -1 where that cannot be known."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


def chosen(table: ClipTable, split: str | None, subset: int | None, seed: int) -> list[ClipRow]:
    """The clips to measure: of the split asked for, by default test, or all where there are no splits.

    Raises DataError where no truth is known of any of them.
    """
    import numpy as np

    named = {row.split for row in table.rows}
    rows = list(table.split(split or ("test" if "test" in named else "")).rows)
    if subset is not None and subset < len(rows):
        kept = np.sort(np.random.default_rng(seed).permutation(len(rows))[:subset])
        rows = [rows[number] for number in kept]
    if all(row.truth is None and row.events is None for row in rows):
        raise DataError(
            f"{table.root}: expected truth of frames to measure against, found none for {len(rows)} clips; "
            "use anodiff score for clips of which nothing is known"
        )
    return rows


def truths_of(
    job: ClipJob, items: Sequence[Item], rows: Sequence[dict[str, Any]]
) -> tuple[list[ClipScores], list[ClipScores]]:
    """The recorded clips of which the truth is known: with scores as they are, and smoothed over time."""
    from anodiff.metrics.frames import clip_scores

    known = {item.id: item.extra for item in items}
    raw, smoothed = [], []
    for row in rows:
        if row["status"] != "ok":
            continue
        frames, clip = FrameTable.load(job.outputs.folder / row["frames"]), known[row["id"]]
        truth = clip.truth_at(frames.time, broken=bool(row["error"]))
        if truth is not None:
            raw.append(clip_scores(row["id"], frames.score, truth, frames.time))
            smoothed.append(clip_scores(row["id"], frames.smoothed, truth, frames.time))
    if not raw:
        raise DataError(f"{job.outputs.folder}: expected scored clips with truth, found none")
    return raw, smoothed


def measured(raw: Sequence[ClipScores], smoothed: Sequence[ClipScores]) -> dict[str, Any]:
    """Metrics of frames as they are, of frames smoothed, and alarms of the smoothed ones."""
    from anodiff.metrics.alarms import evaluate_alarms
    from anodiff.metrics.frames import evaluate_frames

    return {**evaluate_frames(raw), "smoothed": evaluate_frames(smoothed), "alarms": evaluate_alarms(smoothed)}


def events_measured(clips: Sequence[ClipScores], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the events at the calibrated threshold have reached: recall, delay, false alarms an hour."""
    from anodiff.metrics.alarms import evaluate_events

    found = {row["id"]: [(each["start"], each["end"]) for each in row.get("events", ())] for row in rows}
    return evaluate_events(clips, found)


def clip_rows(smoothed: Sequence[ClipScores]) -> list[dict[str, Any]]:
    """clips.csv: what was reached in each clip, by smoothed scores."""
    from anodiff.metrics.frames import per_clip_table

    return per_clip_table(smoothed)


def metric_rows(metrics: dict[str, Any]) -> list[list[Any]]:
    """The metrics as rows of a table."""
    parts = ((metrics, ""), (metrics["smoothed"], ", smoothed"))
    return [
        [name + said, part[name], *(part[f"{name}_ci95"] or (None, None))] for part, said in parts for name in SHOWN
    ]
