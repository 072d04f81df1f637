"""What a job says of images that left early: how many, what that saved, at which stated error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from anodiff.errors import ConfigError

if TYPE_CHECKING:
    from anodiff.pipelines.scoring import ScoreJob


def refuse_leaving(early_exit: object, kind: str) -> None:
    """Raises ConfigError where early exit is asked for with a model of another kind than images."""
    if early_exit is not None and early_exit is not False:
        raise ConfigError(
            f"--early-exit: expected a model of images, found one of {kind}, of which each part is scored"
        )


def calls_an_image(job: ScoreJob, rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean denoiser calls of the images that were scored; those of the preset where none was, or none may leave."""
    calls = [row["nfe"] for row in rows if row["status"] == "ok"]
    return fmean(calls) if calls and job.detector.early_exit is not None else job.nfe


def exit_facts(job: ScoreJob, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For metrics.json: the mean calls, the stated error, who left; nothing without early exit."""
    chosen = job.detector.early_exit
    if chosen is None:
        return {}
    left = sum(row.get("left_early") is True for row in rows)
    return {
        "nfe": calls_an_image(job, rows),
        "nfe_whole": job.nfe,
        "early_exit_error": chosen.error,
        "n_left_early": left,
    }


def exit_notes(job: ScoreJob, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A sentence on who left and what it saved; nothing without early exit."""
    chosen = job.detector.early_exit
    if chosen is None:
        return ()
    scored = sum(row["status"] == "ok" for row in rows)
    left = sum(row.get("left_early") is True for row in rows)
    return (
        f"{left} of {scored} images left early, {job.nfe} -> {calls_an_image(job, rows):.3g} calls an image; their "
        f"scores and maps are those of level {job.detector.settings.levels[chosen.level]:g} alone, on the preset's "
        f"scale; stated error {chosen.error:.3g} of what the whole preset finds",
    )
