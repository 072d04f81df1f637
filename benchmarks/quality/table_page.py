"""The quality table as a page, from its stored results."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.rows import BASELINES, PROCEDURE
from benchmarks.quality.sets import TARGETS
from benchmarks.quality.text import METRICS, grid, number, paired_table, times, with_interval, words

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
        "number of training images; `dit` is `default` with a transformer of as many weights instead of the U-Net. "
        "Where LPIPS or ImageNet features belong to a method the denoiser's own stand in "
        "(`-features`). Each baseline chose its own settings on normals too, from the same grids and on anomalies of "
        "the same kinds and sizes, planted in held-out normals. The levels of `default` come from the labelled dev "
        "split of brain_lgg. 95 % intervals, bootstrap over groups. Bold: the best of a column, `oracle` rows left "
        "out.",
        "",
    ]
    for name, part in found["sets"].items():
        lines += [*one_set(name, part), ""]
    return "\n".join([*lines, *gaps(found["sets"])])


def one_set(name: str, part: dict[str, Any]) -> list[str]:
    """A data set: what it is, all rows on the whole of test, the costly ones on a subset, and pairs."""
    rows = part["rows"]
    metrics = METRICS if part["has_masks"] else IMAGE_METRICS
    measured = {row: found for row, found in rows.items() if found["metrics"]}
    whole = [(row, found["metrics"]) for row, found in measured.items() if not found["subset"]]
    some = [(row, found["metrics"]) for row, found in measured.items() if found["subset"]]
    beside = rows.get("baselines", {}).get("baselines", {})
    lines = [f"## {name}", "", described(part), ""]
    if whole or beside:
        lines += [metric_table([*whole, *((each, found["metrics"]) for each, found in beside.items())], metrics), ""]
    if whole:
        lines += [speeds(whole), ""]
    if some:
        lines += [f"On a random subset of {some[0][1]['n_images']} of these images (rows of many calls):", ""]
        lines += [metric_table(some, metrics), "", speeds(some), ""]
    if beside:
        lines += [
            "What each baseline chose:",
            "",
            *(f"- {each}: {chosen(found)}" for each, found in beside.items()),
            "",
        ]
    lines += targets(name, rows)
    if part.get("paired"):
        shown = ("pixel_ap", "image_auroc") if part["has_masks"] else ("image_auroc", "image_ap")
        lines += [f"`{part['ours']}` minus each baseline, the same images (paired bootstrap over groups):", ""]
        lines += [paired_table(part["paired"], shown), ""]
    return [*lines, *procedure(rows)]


def metric_table(rows: list[tuple[str, dict[str, Any]]], metrics: tuple[str, ...]) -> str:
    """Metrics with their intervals, a row a method, the best of each column in bold; no oracle is a best."""
    best = {}
    for metric in metrics:
        known = [shown(found, metric) for name, found in rows if not name.startswith("oracle_")]
        best[metric] = max((value for value in known if value != "-"), default=None)
    cells = []
    for name, found in rows:
        oracle = name.startswith("oracle_")
        values = [
            f"**{with_interval(found, m)}**" if not oracle and shown(found, m) == best[m] else with_interval(found, m)
            for m in metrics
        ]
        cells.append([name, str(found.get("nfe", 0)), *values])
    return grid(["method", "NFE", *metrics], cells)


def shown(found: dict[str, Any], metric: str) -> str:
    """A metric as the page writes it: what looks equal is equal."""
    return number(found.get(metric))


def chosen(found: dict[str, Any]) -> str:
    """What a baseline chose, in words."""
    settings = found["settings"]
    parts = [f"{settings['form']} error", f"smoothed by {settings['smooth_px']:g} px"]
    if settings["limits"]:
        parts.append(f"kept within {settings['limits'][0]:g} and {settings['limits'][1]:g}")
    parts.append(f"top {100 * settings['topk']:g} %" if settings["reduction"] == "topk" else settings["reduction"])
    if "scale_floor" in settings:
        parts.append(f"scale floor {settings['scale_floor']:g}")
    if settings["planted_ap"] is not None:
        parts.append(f"pixel AP of planted anomalies {settings['planted_ap']:.3f}")
    return ", ".join(parts)


def ours(rows: dict[str, Any]) -> str | None:
    """The row of our best single preset: of the tuned ones that whose model planted anomalies prefer."""
    known = {name: rows[name]["tuning"]["planted_ap"] for name in TUNED if name in rows and rows[name].get("tuning")}
    return max(known, key=lambda name: known[name]) if known else None


def targets(name: str, rows: dict[str, Any]) -> list[str]:
    """What was asked of our best single preset, and what it reaches."""
    best = ours(rows)
    if name not in TARGETS:
        return []
    if best is None:
        asked = ", ".join(f"{words(metric)} {value:g}" for metric, value in TARGETS[name].items())
        return [f"Targets ({asked}): no tuned preset is measured yet.", ""]
    found = rows[best]["metrics"]
    cells = []
    for metric, wanted in TARGETS[name].items():
        value = found.get(metric)
        reached = "-" if value is None else "met" if value >= wanted else "missed"
        gap = number(None if value is None else value - wanted, "+.3f")
        cells.append([words(metric), f"{wanted:.3f}", with_interval(found, metric), gap, reached])
    head = ["target", "wanted", f"`{best}`", "difference", "met?"]
    return ["Targets of our best single preset:", "", grid(head, cells), ""]


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
        f"Models (on {device}): {models}. {seen(part)}{outdated(part)}"
    )


def seen(part: dict[str, Any]) -> str:
    """How often test was looked at, in words."""
    looks = f"Test was looked at {times(part['looks'])}"
    if "evaluations" not in part:
        return f"{looks}."
    return f"{looks} by the row that saw it most often ({part['evaluations']} evaluations by all rows)."


def outdated(part: dict[str, Any]) -> str:
    """A sentence where what was tuned, or the baselines, came about by another procedure than today's."""
    today = [PROCEDURE, BASELINES]
    if part.get("procedure", today) == today:
        return ""
    return " Tuned rows and baselines are of an earlier procedure: `--rows tuned baselines` makes them anew."


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
    best = ours(rows)
    if len(known) > 1 and best is not None:
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
