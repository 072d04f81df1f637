"""The video tables as a page, from their stored results."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.quality.text import grid, number, times, with_interval
from benchmarks.quality.video_rows import PATH as PED2
from benchmarks.quality.video_rows import RECIPE, ROWS
from benchmarks.quality.video_umn import GUARD_S
from benchmarks.quality.video_umn import PATH as UMN

RECALL = "0.8"
#: micro frame AUROC on Ped2 as their authors or others report it, by their own protocols
PUBLISHED = (
    ("FUVAS, as shipped with anomalib", "0.914"),
    ("prediction-based auto-encoders, several", "0.925-0.965"),
    ("DDAD, image-wise diffusion run frame by frame", "0.559"),
    ("the frame number alone", "0.741"),
)


def markdown(found: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    lines = [
        "# Video",
        "",
        "Made by `python -m benchmarks.quality.video --data <data sets>`; do not edit by hand.",
        "",
        *(ped2(found[PED2]) if PED2 in found else []),
        *(umn(found[UMN]) if UMN in found else []),
    ]
    return "\n".join(lines)


def ped2(part: dict[str, Any]) -> list[str]:
    """UCSD Ped2: what was measured, the table, the figures of others."""
    cells = part["cells"]
    first = next(iter(cells.values()))["metrics"]
    hours = first["alarms"]["normal_hours"]
    head = ["method", "micro AUROC", "macro", "AP", "smoothed micro", "macro", "AP",
            f"false alarms/h at recall {RECALL}", "frames/s", "M weights", "training images", "minutes"]  # fmt: skip
    return [
        "## UCSD Ped2",
        "",
        f"The official protocol: 16 training clips, {first['n_clips']} test clips of {first['n_frames']} frames, "
        f"{first['n_anomalous_frames']} of them anomalous. AUROC and AP of frames as they are and smoothed over time "
        "inside a clip (Gaussian of 0.5 s, both ways), nothing normalised within a clip; micro: all frames together; "
        f"macro: the mean over the clips that have both classes ({first['n_clips_one_class']} have not). 95 % "
        "intervals, bootstrap over clips. False alarms an hour at the highest threshold that finds "
        f"{RECALL} of the {first['alarms']['n_events']} events: chosen on the labels, so it compares methods and "
        f"promises nothing, and one false alarm in {3600 * hours:.0f} s of normal frames is {1 / max(hours, 1e-9):.0f} "
        "an hour. Frames a second of the whole evaluation, reading and writing included (baselines: reading and "
        "scoring). Noise levels of the rows trained here were chosen on held-out normal clips with planted anomalies. "
        f"Test was looked at {times(part['looks'])}.",
        "",
        grid(head, [row_cells(name, found) for name, found in cells.items()]),
        "",
        *(f"- `{name}`: {said(name, found)}" for name, found in cells.items()),
        "",
        "Published figures, not ours and not by one protocol (micro frame AUROC; many smooth, stretch each clip's "
        "scores, or choose on test):",
        "",
        grid(["method, as published", "frame AUROC"], [list(row) for row in PUBLISHED]),
        "",
    ]


def row_cells(name: str, found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    metrics, model = found["metrics"], found["model"]
    names = ("frame_auroc_micro", "frame_auroc_macro", "frame_ap_micro")
    learnt = model["images_seen"]
    return [
        name,
        *(with_interval(metrics, each) for each in names),
        *(with_interval(metrics["smoothed"], each) for each in names),
        number(metrics["alarms"][f"false_alarms_per_hour_at_recall_{RECALL}"], ".0f"),
        number(found["frames_per_second"], ".3g"),
        number(model["parameters"] / 1e6, ".2f") if model["parameters"] else "-",
        str(learnt) if learnt else "-",
        number(model["training_seconds"] / 60, ".0f") if learnt else "-",
    ]


def said(name: str, found: dict[str, Any]) -> str:
    """What a row is, in words: of a model also its level, window, device and where it comes from."""
    text = ROWS[name].said
    if "levels" not in found:
        return f"{text}."
    levels = ", ".join(f"{level:g}" for level in found["levels"])
    bands = " divided by what is normal at its height" if found["bands"] else ""
    planted = ", ".join(f"{value:.3f} at {level}" for level, value in found["planted"].items())
    parts = [
        f"{text}; sigma {levels}, window of {found['window_px']} px{bands}, {found['metrics']['nfe']} denoiser calls a "
        f"frame, {found['file_mb']:.1f} MB, trained on {found['model']['training_device']['name']}."
    ]
    if planted:
        parts.append(f"AUROC of planted anomalies in normal clips: {planted}.")
    given = found["given"]
    if given is not None:
        changed = f", other than the recipe `{RECIPE}` in {'; '.join(given['changed'])}" if given["changed"] else ""
        parts.append(f"A model file given to the benchmark, `{given['file']}`{changed}.")
        parts += [given["note"].rstrip(".") + "."] if given["note"] else []
    return " ".join(parts)


def umn(part: dict[str, Any]) -> list[str]:
    """UMN: what was done, and a row a clip."""
    cells = list(part["cells"].values())
    head = ["clip", "learnt from", "first flag (s)", "first event (s after)", "above the threshold (s after)",
            "false alarms before", "an hour", "frame AUROC", "smoothed"]  # fmt: skip
    rows = [
        [
            each["clip"],
            " ".join(cell["learnt_from"]),
            number(each["flagged_s"], ".1f"),
            number(each["event_delay_s"], "+.2f"),
            number(each["alarm_delay_s"], "+.2f"),
            str(each["false_alarms"]),
            number(each["false_alarms_per_hour"], ".0f"),
            number(each["frame_auroc"]),
            number(each["frame_auroc_smoothed"]),
        ]
        for cell in cells
        for each in cell["clips"]
    ]
    clips = [each for cell in cells for each in cell["clips"]]
    delays = [each["event_delay_s"] for each in clips if each["event_delay_s"] is not None]
    model = cells[0]["model"]
    minutes = sum(cell["model"]["training_seconds"] for cell in cells) / 60
    middle = f", median delay {median(delays):+.2f} s" if delays else ""
    return [
        "## UMN crowds, from video files to events",
        "",
        f"The set has no split of its own. Each clip is tested once, by one of {len(cells)} models (recipe `umn`, "
        f"{model['parameters'] / 1e6:.2f} M weights, {model['images_seen']} training images; {minutes:.0f} minutes in "
        f"all) that learnt from the normal starts of the clips named, up to {GUARD_S:g} s before their first flag. "
        "This proves little: most clips are of one place with the same actors, flags are coarse, and a threshold set "
        "on one clip of some ten seconds promises hundreds of false alarms an hour. It shows the way from MP4 files to "
        "events. Delays are from the first flagged frame to the start of the first event that reaches into the flagged "
        "stretch (negative: before the flag), and to that event's first frame above the threshold; smoothing looks "
        "both ways in time, so a live watch is later. "
        f"{len(delays)} of {len(clips)} clips have such an event{middle}. "
        f"{number(min(cell['frames_per_second'] for cell in cells), '.3g')} frames a second of 320x240, reading and "
        f"writing included, on {model['training_device']['name']}. Test was looked at {times(part['looks'])}.",
        "",
        grid(head, rows),
        "",
    ]
