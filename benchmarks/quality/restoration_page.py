"""RESTORATION.md: the tables of restoration and sampling from their stored results."""

from __future__ import annotations

from typing import Any

from anodiff.diffusion.noise import family_of
from anodiff.restoration.quality import FEATURE_SIGMA
from benchmarks.quality.denoising import LEVELS, PUBLISHED, SETS
from benchmarks.quality.inpainting import BIHARMONIC, MASKS, REPAINT
from benchmarks.quality.sampling import FEW, MANY, RESAMPLES
from benchmarks.quality.text import grid, number

OURS, SAMPLE = "anodiff, one call", "anodiff, posterior sample"
BM3D = "BM3D (published)"
MEANING = {
    "patches": "sliced Wasserstein of 7x7 patches",
    "spectrum_db": "power spectrum, dB",
    "intensities": "Wasserstein of intensities",
    "features_kid": "KID on the denoiser's features",
}


def markdown(found: dict[str, Any]) -> str:
    """The page; a part that has not run has no section."""
    makers = {"denoising": denoising, "inpainting": inpainting, "sampling": sampling}
    parts = [
        "# Restoration and sampling, beside others",
        "Made by `python -m benchmarks.quality.restoration --data <folder of all data sets>`; do not edit by hand.",
        *(make(found[name]) for name, make in makers.items() if name in found),
    ]
    return "\n\n".join(parts) + "\n"


def training_of(model: dict[str, Any]) -> str:
    """What a model is, in a few words."""
    device = model["training_device"]["name"]
    return (
        f"{model['parameters'] / 1e6:.1f} M weights, {model['images_seen']} training images seen, "
        f"{model['training_seconds'] / 60:.0f} minutes on {device}"
    )


def denoising(found: dict[str, Any]) -> str:
    """Grey denoising."""
    parts = [
        "## Grey denoising",
        "White Gaussian noise of 15, 25 and 50 grey levels of 256 on top, neither clipped nor rounded, seed "
        f"{found['seed']}; `Restorer.denoise(x, 2 s / 255)`, {found['precision']} precision, one model for all levels, "
        f"trained on Train400 alone: {training_of(found['model'])}. Results clipped to the range; PSNR in dB and SSIM "
        "(Gaussian weights), means over images. Options of scikit-image's methods are those of the highest PSNR on "
        f"{found['tune_images']} images of Train400, at each level. Published rows are Zhang et al. 2017 (DnCNN), "
        "tables II and III, not run here. A sample of the posterior has about twice the squared error, which is why it "
        "is a row of its own."
        + (
            f" Only {found['subset']} images of each set: no comparison with published rows." if found["subset"] else ""
        ),
    ]
    for test in SETS:
        rows = [denoising_row(name, sets[test]) for name, sets in found["rows"].items()]
        for name, published in PUBLISHED.items():
            rows.append([name, *(cell for value in published[test] for cell in (f"{value:.2f}", "-")), "-", "-"])
        levels = [f"{what} at {level}" for level in LEVELS for what in ("PSNR", "SSIM")]
        count = found["rows"][OURS][test][str(LEVELS[0])]["images"]
        parts += [f"### {test}, {count} images", grid(["method", *levels, "calls", "s an image"], rows)]
    if not found["subset"]:
        parts.append(beside_bm3d(found["rows"][OURS]["BSD68"]))
    chosen = "; ".join(
        f"{name}: " + ", ".join(f"{level}: {words(options)}" for level, options in each.items())
        for name, each in found["options"].items()
    )
    return "\n\n".join([*parts, f"Options chosen: {chosen}."])


def beside_bm3d(ours: dict[str, Any]) -> str:
    """What one call gains on the published BM3D, in a sentence."""
    published = PUBLISHED[BM3D]["BSD68"]
    gaps = [ours[str(level)]["psnr"] - wanted for level, wanted in zip(LEVELS, published, strict=True)]
    shown = ", ".join(f"{gap:+.2f} dB at {level}" for gap, level in zip(gaps, LEVELS, strict=True))
    above = sum(gap > 0 for gap in gaps)
    return f"One call minus published BM3D on BSD68: {shown}; above it at {above} of {len(LEVELS)} levels."


def words(options: dict[str, Any]) -> str:
    """Options as text: patch 5 strength 0.8."""
    return " ".join(f"{name} {value}" for name, value in options.items())


def denoising_row(name: str, levels: dict[str, Any]) -> list[str]:
    """Cells of a method on one set."""
    cells = [name]
    for level in LEVELS:
        cells += [f"{levels[str(level)]['psnr']:.2f}", f"{levels[str(level)]['ssim']:.3f}"]
    last = levels[str(LEVELS[-1])]
    return [*cells, str(last["nfe"]), f"{last['seconds']:.2f}"]


def inpainting(found: dict[str, Any]) -> str:
    """Inpainting."""
    steps, jump, repeats = found["repaint"]
    trained = "; ".join(f"{name}: {training_of(model)}" for name, model in found["models"].items())
    parts = [
        "## Inpainting",
        f"Normal test images, drawn by seed {found['seed']}; PSNR (dB, of the model's range [-1, 1]) and SSIM inside "
        "the hole, means over images; what a hole holds is hidden from every method. Network calls an image, a "
        f"gradient counting as two. {REPAINT}: Lugmayr et al. 2022 with MONAI's DDPMScheduler, {steps} steps, jumps of "
        f"{jump}, {repeats} times, on the same network, which starts at the same highest level, about the same mean. "
        "Biharmonic inpainting needs no network, and sees one image at a time. A mean of samples is nearer to the "
        "truth than a sample, and smoother; ours are drawn in pairs of opposite noise. The grid of levels of "
        "`resampled` was changed once after a look at these boxes, for one that held-out slices of brains had been "
        "better by. "
        f"Models of white noise at levels that go lower than those to detect with: {trained}.",
    ]
    for name, each in found["sets"].items():
        size = "x".join(str(side) for side in each["size"])
        noise = (
            ""
            if family_of(each["noise"]) == "gaussian"
            else f", trained on {each['noise']} noise: no estimate by Bayes' rule"
        )
        parts.append(f"### {name}, {each['images']} images of {size}{noise}")
        rows = [
            [method, *(cell for mask in MASKS for cell in inpainting_cells(each[mask][method]))]
            for method in each[MASKS[0]]
        ]
        head = [f"{what}, {mask}" for mask in MASKS for what in ("PSNR", "SSIM", "calls", "s an image")]
        parts += [
            grid(["method", *head], rows),
            *(chosen_sentence(mask, way, each[mask]) for mask, way in each["chosen"].items()),
        ]
    return "\n\n".join(parts)


def inpainting_cells(found: dict[str, Any]) -> list[str]:
    """Cells of a method with one kind of hole."""
    return [f"{found['psnr']:.2f}", f"{found['ssim']:.3f}", str(found["calls"]), f"{found['seconds']:.2f}"]


def chosen_sentence(mask: str, ours: str, rows: dict[str, Any]) -> str:
    """Our method that was chosen for this kind of hole beside the other two."""
    loop, own = rows[REPAINT], rows[ours]
    gaps = ", ".join(
        f"{own['psnr'] - rows[other]['psnr']:+.2f} dB and {own['ssim'] - rows[other]['ssim']:+.3f} SSIM beside {other}"
        for other in (BIHARMONIC, REPAINT)
    )
    share = f"1/{loop['calls'] / own['calls']:.0f} of the loop's calls"
    return f"{mask}: {ours} (of ours the one chosen on held-out normals of the training folders), at {share}: {gaps}."


def sampling(found: dict[str, Any]) -> str:
    """Few calls against many."""
    head = ["set", *MEANING.values(), "nearest training image"]
    rows = [
        [
            name,
            *(with_interval(values[key], found["intervals"][name][key]) for key in MEANING),
            number(found["nearest_training"][name]),
        ]
        for name, values in found["values"].items()
    ]
    gaps = found["difference"]
    rows.append(
        [f"{FEW} minus {MANY}", *(with_interval(gaps[key]["value"], gaps[key]["ci95"], "+.4f") for key in MEANING), "-"]
    )
    worse = [MEANING[key] for key in MEANING if gaps[key]["ci95"][0] > 0]
    verdict = (
        f"By none of the four is the set of {FEW} farther from real than that of {MANY}"
        if not worse
        else f"The set of {FEW} is farther from real than that of {MANY} by: {', '.join(worse)}"
    )
    return "\n\n".join(
        [
            "## Sampling: 20 calls against 1000",
            f"{found['images']} images of each chain from the same start noise, seed {found['seed']}, brain model "
            f"(white noise; {training_of(found['model'])}); distances from {found['real_images']} "
            "held-out real slices, 0 being equal; `real, held out`: as many other held-out slices, which is what a "
            f"perfect sampler would reach. 95 % intervals: bootstrap over generated and real images, "
            f"{RESAMPLES} times, its bias taken off, the same draws for both chains. "
            f"Features: means and deviations of the encoder's channels at sigma {FEATURE_SIGMA}. Last column: median "
            "over images of the root mean square difference from the nearest training image; where it is far below "
            "that of real slices, the model copies.",
            grid(head, rows),
            f"{verdict} (farther: the whole interval of the difference lies above 0).",
        ]
    )


def with_interval(value: float, interval: list[float], form: str = ".4f") -> str:
    """A number and its 95 % interval."""
    return f"{format(value, form)} ({format(interval[0], form)} to {format(interval[1], form)})"
