"""`anodiff score` for volumes: a NIfTI map on each input's own grid, slices, lesion candidates, planes, a viewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anodiff.anomaly.volumes import PLAIN, VolumeDetector
from anodiff.config import apply_overrides, parse_config
from anodiff.data.layouts.channels import ChannelNames
from anodiff.data.layouts.foregrounds import foregrounds_of, home_of, listed_in, without
from anodiff.data.volumes.inputs import expand_volumes, first_image, first_volume
from anodiff.data.volumes.volume import VolumeSource
from anodiff.engine.loop import Summary, run_job
from anodiff.engine.progress import Progress
from anodiff.engine.store import Item, ResultStore
from anodiff.errors import ConfigError, DataError
from anodiff.files import make_folder, write_csv
from anodiff.pipelines.closing import say_anomalous
from anodiff.pipelines.common import open_model, say
from anodiff.pipelines.heatmaps import HeatmapStore, with_heatmaps
from anodiff.pipelines.pictures import raw_scale
from anodiff.pipelines.scoring import COLUMNS, Truth, foreground_notes, run_settings
from anodiff.pipelines.volume_job import DICOM_KINDS, VOXELS, PlanesJob, VolumeItem, VolumeJob, VolumeOutputs
from anodiff.pipelines.volume_remarks import seen_share

if TYPE_CHECKING:
    from anodiff.anomaly.volume_steps import VolumeStep
    from anodiff.model import DiffusionModel

SLICE_COLUMNS = ("id", "axis", "slice", "score", "p_value")
LESION_COLUMNS = (
    "id", "lesion", "volume_mm3", "voxels", "x_mm", "y_mm", "z_mm", "peak", "peak_i", "peak_j", "peak_k",
    "mean_p_value",
)  # fmt: skip
#: of a volume also what the reader and the detector have to say of it, in sentences with semicolons between
VOLUME_COLUMNS = (*COLUMNS, "remarks")
#: of the section, what may change at scoring for a model of volumes; a model of images leaves open all but PATCHES
FINISHING = {
    "slices": ("volume.axes", "volume.score_slices", "volume.median", "volume.min_volume_mm3", "volume.min_foreground",
               "volume.max_candidates"),
    "patches": ("volume.overlap", "volume.median", "volume.min_volume_mm3", "volume.min_foreground",
                "volume.max_candidates"),
}  # fmt: skip
#: keys that say something of 3-D models alone
PATCHES = ("volume.patch", "volume.overlap")
OPEN_KEYS = ("engine", "presets", "polarity", "preprocess.channel", "preprocess.value_range")
#: remarks on volumes that a run says at once; the report says as many
SAID = 5


def concerns(model: DiffusionModel, inputs: Sequence[str]) -> bool:
    """Whether a run is about volumes: the model is of volumes, or there is one among the inputs."""
    return model.config.volume is not None or first_volume(inputs) is not None


def run(
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    preset: str | None = None,
    foreground: str = "",
    map_format: str | None = None,
    maps: bool = True,
    heatmaps: bool = True,
    dicom: Sequence[str] = (),
    show_phi: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Summary:
    """Score the volumes of ``inputs``; returns what was done. Errors of the run as a whole are AnodiffErrors.

    batch_size: see `network_batch`.
    """
    from anodiff.pipelines.volume_reporting import write_report

    refuse_format(map_format)
    model, notes = open_volume_model(model_path, overrides)
    if notes:
        refuse_images(inputs)
    found = expand_volumes(inputs, ChannelNames.of(model.config.preprocess.channels, model.provenance))
    sources = outside(found.sources, output)
    items = items_of_sources(sources, inputs, foreground)
    detector = VolumeDetector(
        model, preset or model.config.preset, device=device, precision=precision, seed=seed,
        network_batch=network_batch(batch_size, overrides),
    )  # fmt: skip
    detector.check()
    outputs = VolumeOutputs(output, maps=maps, heatmaps=heatmaps, dicom=check_dicom(dicom, output, detector))
    # A model of images knows images again, not volumes.
    job = VolumeJob(
        detector, outputs, model.config.preprocess.channel, None if notes else model.seen, seen_share(model.provenance)
    )
    unknown = modality_note(sources) if notes and detector.volume_calibration is None else ()
    about = foreground_notes(items, job.foreground, job.of_images)
    notes = (*notes, *unknown, *job.notes, *about, *series_notes(sources), *skipped_notes(found.skipped))
    for note in notes:
        say(f"note: {note}", quiet)
    with ResultStore.open(output, settings_of(model_path, model, job), overwrite=overwrite) as store:
        summary = score_items(job, items, store, workers=model.config.engine.workers, quiet=quiet)
        rows = list(store.rows(items))
        if found.skipped:
            write_csv(
                output / "skipped.csv",
                ("path", "reason"),
                [{"path": path, "reason": reason} for path, reason in found.skipped],
            )
        remarks = remark_notes(rows)
        for remark in remarks:
            say(f"note: {remark}", quiet)
        if not summary.interrupted:
            write_report(
                output / "report.html", model, job, summary, rows, items, notes=(*notes, *remarks), show_phi=show_phi
            )
    say_anomalous(rows, "volumes", quiet)
    say(summary.sentence("volumes"), quiet)
    say(f"wrote {', '.join(str(output / name) for name in written(rows, summary))}", quiet)
    return summary


def items_of_sources(sources: Sequence[VolumeSource], inputs: Sequence[str], foreground: str = "") -> list[VolumeItem]:
    """The volumes of a run with the foregrounds that the command line, a CSV of it or their names say.

    Raises ConfigError, see `foregrounds_of`.
    """
    home = {source.path: home_of(source) for source in sources}
    listed = listed_in(inputs)
    listed |= {home[path]: listed[path] for path in home if path in listed}
    given = foregrounds_of(list(home.values()), foreground, listed, by_name=True)
    kept = set(without(home.values(), given))
    return [
        VolumeItem(
            each.id,
            each.path,
            Truth(foreground=given.get(home[each.path], "")),
            source=each if each.files else None,
        )
        for each in sources
        if home[each.path] in kept
    ]


def written(rows: Sequence[dict[str, Any]], summary: Summary) -> list[str]:
    """What the reader looks for in the output folder."""
    names = ["scores.csv"] if summary.interrupted else ["scores.csv", "report.html"]
    objects = any(file.startswith("dicom/") for row in rows for file in row.get("files", ()))
    return [*names, *(["dicom/"] if objects else [])]


def open_volume_model(
    path: Path, overrides: list[str] | None, allowed: tuple[str, ...] = OPEN_KEYS
) -> tuple[DiffusionModel, tuple[str, ...]]:
    """The model with a section on volumes, and sentences where it was trained on images and has none of its own.

    Raises what `open_model` does.
    """
    model = open_model(path, None, ())
    if model.config.volume is not None:
        return open_model(path, overrides, (*allowed, *FINISHING[model.config.volume.mode])), ()
    model = open_model(path, overrides, (*allowed, "volume"))
    for override in overrides or ():
        key = override.partition("=")[0].strip()
        if key == "volume" or key in PATCHES:
            raise ConfigError(
                f"--set {override}: expected a key of volume that concerns slices, such as volume.axes, since the "
                "model is of single 2-D images"
            )
    # Only what the user said is said otherwise than for images.
    values = model.config.model_dump(mode="json") | {"volume": PLAIN.model_dump(mode="json")}
    own = [override for override in overrides or () if override.strip().startswith("volume.")]
    model.config = parse_config(apply_overrides(values, own), "--set")
    volume = model.config.volume
    assert volume is not None
    if volume.mode != "slices" or volume.neighbours:
        raise ConfigError(
            f"--set: the model is of single 2-D images: expected volume.mode slices and no neighbours, found "
            f"{volume.mode} and {volume.neighbours}"
        )
    along = " and ".join("ijk"[axis] for axis in volume.axes)
    grid = "as stored" if volume.orientation is None else f"oriented to {volume.orientation}"
    return model, (
        f"the model is of 2-D images: slices along {along} of each volume, {grid}, are scored as such "
        "(--set volume.axes=[0,1,2] scores those of all axes)",
    )


def network_batch(batch_size: int | None, overrides: Sequence[str] | None) -> int | None:
    """Slices or windows that the network sees at once: ``--batch-size``, or None for the recipe's.

    A volume is one input of a run, so what is computed at once is a part of it; every such batch is filled up to this
    size, so that no result depends on how many slices there are. Raises ConfigError where the recipe's is set too.
    """
    said = [each for each in overrides or () if each.partition("=")[0].strip() == "engine.network_batch"]
    if batch_size is not None and said:
        raise ConfigError(
            f"--batch-size {batch_size}: expected it or --set {said[0]}, which mean the same for volumes, found both"
        )
    return batch_size


def refuse_format(map_format: str | None) -> None:
    """Raises ConfigError where a format of maps is asked for: those of volumes have one."""
    if map_format is not None:
        raise ConfigError(f"--map-format {map_format}: expected none for volumes, whose maps are NIfTI (.nii.gz)")


def refuse_images(inputs: Sequence[str]) -> None:
    """Raises DataError where images lie among the volumes: a model of images would score both, each in its own way."""
    image = first_image(inputs)
    if image is not None:
        raise DataError(
            f"{image}: expected volumes or images in one run, found both ({first_volume(inputs)} is a volume); "
            "give them apart (a folder of images is a volume as FOLDER#stack)"
        )


def outside(sources: Sequence[VolumeSource], output: Path) -> list[VolumeSource]:
    """The volumes that do not lie in the output folder: an earlier run's maps are no inputs of this one."""
    place = output.resolve()
    kept = [
        source
        for source in sources
        if not any(Path(file).resolve().is_relative_to(place) for file in (source.files or (source.path,)))
    ]
    if not kept:
        raise DataError(f"{output}: expected inputs outside the output folder, found all {len(sources)} inside it")
    return kept


def check_dicom(kinds: Sequence[str], output: Path, detector: VolumeDetector) -> tuple[str, ...]:
    """The DICOM objects asked for. Raises ConfigError for another kind, or one that needs a calibration; StorageError
    with the extra's name where a library is missing."""
    from anodiff.data.volumes.dicom_write import import_highdicom

    for kind in kinds:
        if kind not in DICOM_KINDS:
            raise ConfigError(f"--dicom {kind}: expected one of {', '.join(DICOM_KINDS)}")
        if kind != "pm" and detector.voxel_quantiles is None:
            raise ConfigError(f"--dicom {kind}: expected a calibrated preset, whose voxel threshold it needs")
        if kind != "sc":
            import_highdicom(output)
    return tuple(dict.fromkeys(kinds))


def settings_of(model_path: Path, model: DiffusionModel, job: VolumeJob) -> dict[str, Any]:
    """Everything that decides what a run writes, flat."""
    settings = run_settings(model_path, model, job.detector.detector, job.outputs)
    settings |= {f"volume.{key}": value for key, value in job.detector.config.model_dump(mode="json").items()}
    return settings | {"dicom": list(job.outputs.dicom), "measured": job.outputs.measured}


def score_items(
    job: VolumeJob, items: Sequence[VolumeItem], store: ResultStore, *, workers: int, quiet: bool = False
) -> Summary:
    """Runs the job, draws what an uncalibrated run could not draw before, and writes scores, slices and lesions."""
    outputs = job.outputs
    drawn = outputs.heatmaps and (outputs.maps or job.scale is not None)
    wanted = {"maps": outputs.maps, "heatmaps": drawn, "dicom": bool(outputs.dicom), VOXELS: outputs.measured}
    for name in (name for name, there in wanted.items() if there):
        make_folder(outputs.folder / name)
    said = len(job.detector.detector.denoiser.notes)
    with Progress(len(items), "volumes", "scoring", quiet=quiet) as progress:

        def watch(step: VolumeStep) -> None:
            progress.update(0, **{step.unit: str(step)})

        job.detector.on_step = watch
        # One at a time: volumes are large, and a batch would not make the network faster.
        summary = run_job(job, items, store, workers=min(workers, 2), batch_size=1, ahead=1, progress=progress)
    for note in job.detector.detector.denoiser.notes[said:]:
        say(f"note: {note}", quiet)
    if not summary.interrupted and job.scale is None and drawn:
        drawing = add_planes(job, items, store, quiet=quiet)
        summary = summary if drawing is None else with_heatmaps(summary, drawing, store)
    rows = list(store.rows(items))
    write_csv(outputs.folder / "scores.csv", VOLUME_COLUMNS, score_rows(rows))
    write_csv(outputs.folder / "slices.csv", SLICE_COLUMNS, slice_rows(rows))
    write_csv(outputs.folder / "lesions.csv", LESION_COLUMNS, lesion_rows(rows))
    return summary


def add_planes(
    job: VolumeJob, items: Sequence[VolumeItem], store: ResultStore, *, quiet: bool = False
) -> Summary | None:
    """Gives an uncalibrated run its one colour scale, and draws the planes that are not drawn yet."""
    rows = {row["id"]: row for row in store.rows(items) if row.get("map")}
    job.scale = raw_scale(rows.values())
    if job.scale is None:
        return None
    scored: list[Item] = [item for item in items if item.id in rows]
    with Progress(len(scored), "heatmaps", "drawing", quiet=quiet) as progress:
        kept = HeatmapStore(store, rows, job.scale)
        return run_job(PlanesJob(job, rows), scored, kept, workers=1, batch_size=1, ahead=1, progress=progress)


def score_rows(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """scores.csv: the recorded rows, what was remarked of each in one cell."""
    for row in rows:
        yield {**row, "remarks": "; ".join(row.get("remarks", ()))}


def slice_rows(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """slices.csv: axis and slice (from 0) as in the file; of several model slices in one of the file, the loudest."""
    for row in rows:
        loudest: dict[tuple[int, int], dict[str, Any]] = {}
        for each in sorted(row.get("slices", ()), key=lambda found: found["score"]):
            loudest[each["axis"], each["slice"]] = each
        for place in sorted(loudest):
            yield {"id": row["id"], **loudest[place], "score": np.float32(loudest[place]["score"])}


def lesion_rows(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """lesions.csv: candidates of each volume by falling peak; centre in world mm (RAS+), peak voxel as in the file."""
    for row in rows:
        for each in row.get("lesions", ()):
            centre = dict(zip(("x_mm", "y_mm", "z_mm"), (round(at, 4) + 0.0 for at in each["centre_mm"]), strict=True))
            peak = dict(zip(("peak_i", "peak_j", "peak_k"), each["peak_voxel"], strict=True))
            rare = each["mean_p_value"]
            yield {
                "id": row["id"],
                "lesion": each["number"],
                "volume_mm3": round(each["volume_mm3"], 4),
                "voxels": each["voxels"],
                "peak": np.float32(each["peak"]),
                "mean_p_value": None if rare is None else np.float32(rare),
                **centre,
                **peak,
            }


def modality_note(sources: Sequence[VolumeSource]) -> tuple[str, ...]:
    """A sentence on DICOM, which says its modality, for a model of 2-D images, which knows none."""
    found = sorted({source.frames[0].modality for source in sources if source.frames} - {""})
    if not found:
        return ()
    return (
        f"the model was trained on 2-D images and does not know its modality; found {' and '.join(found)}: scores of a "
        "modality that it has not learnt mean nothing",
    )


def series_notes(sources: Sequence[VolumeSource]) -> tuple[str, ...]:
    """A sentence on several DICOM series, each of which is a volume of its own."""
    series = [each.description for each in sources if each.kind == "dicom"]
    if len(series) < 2:
        return ()
    more = f"; and {len(series) - SAID} more" if len(series) > SAID else ""
    return (f"{len(series)} DICOM series, each a volume: {'; '.join(series[:SAID])}{more}",)


def skipped_notes(skipped: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """A sentence on the files that are no volumes."""
    if not skipped:
        return ()
    path, reason = skipped[0]
    count = f"{len(skipped)} file{' was' if len(skipped) == 1 else 's were'} passed over"
    return (f"{count} (skipped.csv), the first one {path}: {reason}",)


def remark_notes(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """What was remarked of volumes: the first remarks, those of several volumes once."""
    paths: dict[str, list[str]] = {}
    for row in rows:
        for remark in row.get("remarks", ()):
            paths.setdefault(remark, []).append(row["path"])
    said = [
        f"{of[0]}: {remark}" if len(of) == 1 else f"{len(of)} volumes, the first one {of[0]}: {remark}"
        for remark, of in paths.items()
    ]
    more = (f"and {len(said) - SAID} more remarks on volumes, in scores.csv",) if len(said) > SAID else ()
    return (*said[:SAID], *more)
