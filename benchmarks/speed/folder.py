"""A folder of 1,000 PNGs scored end to end, beside AnoDDPM's procedure on MONAI's U-Net as it comes.

    python -m benchmarks.speed.folder

Ours is `anodiff score` as a user runs it, a process of its own: its start, reading, scoring with the preset `default`,
maps, heatmaps, report and the record of the run. The peer reads the same PNGs, adds simplex noise of the `opensimplex`
package to step 250, goes 250 steps back with a fresh field a step (batches of 5), and takes the squared error; nothing
is written. It is timed on 20 images, a share of them in each turn, and the time of an image compared; its noise is
compiled before. Both are trained on the same synthetic slices with as many images, the peer on simplex noise; pixel AP
is of the same 20 images for the peer and of all for ours, and of those 20. Prints a table, writes folder.json beside
this file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from anodiff.pipelines import evaluate, train
from benchmarks.speed.networks import as_it_comes, monai_model, phantoms
from benchmarks.speed.side_by_side import Comparison, device_of, finish, options, wait
from benchmarks.speed.simplex import opensimplex_field, require_numba

STEPS = 250
TIMED, BATCH = 20, 5


def main(arguments: list[str] | None = None) -> list[Comparison]:
    """Measure, print, write."""
    parser = options(__doc__, "folder", turns=2)
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where models and results are kept")
    parser.add_argument("--images", type=int, default=12_000, help="training images of either network")
    chosen = parser.parse_args(arguments)
    require_numba("folder")
    if not 1 <= chosen.turns <= TIMED:
        parser.error(f"argument --turns: expected 1 to {TIMED}, the images of the peer, found {chosen.turns}")
    device = device_of(chosen)
    data = phantoms(chosen.work)
    model = our_model(chosen.work, data, chosen.images, chosen.device)
    peer = as_it_comes(monai_model(chosen.work, chosen.images, chosen.device, noise="simplex")).to(device)
    paths = sorted((data / "test").rglob("*.png"))
    generator = np.random.default_rng(chosen.seed)
    few = [paths[i] for i in sorted(generator.permutation(len(paths))[:TIMED])]
    opensimplex_field(chosen.seed, 64)  # compiles
    ours, theirs, maps = [], [], []
    for part in np.array_split(np.arange(len(few)), chosen.turns):
        ours.append(score_all(model, data / "test", chosen.work / "scored", chosen.device) / len(paths))
        seconds, found_maps = anoddpm([few[i] for i in part], peer, device, chosen.seed + int(part[0]))
        theirs.append(seconds / len(part))
        maps += found_maps
    facts = accuracies(model, data, chosen.work, few, maps, chosen.device)
    found = [Comparison(f"an image of a folder of {len(paths):,}, 64x64", tuple(ours), tuple(theirs), facts)]
    finish(found, chosen.output, "a folder of PNGs, seconds an image", device, training_images=chosen.images)
    print("pixel AP: " + ", ".join(f"{name} {value:.3f}" for name, value in facts.items()))
    return found


def our_model(work: Path, data: Path, images: int, device: str) -> Path:
    """Our recipe for the phantoms, trained on as many images as the peer."""
    folder = work / f"ours_{images}"
    path = folder / "model.safetensors"
    if not path.exists():
        resume = (folder / "checkpoint.pt").exists()
        train.run("phantoms", data, folder, overrides=[f"training.images={images}"], device=device, resume=resume)
    return path


def score_all(model: Path, data: Path, output: Path, device: str) -> float:
    """Seconds of `anodiff score` over a folder, from the start of its process to the report."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "anodiff.pipelines.cli", "score", str(model), str(data)]
    start = time.perf_counter()
    subprocess.run([*command, "--output", str(output), "--device", device], check=True)
    return time.perf_counter() - start


@torch.no_grad()
def anoddpm(
    paths: list[Path], network: nn.Module, device: torch.device, seed: int
) -> tuple[float, list[NDArray[np.float32]]]:
    """(seconds in all, maps) of AnoDDPM's procedure (Wyatt et al. 2022)."""
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=True)
    alphas = scheduler.alphas_cumprod.to(device)
    seconds, maps = 0.0, []
    for first in range(0, len(paths), BATCH):
        start = time.perf_counter()
        clean = torch.stack([read(path) for path in paths[first : first + BATCH]]).to(device)
        fields = Fields(seed + first, clean.shape, device)
        x = alphas[STEPS - 1].sqrt() * clean + (1 - alphas[STEPS - 1]).sqrt() * fields()
        for t in range(STEPS - 1, -1, -1):
            eps = network(x, timesteps=torch.full((len(x),), t, device=device))
            alpha, beta = alphas[t] / (alphas[t - 1] if t else 1), 1 - alphas[t] / (alphas[t - 1] if t else 1)
            x0 = ((x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()).clamp(-1, 1)
            before = alphas[t - 1] if t else torch.ones((), device=device)
            x = (before.sqrt() * beta * x0 + alpha.sqrt() * (1 - before) * x) / (1 - alphas[t])
            if t:
                x = x + ((1 - before) / (1 - alphas[t]) * beta).sqrt() * fields()
        error = (clean - x).square()[:, 0].cpu().numpy()
        wait(device)
        seconds += time.perf_counter() - start
        maps += list(error)
    return seconds, maps


class Fields:
    """A fresh field of simplex noise an image and step, as AnoDDPM draws them."""

    def __init__(self, seed: int, shape: torch.Size, device: torch.device) -> None:
        self.seed, self.shape, self.device = seed * 1000, shape, device

    def __call__(self) -> Tensor:
        fields = []
        for _ in range(self.shape[0]):
            self.seed += 1
            fields.append(torch.from_numpy(opensimplex_field(self.seed, self.shape[-1])).float())
        return torch.stack(fields)[:, None].to(self.device)


def read(path: Path) -> Tensor:
    """A grey PNG as (1, H, W) in [-1, 1]."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("L"), np.float32) / 127.5 - 1)[None]


def accuracies(
    model: Path, data: Path, work: Path, few: list[Path], maps: list[NDArray[np.float32]], device: str
) -> dict[str, float]:
    """Pixel AP of ours on all images, and of both on the few."""
    output = work / "evaluated"
    shutil.rmtree(output, ignore_errors=True)
    _, metrics = evaluate.run(model, data, output, device=device, quiet=True)
    truth = [true_mask(data, path) for path in few]
    ours = [np.load(found_map(output, path)) for path in few]
    return {
        "pixel_ap_ours": float(metrics["pixel_ap"]),
        "pixel_ap_ours_of_the_few": pixel_ap(truth, ours),
        "pixel_ap_peer_of_the_few": pixel_ap(truth, maps),
    }


def true_mask(data: Path, path: Path) -> NDArray[np.bool_]:
    """The lesion of a test image; nowhere in a good one."""
    kind = path.parent.name
    with Image.open(path) as picture:
        shape = picture.size[::-1]
    marks = sorted((data / "ground_truth" / kind).glob(f"{path.stem}*")) if kind != "good" else []
    if not marks:
        return np.zeros(shape, bool)
    with Image.open(marks[0]) as picture:
        return np.asarray(picture) > 127


def found_map(output: Path, path: Path) -> Path:
    """The map that an evaluation wrote of an image."""
    return next(
        each
        for each in (output / "maps").rglob("*.npy")
        if each.stem.endswith(path.stem) and path.parent.name in str(each)
    )


def pixel_ap(truth: list[NDArray[np.bool_]], maps: list[Any]) -> float:
    """Average precision over the pixels of some images."""
    marks = np.concatenate([each.ravel() for each in truth])
    return float(average_precision_score(marks, np.concatenate([np.ravel(each) for each in maps])))


if __name__ == "__main__":
    main()
