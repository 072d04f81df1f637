"""How the quality pages write numbers, budgets and tables of metrics."""

from __future__ import annotations

from typing import Any

METRICS = ("pixel_auroc", "pixel_ap", "dice_at_fpr5", "oracle_max_dice", "image_auroc", "image_ap")


def number(value: float | None, form: str = ".3f") -> str:
    """A number as text; a dash where it is undefined."""
    return "-" if value is None else format(value, form)


def words(metric: str) -> str:
    """A metric's key as it is said: pixel_ap -> pixel AP."""
    level, _, name = metric.partition("_")
    return f"{level} {name.upper()}"


def times(count: int) -> str:
    """How often, in words: once, or 3 times."""
    return "once" if count == 1 else f"{count} times"


def budget(model: dict[str, Any]) -> str:
    """What a model was trained on, in words."""
    return f"{model['images_seen']} training images seen, {model['intensity'].replace('_', ' ')} intensities"


def with_interval(found: dict[str, Any], metric: str) -> str:
    """A metric and its 95 % interval."""
    value, interval = found.get(metric), found.get(f"{metric}_ci95")
    if value is None or not interval:
        return number(value)
    return f"{value:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def metric_table(rows: list[tuple[str, dict[str, Any]]], metrics: tuple[str, ...] = METRICS) -> str:
    """Metrics with their intervals, a row a method."""
    cells = [[name, str(found.get("nfe", 0)), *(with_interval(found, m) for m in metrics)] for name, found in rows]
    return grid(["method", "NFE", *metrics], cells)


def paired_table(paired: dict[str, dict[str, Any]], metrics: tuple[str, ...] = ("pixel_ap", "pixel_auroc")) -> str:
    """Ours minus each baseline, with interval and p, for each metric."""
    head = ["baseline", *(cell for metric in metrics for cell in (words(metric), "95 %", "p"))]
    rows = []
    for name, pairs in paired.items():
        cells = [name]
        for metric in metrics:
            pair = pairs[metric]
            interval = " to ".join(number(end, "+.3f") for end in pair["ci95"]) if pair["ci95"] else "-"
            cells += [number(pair["difference"], "+.3f"), interval, number(pair["p"])]
        rows.append(cells)
    return grid(head, rows)
