"""Figures that the README and the pages quote are those of the stored results; beside ours stands the best rival."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
QUALITY = json.loads((ROOT / "benchmarks" / "quality" / "results.json").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells(text: str, start: str) -> list[str]:
    """The cells of the table row that begins so, without what makes them bold."""
    (line,) = [line for line in text.splitlines() if line.replace("*", "").startswith(f"| {start} ")]
    return [cell.strip() for cell in line.replace("*", "").strip("|").split("|")]


def numbers(cell: str) -> list[str]:
    """The decimals of a cell, in their order."""
    return re.findall(r"\d+\.\d+", cell)


def speed(name: str) -> dict[str, Any]:
    """The stored results of a speed benchmark."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "speed" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("anodiff `default`", "anodiff default"),
        ("PCA(30) residual, z-scored", "PCA(30) residual"),
        ("intensity z-score on normals", "intensity z-score"),
        ("raw intensity", "raw intensity"),
        ("feature memory on our encoder", "feature memory (own encoder)"),
    ],
)
def test_the_main_table_is_that_of_the_stored_results(shown: str, name: str) -> None:
    metrics = QUALITY["main_job"]["test"]["metrics"][name]
    found = cells(README, shown)
    assert found[1] == str(metrics.get("nfe", 0))
    for cell, key in zip(found[2:], ("pixel_auroc", "pixel_ap", "oracle_max_dice", "image_auroc"), strict=True):
        low, high = metrics[f"{key}_ci95"]
        assert cell == f"{metrics[key]:.3f} ({low:.3f}-{high:.3f})"


def test_what_is_said_below_the_main_table() -> None:
    section = README.partition("## Real brain MRI")[2].partition("\n## ")[0]
    job = QUALITY["main_job"]
    ours = next(iter(job["test"]["metrics"].values()))
    known = {name: pair["pixel_ap"] for name, pair in job["test"]["paired"].items()}
    nearest = min(known.values(), key=lambda pair: pair["difference"])
    subset = {name: found["pixel_ap"] for name, found in job["subset"].items()}
    quoted = " ".join(section.split())
    for figure in (
        f"on {job['models']['brain_flair']['training_images']:,} FLAIR slices",
        f"({job['models']['brain_flair']['images_seen']:,} images seen, "
        f"{job['models']['brain_flair']['training_seconds'] / 60:.0f} minutes",
        f"scores {ours['n_images']} test slices",
        f"({ours['n_anomalous']} with tumour",
        f"{nearest['difference']:.3f} above the best baseline ({nearest['ci95'][0]:.3f} to {nearest['ci95'][1]:.3f}, "
        f"p = {nearest['p']:.3f})",
        f"reaches a pixel AP of {subset['brain_flair_anoddpm']:.3f}",
        f"reaches {subset['brain_flair']:.3f}",
    ):
        assert figure in quoted, figure
    names = ["once", "twice", "three times", "four times", "five times", "six times", "seven times", "eight times"]
    assert f"test was looked at {names[job['looks'] - 1]}." in quoted


@pytest.mark.parametrize(
    ("start", "name", "metrics"),
    [
        ("PneumoniaMNIST", "pneumoniamnist", ("image_auroc",)),
        ("Magnetic tile", "magnetic_tile", ("image_auroc", "pixel_auroc")),
        ("MVTec bottle", "bottle", ("image_auroc", "pixel_ap")),
    ],
)
def test_beside_our_tuned_row_stands_the_best_baseline(start: str, name: str, metrics: tuple[str, ...]) -> None:
    rows = QUALITY["table"]["sets"][name]["rows"]
    line = next(line for line in README.splitlines() if line.startswith(f"| {start}"))
    ours, theirs = (cell.replace("*", "") for cell in line.strip("|").split("|")[2:])
    beside = rows["baselines"]["baselines"].values()
    best = [max(each["metrics"][metric] for each in beside) for metric in metrics]
    assert numbers(ours) == [f"{rows['tuned']['metrics'][metric]:.3f}" for metric in metrics]
    assert numbers(theirs) == [f"{value:.3f}" for value in best]
    for value, mine in zip(best, (rows["tuned"]["metrics"][metric] for metric in metrics), strict=True):
        assert (f"**{value:.3f}**" in line) == (value > mine)


def test_video_and_denoising_stand_beside_the_best_known() -> None:
    clips = QUALITY["video"]["ucsd_ped2"]["cells"]
    line = next(line for line in README.splitlines() if line.startswith("| UCSD Ped2"))
    ours, theirs = line.strip("|").split("|")[2:]
    scores = {
        name: (cell["metrics"]["frame_auroc_micro"], cell["metrics"]["smoothed"]["frame_auroc_micro"])
        for name, cell in clips.items()
    }
    assert numbers(ours) == [f"{value:.3f}" for value in scores.pop("predict")]
    assert numbers(theirs) == [f"{max(values):.3f}" for values in zip(*scores.values(), strict=True)]
    one_call = QUALITY["restoration"]["denoising"]["rows"]["anodiff, one call"]["BSD68"]
    line = next(line for line in README.splitlines() if line.startswith("| BSD68"))
    assert numbers(line.split("|")[3]) == [f"{one_call[level]['psnr']:.2f}" for level in ("15", "25", "50")]
    page = (ROOT / "benchmarks" / "quality" / "RESTORATION.md").read_text(encoding="utf-8").partition("### Set12")[0]
    published = [cells(page, f"{name} (published)") for name in ("BM3D", "DnCNN-S")]
    assert numbers(line.split("|")[4]) == [value for row in published for value in numbers(" ".join(row[1:]))]


def test_boxes_are_inpainted_beside_repaint_and_biharmonic() -> None:
    sets = QUALITY["restoration"]["inpainting"]["sets"]
    box = "32x32 box"
    rows = [sets[name][box] for name in ("brain", "bottle")]
    line = next(line for line in README.splitlines() if line.startswith(f"| Inpainting a {box}"))
    ours, theirs = line.strip("|").split("|")[2:]
    names = (sets["brain"]["chosen"][box], "RePaint on MONAI's scheduler", "scikit-image biharmonic")
    own, loop, smooth = ([row[name] for row in rows] for name in names)
    assert numbers(ours) == [f"{each['psnr']:.2f}" for each in own]
    assert f"by {own[0]['calls']} calls" in ours
    assert f"by {loop[0]['calls']}," in theirs
    assert numbers(theirs) == [f"{each['psnr']:.2f}" for each in (*loop, *smooth)]


def test_speed_page_and_guide_quote_what_was_measured() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    steps = {row["work"].partition(" our ")[2]: row["ratio"]["median"] for row in speed("training")["rows"]}
    plain, compiled = (f"{steps[name]:.1f}" for name in ("U-Net, bf16", "U-Net, bf16, compiled"))
    assert cells(page, "one training step, not compiled")[1] == f"{plain}, compiled {compiled}; 2"
    (simplex,) = speed("simplex")["rows"]
    assert cells(page, "simplex, 64 fields of 256x256")[1] == f"{simplex['ratio']['median']:.1f}; 10"
    ratios = {row["work"]: row["ratio"]["median"] for row in speed("reconstruct")["rows"]}
    row = cells(page, "reconstruct, beside diffusers' DPM++")
    theirs = [f"{value:.1f}" for work, value in ratios.items() if "DPM++" in work]
    assert row[1] == f"{' and '.join(theirs)}; 4"
    assert f"(DDIM at 13 calls: {ratios['diffusers DDIM of 50, 13 calls; ours 8, bf16']:.1f})" in row[0]
    windows = speed("windows")
    first = windows["rows"][0]
    guide = " ".join((ROOT / "docs" / "guide.md").read_text(encoding="utf-8").split())
    assert f"{windows['work'].split(', ')[1].split()[0]} images, calibrated whole" in guide
    assert f"windows of {first['window'][0]} changed reconstructions by {100 * first['reconstructions']:.0f} %" in guide
    assert f"took the pixel AP from {windows['whole']['pixel_ap']:.2f} to {first['pixel_ap']:.2f}" in guide


def test_what_the_speed_page_says_of_networks_and_precision() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    quoted = " ".join(page.split())
    ratios = {row["work"]: f"{row['ratio']['median']:.1f}" for row in speed("network")["rows"]}
    small, large = "8x1x64x64, our U-Net, bf16", "4x1x128x128, our U-Net, bf16"
    row = cells(page, "network, our U-Net, 8x1x64x64, bf16")
    assert row[1] == f"{ratios[small]}, compiled {ratios[f'{small}, compiled']}; 4"
    assert f"4x1x128x128 ({ratios[large]} times, compiled {ratios[f'{large}, compiled']};" in quoted
    assert f"as many weights is at {ratios['8x1x64x64, our DiT, bf16, compiled']})" in quoted
    moved = {
        path: max(
            abs(value - row["aurocs"]["fp32"][metric])
            for row in speed("precision")["rows"]
            for metric, value in row["aurocs"][path].items()
            if value is not None
        )
        for path in ("bf16", "bf16, compiled")
    }
    assert f"which bf16 moves by {max(moved.values()):.4f} at most" in quoted
