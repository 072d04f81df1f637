"""anodiff evaluate: score a labelled data set by the same job, then measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anodiff.errors import DataError
from anodiff.pipelines.common import (
    IMAGES_AT_ONCE,
    AnyBatch,
    Device,
    Foreground,
    GroupBy,
    Layout,
    MaxMemory,
    Model,
    Normal,
    Output,
    Overwrite,
    Precision,
    Preset,
    Seed,
    Set,
    drawn,
    missing_text,
    open_model,
    say,
    table_text,
    within_memory,
)
from anodiff.pipelines.score import OPEN_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anodiff.data.table import SampleTable
    from anodiff.engine.loop import Summary
    from anodiff.engine.store import Item
    from anodiff.metrics.evaluate import MapItem, Pools
    from anodiff.pipelines.scoring import ScoreJob

SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "dice_at_fpr5", "oracle_max_dice")


def main(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Labelled data set: a folder in a known layout, or a CSV manifest.")],
    output: Output,
    preset: Preset = None,
    split: Annotated[str | None, typer.Option(help="Which split; by default test, or all where there is none.")] = None,
    subset: Annotated[int | None, typer.Option(min=1, help="Only so many images, drawn at random by --seed.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also measure the trivial baselines.")] = False,
    layout: Layout = "auto",
    normal: Normal = "",
    group_by: GroupBy = "",
    foreground: Foreground = "",
    map_format: Annotated[
        Literal["npy", "tiff"] | None, typer.Option(help="Format of the float maps of images.", show_default="npy")
    ] = None,
    heatmaps: Annotated[bool, typer.Option(help="Draw the heatmaps.")] = True,
    early_exit: Annotated[
        bool,
        typer.Option("--early-exit", help="Let clearly normal images leave after the first level (calibrated so)."),
    ] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: AnyBatch = None,
    max_memory: MaxMemory = None,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Score the test split of a labelled data set: OUTPUT/metrics.json, report.html, and all that `score` writes.

    The trivial baselines are fitted on the data set's training normals and compared with the model on the same images
    (paired bootstrap over patients or parts): OUTPUT/baselines.json.

    \b
    Examples:
      anodiff evaluate runs/brain/model.safetensors brain_lgg --output out/brain --baselines
      anodiff evaluate model.safetensors labelled.csv --output out/dev --split dev
      anodiff evaluate model.safetensors brain_lgg --output out/anoddpm --preset anoddpm --subset 60
    """
    summary, _ = run(
        model,
        data,
        output,
        preset=preset,
        split=split,
        subset=subset,
        baselines=baselines,
        layout=layout,
        normal=normal,
        group_by=group_by,
        foreground=foreground,
        map_format=map_format,
        heatmaps=heatmaps,
        early_exit=early_exit,
        overwrite=overwrite,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        overrides=within_memory(set_, max_memory),
    )
    raise typer.Exit(summary.exit_code)


def run(
    model_path: Path,
    data: Path,
    output: Path,
    *,
    preset: str | None = None,
    split: str | None = None,
    subset: int | None = None,
    baselines: bool = False,
    layout: str = "auto",
    normal: str = "",
    group_by: str = "",
    foreground: str = "",
    map_format: str | None = None,
    heatmaps: bool = True,
    early_exit: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> tuple[Summary, dict[str, Any]]:
    """Score and measure; returns what was done and the metrics (empty where the run was interrupted)."""
    from anodiff.anomaly import AnomalyDetector
    from anodiff.data.layouts import load_table
    from anodiff.data.layouts.foregrounds import given
    from anodiff.engine.store import ResultStore
    from anodiff.files import write_json
    from anodiff.metrics import curves_of
    from anodiff.pipelines import clip_scoring, volume_evaluating, volume_scoring
    from anodiff.pipelines.closing import few_groups_note
    from anodiff.pipelines.leaving import calls_an_image, exit_notes, refuse_leaving
    from anodiff.pipelines.reporting import write_score_report
    from anodiff.pipelines.scoring import Outputs, ScoreJob, foreground_notes, items_of_table, run_settings, score_items
    from anodiff.pipelines.sizes import refuse_any_size
    from anodiff.pipelines.truth import write_truth

    model = open_model(model_path, overrides, OPEN_KEYS)
    if model.config.video is not None:
        refuse_leaving(early_exit, "clips")
        clip_scoring.refuse_foreign(
            {"--map-format": map_format, "--normal": normal, "--group-by": group_by, "--foreground": foreground}
        )
        return clip_scoring.evaluate(
            model, model_path, data, output, preset=preset, split=split, subset=subset, baselines=baselines,
            layout=layout, heatmaps=heatmaps, overwrite=overwrite, device=device, precision=precision,
            batch_size=batch_size or IMAGES_AT_ONCE, seed=seed, quiet=quiet,
        )  # fmt: skip
    samples = load_table(data, layout, normal=normal, group_by=group_by, channels=model.provenance.get("channels", ()))
    samples = given(samples, foreground)
    if volume_scoring.concerns(model, list(samples.table["path"])):
        refuse_leaving(early_exit, "volumes")
        return volume_evaluating.run(
            model_path, data, output, samples, preset=preset, split=split, subset=subset, baselines=baselines,
            map_format=map_format, heatmaps=heatmaps, overwrite=overwrite, device=device, precision=precision,
            batch_size=batch_size, seed=seed, overrides=overrides, quiet=quiet,
        )  # fmt: skip
    refuse_any_size(model, "--baselines", baselines)
    chosen = chosen_split(samples, split)
    say(f"{data}: layout {samples.layout}; {len(chosen)} images to measure", quiet)
    doubts = split_notes(samples, chosen)
    items = items_of_table(drawn(chosen, subset, seed))
    refuse_unlabelled(items, data)
    detector = AnomalyDetector(
        model, preset or model.config.preset, device=device, precision=precision, seed=seed, early_exit=early_exit
    )
    outputs = Outputs(output, map_format or "npy", heatmaps=heatmaps)
    detector.check_preprocess()
    job = ScoreJob(model, detector, outputs)
    for note in (*job.notes, *foreground_notes(items, job.foreground, detector.calibration)):
        say(f"note: {note}", quiet)
    with ResultStore.open(output, run_settings(model_path, model, detector, outputs), overwrite=overwrite) as store:
        summary = score_items(
            job, items, store, batch_size=batch_size, workers=model.config.engine.workers, quiet=quiet
        )
        rows = list(store.rows(items))
        write_truth(output, truth_rows(items, rows))
        if summary.interrupted:
            say(f"{summary.sentence()}; wrote {output / 'scores.csv'}", quiet)
            return summary, {}
        pools = pooled(job, items, rows)
        metrics = measured(job, pools, rows)
        few = few_groups_note(metrics["n_groups"])
        learnt = (*doubts, *trained_notes(rows), *empty_mask_notes(items, rows, pools), *few)
        for note in learnt:
            say(f"note: {note}", quiet)
        write_json(output / "metrics.json", metrics)
        typer.echo(metrics_text(metrics))
        write_score_report(
            output / "report.html", model, job, summary, rows, items,
            title=f"{model.config.name} on {data.name}", metrics=metrics, curves=curves_of(pools), notes=learnt,
        )  # fmt: skip
        if baselines:
            from anodiff.pipelines.baselines import compare

            compared = compare(job, model, samples, items, rows, pools, metrics, quiet=quiet)
            write_json(output / "baselines.json", compared.as_json())
            typer.echo("\n" + compared.text())
    for note in exit_notes(job, rows):
        say(note, quiet)
    say(f"{summary.sentence()}; {calls_an_image(job, rows):.3g} denoiser calls an image", quiet)
    say(f"wrote {output / 'metrics.json'} and {output / 'report.html'}", quiet)
    return summary, metrics


def chosen_split(samples: SampleTable, split: str | None) -> SampleTable:
    """The split asked for; by default test where there is one, else everything that is in no split."""
    from anodiff.data.table import select

    if split is None and "test" not in set(samples.table["split"]):
        return select(samples, "")
    return select(samples, split or "test")


def split_notes(samples: SampleTable, chosen: SampleTable) -> tuple[str, ...]:
    """A sentence where the chosen images may be those that a model was trained on.

    Raises DataError where a group (patient, part) of theirs is also in train or val.
    """
    from anodiff.data.table import refuse_shared_groups

    split = str(chosen.table["split"].iloc[0])
    refuse_shared_groups(samples, split)
    if split not in ("", "train"):
        return ()
    where = "of split train" if split else "in no split"
    return (f"these images are {where}: if the model was trained on them, the metrics flatter it (see anodiff split)",)


def refuse_unlabelled(items: Sequence[Item], data: Path) -> None:
    """Raises DataError where neither a label nor a mask is known of any image."""
    if not any(item.extra.label is not None or item.extra.mask for item in items):
        raise DataError(
            f"{data}: expected labels or masks to measure against, found none for {len(items)} images; "
            "use anodiff score for images of which nothing is known"
        )


def trained_notes(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """A sentence where the model has learnt from some of the measured images."""
    count = sum(row.get("trained_on") is True for row in rows)
    if not count:
        return ()
    return (f"the model has learnt from {count} of these {len(rows)} images, so that the metrics flatter it",)


def empty_mask_notes(items: Sequence[Item], rows: Sequence[dict[str, Any]], pools: Pools) -> tuple[str, ...]:
    """A sentence where an anomalous image has a mask that marks nothing, see `mask_of`."""
    truths = {item.id: item.extra for item in items}
    scored = [truths[row["id"]] for row in rows if row["status"] == "ok"]
    empty = sum(truth.label == 0 or bool(truth.mask) for truth in scored) - pools.n_pixel_images
    if not empty:
        return ()
    return (f"{empty} anomalous {'image has' if empty == 1 else 'images have'} an empty mask: the pixels are left out",)


def truth_rows(items: Sequence[Item], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """truth.csv: every image with what is known of it and, where it was scored, its map."""
    import os

    maps = {row["id"]: row.get("map", "") for row in rows}
    for item in items:
        truth = item.extra
        mask = os.path.abspath(truth.mask) if truth.mask else ""
        known = {"label": truth.label, "mask": mask, "group": truth.group, "map": maps.get(item.id, "")}
        yield {"id": item.id, "path": os.path.abspath(item.path), **known}


def pooled(job: ScoreJob, items: Sequence[Item], rows: Sequence[dict[str, Any]]) -> Pools:
    """The recorded maps and scores beside their labels and masks."""
    from anodiff.metrics import pool_maps

    known = {item.id: item for item in items}
    truths = [known[row["id"]].extra for row in rows]
    calibration = job.detector.calibration
    return pool_maps(
        stored_maps(job, [known[row["id"]] for row in rows], rows),
        [truth.label for truth in truths],
        [row.get("score") for row in rows],
        [truth.group for truth in truths],
        candidate_threshold=None if calibration is None else calibration.pixel_threshold_fpr1,
    )


def stored_maps(job: ScoreJob, items: Sequence[Item], rows: Sequence[dict[str, Any]]) -> Iterator[MapItem]:
    """(id, map, mask) of each row on the native grid; no map and no mask for a failed one."""
    from anodiff.files import load_map
    from anodiff.pipelines.scoring import mask_of

    for item, row in zip(items, rows, strict=True):
        if row["status"] != "ok":
            yield item.id, None, None
            continue
        values = load_map(job.outputs.folder / row["map"])
        yield item.id, values, mask_of(item, (values.shape[0], values.shape[1]), job.config.max_pixels)


def measured(job: ScoreJob, pools: Pools, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """metrics.json: the metrics with their intervals, and what they cost."""
    from anodiff.metrics import evaluate_pools
    from anodiff.pipelines.leaving import exit_facts
    from anodiff.pipelines.reporting import seconds_per_image

    calibration = job.detector.calibration
    threshold = None if calibration is None else calibration.pixel_threshold_fpr5
    others = {} if calibration is None else {"fpr1": calibration.pixel_threshold_fpr1}
    metrics = evaluate_pools(pools, pixel_threshold_fpr5=threshold, pixel_thresholds=others)
    failed = sum(row["status"] == "failed" for row in rows)
    cost = {"nfe": job.nfe, "seconds_per_image": seconds_per_image(rows), "n_failed": failed} | exit_facts(job, rows)
    cost |= {"pixel_threshold_fpr5": threshold} | {f"pixel_threshold_{name}": value for name, value in others.items()}
    return {
        **{name: value for name, value in metrics.items() if name != "reasons"},
        **cost,
        "reasons": metrics["reasons"],
    }


def metrics_text(metrics: dict[str, Any], item: str = "image") -> str:
    """The shown metrics as a table, and a sentence on each reason for a dash in it; item: what is scored."""
    rows = [[name, metrics[name], *(metrics[f"{name}_ci95"] or (None, None))] for name in SHOWN]
    return "\n".join([table_text(["metric", "value", "95 % low", "high"], rows), *missing_text(metrics, SHOWN, item)])
