"""The main job on real brain MRI: our default preset, the trivial baselines, and AnoDDPM on a model of its own.

    python -m benchmarks.quality.main_job --data ../shared/data/brain_lgg --work runs/main_job --looks 1

Trains `brain_flair` and `brain_flair_anoddpm` (same network) unless their model files are there, scores the test split,
and writes its section of RESULTS.md and results.json beside this file. About two hours on 2 CPU cores, nearly all of it
training; resumable: what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from anodiff.pipelines import evaluate
from benchmarks.quality.models import facts, trained
from benchmarks.quality.results import publish
from benchmarks.quality.text import budget, metric_table, number, paired_table, times

OURS, PEER = "brain_flair", "brain_flair_anoddpm"
SUBSET = 60
#: how the settings came about; say it anew when that changes
CHOSEN = (
    "our settings were chosen on the labelled dev split, those of the baselines on normals with planted anomalies, "
    "without labels"
)


def main() -> None:
    """Train where needed, evaluate, write the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="the folder brain_lgg")
    arguments.add_argument("--work", type=Path, default=Path("runs/main_job"), help="models and results")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--seed", type=int, default=0, help="of the scoring noise and of the subset")
    arguments.add_argument(
        "--looks", type=int, required=True, metavar="N", help="how often test has been looked at, with this run"
    )
    chosen = arguments.parse_args()
    if chosen.looks < 1:
        arguments.error(f"argument --looks: expected at least 1, this run, found {chosen.looks}")
    models = {name: trained(name, chosen.data, chosen.work / name, chosen.device) for name in (OURS, PEER)}
    common = {"device": chosen.device, "seed": chosen.seed}
    evaluate.run(models[OURS], chosen.data, chosen.work / "test", baselines=True, **common)
    for name in (OURS, PEER):
        evaluate.run(models[name], chosen.data, chosen.work / f"subset_{name}", subset=SUBSET, **common)
    found = collected(chosen.work, models, chosen.seed, chosen.looks)
    publish("main_job", found)
    print(markdown(found))


def collected(work: Path, models: dict[str, Path], seed: int, looks: int) -> dict[str, Any]:
    """Everything the table needs, from the files that the evaluations wrote."""

    def read(path: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((work / path).read_text())
        return content

    return {
        "data": "brain_lgg, test split",
        "seed": seed,
        "looks": looks,
        "models": {name: facts(path) for name, path in models.items()},
        "test": read("test/baselines.json"),
        "subset": {name: read(f"subset_{name}/metrics.json") for name in models},
    }


def markdown(found: dict[str, Any]) -> str:
    """RESULTS.md."""
    test, subset = found["test"], found["subset"]
    ours = next(iter(test["metrics"]))
    first = test["metrics"][ours]
    provenance = found["models"][OURS]
    lines = [
        "# Main job: brain MRI, trained on slices without a tumour",
        "",
        "Made by `python -m benchmarks.quality.main_job --data <brain_lgg>`; do not edit by hand.",
        "",
        f"Data: {found['data']}, {first['n_images']} slices of 128x128 ({first['n_anomalous']} with tumour), "
        f"{test['fitted_on']['bootstrap_over']}; 95 % intervals, bootstrap over patients. Seed {found['seed']}. "
        f"Model: {provenance['parameters'] / 1e6:.2f} M weights, {provenance['images_seen']} training images seen, "
        f"{provenance['training_seconds'] / 60:.0f} minutes on {provenance['training_device']['name']}. "
        f"Calibration and baselines saw normal slices of other patients only; {CHOSEN}; test was looked at "
        f"{times(found['looks'])}.",
        "",
        metric_table(list(test["metrics"].items())),
        "",
        f"`{ours}` takes {number(first['seconds_per_image'])} s of computing an image.",
        "",
        f"## {ours} minus each baseline, the same slices (paired bootstrap over patients)",
        "",
        paired_table(test["paired"]),
    ]
    ours_ap, theirs_ap = subset[OURS]["pixel_ap"], subset[PEER]["pixel_ap"]
    ratio = None if ours_ap is None or not theirs_ap else ours_ap / theirs_ap
    lines += [
        "",
        f"## Beside AnoDDPM, on a random subset of {subset[PEER]['n_images']} of the slices",
        "",
        "AnoDDPM (simplex noise in training and scoring, step 250 of 1000, full ancestral chain, squared error) on a "
        f"model of its own: the same network, {budget(found['models'][PEER])}; ours, {budget(found['models'][OURS])}.",
        "",
        metric_table([("anodiff default", subset[OURS]), ("anodiff anoddpm", subset[PEER])]),
        "",
        f"Pixel AP of `default` over `anoddpm`: {number(ratio, '.1f')} times, with {subset[OURS]['nfe']} denoiser "
        f"calls an image against {subset[PEER]['nfe']}; {number(subset[OURS]['seconds_per_image'], '.2f')} s against "
        f"{number(subset[PEER]['seconds_per_image'], '.2f')} s of computing an image.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
