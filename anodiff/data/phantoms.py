"""Synthetic brain-like slices with planted lesions: for the demo, for tests, and for choosing without real labels.

Every slice has the same plan: scalp, skull, fluid, a folded ribbon of grey matter, white matter, two ventricles, two
deep nuclei, a midline, the right half a mirror image of the left. What differs from slice to slice: position, rotation,
scale and shape of the head, number and phase of the folds, size of the ventricles, the intensity of each tissue,
the bias field and the noise. A lesion takes its intensity from the range of healthy tissue, so that it is wrong only
where it lies.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

Lesion = Literal["bright", "dark", "texture", "mixed"]
LESIONS: tuple[Lesion, ...] = ("bright", "dark", "texture")
MIN_SIZE = 32
NOISE = 0.016
#: radius of a lesion as a share of the image side: from 2.5 to 7 pixels at 64
LESION_RADIUS = (0.04, 0.11)
#: a place is taken when so much of the lesion's area falls on brain; else another is tried
WHOLE_SHARE, PLACE_TRIES = 0.75, 6
#: change of intensity, in units of grey minus white matter; grain of a texture lesion as a share of it
LESION_STRENGTH, GRAIN = (0.75, 1.2), 0.4


@dataclass(frozen=True)
class _Frame:
    """Head coordinates of each pixel: across (left-right, 0 at the midline), along (front-back), radius (1 = skin)."""

    across: np.ndarray
    along: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    soft: float


def make_phantom(seed: int, size: int = 64, lesion: Lesion | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One slice: (image uint8 (size, size), mask bool (size, size), True = lesion).

    The anatomy depends on ``seed`` and ``size`` only: with and without a lesion the images are equal outside the
    lesion's soft rim. ``lesion``: None; "bright" or "dark" against the tissue that belongs there; "texture": of the
    same mean intensity but grainy; "mixed": one of the three, by the seed. Raises ValueError for a side under 32
    or an unknown kind.
    """
    if size < MIN_SIZE:
        raise ValueError(f"expected a side of at least {MIN_SIZE} pixels, found {size}")
    if lesion not in (None, "mixed", *LESIONS):
        raise ValueError(f"unknown lesion {lesion!r}; expected one of {', '.join(LESIONS)}, mixed or None")
    rng = np.random.default_rng([seed, 0])
    frame = _frame(rng, size)
    tissue, brain, contrast, top = _anatomy(rng, frame)
    field = _bias(rng, size)
    noise = rng.normal(0, NOISE, (2, size, size))
    mask = np.zeros((size, size), dtype=bool)
    if lesion is not None:
        kind = LESIONS[np.random.default_rng([seed, 2]).integers(len(LESIONS))] if lesion == "mixed" else lesion
        tissue, mask = _plant(np.random.default_rng([seed, 1]), kind, tissue, brain, contrast, top)
    # Magnitude images carry Rician noise: the background is a noise floor, not zero.
    signal = np.hypot(tissue * field + noise[0], noise[1])
    return np.clip(np.rint(signal * 255), 0, 255).astype(np.uint8), mask


def _frame(rng: np.random.Generator, size: int) -> _Frame:
    half = (np.arange(size) + 0.5) * 2 / size - 1
    y, x = np.meshgrid(half, half, indexing="ij")
    shift_x, shift_y = rng.uniform(-0.06, 0.06, 2)
    turn = np.deg2rad(rng.uniform(-22, 22))
    scale = rng.uniform(0.88, 1.06)
    width, length = 0.84 * scale * rng.uniform(0.94, 1.06), 0.93 * scale * rng.uniform(0.96, 1.04)
    x, y = x - shift_x, y - shift_y
    across = (np.cos(turn) * x + np.sin(turn) * y) / width
    along = (np.cos(turn) * y - np.sin(turn) * x) / length
    angle = np.arctan2(np.abs(across), -along)
    egg = 1 + rng.uniform(-0.03, 0.05) * np.cos(angle) + rng.uniform(-0.025, 0.025) * np.cos(2 * angle)
    return _Frame(across, along, np.hypot(across, along) * egg, angle, soft=2.2 / (size * 0.85))


def _inside(distance: np.ndarray, soft: float) -> np.ndarray:
    """1 where ``distance`` is below 0, 0 above, with a ramp of about one pixel: partial volume."""
    return np.clip(0.5 - distance / (2 * soft), 0, 1)


def _anatomy(rng: np.random.Generator, frame: _Frame) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Noise-free intensities in about [0, 1], the share of grey or white matter, grey minus white, and grey."""
    gain = rng.uniform(0.75, 1.2)
    white, contrast = 0.46 * gain, gain * rng.uniform(0.15, 0.22)
    grey, fluid = white + contrast, white * rng.uniform(0.25, 0.55)
    scalp, skull = gain * rng.uniform(0.55, 0.85), gain * rng.uniform(0.06, 0.16)

    folds, phase = rng.uniform(5.5, 10.0), rng.uniform(0, 2 * np.pi)
    wave = np.cos(folds * frame.angle + phase + rng.uniform(-1.5, 1.5) * np.sin(frame.angle))
    rim = 0.86 - rng.uniform(0.05, 0.12) * np.clip(wave - 0.5, 0, None) / 0.5
    ribbon = rng.uniform(0.09, 0.12)
    core = np.minimum(rim, 0.86) - ribbon - rng.uniform(0.14, 0.30) * np.clip(0.3 + 0.7 * wave, 0, None) ** 1.5

    soft, radius = frame.soft, frame.radius
    image = np.full(radius.shape, 0.02)
    for level, edge in ((scalp, 1.0), (skull, 0.95), (fluid, 0.90)):
        image += (level - image) * _inside(radius - edge, soft)
    cortex, inner = _inside(radius - rim, soft), _inside(radius - core, soft)
    image += (grey - image) * cortex
    image += (white - image) * inner

    across, along = np.abs(frame.across), frame.along
    nucleus = np.hypot((across - rng.uniform(0.24, 0.32)) / 0.10, (along - rng.uniform(-0.05, 0.15)) / 0.17) - 1
    image += (grey - image) * _inside(nucleus * 0.12, soft)
    horn = rng.uniform(0.04, 0.12)
    bend = rng.uniform(0.06, 0.12) + 0.22 * (along + 0.05) ** 2
    ventricle = np.hypot((across - bend) / horn, (along + 0.04) / rng.uniform(0.28, 0.46)) - 1
    wet = _inside(ventricle * horn, soft)
    falx = _inside(across - 0.018, soft) * _inside(0.46 - np.abs(along), soft) * cortex
    image += (fluid - image) * np.maximum(wet, falx)
    return image, cortex * (1 - wet) * (1 - falx), contrast, grey


def _bias(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth multiplicative field: second-order polynomial, about +-20 %."""
    half = (np.arange(size) + 0.5) * 2 / size - 1
    y, x = half[:, None], half[None, :]
    a, b, c, d, e = rng.uniform(-1, 1, 5) * (0.14, 0.14, 0.08, 0.10, 0.10)
    return np.asarray(1 + a * x + b * y + c * x * y + d * (x * x - 1 / 3) + e * (y * y - 1 / 3))


def _plant(
    rng: np.random.Generator, kind: str, tissue: np.ndarray, brain: np.ndarray, contrast: float, grey: float
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a blob of brain: (intensities, mask). The mask is where the replacement shows."""
    strength = contrast * rng.uniform(*LESION_STRENGTH)
    if kind == "texture":
        blob = _blob(rng, brain, brain)
        mask = blob > 0.5
        grain = rng.normal(size=tissue.shape)
        grain -= grain[mask].mean()
        level = tissue[mask].mean() + grain * strength * GRAIN / grain[mask].std()
        return tissue + (level - tissue) * blob, mask
    # Within the range of healthy tissue: white matter may look grey, anything may look wet, nothing may outshine grey.
    change = np.full_like(tissue, -strength)
    if kind == "bright":
        change = np.clip(grey + 0.15 * contrast - tissue, 0, strength)
    shows = np.abs(change) > 0.6 * strength
    blob = _blob(rng, brain, brain * shows)
    return tissue + change * blob, (blob > 0.5) & shows


def _blob(rng: np.random.Generator, brain: np.ndarray, target: np.ndarray) -> np.ndarray:
    """A soft, lobed ellipse (1 inside), confined to ``brain`` and of a few tries the one most upon ``target``."""
    size = len(brain)
    radius = size * rng.uniform(*LESION_RADIUS)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    lobes, phases = rng.uniform(0, 0.2, 2), rng.uniform(0, 2 * np.pi, 2)
    best, most = np.zeros_like(brain), -1
    for centre in rng.choice(np.flatnonzero(target.ravel() > 0.9), PLACE_TRIES):
        row, column = divmod(int(centre), size)
        y, x = np.mgrid[:size, :size] - np.array([row, column])[:, None, None]
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        angle = np.arctan2(v, u)
        shape = 1 + lobes[0] * np.cos(2 * angle + phases[0]) + lobes[1] * np.cos(3 * angle + phases[1])
        distance = np.hypot(u / np.sqrt(stretch), v * np.sqrt(stretch)) - radius * shape
        blob = np.clip(0.5 - distance / 2, 0, 1)
        area = int((blob * target > 0.5).sum())
        if area > most:
            best, most = blob * brain, area
        if area > WHOLE_SHARE * np.pi * radius**2:
            break
    return best


def write_phantoms(
    root: str | os.PathLike[str],
    n_train: int,
    n_val: int,
    n_test_good: int,
    n_test_lesion: int,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write a data set in the MVTec layout (PNG) and return its folder.

    train/good, val/good, test/good, test/lesion with ground_truth/lesion, and manifest.csv with a group of its own
    for every slice. Kinds of lesion take turns, so that each is a third. The same arguments write the same bytes.
    """
    root = Path(root)
    parts = (
        ("train", "good", n_train),
        ("val", "good", n_val),
        ("test", "good", n_test_good),
        ("test", "lesion", n_test_lesion),
    )
    rows, number = [], 0
    for split, name, count in parts:
        if count:
            (root / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            lesion = LESIONS[index % len(LESIONS)] if name == "lesion" else None
            image, mask = make_phantom(seed * 1_000_003 + number, size, lesion)
            file = f"{index:04d}_{lesion}.png" if lesion else f"{index:04d}.png"
            Image.fromarray(image).save(root / split / name / file)
            truth = ""
            if lesion:
                truth = f"ground_truth/lesion/{Path(file).stem}_mask.png"
                (root / truth).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(root / truth)
            rows.append((f"{split}/{name}/{file}", int(bool(lesion)), truth, f"phantom_{number:05d}", split))
            number += 1
    with open(root / "manifest.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "mask", "group", "split"))
        writer.writerows(rows)
    return root
