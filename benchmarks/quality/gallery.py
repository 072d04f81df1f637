"""docs/gallery.md: a figure for each task, most of them from one model of synthetic brain slices.

    python -m benchmarks.quality.gallery --work runs/gallery

Trains the recipe `phantoms` (three minutes on 2 CPU cores) unless WORK/run/model.safetensors is there or --model names
one, and for `volume` the recipe `open_ms_3d` (five minutes), and writes the figures to docs/images in about as long
again. The images are made, or, those of volumes, under CC BY: they may be
shared. `volume` is left out where --volumes is not there.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly import AnomalyDetector
from anodiff.diffusion import image_keys, sample_noise
from anodiff.diffusion.likelihood import continuous_bound
from anodiff.errors import ConfigError
from anodiff.files import atomic_write, make_folder
from anodiff.model import DiffusionModel, load
from anodiff.pipelines.demo import SIZE
from anodiff.pipelines.inpaint import NORMAL_SHARE
from anodiff.restoration import Restorer, SuperResolution, cartesian_lines, gaussian_blur
from anodiff.restoration.style import content_similarity, style_distance, stylize
from benchmarks.quality.gallery_models import HELD, phantom, phantom_model, volume_model

#: of 8-bit values, in the model's [-1, 1]
BIN = 2 / 255
LEVELS = 48
#: of what is measured, before it is restored
NOISE = 0.02
#: the change that is brightest on a map of differences
MOST_CHANGED = 0.5
VOLUMES = Path("../shared/data/open_ms/cross_sectional/MNI")
#: voxels of 2 mm, right-anterior-superior: the part of the brain that is looked at, the middle and side of its hole
REGION_AT, REGION, MIDDLE, BOX = (28, 36, 28), (32, 32, 32), (16, 16, 16), 10


@dataclass(frozen=True)
class Panel:
    """One picture of a figure: an image (h, w) in [low, high] under a title, in grey or as heat."""

    title: str
    image: Tensor
    low: float = -1.0
    high: float = 1.0
    heat: bool = False


Rows = list[list[Panel]]
#: the panels of a figure, of (model, device, seed)
Figure = Callable[[DiffusionModel, str, int], Rows]


def main(words: list[str] | None = None) -> None:
    """Train where needed, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/gallery"), help="data and model")
    parser.add_argument("--model", type=Path, help="a model of the recipe phantoms, instead of training one")
    parser.add_argument("--volumes", type=Path, default=VOLUMES, help="the patients of open_ms (CC BY)")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--figures", nargs="+", choices=list(FIGURES), default=list(FIGURES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(words)
    make_folder(chosen.output)
    models: dict[str, DiffusionModel] = {}
    for name in chosen.figures:
        path = chosen.output / f"gallery_{name}.png"
        draw: Figure = FIGURES[name]
        kind = "volume" if name == "volume" else "phantoms"
        if kind == "volume":
            held = chosen.volumes / HELD
            if not held.is_dir():
                print(f"left out volume: expected a folder of the patients of open_ms, found no {held}")
                continue
            draw = partial(volume_filled, chosen.volumes)
        if kind not in models:
            models[kind] = load(_model_file(kind, chosen))
        atomic_write(path, drawn(draw(models[kind], chosen.device, chosen.seed)))
        print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)", flush=True)


def _model_file(kind: str, chosen: argparse.Namespace) -> Path:
    """The model file of a kind of figures, trained where it is not there."""
    if kind == "volume":
        return volume_model(chosen.work, chosen.volumes, chosen.device)
    return Path(chosen.model) if chosen.model else phantom_model(chosen.work, chosen.device)


def restorer_of(model: DiffusionModel, device: str, seed: int, steps: int = 32, batch: int = 4) -> Restorer:
    """The restorer of a figure; small internal batches, since a figure has few images."""
    return Restorer(model, device=device, seed=seed, steps=steps, network_batch=batch)


def generated(model: DiffusionModel, device: str, seed: int) -> Rows:
    """Samples of 20 calls, below real phantoms."""
    found = restorer_of(model, device, seed, steps=20, batch=8).generate(16)
    real = [Panel("phantom", phantom(number)[0][0, 0]) for number in range(8)]
    panels = [Panel(f"sample {number}, {found.nfe} calls", image[0]) for number, image in enumerate(found.images)]
    return [real, panels[:8], panels[8:]]


def denoised(model: DiffusionModel, device: str, seed: int) -> Rows:
    """The estimate, a posterior sample and the uncertainty at two noise levels."""
    restorer, rows = restorer_of(model, device, seed), []
    clean, _ = phantom(11)
    for sigma in (0.15, 0.4):
        noisy = clean + sigma * sample_noise("gaussian", image_keys(clean, seed), tuple(clean.shape[1:]))
        found = restorer.denoise(noisy, sigma, samples=8)
        assert found.samples is not None
        assert found.uncertainty is not None
        pictures = (noisy, found.images, found.samples[:, 0], clean)
        titles = (f"noisy, sigma {sigma:g}", "estimate", "posterior sample", "truth")
        errors = [""] + [f", {psnr(image, clean):.1f} dB" for image in pictures[1:3]] + [""]
        row = [Panel(title + error, image[0, 0]) for title, error, image in zip(titles, errors, pictures, strict=True)]
        rows.append([*row[:3], Panel("deviation of 8 samples", found.uncertainty[0, 0], 0, 0.25, heat=True), row[3]])
    return rows


def inpainted(model: DiffusionModel, device: str, seed: int) -> Rows:
    """A box filled three ways, and a lesion replaced by healthy tissue."""
    restorer, rows = restorer_of(model, device, seed), []
    clean, _ = phantom(21)
    box = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    box[20:40, 12:34] = True
    ill, lesion = phantom(39, "bright")
    around = torch.nn.functional.max_pool2d(lesion[None, None].float(), 9, 1, 4)[0, 0] > 0
    for name, image, hole in (("phantom", clean, box), ("with a lesion", ill, around)):
        found = restorer.inpaint(image, hole, samples=3)
        assert found.samples is not None
        hidden = torch.where(hole, torch.nan, image[0, 0])
        samples = [Panel(f"filled, sample {k}", found.samples[0, k, 0]) for k in range(3)]
        rows.append([Panel(name, image[0, 0]), Panel("hole", hidden), *samples])
    return rows


def restored(model: DiffusionModel, device: str, seed: int) -> Rows:
    """Super-resolution, deblurring and undersampled k-space and what linear algebra alone makes of them."""
    restorer, rows = restorer_of(model, device, seed), []
    clean, _ = phantom(41)
    operators = (
        ("superres:4", SuperResolution(4)),
        ("blur:gaussian:2", gaussian_blur(2.0)),
        ("kspace:4x", cartesian_lines(4)),
    )
    for name, operator in operators:
        y = operator(clean)
        y = y + NOISE * sample_noise("gaussian", image_keys(y, seed), tuple(y.shape[1:]))
        found = restorer.restore(None, operator, y, sigma_y=NOISE, samples=4)
        assert found.samples is not None
        mean = found.samples.mean(1)
        linear = operator.pinv(y)
        rows.append(
            [
                Panel(f"{name}: measured", measured_view(name, y)),
                Panel(f"pseudo-inverse, {psnr(linear, clean):.1f} dB", linear[0, 0]),
                Panel(f"restored, {psnr(found.images, clean):.1f} dB", found.images[0, 0]),
                Panel(f"mean of 4, {psnr(mean, clean):.1f} dB", mean[0, 0]),
                Panel("truth", clean[0, 0]),
            ]
        )
    return rows


def measured_view(name: str, y: Tensor) -> Tensor:
    """What a measurement looks like: k-space by the logarithm of its lines' power, others as they are."""
    if not name.startswith("kspace"):
        return y[0, 0]
    power = y[0, 0].square() + y[0, 1].square()
    shown = torch.fft.fftshift(power.clamp(min=1e-8).log10())
    return 2 * (shown - shown.min()) / (shown.max() - shown.min()) - 1


def edited(model: DiffusionModel, device: str, seed: int) -> Rows:
    """A rough drawing on a phantom, made tissue at three levels; only inside the mask."""
    clean, _ = phantom(51)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    blot = ((y - 30) / 9.0) ** 2 + ((x - 41) / 6.0) ** 2 < 1
    drawing = torch.where(blot, -0.75, clean)
    mask = ((y - 30) / 15.0) ** 2 + ((x - 41) / 12.0) ** 2 < 1
    restorer = restorer_of(model, device, seed)
    levels = [
        Panel(f"edited, sigma {sigma:g}", restorer.edit(drawing, sigma, mask).images[0, 0]) for sigma in (0.2, 0.5, 1.0)
    ]
    shown = torch.where(mask, drawing[0, 0], drawing[0, 0] / 2 - 0.5)
    return [[Panel("phantom", clean[0, 0]), Panel("drawing", drawing[0, 0]), Panel("mask (bright)", shown), *levels]]


def styled(model: DiffusionModel, device: str, seed: int) -> Rows:
    """Phantoms in the look of an exemplar of another contrast and grain."""
    other, _ = phantom(63)
    grain = sample_noise("gaussian", image_keys(other, seed), tuple(other.shape[1:]))
    exemplar = (2 * ((other + 1) / 2) ** 0.6 - 1 + 0.08 * grain).clamp(-1, 1)
    contents = torch.cat([phantom(number)[0] for number in (61, 62)])
    restorer = restorer_of(model, device, seed, steps=16)
    found = {anchor: stylize(restorer, contents, style=exemplar, anchor_px=anchor).images for anchor in (0.0, 4.0)}
    rows = []
    for row, content in enumerate(contents):
        panels = [Panel("content", content[0]), Panel("exemplar", exemplar[0, 0])]
        for anchor, images in found.items():
            result = images[row : row + 1].clamp(-1, 1)
            kept = content_similarity(result, content[None])[0]
            away = [float(style_distance(image, exemplar)[0]) for image in (content[None], result)]
            title = "in its style" if not anchor else f"anchor {anchor:g} px"
            panels.append(Panel(f"{title}\nSSIM {kept:.2f}, style {away[0]:.2f} to {away[1]:.2f}", result[0, 0]))
        rows.append(panels)
    return rows


def judged(model: DiffusionModel, device: str, seed: int) -> Rows:
    """What the model finds unlikely: bits a dimension of the image, and the anomaly map, on one scale."""
    normal, _ = phantom(71)
    cases = {
        "healthy": normal,
        "bright lesion": phantom(39, "bright")[0],
        "dark lesion": phantom(40, "dark")[0],
        "texture lesion": phantom(41, "texture")[0],
        "upside down": normal.flip(-2),
    }
    images = torch.cat(list(cases.values()))
    restorer = restorer_of(model, device, seed)
    keys = image_keys(images, seed)

    def noise(draw: int) -> Tensor:
        return sample_noise("gaussian", keys, tuple(images.shape[1:]), draw=draw)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return restorer.denoiser(x, sigma).cpu()

    found = continuous_bound(
        denoise, images, restorer.sigma_min, restorer.sigma_max, LEVELS, noise,
        preserving=model.schedule.is_variance_preserving, width=BIN,
    )  # fmt: skip
    detected = AnomalyDetector(model, device=device, seed=seed)(images, foreground_of(model, images))
    high = float(detected.maps[1:].max())
    names = [
        f"{name}\n{float(value):.2f} bits a pixel" for name, value in zip(cases, found.bits_per_dim(), strict=True)
    ]
    top = [Panel(name, image[0]) for name, image in zip(names, images, strict=True)]
    scores = [f"anomaly map\nscore {float(score):.2f}" for score in detected.scores]
    return [top, [Panel(title, each, 0, high, heat=True) for title, each in zip(scores, detected.maps, strict=True)]]


def healthy_again(model: DiffusionModel, device: str, seed: int) -> Rows:
    """What is anomalous painted anew as healthy tissue could be, and the difference as a map, on one scale."""
    cases = {f"{kind} lesion": phantom(39 + n, kind) for n, kind in enumerate(("bright", "dark", "texture"))}
    cases |= {"dark lesion ": phantom(43, "dark"), "healthy": phantom(71)}
    images = torch.cat([image for image, _ in cases.values()])
    detector = AnomalyDetector(model, device=device, seed=seed)
    if detector.calibration is None:
        raise ConfigError(f"counterfactual: expected a calibrated model, found: {detector.notes[0]}")
    found = detector(images, foreground_of(model, images)).maps > detector.calibration.pixel_quantiles[NORMAL_SHARE]
    after = restorer_of(model, device, seed).inpaint(images, found, solver="proximal").images
    change = (images - after).abs()
    hidden = torch.where(found[:, None], torch.nan, images)
    said = [
        f"found {float((hole & mask).sum() / mask.sum()):.0%} of it"
        if mask.any()
        else f"found {int(hole.sum())} pixels"
        for hole, (_, mask) in zip(found, cases.values(), strict=True)
    ]
    return [
        [Panel(name, image[0]) for name, image in zip(cases, images, strict=True)],
        [Panel(title, image[0]) for title, image in zip(said, hidden, strict=True)],
        [Panel("as if healthy", image[0]) for image in after],
        [Panel("difference", each[0], 0, MOST_CHANGED, heat=True) for each in change],
    ]


def volume_filled(volumes: Path, model: DiffusionModel, device: str, seed: int) -> Rows:
    """A box in the brain of a patient of whom the 3-D model has seen nothing, filled: three planes through it."""
    from anodiff.data.volumes import read_volume
    from anodiff.data.volumes.slices import VolumeSlicer

    assert model.config.volume is not None
    file = next(iter(sorted((volumes / HELD).glob("FLAIR*.nii*"))))
    whole = VolumeSlicer(model.config.preprocess, model.config.volume).prepare(read_volume(file)).image
    x = whole[(slice(None), *(slice(at, at + side) for at, side in zip(REGION_AT, REGION, strict=True)))][None]
    hole = torch.zeros(REGION, dtype=torch.bool)
    hole[tuple(slice(middle - BOX // 2, middle + BOX // 2) for middle in MIDDLE)] = True
    found = restorer_of(model, device, seed, steps=16).inpaint(x, hole, solver="proximal", samples=2)
    assert found.samples is not None
    pictures = (x[0, 0], torch.where(hole, torch.nan, x[0, 0]), found.samples[0, 0, 0], found.samples[0, 1, 0])
    titles = ("volume", "hole", "filled, sample 0", "filled, sample 1")
    low, high = float(x.min()), float(x.max())
    return [
        [
            Panel(f"{title}\nacross {axis}", across(each, number), low, high)
            for title, each in zip(titles, pictures, strict=True)
        ]
        for number, axis in enumerate("ijk")
    ]


def across(volume: Tensor, axis: int) -> Tensor:
    """The plane through the middle of the hole of a volume (I, J, K), as on a screen: later axes up and right."""
    return volume.select(axis, MIDDLE[axis]).T.flip(0)


def foreground_of(model: DiffusionModel, images: Tensor) -> Tensor:
    """(N, h, w) bool of images in [-1, 1], as a file's would be."""
    from anodiff.data.readers import RawImage

    raw = ((images[:, 0] + 1) * 127.5).round().numpy()
    prepared = [model.preprocessor(RawImage(each[:, :, None], 0.0, 255.0, "uint8", "phantom")) for each in raw]
    return torch.stack([each.foreground for each in prepared])


def psnr(found: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels of values in [-1, 1]."""
    return float(10 * torch.log10(4 / (found.clamp(-1, 1) - clean).square().mean()))


def drawn(rows: Sequence[Sequence[Panel]]) -> bytes:
    """PNG of the panels; what is not a number is hatched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    page = Figure(figsize=(1.55 * columns, 1.85 * len(rows)), layout="constrained", dpi=110)
    axes = np.atleast_2d(np.asarray(page.subplots(len(rows), columns, squeeze=False), dtype=object))
    for places, row in zip(axes, rows, strict=True):
        for place in places:
            place.set_axis_off()
        for place, panel in zip(places, row, strict=False):
            place.set_title(panel.title, fontsize=7)
            values = np.ma.masked_invalid(panel.image.float().numpy())
            if np.ma.is_masked(values):
                place.add_patch(_hatched(values.shape))
            colours = "inferno" if panel.heat else "gray"
            place.imshow(values, cmap=colours, vmin=panel.low, vmax=panel.high, interpolation="nearest")
    buffer = io.BytesIO()
    FigureCanvasAgg(page).print_png(buffer)
    return buffer.getvalue()


def _hatched(shape: Sequence[int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (-0.5, -0.5), shape[1], shape[0], facecolor="white", edgecolor="tab:red", hatch="////", linewidth=0, zorder=-1
    )


#: name of the figure -> its panels
FIGURES: dict[str, Figure] = {
    "generate": generated,
    "denoise": denoised,
    "inpaint": inpainted,
    "restore": restored,
    "edit": edited,
    "stylize": styled,
    "likelihood": judged,
    "counterfactual": healthy_again,
    "volume": partial(volume_filled, VOLUMES),
}


if __name__ == "__main__":
    main()
