"""`anodiff evaluate` for volumes: the same job on labelled ones, then metrics of volumes, voxels and lesions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.volumes.discover import with_ids
from anodiff.data.volumes.volume import VolumeSource
from anodiff.engine.store import ResultStore
from anodiff.errors import ConfigError
from anodiff.files import write_json
from anodiff.metrics import evaluate_pools, pool_maps
from anodiff.pipelines.closing import few_groups_note
from anodiff.pipelines.common import drawn, say
from anodiff.pipelines.scoring import foreground_notes, items_of_table
from anodiff.pipelines.volume_job import VolumeItem, VolumeJob, VolumeOutputs, load_voxels
from anodiff.pipelines.volume_remarks import seen_share
from anodiff.pipelines.volume_scoring import (
    network_batch,
    open_volume_model,
    refuse_format,
    remark_notes,
    score_items,
    settings_of,
)

if TYPE_CHECKING:
    from anodiff.data.table import SampleTable
    from anodiff.engine.loop import Summary
    from anodiff.metrics.evaluate import MapItem, Pools


def run(
    model_path: Path,
    data: Path,
    output: Path,
    samples: SampleTable,
    *,
    preset: str | None = None,
    split: str | None = None,
    subset: int | None = None,
    baselines: bool = False,
    map_format: str | None = None,
    heatmaps: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> tuple[Summary, dict[str, Any]]:
    """Score and measure the volumes of a table; returns what was done and the metrics (empty where interrupted).

    Voxels are measured inside the foreground that was scored; marked voxels count wherever they are. Raises
    ConfigError for what there is of images only: baselines, a format of maps.
    """
    from anodiff.pipelines.evaluate import (
        chosen_split,
        metrics_text,
        refuse_unlabelled,
        split_notes,
        trained_notes,
        truth_rows,
    )
    from anodiff.pipelines.truth import write_truth
    from anodiff.pipelines.volume_reporting import write_report

    refuse_format(map_format)
    if baselines:
        raise ConfigError("--baselines: expected 2-D images, found volumes, for which there are no baselines")
    model, notes = open_volume_model(model_path, overrides)
    chosen = chosen_split(samples, split)
    say(f"{data}: layout {samples.layout}; {len(chosen)} volumes to measure", quiet)
    items = volume_items(drawn(chosen, subset, seed))
    refuse_unlabelled(items, data)
    detector = VolumeDetector(
        model, preset or model.config.preset, device=device, precision=precision, seed=seed,
        network_batch=network_batch(batch_size, overrides),
    )  # fmt: skip
    detector.check()
    outputs = VolumeOutputs(output, heatmaps=heatmaps, measured=True)
    job = VolumeJob(
        detector, outputs, model.config.preprocess.channel, None if notes else model.seen, seen_share(model.provenance)
    )
    about = foreground_notes(items, job.foreground, job.of_images)
    notes = (*notes, *job.notes, *about, *split_notes(samples, chosen))
    for note in notes:
        say(f"note: {note}", quiet)
    with ResultStore.open(output, settings_of(model_path, model, job), overwrite=overwrite) as store:
        summary = score_items(job, items, store, workers=model.config.engine.workers, quiet=quiet)
        rows = list(store.rows(items))
        write_truth(output, truth_rows(items, rows))
        if summary.interrupted:
            say(f"{summary.sentence('volumes')}; wrote {output / 'scores.csv'}", quiet)
            return summary, {}
        metrics = measured(job, pooled(job, items, rows), rows)
        known = tuple(note.replace("images", "volumes") for note in trained_notes(rows))
        learnt = (*known, *few_groups_note(metrics["n_groups"]))
        for note in learnt:
            say(f"note: {note}", quiet)
        write_json(output / "metrics.json", metrics)
        typer.echo(metrics_text(metrics, "volume"))
        write_report(
            output / "report.html", model, job, summary, rows, items,
            title=f"{model.config.name} on {data.name}", metrics=metrics, notes=(*notes, *learnt, *remark_notes(rows)),
        )  # fmt: skip
    say(summary.sentence("volumes"), quiet)
    say(f"wrote {output / 'metrics.json'} and {output / 'report.html'}", quiet)
    return summary, metrics


def volume_items(samples: SampleTable) -> list[VolumeItem]:
    """The rows of a table as volumes, with ids that do not end in ".nii"."""
    known = items_of_table(samples)
    named = with_ids([VolumeSource(item.path, item.path, "nifti", "named by its path") for item in known])
    return [
        VolumeItem(source.id, item.path, item.extra, file=item.file) for item, source in zip(known, named, strict=True)
    ]


def pooled(job: VolumeJob, items: Sequence[VolumeItem], rows: Sequence[dict[str, Any]]) -> Pools:
    """The recorded maps and scores beside their labels and masks."""
    known = {item.id: item.extra for item in items}
    truths = [known[row["id"]] for row in rows]
    return pool_maps(
        stored_maps(job, rows),
        [truth.label for truth in truths],
        [row.get("score") for row in rows],
        [truth.group for truth in truths],
        candidate_threshold=None if job.quantiles is None else job.quantiles[0.99],
    )


def stored_maps(job: VolumeJob, rows: Sequence[dict[str, Any]]) -> Iterator[MapItem]:
    """(id, map, mask, foreground) of each row on the native grid; none of them for a failed one."""
    for row in rows:
        if row["status"] != "ok":
            yield row["id"], None, None
            continue
        inside, mask = load_voxels(job.outputs.folder / row["voxels"])
        yield row["id"], job.stored_map(row), mask, inside


def measured(job: VolumeJob, pools: Pools, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """metrics.json: the metrics with their intervals (an image is a volume, a pixel a voxel), and what they cost."""
    from anodiff.pipelines.reporting import seconds_per_image

    quantiles = job.quantiles or {}
    metrics = evaluate_pools(
        pools,
        pixel_threshold_fpr5=quantiles.get(0.95),
        pixel_thresholds={"fpr1": quantiles[0.99]} if quantiles else {},
    )
    calls = [row["nfe"] for row in rows if row["status"] == "ok"]
    cost = {
        "nfe": round(sum(calls) / len(calls), 1) if calls else None,
        "seconds_per_image": seconds_per_image(rows),
        "n_failed": sum(row["status"] == "failed" for row in rows),
        "pixel_threshold_fpr5": quantiles.get(0.95),
        "pixel_threshold_fpr1": quantiles.get(0.99),
    }
    return {
        **{name: value for name, value in metrics.items() if name != "reasons"},
        **cost,
        "reasons": metrics["reasons"],
    }
