"""What a run could not do as asked is said once, before or after it, and stands in its report, whatever it is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from anodiff.engine.inference import InferenceDenoiser

Run = Callable[..., int]
BEFORE = "not compiled: expected a C++ compiler"
DURING = "out of memory: went on with engine.network_batch=2"


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler, whose memory holds two rows."""
    piece = InferenceDenoiser._piece

    def small(self: InferenceDenoiser, function: Any, *inputs: torch.Tensor) -> Any:
        if self.network_batch > 2:
            raise torch.OutOfMemoryError("too much")
        return piece(self, function, *inputs)

    monkeypatch.setattr("anodiff.engine.compiling._missing", lambda device: "expected a C++ compiler, found none")
    monkeypatch.setattr(InferenceDenoiser, "_piece", small)


@pytest.mark.parametrize("kind", ["images", "volumes", "clips"])
def test_scoring_says_it_once_and_reports_it(
    kind: str, poor: None, anodiff: Run, world: Any, clips: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, data = (clips.model, clips.data / "Test") if kind == "clips" else (world.model, world.data / "test" / "spot")
    if kind == "volumes":
        data = tmp_path / "x.nii.gz"
        values = np.random.default_rng(0).integers(1, 250, (16, 16, 4), dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), data)
    assert anodiff("score", model, data, "--output", tmp_path / "out", "--set", "engine.compiled=true") == 0
    said, page = capfd.readouterr().err, (tmp_path / "out" / "report.html").read_text()
    for note in (BEFORE, DURING):
        assert (said.count(note), page.count(note)) == (1, 1), note


def test_restoring_says_it_too(
    poor: None, anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--sigma", 0.2, "--device", "cpu", "--set", "engine.network_batch=4", "--output", tmp_path / "out")
    assert anodiff("denoise", world.raw, world.data / "test" / "spot", *words) == 0
    assert capfd.readouterr().err.count(DURING) == 1
    assert (tmp_path / "out" / "report.html").read_text().count(DURING) == 1


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_what_is_found_where_anomalous_is_found_with_the_detector_s_notes(
    kind: str, anodiff: Run, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from anodiff.model import load

    model = load(world.model)
    model.calibrations["one-step"] = replace(model.calibrations["one-step"], precision="bf16")
    model.save(tmp_path / "model.safetensors")
    data = world.data / "test" / "spot"
    if kind == "volumes":
        data = tmp_path / "x.nii.gz"
        values = np.random.default_rng(0).integers(1, 250, (16, 16, 4), dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), data)
    words = ("--where-anomalous", "--steps", 2, "--device", "cpu", "--precision", "fp32", "--output", tmp_path / "out")
    assert anodiff("inpaint", tmp_path / "model.safetensors", data, *words) == 0
    note = "--where-anomalous: preset &#39;one-step&#39;: calibrated in bf16 and scored in fp32"
    said, page = capfd.readouterr().err, (tmp_path / "out" / "report.html").read_text()
    assert (said.count(note.replace("&#39;", "'")), page.count(note)) == (1, 1)
