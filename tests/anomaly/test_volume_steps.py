"""Within a volume: every slice and window is counted once, results stay as they are, a result prints as one line."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.volume_steps import VolumeStep
from anodiff.anomaly.volumes import SliceScore, VolumeDetector, VolumeResult
from anodiff.config import parse_config
from anodiff.data.volumes.geometry import Grid, plan
from anodiff.data.volumes.preprocess import PreparedVolume

SHAPE = (8, 9, 10)
SETTINGS = DetectorSettings(noise="gaussian", levels=(0.5, 1.5), standardise="none", polarity="brighter")


class Shrink(nn.Module):
    """D = x / (1 + sigma^2)."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def scored(section: dict[str, Any], batch: int, watched: bool = True) -> tuple[VolumeResult, list[VolumeStep]]:
    recipe = {"name": "m", "preprocess": {"size": [12, 12]}, "volume": {"orientation": None, **section}}
    model = SimpleNamespace(config=parse_config(recipe), denoiser=Shrink(), calibrations={})
    detector = VolumeDetector(model, SETTINGS, device="cpu", precision="fp32", network_batch=batch)
    steps: list[VolumeStep] = []
    detector.on_step = steps.append if watched else None
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3
    inside = torch.ones(SHAPE, dtype=torch.bool)
    return detector(PreparedVolume(image, inside, plan(Grid(SHAPE, np.eye(4)), None))), steps


def test_slices_are_counted_along_each_axis_and_nothing_else_changes() -> None:
    section = {"axes": [2, 0], "min_foreground": 0.0}
    result, steps = scored(section, 3)
    for other in (scored(section, 3, watched=False), scored(section, 64)):
        np.testing.assert_array_equal(result.map, other[0].map)
    for axis in (2, 0):
        count = sum(each.axis == axis for each in result.slices)
        assert [step.done for step in steps if step.axis == axis] == [*range(3, count, 3), count]
        assert {step.total for step in steps if step.axis == axis} == {count}
    assert [step.done for step in scored(section, 64)[1]] == [10, 8]


def test_windows_are_counted_up_to_all_calls() -> None:
    section = {"mode": "patches", "patch": [4, 4, 4], "min_foreground": 0.0}
    result, steps = scored(section, 5)
    np.testing.assert_array_equal(result.map, scored(section, 5, watched=False)[0].map)
    assert {step.total for step in steps} == {result.nfe}
    assert steps[-1].done == result.nfe
    assert all(0 < b.done - a.done <= 5 for a, b in pairwise(steps))
    assert {step.axis for step in steps} == {None}


def test_a_step_reads_as_what_is_counted() -> None:
    assert str(VolumeStep(48, 110, 2)) == "48 of 110 along k"
    assert (VolumeStep(48, 110, 2).unit, VolumeStep(1, 2).unit) == ("slices", "windows")
    assert str(VolumeStep(1280, 6292)) == "1,280 of 6,292"


def test_a_result_prints_as_one_line() -> None:
    values = np.zeros((4, 5, 6), np.float32)
    values[1, 2, :3] = 5.0
    inside = np.ones(values.shape, dtype=bool)
    inside[1, 2, 0] = False
    slices = tuple(SliceScore(2, n, 0.0, None) for n in range(6))
    result = VolumeResult(values, inside, 4.29, 0.5, None, slices, 440, ("one",), {0.5: 0.0, 0.99: 1.0})
    assert repr(result) == (
        "VolumeResult(map 4 x 5 x 6, score 4.29, p-value 0.5, not decided, "
        "2 of 119 foreground voxels above the voxel threshold, 6 slices, remarks: 1)"
    )
    raw = VolumeResult(values, inside, 4.29, None, None, (), 440)
    assert repr(raw) == "VolumeResult(map 4 x 5 x 6, score 4.29, not calibrated, not decided, 0 slices)"
