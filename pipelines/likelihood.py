"""anodiff likelihood: bits per dimension of images under a model, with where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError, DataError
from anodiff.pipelines.common import COMMON, Common, Model, Output, open_model, say, with_common
from anodiff.pipelines.restoring_options import OPEN_KEYS, Inputs

if TYPE_CHECKING:
    from anodiff.engine.loop import Summary
    from anodiff.engine.store import Item, ResultStore
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.likelihood_job import LikelihoodJob, Settings

COLUMNS = (
    "id", "path", "bits_per_dim", "prior", "chain", "reconstruction", "score", "data", "bin_width", "nfe", "status",
    "error", "seconds",
)  # fmt: skip
#: float images have no bins: their density is stated for those of 8 bit in [-1, 1]
FLOAT_BIN = 2 / 255
#: below the bins of 8 bit, level 1 would cost what no bin tells
SIGMA_MIN = 2 / 255


@with_common
def main(
    model: Model,
    inputs: Inputs,
    output: Output,
    common: Common,
    estimate: Annotated[str, typer.Option(help="continuous (bound), discrete (bound) or flow.")] = "continuous",
    levels: Annotated[int, typer.Option(min=2, help="Noise levels of a bound, steps of the flow's solver.")] = 64,
    solver: Annotated[str, typer.Option(help="Of the flow: heun (2 calls a step) or rk4 (4).")] = "rk4",
    probes: Annotated[
        str, typer.Option(help="Of the flow's trace: random signs, a number, or exact (small images).")
    ] = "1",
    sigma_min: Annotated[
        float | None, typer.Option(help="Lowest level; by default the lowest trained one, at least 2/255.")
    ] = None,
    bin_width: Annotated[
        float, typer.Option(help="Bin in units of [-1, 1] that the bits of float images are stated for.")
    ] = FLOAT_BIN,
    reference: Annotated[
        Path | None,
        typer.Option(help="OUTPUT of an earlier run, the same otherwise, over normal images: adds an anomaly score."),
    ] = None,
) -> None:
    """Likelihood of images: OUTPUT/results.csv in bits per dimension, levels.csv and report.html.

    As an anomaly score -log p misleads: smooth anomalies are likelier than normal images. With --reference the column
    score has every level in deviations from normal images.

    \b
    Examples:
      anodiff likelihood model.safetensors images/ --output out/bits
      anodiff likelihood model.safetensors images/ --estimate flow --levels 32 --probes 4 --output out/flow
      anodiff likelihood model.safetensors images/ --estimate discrete --levels 1000 --output out/discrete
      anodiff likelihood model.safetensors new/ --reference out/normals --output out/new
    """
    summary = run(
        model, inputs, output,
        estimate=estimate, levels=levels, solver=solver, probes=probes, sigma_min=sigma_min, bin_width=bin_width,
        reference=reference, common=common,
    )  # fmt: skip
    raise typer.Exit(summary.exit_code)


def run(
    model_path: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    estimate: str = "continuous",
    levels: int = 64,
    solver: str = "rk4",
    probes: str = "1",
    sigma_min: float | None = None,
    bin_width: float = FLOAT_BIN,
    reference: Path | None = None,
    common: Common = COMMON,
) -> Summary:
    """Measure `inputs` with a model file; returns what was done. Errors of the run as a whole are AnodiffErrors."""
    from anodiff.engine.device import describe, resolve_device
    from anodiff.engine.loop import run_job
    from anodiff.engine.progress import Progress
    from anodiff.engine.store import ResultStore
    from anodiff.pipelines.common import file_digest
    from anodiff.pipelines.likelihood_job import LikelihoodJob
    from anodiff.pipelines.restoring_run import computing
    from anodiff.pipelines.score import images_of
    from anodiff.pipelines.scoring import items_of_paths
    from anodiff.restoration.chains import network_rows
    from anodiff.restoration.gradients import GradientDenoiser

    model = open_model(model_path, common.overrides, OPEN_KEYS)
    settings = settings_of(model, estimate, levels, solver, probes, sigma_min, bin_width, common.seed)
    device = resolve_device(common.device)
    at_once = network_rows(computing(model, common)["network_batch"], model.config.engine.network_batch, device)
    denoiser = GradientDenoiser(model.denoiser, device, common.precision, at_once)
    job = LikelihoodJob(model, denoiser, settings)
    if estimate == "discrete":
        say(f"{model.schedule.name}: {len(job.discrete_levels())} levels", common.quiet)
    normals = None if reference is None else reference_terms(reference)
    items = items_of_paths(images_of(inputs, output, common.quiet))
    facts = {
        **vars(settings),
        "schedule": f"{model.schedule.name}, {model.schedule.num_steps} steps",
        "model": file_digest(model_path),
        "device": denoiser.device.type,
        "precision": denoiser.precision,
        "network_batch": denoiser.network_batch,
        "preprocess": model.config.preprocess.model_dump(mode="json"),
    }
    with ResultStore.open(output, {"job": "likelihood", **facts}, overwrite=common.overwrite) as store:
        with Progress(len(items), "images", "likelihood", quiet=common.quiet) as progress:
            summary = run_job(
                job,
                items,
                store,
                workers=model.config.engine.workers,
                batch_size=common.images_at_once,
                progress=progress,
            )
        rows = write_tables(output, store, items, normals)
        if not summary.interrupted:
            shown = {key: value for key, value in facts.items() if key != "preprocess"}
            shown |= {"images": summary.ok, "failed": summary.failed, **mean_bits(rows)}
            write_report(output, {**shown, **describe(denoiser.device, denoiser.precision)}, job, items, rows)
    say(summary.sentence(), common.quiet)
    page = "" if summary.interrupted else f" and {output / 'report.html'}"
    say(f"wrote {output / 'results.csv'}{page}", common.quiet)
    return summary


def settings_of(
    model: DiffusionModel,
    estimate: str,
    levels: int,
    solver: str,
    probes: str,
    sigma_min: float | None,
    bin_width: float,
    seed: int,
) -> Settings:
    """The options, checked against the model. Raises ConfigError."""
    from anodiff.diffusion.likelihood import EXACT, TABLEAUS
    from anodiff.diffusion.noise import family_of
    from anodiff.pipelines.likelihood_job import Settings
    from anodiff.restoration.chains import trained_levels

    if model.config.volume is not None or model.config.video is not None:
        raise ConfigError("likelihood: expected a model of images, found one of volumes or clips")
    if family_of(model.config.diffusion.noise) != "gaussian":
        raise ConfigError(
            f"likelihood: expected a model trained with gaussian noise, for which -log p is known, found one with "
            f"{model.config.diffusion.noise} noise"
        )
    if model.config.diffusion.noise_where != "all" or model.config.diffusion.mask != "none":
        raise ConfigError(
            "likelihood: expected a model trained with noise everywhere and nothing else, found noise_where "
            f"{model.config.diffusion.noise_where} and mask {model.config.diffusion.mask}"
        )
    if model.config.preprocess.intensity.kind == "nyul":
        raise ConfigError(
            "likelihood: expected intensities that are a line of the stored values, whose bins are of one width, found "
            "kind nyul"
        )
    names = {"estimate": (estimate, ("continuous", "discrete", "flow")), "solver": (solver, tuple(TABLEAUS))}
    for name, (value, known) in names.items():
        if value not in known:
            raise ConfigError(f"--{name}: expected one of {', '.join(known)}, found {value!r}")
    if probes != EXACT and not (probes.isascii() and probes.isdigit() and int(probes) > 0):
        raise ConfigError(f"--probes: expected a positive number or {EXACT!r}, found {probes!r}")
    if not 0 < bin_width < 2:
        raise ConfigError(f"--bin-width: expected a width in units of [-1, 1], found {bin_width}")
    high, low = trained_levels(model.config.diffusion, model.schedule)
    low = max(low, SIGMA_MIN) if sigma_min is None else sigma_min
    if not 0 < low < high:
        raise ConfigError(f"--sigma-min: expected a level between 0 and {high:.4g}, found {low:.4g}")
    count = probes if probes == EXACT else int(probes)
    return Settings(estimate, levels, solver, count, low, high, bin_width, seed)


def reference_terms(folder: Path) -> list[dict[str, str]]:
    """The rows of an earlier run's levels.csv. Raises DataError."""
    import csv

    path = folder / "levels.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError:
        raise DataError(
            f"{path}: expected the levels of a likelihood run over normal images, found no such file"
        ) from None
    if not rows or not {"id", "sigma", "nats_per_dim"} <= rows[0].keys():
        raise DataError(f"{path}: expected id, sigma and nats_per_dim of normal images (not of the flow), found none")
    return rows


def write_tables(
    output: Path, store: ResultStore, items: Sequence[Item], normals: list[dict[str, str]] | None
) -> list[dict[str, Any]]:
    """results.csv and levels.csv; returns the rows, with their score where normals are given. Raises ConfigError."""
    from anodiff.files import write_csv

    rows = list(store.rows(items))
    if normals is not None:
        add_scores(rows, normals)
    write_csv(output / "results.csv", COLUMNS, rows)
    write_csv(
        output / "levels.csv",
        ("id", "sigma", "nats_per_dim"),
        [
            {"id": row["id"], "sigma": sigma, "nats_per_dim": term}
            for row in rows
            for sigma, term in zip(row.get("sigmas", ()), row.get("terms", ()), strict=True)
        ],
    )
    return rows


def add_scores(rows: Sequence[dict[str, Any]], normals: Sequence[Mapping[str, str]]) -> None:
    """Sets ``score`` of each row by `standardised`; ConfigError where the normals have other levels."""
    import torch

    from anodiff.diffusion.likelihood import standardised

    by_image: dict[str, dict[float, float]] = {}
    for each in normals:
        by_image.setdefault(each["id"], {})[float(each["sigma"])] = float(each["nats_per_dim"])
    measured = [row for row in rows if row["status"] == "ok"]
    if not measured:
        return
    sigmas = measured[0]["sigmas"]
    if not sigmas:
        raise ConfigError("--reference: expected a bound, whose levels can be standardised, found the flow")
    if any(set(levels) != set(sigmas) for levels in by_image.values()):
        raise ConfigError("--reference: expected a run with the same model and levels, found other levels")
    reference = torch.tensor([[levels[sigma] for sigma in sigmas] for levels in by_image.values()])
    scores = standardised(torch.tensor([row["terms"] for row in measured]), reference)
    for row, score in zip(measured, scores.tolist(), strict=True):
        row["score"] = score


def mean_bits(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean bits per dimension by type of data, with the bin they are stated for."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault(row["data"], []).append(row)
    return {
        f"mean bits per dimension ({data})": (
            f"{sum(row['bits_per_dim'] for row in kept) / len(kept):.4f}, for bins of {kept[0]['bin_width']:.3g} of "
            f"[-1, 1]; {len(kept)} images"
        )
        for data, kept in found.items()
    }


def write_report(
    output: Path,
    facts: Mapping[str, Any],
    job: LikelihoodJob,
    items: Sequence[Item],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """The page: facts, each image as the model saw it with its bits, and what failed."""
    from anodiff.restoration.report import RestoredRow, write_restoration_report

    by_id = {item.id: item for item in items}
    shown = []
    for row in rows:
        ok = row["status"] == "ok"
        caption = f"{row['path']}: {row['bits_per_dim']:.4f} bits per dimension" if ok else row["path"]
        if row.get("score") is not None:
            caption += f", score {row['score']:.3f}"
        picture = job.picture(by_id[row["id"]]) if ok else None
        shown.append(RestoredRow(row["id"], caption, row["status"], row.get("error", ""), picture))
    notes = ("-log p is no anomaly score: smooth anomalies are likelier than normal images (see --reference).",)
    write_restoration_report(output / "report.html", "anodiff likelihood", facts, shown, notes)
