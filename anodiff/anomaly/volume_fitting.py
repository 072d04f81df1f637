"""Calibrating a `VolumeDetector` on normal volumes, in two group-disjoint parts, one volume in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from anodiff.anomaly.calibration import calibrate, check_promise
from anodiff.anomaly.detector import MOST_FOLDS, AnomalyDetector
from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.normals import PIXELS_KEPT, Progress, refuse_shared
from anodiff.anomaly.standardise import Moments, Standardisation, fit_standardisation
from anodiff.anomaly.volume_calibration import VolumeCalibration
from anodiff.anomaly.volume_origin import Origin, native_spacing, raw_values
from anodiff.anomaly.volumes import VolumeDetector, VolumeResult
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.slices import SliceStack
from anodiff.data.volumes.volume import Volume
from anodiff.errors import ConfigError, DataError, InputError


@dataclass(frozen=True)
class NormalVolume:
    """A normal volume that can be read when it is needed, and the patient that it belongs to."""

    read: Callable[[], Volume]
    group: str


@dataclass(frozen=True)
class Limits:
    """rate: share of normal volumes (and of slices) that may be called anomalous; at most so many slices of each part
    are looked at."""

    rate: float = 0.05
    standardise_slices: int = 600
    threshold_slices: int = 2_000


@dataclass
class _Seen:
    """What the volumes of the threshold part gave."""

    scores: list[float] = field(default_factory=list)
    slices: list[Tensor] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    voxels: list[Tensor] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    raw: list[dict[str, float]] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)

    def add(self, result: VolumeResult, volume: Volume, group: str, spacing: tuple[float, ...], most: int) -> None:
        """Takes in one volume; at most ``most`` of its voxels, evenly spread."""
        values = torch.from_numpy(result.map[result.inside])
        self.voxels.append(values[:: max(1, -(-len(values) // most))].clone())
        self.scores.append(result.score)
        self.slices.append(torch.tensor([each.score for each in result.slices], dtype=torch.float32))
        self.groups += [group] * len(result.slices)
        self.modalities.append(volume.modality)
        self.spacings.append(spacing)
        self.raw.append(raw_values(volume))
        self.given.append(volume.foreground is not None)


def fit_volumes(
    detector: VolumeDetector,
    deciding: Sequence[NormalVolume],
    fitting: Sequence[NormalVolume] | None = None,
    limits: Limits | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[VolumeCalibration, tuple[str, ...]]:
    """Calibrate on normal volumes only; the detector keeps the calibration. (calibration, sentences on what failed).

    ``fitting`` gives the size of normal error, ``deciding`` the thresholds of slices and of volumes, and those of
    voxels; they share no group. Without ``fitting``, ``deciding`` is halved by groups. Volumes that cannot be read are
    left out. ``progress`` is called with 1 for each volume that is done (of `steps`).

    Raises:
        DataError: no volume can be read, or too few groups for two parts.
        ConfigError: a rate outside (0, 1); a map of normal error where volumes have no common size.
    """
    limits = limits or Limits()
    check_promise(limits.rate, "slice")
    wanted = detector.settings.standardise != "none"
    if wanted and fitting is None:
        fitting, deciding = halves(deciding, detector.detector.seed)
    if fitting:
        refuse_shared([each.group for each in fitting], [each.group for each in deciding])
    failed: list[str] = []
    fit = _fit_whole if detector.config.mode == "patches" else _fit_slices
    fit(detector, deciding, (fitting or ()) if wanted else (), limits, failed, progress)
    seen = _scored(detector, deciding, failed, progress)
    if not seen.scores:
        raise DataError(f"calibration: expected normal volumes that can be scored, found none ({_first(failed)})")
    slices = detector.detector.calibration
    assert slices is not None
    if detector.config.mode == "patches":
        slices = _with_slices(detector.detector, seen, limits, slices.standardisation, slices.counts)
    calibration = VolumeCalibration.of(
        slices,
        torch.tensor(seen.scores, dtype=torch.float64),
        torch.cat(seen.voxels),
        detector.config.model_dump(mode="json"),
        Origin.of(seen.modalities, seen.spacings, seen.raw, sum(seen.given) / len(seen.given)),
    )
    detector.detector.calibration = calibration
    return calibration, tuple(dict.fromkeys(failed))


def _first(failed: Sequence[str]) -> str:
    return failed[0] if failed else "none were given"


def steps(detector: VolumeDetector, deciding: int, fitting: int | None) -> int:
    """Volumes that `fit_volumes` reads, each as often as it does."""
    sliced = detector.config.mode == "slices"
    wanted = detector.settings.standardise != "none"
    if fitting is None:
        # halves: each volume is either read for its error or for its score
        return deciding + (deciding // 2 if sliced else 0) if wanted else deciding * (2 if sliced else 1)
    return deciding * (2 if sliced else 1) + (fitting if wanted else 0)


def halves(normals: Sequence[NormalVolume], seed: int) -> tuple[list[NormalVolume], list[NormalVolume]]:
    """Two group-disjoint parts of about equal size. Raises DataError for a single group."""
    groups = [each.group for each in normals]
    if len(set(groups)) < 2:
        raise DataError(
            f"calibration: expected normal volumes of at least 2 patients for two disjoint parts, found "
            f"{len(set(groups))}"
        )
    parts = assign_parts(groups, [1.0, 1.0], seed)
    first, second = ([each for each, part in zip(normals, parts, strict=True) if part == number] for number in (0, 1))
    return first, second


def _readable(
    normals: Sequence[NormalVolume], detector: VolumeDetector, failed: list[str], progress: Progress | None
) -> Iterator[tuple[NormalVolume, Volume, PreparedVolume]]:
    """Each volume that can be used; a sentence in ``failed`` for each other one."""
    for each in normals:
        try:
            volume = each.read()
            prepared = detector.prepare(volume)
        except InputError as error:
            failed.append(str(error))
            continue
        finally:
            if progress is not None:
                progress(1)
        yield each, volume, prepared


def _fit_slices(
    detector: VolumeDetector,
    deciding: Sequence[NormalVolume],
    fitting: Sequence[NormalVolume],
    limits: Limits,
    failed: list[str],
    progress: Progress | None,
) -> None:
    """As for images, on slices taken evenly from all volumes."""
    parts = []
    for normals, most in ((deciding, limits.threshold_slices), (fitting, limits.standardise_slices)):
        stacks, groups = [], []
        for each, volume, prepared in _readable(normals, detector, failed, progress):
            shape = tuple(prepared.image.shape[1:])
            axes = detector.slicer.axes(shape)  # type: ignore[arg-type]
            share = max(1, most // (len(normals) * len(axes)))
            try:
                found = [thinned(detector.slicer.cut(prepared, axis, volume), share) for axis in axes]
            except InputError as error:
                failed.append(str(error))
                continue
            stacks += found
            groups += [each.group for stack in found for _ in stack.index]
        if normals and not groups:
            raise DataError(
                "calibration: expected slices of normal volumes, found none that can be used"
                + (f" ({failed[0]})" if failed else "")
            )
        parts.append((stacks, groups))
    (stacks, groups), (more, more_groups) = parts
    own = {"images": torch.cat([s.images for s in stacks]), "foreground": torch.cat([s.foreground for s in stacks])}
    detector.detector.fit(
        own["images"],
        groups,
        own["foreground"],
        limits.rate,
        "slice",
        standardise_on=torch.cat([s.images for s in more]) if more else None,
        standardise_groups=more_groups if more else None,
        standardise_foreground=torch.cat([s.foreground for s in more]) if more else None,
    )


def thinned(stack: SliceStack, most: int) -> SliceStack:
    """At most so many slices of a stack, evenly spread."""
    if len(stack) <= most:
        return stack
    keep = np.unique(np.linspace(0, len(stack) - 1, most).round().astype(int)).tolist()
    return stack.only(keep)


def _fit_whole(
    detector: VolumeDetector,
    deciding: Sequence[NormalVolume],
    fitting: Sequence[NormalVolume],
    limits: Limits,
    failed: list[str],
    progress: Progress | None,
) -> None:
    """The size of normal error of whole volumes: per voxel where they have one size, else one number a level."""
    inner, settings = detector.detector, detector.settings
    standardisation = None
    counts: dict[str, int] = {}
    if fitting:
        common = detector.config.size is not None
        if not common and settings.standardise in ("map", "rows"):
            raise ConfigError(
                f"standardise {settings.standardise!r} needs volumes of one size: expected volume.size, found none"
            )
        folds = assign_parts([each.group for each in fitting], [1.0] * MOST_FOLDS, inner.seed)
        moments: dict[int, Moments] = {}
        fold_of = {id(each): fold for each, fold in zip(fitting, folds, strict=True)}
        done = 0
        for each, _, prepared in _readable(fitting, detector, failed, progress):
            images, inside = prepared.image[None], prepared.foreground[None]
            errors = inner.errors(images, inner.reconstruct(images))
            used = inner.used(inside, errors.device)
            shape = tuple(errors.shape[2:]) if common else (1, 1, 1)
            fold = moments.setdefault(fold_of[id(each)], Moments.empty(len(errors), shape, errors.device))
            (fold.add if common else fold.add_anywhere)(errors, used)
            done += 1
        if not moments:
            raise DataError(f"calibration: expected normal volumes that can be read, found none ({_first(failed)})")
        kind = settings.standardise if common else "scalar"
        standardisation = fit_standardisation(list(moments.values()), kind, settings.map_px, settings.scale_floor)
        counts = {"standardise_images": done, "standardise_groups": len({each.group for each in fitting})}
    # Maps are standardised by a detector's calibration; its scores are put in when there are any.
    empty = _Seen(scores=[0.0], slices=[torch.zeros(1)], groups=[""], voxels=[torch.zeros(1)])
    inner.calibration = _with_slices(inner, empty, limits, standardisation, counts)


def _scored(
    detector: VolumeDetector, deciding: Sequence[NormalVolume], failed: list[str], progress: Progress | None
) -> _Seen:
    seen = _Seen()
    most = max(1, PIXELS_KEPT // max(1, len(deciding)))
    for each, volume, prepared in _readable(deciding, detector, failed, progress):
        try:
            result = detector(prepared, volume)
        except InputError as error:
            failed.append(str(error))
            continue
        seen.add(result, volume, each.group, native_spacing(volume, detector.config.orientation), most)
    return seen


def _with_slices(
    inner: AnomalyDetector,
    seen: _Seen,
    limits: Limits,
    standardisation: Standardisation | None,
    counts: dict[str, int],
) -> VolumeCalibration:
    """A calibration of the slices of whole volumes."""
    plain = calibrate(
        torch.cat(seen.slices),
        seen.groups,
        torch.cat(seen.voxels),
        preset=inner.name,
        settings=inner.settings.to_json(),
        seed=inner.seed,
        rate=limits.rate,
        unit="slice",
        standardisation=standardisation,
        counts={**counts, "threshold_images": len(seen.groups), "threshold_groups": len(set(seen.groups))},
        precision=inner.denoiser.precision,
        preprocess=inner._preprocess,
        windows=inner.window_settings,
    )
    return VolumeCalibration(**vars(plain))
