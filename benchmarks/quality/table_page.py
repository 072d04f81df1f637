"""The quality table as a page, from its stored results."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.text import METRICS, grid, metric_table, number, paired_table, times, words

#: what is asked of a tuning: at most so far below the oracle, and below the default
ORACLE_MARGIN, DEFAULT_MARGIN = 0.02, 0.01
#: rows that were tuned on normals, by the model they belong to
TUNED = ("tuned", "tuned-white")
IMAGE_METRICS = ("image_auroc", "image_ap")


def markdown(found: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    lines = [
        "# The quality table",
        "",
        "Made by `python -m benchmarks.quality.table --data <data sets>`; do not edit by hand.",
        "",
        "Every row of a data set has the same declared polarity. No setting saw labelled test data unless its name "
        "says `oracle`: `tuned` rows were chosen by `anodiff tune` on normals with planted anomalies "
        f"(at most {found['tune_nfe']} calls an image), the others are presets. `coarse` models (`default`, `tuned`) "
        "learnt on pyramid noise, "
        "`white` ones (rows so named, `one-step`, `multilevel`, `autoddpm-`, `thor-` and `ddad-features`) on Gaussian "
        "noise, `anoddpm` and `pddpm` on simplex noise, `dae` rows on coarse noise of one level: the same network and "
        "number of training images. Where LPIPS or ImageNet features belong to a method the denoiser's own stand in "
        "(`-features`). Baselines are smoothed and scored as `tuned`, which was not chosen for them: they may be "
        "weaker here than they could be. The levels of `default` come from the labelled dev split of brain_lgg. 95 % "
        "intervals, bootstrap over groups.",
        "",
    ]
    for name, part in found["sets"].items():
        lines += [*one_set(name, part), ""]
    return "\n".join([*lines, *gaps(found["sets"])])


def one_set(name: str, part: dict[str, Any]) -> list[str]:
    """A data set: what it is, all rows on the whole of test, the costly ones on a subset, and pairs."""
    rows = part["rows"]
    metrics = METRICS if part["has_masks"] else IMAGE_METRICS
    whole = [(row, found["metrics"]) for row, found in rows.items() if not found["subset"]]
    some = [(row, found["metrics"]) for row, found in rows.items() if found["subset"]]
    lines = [f"## {name}", "", described(part), ""]
    if whole:
        beside = [(baseline, found) for row in rows.values() for baseline, found in row["baselines"].items()]
        lines += [metric_table([*whole, *beside], metrics), ""]
        lines += [speeds(whole), ""]
    if some:
        lines += [f"On a random subset of {some[0][1]['n_images']} of these images (rows of many calls):", ""]
        lines += [metric_table(some, metrics), "", speeds(some), ""]
    paired = rows["tuned"]["paired"] if "tuned" in rows else {}
    if paired:
        shown = ("pixel_ap", "image_auroc") if part["has_masks"] else ("image_auroc", "image_ap")
        lines += ["`tuned` minus each baseline, the same images (paired bootstrap over groups):", ""]
        lines += [paired_table(paired, shown), ""]
    return [*lines, *procedure(rows)]


def described(part: dict[str, Any]) -> str:
    """Data, split, models and looks in words."""
    counts = ", ".join(
        f"{each['split']} {each['normal']} normal" + (f" and {each['anomalous']} anomalous" * bool(each["anomalous"]))
        + f" of {each['groups']} groups"
        for each in part["counts"]
    )  # fmt: skip
    models = "; ".join(
        f"{variant}: {model['parameters'] / 1e6:.2f} M weights, {model['images_seen']} training images seen, "
        f"{model['training_seconds'] / 60:.0f} minutes"
        for variant, model in part["models"].items()
    )
    device = next(iter(part["models"].values()))["training_device"]["name"]
    return (
        f"Data: {part['data']}; split: {counts}. Polarity: {part['polarity']}. Seed {part['seed']}. "
        f"Models (on {device}): {models}. Test was looked at {times(part['looks'])}."
    )


def speeds(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Images a second of computing."""
    shown = [
        f"`{name}` {number(None if not found.get('seconds_per_image') else 1 / found['seconds_per_image'], '.3g')}"
        for name, found in rows
    ]
    return f"Images a second: {', '.join(shown)}."


def procedure(rows: dict[str, Any]) -> list[str]:
    """Which of the tuned models planted anomalies prefer: the choice of the one procedure for all data sets."""
    known = {name: rows[name]["tuning"] for name in TUNED if name in rows and rows[name].get("tuning")}
    lines = [f"- `{name}`: {' '.join(found['sentences'])}" for name, found in known.items()]
    if len(known) > 1:
        best = max(known, key=lambda name: known[name]["planted_ap"])
        aps = ", ".join(f"`{name}` {found['planted_ap']:.3f}" for name, found in known.items())
        lines.append(f"- Of the models, planted anomalies prefer that of `{best}` (pixel AP {aps}): our preset here.")
    return [*lines, ""] if lines else []


def gaps(sets: dict[str, Any]) -> list[str]:
    """How far the tuned settings are from the oracle's and from the default ones."""
    cells = []
    for name, part in sets.items():
        metric = "pixel_ap" if part["has_masks"] else "image_auroc"
        for suffix in ("", "-white"):
            values = [
                part["rows"].get(row, {}).get("metrics", {}).get(metric)
                for row in (f"default{suffix}", f"tuned{suffix}", f"oracle_tuned{suffix}")
            ]
            default, tuned, oracle = values
            if tuned is None or (default is None and oracle is None):
                continue
            below = None if oracle is None else oracle - tuned
            above = None if default is None else tuned - default
            kept = [
                "-" if gap is None else "yes" if fine else "no"
                for gap, fine in (
                    (below, below is not None and below <= ORACLE_MARGIN),
                    (above, above is not None and above >= -DEFAULT_MARGIN),
                )
            ]
            shown = [f"{name}{suffix}", words(metric), *map(number, values)]
            cells.append([*shown, number(below, "+.3f"), kept[0], number(above, "+.3f"), kept[1]])
    if not cells:
        return []
    head = ["data set", "metric", "default", "tuned", "oracle_tuned", "oracle - tuned", f"<= {ORACLE_MARGIN}",
            "tuned - default", f">= -{DEFAULT_MARGIN}"]  # fmt: skip
    note = "The oracle is the best that the same search finds on the labels of (a random part of) the very test images."
    return ["## Tuning without labels beside the oracle", "", note, "", grid(head, cells), ""]
