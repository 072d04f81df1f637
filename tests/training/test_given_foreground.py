"""What is learnt of volumes whose foreground is given: their statistics, their slices, the middles of their patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anodiff.config import parse_config
from anodiff.training.patches import PatchExamples
from anodiff.training.standard_scale import fit_volumes
from anodiff.training.volumes import NormalPart, SliceExamples, read_normals

SIDE = 20


def recipe(volume: dict[str, Any], intensity: dict[str, Any]) -> Any:
    return parse_config({
        "name": "tiny",
        "preprocess": {"size": [SIDE, SIDE], "intensity": intensity, "foreground": "given"},
        "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
        "volume": {"orientation": "RAS", "min_foreground": 0.0, **volume},
    })  # fmt: skip


@pytest.fixture
def part(tmp_path: Path) -> NormalPart:
    values = np.random.default_rng(0).normal(100, 10, (SIDE,) * 3).astype(np.float32)
    for name, array in (("x.nii", values), ("m.nii", mask().astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / name)
    return NormalPart(str(tmp_path / "x.nii"), "p", foreground=str(tmp_path / "m.nii"))


def mask() -> np.ndarray:
    inside = np.zeros((SIDE,) * 3, dtype=bool)
    inside[12:18, 3:9, 5:11] = True
    return inside


def test_slices_that_it_crosses(part: NormalPart) -> None:
    examples = read_normals([part], recipe({"axes": [2]}, {"kind": "percentile"})).examples
    assert isinstance(examples, SliceExamples)
    assert len(examples) == int(mask().any(axis=(0, 1)).sum())
    values = np.asarray(nib.load(part.path).dataobj)
    low, high = np.percentile(values[mask()].astype(np.float64), (0.5, 99.5))
    expected = np.clip((values - low) / (high - low) * 2 - 1, -1, 1)[:, :, 5:11]
    found = examples.sample(100, 0).clean[:, 0].numpy()
    np.testing.assert_allclose(found, expected.transpose(2, 1, 0), atol=2e-3)


def test_patches_have_their_middle_in_it(part: NormalPart) -> None:
    config = recipe({"mode": "patches", "patch": [6, 6, 6]}, {"kind": "percentile"})
    examples = read_normals([part], config).examples
    assert isinstance(examples, PatchExamples)
    (source,) = examples.sources
    middles = np.asarray(source.inner) + 3
    assert {tuple(each) for each in middles.tolist()} == {tuple(each) for each in np.argwhere(mask()).tolist()}


def test_the_standard_scale_is_of_what_is_inside(part: NormalPart) -> None:
    config = fit_volumes(recipe({"axes": [2]}, {"kind": "nyul"}), [part], quiet=True)
    inside = np.asarray(nib.load(part.path).dataobj)[mask()].astype(np.float64)
    intensity = config.preprocess.intensity
    places = np.percentile(inside, (intensity.low, *intensity.landmarks, intensity.high))
    expected = 2 * (places - places[0]) / (places[-1] - places[0]) - 1
    found = np.asarray(intensity.standard[0])
    # a scale is known up to a line
    np.testing.assert_allclose(np.interp(found, (found[0], found[-1]), (-1, 1)), expected, atol=1e-3)
