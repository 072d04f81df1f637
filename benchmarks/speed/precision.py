"""What precision and compilation change in the AUROCs: the same model in fp32, bf16 and compiled, on the same images.

    python -m benchmarks.speed.precision --case runs/brain/model.safetensors ../shared/data/brain_lgg dev

Each case (model, data set, split) is evaluated three times with the model's own preset and calibration. A difference
of 0.002 in any AUROC is the most that a faster path may cost. Prints a table, writes precision.json beside this file.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from anodiff.files import write_json
from anodiff.pipelines import evaluate
from benchmarks.speed.side_by_side import device_of, machine, options

MOST = 0.002
PATHS = {
    "fp32": ("fp32", ()),
    "bf16": ("bf16", ()),
    "bf16, compiled": ("bf16", ("engine.compiled=true",)),
}
AUROCS = ("pixel_auroc", "image_auroc")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    parser = options(__doc__, "precision")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where results are kept")
    parser.add_argument(
        "--case", nargs=3, action="append", required=True, metavar=("MODEL", "DATA", "SPLIT"), help="repeatable"
    )
    chosen = parser.parse_args(arguments)
    device = device_of(chosen)
    rows = [
        {"work": f"{name_of(Path(data))}, {split}", "aurocs": aurocs(Path(model), Path(data), split, chosen)}
        for model, data, split in chosen.case
    ]
    write_json(chosen.output, {"title": "AUROC by precision", "rows": rows, "machine": machine(device)})
    print(table(rows))
    return rows


def name_of(data: Path) -> str:
    """What a data set is called; a split.csv, which says nothing, by the folder that it lies in."""
    return data.resolve().parent.name if data.name == "split.csv" else data.stem


def aurocs(model: Path, data: Path, split: str, chosen: Any) -> dict[str, dict[str, float | None]]:
    """By path through the network: the AUROCs of an evaluation."""
    found = {}
    for name, (precision, overrides) in PATHS.items():
        output = chosen.work / "precision"
        shutil.rmtree(output, ignore_errors=True)
        _, metrics = evaluate.run(
            model, data, output,
            split=split, precision=precision, overrides=list(overrides), device=chosen.device, seed=chosen.seed,
            heatmaps=False, quiet=True,
        )  # fmt: skip
        found[name] = {key: metrics[key] for key in AUROCS}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The AUROCs of each path, and the largest difference from fp32, as Markdown."""
    lines = [
        f"| data | AUROC | {' | '.join(PATHS)} | largest difference from fp32 |",
        f"|---|---|{'---|' * len(PATHS)}---|",
    ]
    for row in rows:
        for key in AUROCS:
            values = [row["aurocs"][name][key] for name in PATHS]
            if None not in values:
                worst = max(abs(value - values[0]) for value in values)
                shown = " | ".join(f"{value:.4f}" for value in values)
                lines.append(f"| {row['work']} | {key.replace('_auroc', '')} | {shown} | {worst:.4f} |")
    lines += ["", f"Goal: less than {MOST} everywhere."]
    if any(row["work"].endswith(", test") for row in rows):
        lines[-1] += " Nothing is chosen by it; these looks at test are not among those that the quality page counts."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
