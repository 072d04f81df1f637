"""Tuning without labels: the settings that best show anomalies planted into normal images, under a budget of calls.

Each candidate is measured by its pixel average precision (AP), averaged over the kinds of planted anomaly and over
three classes of size: pooled over all sizes, the few largest anomalies would choose alone (see
:meth:`anodiff.anomaly.planted.PlantedImages.cells`). The search goes uphill from the present settings (levels by
forward selection; smoothing, fusion, standardisation, limits one at a time), once for every residual, and for a noise
family that promises more. What it finds is held against the present settings by a bootstrap over groups: it is taken
only where it gains more than a standard error, and then every slot that does not earn a standard error goes back to
its present value. So noise is not mistaken for a better setting, and nothing changes without a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anodiff.anomaly.groups import assign_parts
from anodiff.anomaly.planted import Normals, PlantedImages
from anodiff.anomaly.planting import kinds_for
from anodiff.anomaly.presets import resolve
from anodiff.anomaly.reduce import Reduction
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.tuning_cache import ErrorCache
from anodiff.anomaly.tuning_grid import FROM_DIFFERENCE, REDUCTIONS
from anodiff.anomaly.tuning_measure import Measure, map_key, mean, standard_error
from anodiff.anomaly.tuning_noise import TrainedNoise, families
from anodiff.anomaly.tuning_search import Search, with_slots
from anodiff.engine.progress import Progress
from anodiff.errors import ConfigError, DataError

#: candidate levels besides the present ones; those within 15 % of a present level are left out
LEVELS = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75, 1.1, 1.7, 2.5, 4.0, 7.0, 20.0)
SAME_LEVEL = math.log(1.15)
MOST_LEVELS = 64
#: at how many levels (every third) another noise family is tried first
PROBE = 3
#: fewest normals (and groups of them) to plant in, and groups to learn the normal error from
LEAST_IMAGES, LEAST_GROUPS, LEAST_FIT_GROUPS = 8, 4, 2


@dataclass(frozen=True)
class Candidate:
    """One candidate with its evidence.

    Attributes:
        name, settings; nfe: calls an image.
        ap, error: pixel AP averaged over kinds and sizes (of reductions: image AP over kinds), and its standard error.
        by_kind: AP by kind.
        gain, gain_error: AP above the present settings', and the standard error of that difference.
        verdict: what became of it.
    """

    name: str
    settings: DetectorSettings
    nfe: int
    ap: float
    error: float
    by_kind: dict[str, float]
    gain: float
    gain_error: float
    verdict: str


@dataclass(frozen=True)
class Tuning:
    """The choice and its evidence.

    Attributes:
        settings: chosen; present: what it was held against, both resolved, of at most ``budget`` calls an image.
        against: what ``present`` is, in words: 'default', or 'default' cut to 4 calls where the budget is less than its
            cost.
        kinds, polarity; counts: images and groups of the fitting part and of the planted one; calls of the network.
        candidates: by pixel AP of planted anomalies; reductions: by image AP.
        level_curve: by kind (and "mean") the AP of each of ``levels`` alone, the other slots as chosen.
        nfe_curve: (calls, AP, standard error) of the best levels for each budget, the other slots as chosen.
        examples: one planted image of each of ``kinds``: images (K, C, *S), masks (K, *S), foreground or None.
        sentences: the verdict, in words.
    """

    settings: DetectorSettings
    present: DetectorSettings
    against: str
    budget: int
    kinds: tuple[str, ...]
    polarity: str
    counts: dict[str, int]
    candidates: tuple[Candidate, ...]
    reductions: tuple[Candidate, ...]
    levels: tuple[float, ...]
    level_curve: dict[str, list[float]]
    nfe_curve: tuple[tuple[int, float, float], ...]
    examples: tuple[Tensor, Tensor, Tensor | None]
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        plain = ("against", "budget", "kinds", "polarity", "counts", "levels", "level_curve", "nfe_curve", "sentences")
        tables = {
            name: [{**vars(row), "settings": row.settings.to_json()} for row in rows]
            for name, rows in (("candidates", self.candidates), ("reductions", self.reductions))
        }
        settings = {"settings": self.settings.to_json(), "present": self.present.to_json()}
        return settings | {name: getattr(self, name) for name in plain} | tables


def tune(
    model: Any,
    normals: Normals,
    base: str | DetectorSettings = "default",
    *,
    fit: Normals | None = None,
    nfe: int | None = None,
    kinds: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    noises: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    seed: int = 0,
    batch_size: int = 16,
    quiet: bool = True,
) -> Tuning:
    """Choose levels, noise family, residual, standardisation, limits, smoothing, fusion and reduction on normals alone.

    Args:
        model: as of :class:`anodiff.anomaly.AnomalyDetector`.
        normals: images to plant anomalies in; without ``fit`` half of them, by groups, fit the normal error instead.
        base: the present settings; slots that are not searched (pairs, sampler, polarity, ...) stay as they are.
        fit: normals of other groups, for the normal error; also the donors of foreign patches.
        nfe: most network calls an image; None takes those of the base.
        kinds: of planted anomalies; None takes all that fit the polarity.
        levels: candidates besides those of the base; None takes LEVELS.
        noises: families besides the base's, "none" is the clean image; None takes that of the model's training and
            NOISES, or no other for a model that learnt one level only.
        seed: of the noise, of what is planted, of the parts and of the bootstrap.

    Raises:
        DataError: too few normals or groups, groups on both sides, or nothing to plant in.
        ConfigError: a kind, level or family that is not known, families for a model of one level, or a budget below
            one level.
    """
    name, present = resolve(base, getattr(model, "config", None))
    if present.refine is not None or present.fusion == "images" or present.error_maps != len(present.levels):
        raise ConfigError(f"tune: expected a preset with one error map a level, found {name!r} with others")
    if present.trajectory != "each":
        raise ConfigError(
            f"tune: expected a preset whose levels are reconstructed one by one, found {name!r} with trajectory "
            f"{present.trajectory!r}"
        )
    normals, fit = _parts(normals, fit, seed)
    wanted = tuple(dict.fromkeys(kinds_for(present.polarity) if kinds is None else kinds))
    grid = level_grid(present.levels, LEVELS if levels is None else levels)
    planted = PlantedImages.of(normals, wanted, seed, present.polarity, fit.images)
    found = tuple(kind for kind in wanted if kind in planted.kinds)
    if not found:
        raise DataError("tune: expected normals in which an anomaly can be seen, found none with such a foreground")
    others = families(noises, name, present, TrainedNoise.of(model))
    residuals = tuple(dict.fromkeys([present.residual, *FROM_DIFFERENCE]))
    cache = ErrorCache(
        model, present, fit, planted, residuals,
        device=device, precision=precision, seed=seed, batch_size=batch_size, quiet=quiet,
    )  # fmt: skip
    measure = Measure(cache, found, seed)
    search = Search(measure, present.nfe_for(cache.size) if nfe is None else nfe)
    search.check(present)
    cache.compute(present.noise, grid)
    reference = search.within_budget(present)
    against = repr(name) if reference == present else f"{name!r} cut to {reference.nfe_for(cache.size)} calls"
    champion = climb(search, reference, others, grid, quiet)
    with Progress(None, "candidates", "comparing", quiet=quiet) as measure.progress:
        chosen, sentences = search.guarded(champion, reference, against)
        chosen, reductions, sentence = _reduced(measure, chosen, reference)
        return Tuning(
            settings=chosen,
            present=reference,
            against=against,
            budget=search.budget,
            kinds=found,
            polarity=present.polarity,
            counts=_counts(fit, normals, planted, cache),
            candidates=_table(search, chosen, reference, champion, against),
            reductions=reductions,
            levels=cache.levels(chosen.noise),
            level_curve=_level_curve(measure, chosen),
            nfe_curve=_nfe_curve(search, chosen),
            examples=_examples(planted, found),
            sentences=(*sentences, sentence),
        )


def level_grid(present: Iterable[float], others: Iterable[float]) -> tuple[float, ...]:
    """The present levels and those others that differ from all of them by more than 15 %, ascending."""
    kept = set(present)
    for level in others:
        if not 0 < level < 1e4:
            raise ConfigError(f"levels: expected sigma above 0 and below 10000, found {level:g}")
        if all(abs(math.log(level / known)) > SAME_LEVEL for known in kept):
            kept.add(level)
    if len(kept) > MOST_LEVELS:
        raise ConfigError(f"levels: expected at most {MOST_LEVELS} with those of the base, found {len(kept)}")
    return tuple(sorted(kept))


def _parts(normals: Normals, fit: Normals | None, seed: int) -> tuple[Normals, Normals]:
    """(to plant in, to fit on), without a common group. Raises DataError where there are too few."""
    if fit is None:
        parts = assign_parts(normals.groups, [1.0, 1.0], seed)
        normals, fit = (normals.take([i for i, part in enumerate(parts) if part == k]) for k in (0, 1))
    shared = set(normals.groups) & set(fit.groups)
    if shared:
        raise DataError(
            f"tune: expected groups that are in one part only, found {len(shared)} in both, {min(shared)!r} first"
        )
    groups, fit_groups = len(set(normals.groups)), len(set(fit.groups))
    if len(normals) < LEAST_IMAGES or groups < LEAST_GROUPS or fit_groups < LEAST_FIT_GROUPS:
        raise DataError(
            f"tune: expected at least {LEAST_IMAGES} normals of {LEAST_GROUPS} groups to plant anomalies in, and "
            f"normals of {LEAST_FIT_GROUPS} other groups for the normal error, found {len(normals)} of {groups} "
            f"groups and {len(fit)} of {fit_groups}"
        )
    return normals, fit


def climb(
    search: Search, reference: DetectorSettings, noises: Sequence[str], grid: Sequence[float], quiet: bool = True
) -> DetectorSettings:
    """The best settings the search finds: uphill for each residual, then in each family that promises more.

    The reference's own family must be computed at ``grid``; the others are where they are worth it.
    """
    measure, cache = search.measure, search.cache
    with Progress(None, "candidates", "searching", quiet=quiet) as measure.progress:
        starts = [with_slots(reference, {"residual": kind}) for kind in cache.residuals]
        champion = search.best_of([search.uphill(start) for start in starts])
    for noise in noises:
        champion = _other_noise(search, champion, noise, grid, quiet)
    return champion


def _other_noise(
    search: Search, champion: DetectorSettings, noise: str, grid: Sequence[float], quiet: bool
) -> DetectorSettings:
    """The champion, or that of another family where the best of a few levels, within the budget, beat our few."""
    cache, measure = search.cache, search.measure
    few, there = tuple(grid[::PROBE]), cache.slots_of(noise)
    if not search.affordable(with_slots(champion, {**there, "levels": few[:1]})):
        return champion
    cache.compute(noise, few)
    named = "no noise" if noise == "none" else f"{noise} noise"
    with Progress(None, "candidates", f"trying {named}", quiet=quiet) as measure.progress:
        theirs, ours = (
            max(value for _, value in search.forward(with_slots(champion, {**slots, "levels": few}), few))
            for slots in (there, {})
        )
    if theirs <= ours:
        cache.forget(noise)
        return champion
    cache.compute(noise, grid)
    with Progress(None, "candidates", f"searching with {named}", quiet=quiet) as measure.progress:
        # ours may cost more levels than theirs can pay
        start = with_slots(champion, there)
        start = start if search.affordable(start) else with_slots(start, {"levels": few[:1]})
        return search.best_of([champion, search.uphill(start)])


def _reduced(
    measure: Measure, chosen: DetectorSettings, reference: DetectorSettings
) -> tuple[DetectorSettings, tuple[Candidate, ...], str]:
    """With the reduction of the best image AP, where it gains more than a standard error; the table, and why."""
    present = (reference.reduction, reference.topk)
    choices = list(dict.fromkeys([present, *REDUCTIONS]))
    found = {choice: measure.image_ap(scores) for choice, scores in measure.cache.scores(chosen, choices).items()}

    def gain(choice: tuple[Reduction, float]) -> tuple[float, float]:
        (ours, draws), (theirs, other_draws) = found[choice], found[present]
        return mean(ours) - mean(theirs), standard_error(draws - other_draws)

    best = max(choices, key=lambda choice: mean(found[choice][0]))
    taken = best if gain(best)[0] > gain(best)[1] else present
    rows = {}
    for choice in choices:
        (aps, draws), (difference, error) = found[choice], gain(choice)
        settings = with_slots(chosen, {"reduction": choice[0], "topk": choice[1]})
        verdict = "kept" if choice == taken else "present" if choice == present else ""
        name = f"topk = {choice[1]:.2g}" if choice[0] == "topk" else choice[0]
        nfe = settings.nfe_for(measure.cache.size)
        error_of_ap = standard_error(draws)
        rows[choice] = Candidate(
            name, settings, nfe, mean(aps), error_of_ap, aps, difference, error, verdict or _close(difference, error)
        )
    row = rows[taken]
    change = "as before" if taken == present else f"{row.gain:+.3f} ± {row.gain_error:.3f} from the present one"
    return row.settings, tuple(rows.values()), f"Reduction: {row.name}, {change} (image AP {row.ap:.3f})."


def _table(
    search: Search, chosen: DetectorSettings, reference: DetectorSettings, champion: DetectorSettings, against: str
) -> tuple[Candidate, ...]:
    """The choice, what it was held against, and the choice with every other value of each of its slots."""
    rows: dict[str, tuple[str, DetectorSettings]] = {}
    for settings, text in ((chosen, "chosen"), (reference, f"present: {against}"), (champion, "best found")):
        rows.setdefault(map_key(settings), (text, settings))
    for slot in ("residual", "smooth_px", "fusion", "standardise", "scale_floor", "limits"):
        for settings in search.variants(chosen, slot):
            value = getattr(settings, slot)
            text = f"{slot} = {value:g}" if isinstance(value, float) else f"{slot} = {value}"
            rows.setdefault(map_key(settings), (text, settings))
    return tuple(_candidate(search.measure, text, settings, chosen, reference) for text, settings in rows.values())


def _candidate(
    measure: Measure, text: str, settings: DetectorSettings, chosen: DetectorSettings, reference: DetectorSettings
) -> Candidate:
    gain, error = measure.gain(settings, reference)
    if map_key(settings) == map_key(chosen):
        verdict = "kept"
    elif map_key(settings) == map_key(reference):
        verdict = "present"
    else:
        verdict = _close(*measure.gain(settings, chosen))
    nfe, ap = settings.nfe_for(measure.cache.size), measure.value(settings)
    draws = measure.draws(settings)
    return Candidate(text, settings, nfe, ap, standard_error(draws), measure.by_kind(settings), gain, error, verdict)


def _close(gain: float, error: float) -> str:
    if abs(gain) <= error:
        return "within a standard error"
    return "better, but not on the way" if gain > 0 else "worse"


def _level_curve(measure: Measure, settings: DetectorSettings) -> dict[str, list[float]]:
    """By kind, and on average, the AP of each level alone."""
    values = measure.cache.level_values(settings)
    found = [measure.of_levels(settings, values[[row]]) for row in range(len(values))]
    return {"mean": [mean(each) for each in found]} | {kind: [each[kind] for each in found] for kind in measure.kinds}


def _nfe_curve(search: Search, settings: DetectorSettings) -> tuple[tuple[int, float, float], ...]:
    """(calls, AP, standard error) along the forward selection."""
    measure, size = search.measure, search.cache.size
    steps = [step for step, _ in search.forward(settings)]
    return tuple((step.nfe_for(size), measure.value(step), standard_error(measure.draws(step))) for step in steps)


def _examples(planted: PlantedImages, kinds: Sequence[str]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The anomaly of median size of each kind."""
    rows = []
    areas = planted.masks.flatten(1).sum(dim=1).tolist()
    for kind in kinds:
        own = sorted((i for i, name in enumerate(planted.kinds) if name == kind), key=lambda i: areas[i])
        rows.append(own[len(own) // 2])
    return planted.images[rows], planted.masks[rows], None if planted.foreground is None else planted.foreground[rows]


def _counts(fit: Normals, normals: Normals, planted: PlantedImages, cache: ErrorCache) -> dict[str, int]:
    return {
        "fit_images": len(fit),
        "fit_groups": len(set(fit.groups)),
        "normal_images": len(normals),
        "normal_groups": len(set(normals.groups)),
        "planted_images": planted.planted,
        "network_calls": cache.calls,
    }
