"""The two founding forward processes side by side, and the reverse step that collapses: docs/forward_processes.md.

    python -m benchmarks.quality.forward_processes --output docs/images/forward_processes.png

Draws the figure of that page and prints its numbers. No training: the image is a phantom, the denoiser that of Gaussian
data, where it is known exactly. A few seconds.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anodiff.data.phantoms import make_phantom
from anodiff.diffusion import NoiseSchedule, make_schedule
from anodiff.files import atomic_write

#: of the Gaussian data
STD = 0.3
PROCESSES = ("vp-linear", "additive")
SHOWN = (0.1, 0.5, 2.0)


def main() -> None:
    """Draw the figure, print the numbers."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, default=Path("docs/images/forward_processes.png"))
    chosen = arguments.parse_args()
    paths = {name: deviations(make_schedule(name, 1000)) for name in PROCESSES}
    for name, path in paths.items():
        print(f"{name}: deviation of Gaussian data of {STD} after 1000 reverse steps: " + ", ".join(
            f"{kind} {values[0]:.3g}" for kind, values in path.items()
        ))  # fmt: skip
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(chosen.output, figure(paths))
    print(f"wrote {chosen.output}")


def step(x: Tensor, beta: float, noise: Tensor, preserving: bool) -> Tensor:
    """One step of the literature: sqrt(1 - beta) x + sqrt(beta) n, or the additive x + sqrt(beta) n."""
    return math.sqrt(1 - beta) * x + math.sqrt(beta) * noise if preserving else x + math.sqrt(beta) * noise


def noised(image: Tensor, schedule: NoiseSchedule, sigma: float, noise: Tensor) -> Tensor:
    """x_t at the step whose level is nearest to sigma: alpha_t (x_0 + sigma_t n)."""
    t = int((schedule.sigmas.log() - math.log(sigma)).abs().argmin())
    return float(schedule.alphas[t]) * (image + float(schedule.sigmas[t]) * noise)


def deviations(schedule: NoiseSchedule, std: float = STD) -> dict[str, list[float]]:
    """Standard deviation of x_t, t = 0..T, in the paper's own units, when the reverse process starts from x_T.

    Gaussian data of mean 0: the denoiser is D = x std^2 / (std^2 + sigma^2), every step is linear, and so the deviation
    is known without drawing anything. ``posterior`` is the step of Ho et al. 2020, equations 6 and 7; ``literal`` is
    x_{t-1} = x_t - sqrt(beta_t) eps_hat, the forward step read backwards.
    """
    alphas = [1.0, *schedule.alphas.tolist()]
    sigmas = [0.0, *schedule.sigmas.tolist()]
    steps, betas = schedule.num_steps, schedule.betas.tolist()
    found: dict[str, list[float]] = {}
    for kind in ("posterior", "literal"):
        width = alphas[steps] * math.hypot(std, sigmas[steps])
        path = [width]
        for t in range(steps, 0, -1):
            a, b = sigmas[t], sigmas[t - 1]
            if kind == "literal":
                # eps_hat = (x - D) / sigma on the additive scale: the share of noise in x_t, which is alpha times it
                width *= abs(1 - math.sqrt(betas[t - 1]) * a / ((std**2 + a**2) * alphas[t]))
            else:
                scale, known = alphas[t - 1] / alphas[t], std**2 / (std**2 + a**2)
                kept = known + (1 - known) * (b / a) ** 2
                fresh = (b / a) * math.sqrt(a * a - b * b) * alphas[t - 1]
                width = math.hypot(scale * kept * width, fresh)
            path.append(width)
        found[kind] = path[::-1]
    return found


def figure(paths: dict[str, dict[str, list[float]]]) -> bytes:
    """PNG: the phantom noised by both processes, before and after division by alpha; the deviation on the way back."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = torch.from_numpy(np.asarray(make_phantom(3)[0], dtype=np.float32)) / 127.5 - 1
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    vp, additive = (make_schedule(name, 1000) for name in PROCESSES)
    page = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = np.asarray(page.subfigures(1, 2, width_ratios=(1, 1.1)), dtype=object)
    axes = left.subplots(len(SHOWN), 3)
    for row, sigma in zip(axes, SHOWN, strict=True):
        scaled = noised(image, vp, sigma, noise)
        pictures = (scaled, scaled * math.sqrt(1 + sigma**2), noised(image, additive, sigma, noise))
        for place, picture in zip(row, pictures, strict=True):
            place.imshow(picture.numpy(), cmap="gray", vmin=-1 - sigma, vmax=1 + sigma)
            place.set_xticks([])
            place.set_yticks([])
        row[0].set_ylabel(f"sigma {sigma:g}")
    for place, title in zip(axes[0], ("$x_t$ (VP)", r"$x_t / \alpha_t$ (VP)", "$x_t$ (additive)"), strict=True):
        place.set_title(title, fontsize=10)
    plot = right.subplots()
    for (name, path), colour in zip(paths.items(), ("tab:blue", "tab:orange"), strict=True):
        plot.semilogy(path["posterior"], color=colour, label=f"{name}, posterior step")
        plot.semilogy(
            path["literal"], color=colour, linestyle="--", label=rf"{name}, $x - \sqrt{{\beta}}\,\hat\epsilon$"
        )
    plot.axhline(STD, color="0.6", linewidth=0.8)
    plot.set_xlabel("step t (1000 is where the reverse process starts)")
    plot.set_ylabel("standard deviation of $x_t$, exact denoiser")
    plot.invert_xaxis()
    plot.legend(fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(page).print_png(buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
