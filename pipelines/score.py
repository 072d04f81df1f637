"""anodiff score: scores, calibrated decisions, maps, heatmaps and a report for new images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anodiff.errors import ConfigError, DataError
from anodiff.pipelines.common import (
    COMMON,
    Common,
    Foreground,
    MaxMemory,
    Model,
    Output,
    Preset,
    open_model,
    say,
    with_common,
    within_memory,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anodiff.engine.loop import Summary

#: keys of the recipe that scoring may override; the others are what the model was trained with
OPEN_KEYS = (
    "engine", "presets", "polarity", "preprocess.max_pixels", "preprocess.channel", "preprocess.value_range", "volume",
    "video.false_alarms_per_hour",
)  # fmt: skip


@with_common
def main(
    model: Model,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, or CSVs of paths.")],
    output: Output,
    common: Common,
    preset: Preset = None,
    foreground: Foreground = "",
    map_format: Annotated[
        Literal["npy", "tiff"] | None, typer.Option(help="Format of the float maps of images.", show_default="npy")
    ] = None,
    maps: Annotated[
        bool | None, typer.Option("--maps/--no-maps", help="Keep the float maps; by default not those of clips.")
    ] = None,
    heatmaps: Annotated[bool, typer.Option(help="Draw the heatmaps.")] = True,
    dicom: Annotated[
        list[str] | None,
        typer.Option(metavar="pm,seg,sc", help="Of DICOM volumes also a parametric map, segmentation, overlay."),
    ] = None,
    show_phi: Annotated[
        bool, typer.Option("--show-phi", help="Name the patients of DICOM volumes in the report.")
    ] = False,
    annotate: Annotated[
        bool, typer.Option("--annotate", help="Of clips also a video with heatmap and scores.")
    ] = False,
    early_exit: Annotated[
        bool,
        typer.Option("--early-exit", help="Let clearly normal images leave after the first level (calibrated so)."),
    ] = False,
    max_memory: MaxMemory = None,
) -> None:
    """Score images, volumes or clips: OUTPUT/scores.csv, maps/, heatmaps/ and report.html.

    Volumes (NIfTI, MGH, folders of DICOM) get a NIfTI map each, slices.csv and lesions.csv; clips (videos, folders of
    frames, with a model of clips) frames.csv and events.csv, and with --annotate a video each in annotated/.

    A broken input becomes a row with its error. A run that was killed goes on where it stopped when the same command
    is given again.

    \b
    Examples:
      anodiff score runs/brain/model.safetensors scans/ --output out/scans
      anodiff score model.safetensors 'night/*.png' day.csv --output out/day --preset one-step
      anodiff score model.safetensors scans/ --output out/scans --set engine.network_batch=64 --device cuda
      anodiff score model.safetensors study/ --output out/ct --dicom sc
      anodiff score model.safetensors scans/ --output out/scans --foreground '{stem}_bet.nii.gz'
      anodiff score runs/ped2/model.safetensors night.mp4 --output out/night --annotate
      anodiff score model.safetensors slides/ --output out/slides --set 'engine.window=[256, 256]'
    """
    summary = run(
        model,
        inputs,
        output,
        preset=preset,
        foreground=foreground,
        map_format=map_format,
        maps=maps,
        heatmaps=heatmaps,
        dicom=[kind.strip() for each in dicom or () for kind in each.split(",")],
        show_phi=show_phi,
        annotate=annotate,
        early_exit=early_exit,
        common=replace(common, overrides=within_memory(common.overrides, max_memory)),
    )
    raise typer.Exit(summary.exit_code)


def run(
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    preset: str | None = None,
    foreground: str = "",
    map_format: str | None = None,
    maps: bool | None = None,
    heatmaps: bool = True,
    dicom: Sequence[str] = (),
    show_phi: bool = False,
    annotate: bool = False,
    early_exit: bool = False,
    common: Common = COMMON,
    **options: Any,
) -> Summary:
    """Score `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors.

    options: fields of ``common`` by their names, such as ``device="cpu"``, in place of those it has.
    """
    began = time.process_time()
    from anodiff.anomaly import AnomalyDetector
    from anodiff.data.layouts.foregrounds import foregrounds_of, listed_in, without
    from anodiff.engine.store import ResultStore
    from anodiff.pipelines import clip_scoring, volume_scoring
    from anodiff.pipelines.closing import say_anomalous
    from anodiff.pipelines.leaving import calls_an_image, exit_notes, refuse_leaving
    from anodiff.pipelines.reporting import write_score_report
    from anodiff.pipelines.scoring import Outputs, ScoreJob, foreground_notes, items_of_paths, run_settings, score_items

    common = replace(common, **options)
    model = open_model(model_path, common.overrides, OPEN_KEYS)
    if model.config.video is not None:
        refuse_leaving(early_exit, "clips")
        clip_scoring.refuse_foreign(
            {"--map-format": map_format, "--dicom": dicom, "--show-phi": show_phi, "--foreground": foreground}
        )
        return clip_scoring.run(
            model, model_path, inputs, output, preset=preset, maps=bool(maps), heatmaps=heatmaps, annotate=annotate,
            overwrite=common.overwrite, batch_size=common.images_at_once, quiet=common.quiet, **common.computing,
        )  # fmt: skip
    if annotate:
        kind = "images" if model.config.volume is None else "volumes"
        raise ConfigError(f"--annotate: expected a model of clips (its recipe has video), found one of {kind}")
    maps = maps is not False
    if volume_scoring.concerns(model, inputs):
        refuse_leaving(early_exit, "volumes")
        return volume_scoring.run(
            model_path, inputs, output, preset=preset, foreground=foreground, map_format=map_format, maps=maps,
            heatmaps=heatmaps, dicom=dicom, show_phi=show_phi, overwrite=common.overwrite,
            overrides=common.overrides, quiet=common.quiet, batch_size=common.batch_size, **common.computing,
        )  # fmt: skip
    if dicom:
        raise ConfigError(f"--dicom {dicom[0]}: expected DICOM among the inputs, found 2-D images")
    paths = images_of(inputs, output, common.quiet)
    found = foregrounds_of(paths, foreground, listed_in(inputs))
    items = items_of_paths(without(paths, found), found)
    detector = AnomalyDetector(model, preset or model.config.preset, early_exit=early_exit, **common.computing)
    outputs = Outputs(output, map_format or "npy", maps, heatmaps)
    detector.check_preprocess()
    job = ScoreJob(model, detector, outputs)
    for note in (*job.notes, *foreground_notes(items, job.foreground, detector.calibration)):
        say(f"note: {note}", common.quiet)
    with ResultStore.open(
        output, run_settings(model_path, model, detector, outputs), overwrite=common.overwrite
    ) as store:
        summary = score_items(
            job, items, store, batch_size=common.batch_size, workers=model.config.engine.workers, quiet=common.quiet
        )
        rows = list(store.rows(items))
        if not summary.interrupted:
            summary = summary.with_whole(time.process_time() - began)
            write_score_report(output / "report.html", model, job, summary, rows, items)
            summary = summary.with_whole(time.process_time() - began)
    say_anomalous(rows, "images", common.quiet)
    for note in exit_notes(job, rows):
        say(note, common.quiet)
    say(f"{summary.sentence()}; {calls_an_image(job, rows):.3g} denoiser calls an image", common.quiet)
    page = "" if summary.interrupted else f" and {output / 'report.html'}"
    say(f"wrote {output / 'scores.csv'}{page}", common.quiet)
    return summary


def images_of(inputs: Sequence[str], output: Path, quiet: bool = False) -> list[str]:
    """The images that the inputs stand for, see `expand_inputs` and `outside`; says what else lies among them."""
    from anodiff.data.layouts import expand_inputs
    from anodiff.pipelines.closing import passed_over_note

    others: list[str] = []
    paths = outside(expand_inputs(inputs, others.append), output)
    for note in passed_over_note(elsewhere(list(dict.fromkeys(others)), output)):
        say(f"note: {note}", quiet)
    return paths


def outside(paths: Sequence[str], output: Path) -> list[str]:
    """The paths that do not lie in the output folder: what an earlier run wrote there is no input of this one."""
    kept = elsewhere(paths, output)
    if not kept:
        raise DataError(f"{output}: expected inputs outside the output folder, found all {len(paths)} inside it")
    return kept


def elsewhere(paths: Sequence[str], output: Path) -> list[str]:
    """Those of the paths that do not lie in a folder."""
    place = output.resolve()
    return [path for path in paths if not Path(path).resolve().is_relative_to(place)]
