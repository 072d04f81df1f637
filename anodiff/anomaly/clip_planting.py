"""Anomalies planted in normal clips, by which a detector of clips is tuned where no real one may be looked at.

A scene of normal footage gets something that moves as nothing does there: a patch of foreign texture that crosses it, a
figure cut out elsewhere that glides without walking, or the scene itself played faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Floats = NDArray[np.float32]

#: sides of a foreign patch, and its speed a frame, as shares of the frame's height
PATCH_SHARE = (0.1, 0.22)
SPEED_SHARE = (0.004, 0.02)
#: how many times faster the scene is played
FASTER = (2, 3)
#: figures that are cut out differ from the background by so many grey levels, and cover so many of the pixels
FIGURE_LEVELS = 20.0
FIGURE_SHARE = (0.002, 0.08)
#: grey levels by which a foreign patch is brighter or darker than the place it is from
BRIGHTER = (0.0, 60.0)
#: how much of the scene behind a foreign patch stays visible, at most
CLEAR = 0.6


@dataclass(frozen=True)
class Episode:
    """Frames uint8 (T, C, h, w) of which those from ``reach`` on are anomalous; the first ones are its past."""

    kind: str
    frames: Frames


def plant_clip(clip: Frames, kind: str, length: int, reach: int, seed: int, donor: Frames | None = None) -> Episode:
    """An episode of ``length`` anomalous frames, drawn by the seed from a normal clip uint8 (T, C, h, w).

    donor: another normal clip, of which figures and textures are taken; None takes this one. Raises ValueError for an
    unknown kind, or a clip too short for it (`frames_needed`).
    """
    if kind not in CHANGES:
        raise ValueError(f"expected one of {', '.join(KINDS)}, found {kind!r}")
    needed = frames_needed(length, reach)
    if len(clip) < needed:
        raise ValueError(f"expected at least {needed} frames, found {len(clip)}")
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, KINDS.index(kind)], dtype=np.uint64)))
    start = int(rng.integers(len(clip) - needed + 1))
    scene = clip[start : start + needed]
    return Episode(kind, CHANGES[kind](scene, length + reach, reach, clip if donor is None else donor, rng))


def frames_needed(length: int, reach: int) -> int:
    """Frames that a clip must have for an episode: the faster ones use up more of them."""
    return reach + FASTER[-1] * length + 1


def _faster(scene: Frames, count: int, reach: int, donor: Frames, rng: np.random.Generator) -> Frames:
    """The past at its own speed, then every second or third frame."""
    rate = int(rng.choice(FASTER))
    rows = [*range(reach), *(reach - 1 + rate * step for step in range(1, count - reach + 1))]
    return scene[rows].copy()


def _foreign(scene: Frames, count: int, reach: int, donor: Frames, rng: np.random.Generator) -> Frames:
    """A patch of another place of another clip, soft at its rim, that crosses the scene, there from the start."""
    _, _, height, width = scene.shape
    tall, wide = (max(3, round(rng.uniform(*PATCH_SHARE) * height)) for _ in range(2))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    patch = donor[int(rng.integers(len(donor))), :, top : top + tall, left : left + wide].astype(np.float32)
    patch = np.clip(patch + rng.uniform(*BRIGHTER) * rng.choice([-1, 1]), 0, 255)
    y, x = np.mgrid[:tall, :wide]
    distance = np.hypot((y - (tall - 1) / 2) / (tall / 2), (x - (wide - 1) / 2) / (wide / 2))
    weight = np.clip((1.0 - distance) * 4, 0, 1) * (1 - rng.uniform(0, CLEAR))
    return _moving(scene[:count], patch, weight.astype(np.float32), rng)


def _glide(scene: Frames, count: int, reach: int, donor: Frames, rng: np.random.Generator) -> Frames:
    """A figure of another moment, cut out where it differs from what stands still, that glides without moving itself.

    Where no figure can be cut out, a patch takes its place.
    """
    from scipy import ndimage

    still = np.median(donor[:: max(1, len(donor) // 50)], axis=0)
    for _ in range(20):
        frame = donor[int(rng.integers(len(donor)))].astype(np.float32)
        apart = ndimage.gaussian_filter(np.abs(frame - still).mean(0), 0.7)
        labels, found = ndimage.label(apart > FIGURE_LEVELS)
        sizes = np.bincount(labels.ravel(), minlength=1)[1:] / labels.size
        fitting = np.flatnonzero((sizes >= FIGURE_SHARE[0]) & (sizes <= FIGURE_SHARE[1])) + 1
        if not found or not len(fitting):
            continue
        number = int(rng.choice(fitting))
        rows, columns = ndimage.find_objects(labels)[number - 1]
        chosen = labels[rows, columns] == number
        weight = ndimage.gaussian_filter(ndimage.binary_fill_holes(chosen).astype(np.float32), 0.5)
        return _moving(scene[:count], frame[:, rows, columns], weight, rng)
    return _foreign(scene, count, reach, donor, rng)


def _moving(scene: Frames, patch: Floats, weight: Floats, rng: np.random.Generator) -> Frames:
    """The scene with a patch (C, a, b), blended by its weight (a, b), on a straight path through it."""
    height, width = scene.shape[2:]
    tall, wide = weight.shape
    speed = rng.uniform(*SPEED_SHARE) * height
    angle = rng.uniform(-0.6, 0.6) + np.pi * int(rng.integers(2))
    step = speed * np.array([np.sin(angle), np.cos(angle)])
    middle = np.array([rng.uniform(tall / 2, height - tall / 2), rng.uniform(wide / 2, width - wide / 2)])
    planted = scene.astype(np.float32)
    for n in range(len(scene)):
        place = middle + (n - len(scene) / 2) * step - np.array([tall, wide]) / 2
        _blend(planted[n], patch, weight, place)
    return np.rint(planted).clip(0, 255).astype(np.uint8)


def _blend(frame: Floats, patch: Floats, weight: Floats, place: NDArray[np.float64]) -> None:
    """Blends a patch into a frame (C, h, w) at a place (top, left) between pixels; what lies outside is cut off."""
    from scipy import ndimage

    whole = np.floor(place).astype(int)
    part = place - whole
    room = ((0, 1), (0, 1))
    moved = ndimage.shift(np.pad(weight, room), part, order=1)
    colour = np.stack(
        [ndimage.shift(np.pad(plane, room, mode="edge"), part, order=1, mode="nearest") for plane in patch]
    )
    top, left = whole
    rows = slice(max(0, -top), min(moved.shape[0], frame.shape[1] - top))
    columns = slice(max(0, -left), min(moved.shape[1], frame.shape[2] - left))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    there = frame[:, top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    there += moved[rows, columns] * (colour[:, rows, columns] - there)


Change = Callable[[Frames, int, int, Frames, np.random.Generator], Frames]
CHANGES: dict[str, Change] = {"foreign": _foreign, "glide": _glide, "faster": _faster}
KINDS = tuple(CHANGES)
