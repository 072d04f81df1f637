"""anodiff train for a recipe with `volume`: learn from normal slices or patches, calibrate on others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from anodiff.anomaly.volumes import VolumeDetector
from anodiff.pipelines.common import left_out, say
from anodiff.pipelines.train import learn, provenance, refuse_to_overwrite, write_start

if TYPE_CHECKING:
    from anodiff.anomaly.volume_calibration import VolumeCalibration
    from anodiff.config import AnodiffConfig
    from anodiff.data.table import SampleTable
    from anodiff.data.volumes.preprocess import PreparedVolume
    from anodiff.data.volumes.read import Foreground
    from anodiff.data.volumes.volume import Volume
    from anodiff.training import Trainer
    from anodiff.training.normal_parts import NormalPart
    from anodiff.training.slabs import Slab
    from anodiff.training.volumes import VolumeNormals


def run(
    config: AnodiffConfig,
    data: Path,
    output: Path,
    samples: SampleTable,
    *,
    resume: bool = False,
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Train, calibrate and save; returns the path of the model file, and a sentence for each volume left out."""
    # What the end needs is imported before hours of training, not after: an upgrade meanwhile would mix two versions.
    import anodiff.anomaly.volume_fitting
    import anodiff.model
    import anodiff.pipelines.calibrate  # noqa: F401
    from anodiff.engine.device import resolve_device, resolve_precision
    from anodiff.files import make_folder
    from anodiff.training import Trainer, load_checkpoint
    from anodiff.training.processes import processes
    from anodiff.training.standard_scale import fit_volumes

    training = config.training
    chosen = resolve_device(device)
    checkpoint = output / "checkpoint.pt"
    refuse_to_overwrite(output, checkpoint, resume)
    learnt_from, held_out, notes = normal_parts(samples, config)
    with processes(chosen.type == "cuda") as group:
        if group.world > 1 and chosen.type == "cuda":
            chosen = resolve_device(f"cuda:{group.local_rank}")
        silent = quiet or not group.first
        config = fit_volumes(config, learnt_from, silent)
        kept, held = (read(parts, config, silent) for parts in (learnt_from, held_out))
        validation = held.examples.sample(training.validation_images, training.seed)
        trainer = Trainer(
            config, kept.examples, validation,
            device=chosen, precision=resolve_precision(precision, chosen), processes=group,
        )  # fmt: skip
        if resume:
            for note in load_checkpoint(trainer, checkpoint):
                say(f"note: {note}", silent)
        if group.first:
            make_folder(output)
            write_start(config, output, {"train": kept, "held out": held})
            say(describe(trainer, kept, held, data, samples.layout), quiet)
            for note in (*notes, *cover_notes(kept, learnt_from, config), *kept.remarks, *held.remarks):
                say(f"note: {note}", quiet)
        finished = learn(trainer, output, group, quiet)
        if not group.first:
            return output / "model.safetensors", ()
    if not finished:
        say(f"interrupted after {trainer.state.images_seen} of {training.images}; continue it with --resume")
        raise typer.Exit(130)
    path = finish(trainer, (kept, learnt_from), (held, held_out), data, output, samples, notes, quiet)
    failed = (*kept.failed, *held.failed)
    if failed:
        say(left_out(failed).replace("image", "volume"), quiet)
    return path, failed


def normal_parts(
    samples: SampleTable, config: AnodiffConfig
) -> tuple[list[NormalPart], list[NormalPart], tuple[str, ...]]:
    """(parts to learn from, parts held out, sentences on how they were divided).

    By the data's own split train and val; else a share of the patients is held out; else, with one patient only, a
    slab of that one, which says nothing of other patients.

    Raises DataError where nothing normal is known, or a patient is on both sides.
    """
    import dataclasses

    from anodiff.data.table import refuse_shared_groups, select, split_groups
    from anodiff.errors import DataError
    from anodiff.pipelines.volume_calibrating import given_note
    from anodiff.training.slabs import SLAB_GAP_MM

    splits = set(samples.table["split"])
    usable = next((split for split in ("train", "") if split in splits), None)
    if usable is None:
        found = ", ".join(sorted(splits))
        raise DataError(f"{samples.root}: expected volumes of split train or of none, found only {found}")
    there = select(samples, usable)
    usual = learnable(there)
    notes = (*unknown_notes(there), *given_note(there))
    if "val" in splits:
        refuse_shared_groups(samples, "val", ("train", ""))
        return parts_of(usual), parts_of(learnable(select(samples, "val"))), notes
    whole = parts_of(usual)
    if len({part.group for part in whole}) > 1:
        kept, held = split_groups(usual, config.training.holdout, config.training.seed)
        return parts_of(kept), parts_of(held), notes
    share = config.training.holdout
    sides = []
    for held_out in (False, True):
        name = f"{whole[0].group}, {'held-out slab' if held_out else 'without the slab'}"
        slab = slab_of(config, held_out, samples)
        sides.append([dataclasses.replace(part, slab=slab, group=name) for part in whole])
    if len(whole) > 1:
        notes += (f"the {len(whole)} volumes of this patient are divided one by one: the parts may share some anatomy",)
    note = (
        f"one patient only: held out is a slab of this patient (a share of {share:.0%}, more where a patch needs it; a "
        f"gap of {SLAB_GAP_MM:g} mm beside it), so the threshold says nothing of false alarms on other patients"
    )
    return sides[0], sides[1], (note, *notes)


def slab_of(config: AnodiffConfig, held: bool, samples: SampleTable) -> Slab:
    """The slab of a single patient. Raises DataError for slices along several axes: each would lie on both sides."""
    from anodiff.errors import DataError
    from anodiff.training.normal_parts import anatomical_axes
    from anodiff.training.patches import turning_margin
    from anodiff.training.slabs import Slab

    volume, share = config.volume, config.training.holdout
    assert volume is not None
    if volume.mode == "slices":
        if len(volume.axes) > 1:
            raise DataError(
                f"{samples.root}: expected volumes of two patients or more, one to hold out, found one; slices along "
                f"one axis can be divided: --set volume.axes=[{volume.axes[0]}]"
            )
        return Slab(volume.axes[0], share, held, reach=2 * volume.neighbours)
    # From front to back a body has room for a patch that is held out and for others.
    axis = 3 - sum(anatomical_axes(volume.orientation))
    # A patch needs room to turn, as far as it is turned in training.
    return Slab(axis, share, held, least=volume.patch[axis] + 2 * turning_margin(volume.patch, config.augment)[axis])


def learnable(samples: SampleTable) -> SampleTable:
    """Rows of which something is normal: labelled so, or with a mask that says where not; all where nothing is known.

    Raises DataError where there is none.
    """
    import dataclasses

    from anodiff.errors import DataError

    table = samples.table
    if table["label"].isna().all() and not (table["mask"] != "").any():
        return samples
    keep = (table["label"].eq(0).fillna(False) | (table["mask"] != "")).to_numpy(dtype=bool)
    if not keep.any():
        raise DataError(
            f"{samples.root}: expected normal volumes, or masks that say where they are not, found {len(table)} "
            "volumes with neither"
        )
    return dataclasses.replace(samples, table=table[keep].reset_index(drop=True))


def unknown_notes(samples: SampleTable) -> tuple[str, ...]:
    """A sentence where `learnable` passes over volumes that may well be normal, but nobody says so."""
    table = samples.table
    unknown = int((table["label"].isna() & (table["mask"] == "")).sum())
    if not unknown or unknown == len(table):
        return ()
    return (
        f"{unknown} of {len(table)} volumes have neither label nor mask, as others have, and are not learnt from: a "
        "CSV manifest says with label 0 that they are normal",
    )


def parts_of(samples: SampleTable) -> list[NormalPart]:
    """The volumes of a table; one of no known patient is a patient of its own."""
    from anodiff.data.table import group_keys
    from anodiff.training.normal_parts import NormalPart

    table = samples.table
    columns = zip(table["path"], group_keys(samples), table["mask"], table["foreground"], strict=True)
    return [
        NormalPart(str(path), str(group), str(mask), foreground=str(foreground))
        for path, group, mask, foreground in columns
    ]


def read(parts: list[NormalPart], config: AnodiffConfig, quiet: bool) -> VolumeNormals:
    """The normal parts of volumes, with a progress bar."""
    from anodiff.engine.progress import Progress
    from anodiff.training.volumes import read_normals

    with Progress(len(parts), "volumes", "reading", quiet=quiet) as progress:
        return read_normals(parts, config, progress=progress)


class NormalDetector(VolumeDetector):
    """A detector that looks at what is normal of known volumes: normal slices, or patches without anything else.

    Intensities are still those of the whole volume, as they will be at scoring.
    """

    def __init__(self, model: Any, preset: str, **options: Any) -> None:
        super().__init__(model, preset, **options)
        self._part: NormalPart | None = None

    def read(self, part: NormalPart) -> Volume:
        """The volume of a part; what is prepared next is that."""
        from anodiff.data.volumes.read import read_given

        self._part = part
        return read_given(part.path, part.foreground)

    def prepare(self, volume: Volume, foreground: Foreground = None) -> PreparedVolume:
        """See `VolumeDetector.prepare`."""
        import dataclasses

        import torch

        from anodiff.training.normal_parts import normal_slices, normal_voxels

        prepared = super().prepare(volume, foreground)
        assert self._part is not None
        if self.config.mode == "slices":
            axes = self.slicer.axes(prepared.plan.model.shape)
            clear = normal_slices(self._part, volume, prepared, self.config, axes)
            return dataclasses.replace(prepared, clear=clear)
        free = torch.from_numpy(np.ascontiguousarray(normal_voxels(self._part, volume, prepared)))
        return dataclasses.replace(prepared, foreground=prepared.foreground & free)


def finish(
    trainer: Trainer,
    kept: tuple[VolumeNormals, list[NormalPart]],
    held: tuple[VolumeNormals, list[NormalPart]],
    data: Path,
    output: Path,
    samples: SampleTable,
    notes: tuple[str, ...],
    quiet: bool,
) -> Path:
    """Calibrate the recipe's preset on what was held out and write the model file."""
    from anodiff.data.layouts.channels import ChannelNames
    from anodiff.data.seen import SeenImages
    from anodiff.engine.device import describe as describe_device
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.calibrate import store_calibration
    from anodiff.pipelines.volume_remarks import SEEN_KEY

    config = trainer.config
    model = DiffusionModel(
        config,
        trainer.averaged,
        provenance={
            **provenance(data, kept[0], held[0]),
            **ChannelNames.provenance(samples),
            "training_examples": len(kept[0].examples),
            "images_seen": trainer.state.images_seen,
            "training_seconds": round(trainer.state.seconds, 1),
            "training_device": describe_device(trainer.device, trainer.precision),
            "processes": trainer.processes.world,
            "held_out_loss": trainer.state.log[-1].validation_loss if trainer.state.log else None,
            SEEN_KEY: round(kept[0].covered, 4),
            "notes": [*notes, *cover_notes(*kept, config)],
        },
        seen=SeenImages.of(kept[0].hashes),
    )
    path = output / "model.safetensors"
    detector = NormalDetector(model, config.preset, device=trainer.device, precision=trainer.precision)
    calibration, failed = calibrated(detector, held[1], kept[1], config, quiet)
    store_calibration(model, detector.name, calibration)
    for note in (*detector.notes, *failed):
        say(f"note: {note}", quiet)
    model.save(path)
    say(f"wrote {path} ({model.parameters / 1e6:.1f} M weights, calibrated for {config.preset!r})", quiet)
    return path


def calibrated(
    detector: NormalDetector, held: list[NormalPart], kept: list[NormalPart], config: AnodiffConfig, quiet: bool
) -> tuple[VolumeCalibration, tuple[str, ...]]:
    """The calibration on held-out parts, the size of normal error on those learnt from; what could not be used."""
    from anodiff.anomaly.volume_fitting import Limits, NormalVolume, fit_volumes, steps
    from anodiff.engine.progress import Progress

    deciding, fitting = (
        [NormalVolume(partial(detector.read, part), part.group) for part in parts] for parts in (held, kept)
    )
    limits = config.calibration
    total = steps(detector, len(deciding), len(fitting))
    with Progress(total, "volumes", f"calibrating {detector.name}", quiet=quiet) as progress:
        return fit_volumes(
            detector,
            deciding,
            fitting,
            Limits(limits.rate, limits.standardise_images, limits.threshold_images),
            progress=lambda count: progress.update(count),
        )


def cover_notes(kept: VolumeNormals, parts: Sequence[NormalPart], config: AnodiffConfig) -> tuple[str, ...]:
    """A sentence where the model does not see all of the body: of lesions only where ``parts`` have masks."""
    assert config.volume is not None
    if kept.covered > 0.999:
        return ()
    what = config.volume.mode
    unseen = ["beside lesions"] if any(part.mask for part in parts) else []
    if any(part.slab is not None for part in parts):
        unseen.append("in the held-out slab and its gap")
    if what == "slices" and config.volume.min_foreground > 0:
        unseen.append(f"in slices with less foreground than volume.min_foreground={config.volume.min_foreground:g}")
    where = f"only {' or '.join(unseen)}" if unseen else "elsewhere"
    return (
        f"the normal {what} show {kept.covered:.0%} of the foreground; what lies {where} is never learnt and may be "
        "called anomalous for that reason",
    )


def describe(trainer: Trainer, kept: VolumeNormals, held: VolumeNormals, data: Path, layout: str) -> str:
    """Two lines on what is about to happen."""
    weights = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    assert trainer.config.volume is not None
    what, volumes = trainer.config.volume.mode, f"{len(kept)} volume{'s' if len(kept) > 1 else ''}"
    return (
        f"{data}: layout {layout}; {len(kept.examples)} normal {what} of {volumes} to learn from, "
        f"{len(held.examples)} of {len(held)} held out\n"
        f"network of {weights:.1f} M weights on {trainer.device} in {trainer.precision}; "
        f"{trainer.config.training.images} {what}, {trainer.images_per_update} an update"
    )
