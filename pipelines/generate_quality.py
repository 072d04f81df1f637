"""How good the images of `anodiff generate` are beside real ones, and whether they are copies: quality.json, .png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.layouts import load_table
from anodiff.data.table import SampleTable, select
from anodiff.errors import ConfigError, DataError
from anodiff.files import atomic_write, write_json
from anodiff.model import DiffusionModel
from anodiff.pipelines.common import left_out, say
from anodiff.pipelines.restoring_run import ReportMore
from anodiff.restoration import Restorer
from anodiff.restoration.output import read_values
from anodiff.restoration.quality import FEWEST, NEAR, Neighbours, Quality, compare_with_real
from anodiff.restoration.report import Beside
from anodiff.training.images import ImageSet, load_images
from anodiff.training.labels import class_numbers
from anodiff.visualize.heatmap import display_image
from anodiff.visualize.quality import quality_figure

#: axes of (N, C, H, W) by what mirrors along them in training
FLIPS = {"flip_lr": 3, "flip_ud": 2}


@dataclass(frozen=True)
class RealImages:
    """Real images as the model sees them: held out of its training, and those it was trained on, None if unknown."""

    held: ImageSet
    training: ImageSet | None
    notes: tuple[str, ...]


def check_real(model: DiffusionModel, count: int, npy: bool) -> None:
    """Raises ConfigError where generated images of this model, or so many, cannot be compared with real ones."""
    config = model.config
    if config.volume is not None:
        raise ConfigError("--real: expected a model of images, whose statistics are of two axes, found one of volumes")
    if count < FEWEST // 2:
        raise ConfigError(f"--real: expected at least {FEWEST // 2} generated images to compare (-n), found {count}")
    if config.preprocess.channels not in (1, 3) and not npy:
        raise ConfigError(
            f"--real: expected --npy for a model of {config.preprocess.channels} channels, of which a PNG shows one"
        )


def read_real(model: DiffusionModel, data: Path, class_: str | None, quiet: bool) -> RealImages:
    """The real images of a data set that the model could have made: normal ones, or those of its classes.

    Which it was trained on, its own hashes say; where it has none, the split ``train``. Raises DataError where fewer
    than FEWEST were held out.
    """
    samples = real_samples(model, load_table(data), class_)
    say(f"{data}: layout {samples.layout}", quiet)
    config = model.config
    found = load_images(
        samples, model.preprocessor, config.preprocess.max_pixels, config.engine.workers, quiet, range(len(samples))
    )
    notes = [left_out(found.failed)] if found.failed else []
    splits = list(samples.table["split"])
    if model.seen is not None:
        known = [model.seen.contains(value) for value in found.hashes]
    else:
        known = [splits[row] == "train" for row in found.labels]
        notes.append(
            "the model file does not say which images it was trained on: those of split train are taken to be them"
        )
    trained = [row for row, learnt in enumerate(known) if learnt]
    held = [row for row, learnt in enumerate(known) if learnt is False]
    if len(held) < FEWEST:
        raise DataError(
            f"{data}: expected at least {FEWEST} images that the model was not trained on, to compare with, found "
            f"{len(held)} of {len(found)}"
        )
    if not trained:
        notes.append(
            "none of the real images is one that the model was trained on, so that nearest training images are not "
            "shown: give the data of its training"
        )
    return RealImages(found.take(held), found.take(trained) if trained else None, tuple(notes))


def real_samples(model: DiffusionModel, samples: SampleTable, class_: str | None) -> SampleTable:
    """The rows that generated images are to be like: of the class, of all classes, or normal ones."""
    import dataclasses

    conditioning = model.config.conditioning
    if conditioning is None:
        return select(samples, normal_only=True)
    if class_ is None:
        return samples
    wanted = np.asarray(class_numbers(samples, conditioning)) == conditioning.classes.index(class_)
    if not wanted.any():
        raise DataError(f"{samples.root}: expected images of the class {class_}, found none")
    return dataclasses.replace(samples, table=samples.table[wanted].reset_index(drop=True))


def closing(
    restorer: Restorer,
    model: DiffusionModel,
    real: RealImages,
    folder: Path,
    quiet: bool,
    rows: Sequence[Mapping[str, Any]],
) -> ReportMore:
    """Measures the images of a complete run; writes quality.json and quality.png; says what the report shows of it."""
    made = [row for row in rows if row["status"] == "ok"]
    if len(made) < FEWEST // 2:
        few = f"nothing is compared with real images: expected {FEWEST // 2} generated ones, found {len(made)}"
        say(few, quiet)
        return ReportMore(notes=(*real.notes, few))
    images = torch.stack([generated(folder, row) for row in made])
    training = None if real.training is None else as_png(real.training.images)
    augment = model.config.augment
    flips = tuple(axis for name, axis in FLIPS.items() if getattr(augment, name))
    found = compare_with_real(
        restorer, images, as_png(real.held.images), training, flips=flips, transposed=augment.transpose,
        seed=restorer.seed,
    )  # fmt: skip
    paths = () if real.training is None else real.training.paths
    write_json(folder / "quality.json", record(found, [row["id"] for row in made], paths, real.notes))
    figure = quality_figure(
        found.statistics, {name: (near.distance, near.held_out) for name, near in found.neighbours.items()}
    )
    atomic_write(folder / "quality.png", figure)
    facts, notes = said(found), (*real.notes, *sentences(found, len(made)))
    for line in (*(f"{name}: {text}" for name, text in facts.items()), *notes):
        say(line, quiet)
    say(f"wrote {folder / 'quality.json'} and {folder / 'quality.png'}", quiet)
    beside = {} if real.training is None else compared(found, made, real.training)
    return ReportMore(facts, notes, figure, beside)


def generated(folder: Path, row: Mapping[str, Any]) -> Tensor:
    """An image of a run (C, h, w) in [-1, 1], as a PNG holds it."""
    if "array" in row:
        return as_png(torch.from_numpy(read_values(folder / row["array"])).permute(2, 0, 1))
    return torch.from_numpy(read_values(folder / row["image"])).permute(2, 0, 1) / 127.5 - 1


def as_png(images: Tensor) -> Tensor:
    """Values as 8 bits hold them: generated and real images are compared alike."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def record(found: Quality, ids: Sequence[str], paths: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """What quality.json holds."""
    return {
        "images": found.images,
        "real_images": found.real_images,
        "training_images": found.training_images,
        "statistics": found.statistics,
        "nearest_training": {name: nearest_record(near) for name, near in found.neighbours.items()},
        "samples": [
            {
                "id": id_,
                **{
                    name: {
                        "distance": float(near.distance[row]),
                        "path": paths[near.index[row]],
                        "held_out_nearer": float(near.nearer[row]),
                    }
                    for name, near in found.neighbours.items()
                },
            }
            for row, id_ in enumerate(ids)
        ],
        "notes": list(notes),
    }


def nearest_record(near: Neighbours) -> dict[str, Any]:
    """Distances from the training images, of all generated and of all held-out images."""

    def spread(values: NDArray[np.float64]) -> dict[str, float]:
        least, low, middle = np.percentile(values, (0, 100 * NEAR, 50))
        return {"least": float(least), "percentile_5": float(low), "median": float(middle)}

    return {"generated": spread(near.distance), "held_out": spread(near.held_out), "near": near.near}


def said(found: Quality) -> dict[str, str]:
    """Each statistic in words."""

    def words(of: Mapping[str, Any]) -> str:
        return f"{of['value']:.4g} ({of['ci95'][0]:.4g} to {of['ci95'][1]:.4g})"

    return {name: f"{words(each['generated'])}, real {words(each['real'])}" for name, each in found.statistics.items()}


def sentences(found: Quality, count: int) -> tuple[str, ...]:
    """What the figures are of, and how many images lie as near to a training image as hardly a real one does."""
    notes = [
        f"distances of {found.images} generated images from {found.real_images} real ones that were held out of "
        f"training, 0 being equal, and of {found.images} other held-out ones from the same (what a perfect model would "
        "reach); in brackets 95 % intervals for other sets of as many images (bootstrap, its bias taken off)"
    ]
    if found.images < count:
        notes.append(
            f"only the first {found.images} of {count} generated images are compared, since half of the "
            f"{found.images + found.real_images} held-out ones that are looked at are as many"
        )
    for name, near in found.neighbours.items():
        notes.append(
            f"{near.near} of {count} generated images lie nearer to one of {found.training_images} training images, "
            f"by {name}, than {1 - NEAR:.0%} of the held-out ones do ({NEAR * count:.1f} would be no surprise); many "
            "more than that are copies, or images too smooth: look at them"
        )
    return tuple(notes)


def compared(found: Quality, rows: Sequence[Mapping[str, Any]], training: ImageSet) -> dict[str, Beside]:
    """By id, the nearest training images of each generated one, with how near they are."""
    return {
        row["id"]: Beside(
            [
                f"nearest training image by {name}: {near.distance[at]:.3g}, farther than {near.nearer[at]:.0%} of "
                f"held-out images; {training.paths[near.index[at]]}"
                for name, near in found.neighbours.items()
            ],
            partial(_shown, training, [int(near.index[at]) for near in found.neighbours.values()]),
        )
        for at, row in enumerate(rows)
    }


def _shown(training: ImageSet, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
    return [display_image(training.images[row].permute(1, 2, 0).numpy(), -1.0, 1.0) for row in rows]
