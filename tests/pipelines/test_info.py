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


@pytest.mark.parametrize("count", [30, 4])
def test_a_model_of_volumes_states_the_thresholds_of_volumes(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int
) -> None:
    import torch

    from anodiff.anomaly.volume_calibration import VolumeCalibration
    from anodiff.anomaly.volume_origin import Origin
    from anodiff.anomaly.volumes import PLAIN

    model = library.load(world.model)
    slices = model.calibrations["one-step"]
    volumes, voxels = torch.arange(count) / 4, torch.arange(1, 1001) / 1000
    known = VolumeCalibration.of(slices, volumes, voxels, PLAIN.model_dump(mode="json"), Origin())
    model.calibrations["one-step"] = known
    model.config = model.config.model_copy(update={"volume": PLAIN})
    model.save(tmp_path / "volumes.safetensors")
    assert anodiff("info", tmp_path / "volumes.safetensors") == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "slice threshold" in text
    assert "voxels above 0.99, as 1 % of normal voxels are" in text
    if count == 30:  # the highest: 1 / 31 <= 0.05 < 2 / 31
        assert "own, 7.25, for false alarms of 0.05 per volume, from 30 normal volumes" in text
    else:
        assert "needs at least 19 normal volumes for the threshold, found 4" in text
    assert anodiff("info", tmp_path / "volumes.safetensors", "--json") == 0
    found = json.loads(capfd.readouterr().out)["calibrations"]["one-step"]
    assert found["threshold"] == slices.threshold
    assert (found["volumes"]["threshold"], found["volumes"]["normals"]) == (known.volume_threshold, count)
    assert found["volumes"]["voxel_threshold_fpr5"] == pytest.approx(0.95)


def test_a_file_that_is_no_model_is_refused(
    anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = world.model.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    (tmp_path / "flip.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for name in ("cut.safetensors", "flip.safetensors"):
        assert anodiff("info", tmp_path / name) == 2
        assert "damaged" in capfd.readouterr().err
