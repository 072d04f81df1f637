"""anodiff info: what a model file holds, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anodiff as library

Run = Callable[..., int]


def test_json_holds_recipe_calibrations_and_provenance(
    anodiff: Run, world: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("info", world.model, "--json") == 0
    facts = json.loads(capfd.readouterr().out)
    model = library.load(world.model)
    assert facts["parameters"] == model.parameters
    assert facts["config"] == model.config.model_dump(mode="json")
    found = facts["calibrations"]["one-step"]
    assert found["threshold"] == model.calibrations["one-step"].threshold
    assert (found["nfe"], found["rate"], found["normals"]) == (2, 0.05, 24)


def test_text_names_what_matters(anodiff: Run, world: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff("info", world.model) == 0
    text = capfd.readouterr().out
    for words in ("tiny", "16x16", "brighter", "one-step", "0.05 per image", "edm prediction"):
        assert words in text
    assert anodiff("info", world.raw) == 0
    assert "not calibrated" in capfd.readouterr().out


def test_a_model_of_clips_states_both_thresholds(
    anodiff: Run, clips: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from anodiff.anomaly.clip_rule import rule_of
    from anodiff.anomaly.clips import ClipDetector

    model = library.load(clips.model)
    rule = rule_of(ClipDetector(model, device="cpu"))
    assert rule.high is not None
    assert anodiff("info", clips.model) == 0
    assert f"own, {rule.high:.4g}, for {rule.rate:g} false alarms an hour, set on " in capfd.readouterr().out
    video = model.config.video.model_copy(update={"false_alarms_per_hour": 0.5})
    scarce = replace(model, config=model.config.model_copy(update={"video": video}))
    scarce.save(tmp_path / "scarce.safetensors")
    assert anodiff("info", tmp_path / "scarce.safetensors") == 0
    text = capfd.readouterr().out
    assert "at most 5 % of normal frames score above the frame threshold" in text
    assert "this model has none: a rate of 0.5 false alarms an hour needs at least 2 h of normal footage" in text
    assert f"--set video.false_alarms_per_hour={rule.lowest_rate:g}" in text


def test_a_file_that_is_no_model_is_refused(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = world.model.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    (tmp_path / "flip.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for name in ("cut.safetensors", "flip.safetensors"):
        assert anodiff("info", tmp_path / name) == 2
        assert "damaged" in capfd.readouterr().err
