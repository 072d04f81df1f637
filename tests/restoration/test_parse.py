"""What a command line may say for an operator."""

from __future__ import annotations

import pytest
import torch

from anodiff.errors import ConfigError
from anodiff.restoration import (
    Operator,
    Slices,
    SuperResolution,
    cartesian_lines,
    gaussian_blur,
    motion_blur,
)
from anodiff.restoration.parse import parse_operator

X = torch.randn(1, 1, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("superres:2", SuperResolution(2)),
        ("blur:gaussian:1.5", gaussian_blur(1.5)),
        ("blur:motion:5", motion_blur(5)),
        ("blur:motion:5:30", motion_blur(5, 30)),
        ("slices:every:2", Slices(2)),
        ("slices:every:2:1", Slices(2, 1)),
        ("slices:missing:3", Slices(3, missing_ones=True)),
        ("kspace:4x", cartesian_lines(4)),
        ("kspace:2.5", cartesian_lines(2.5)),
        ("kspace:4x:0", cartesian_lines(4, axis=0)),
    ],
)
def test_operators_by_text(text: str, operator: Operator) -> None:
    assert torch.equal(parse_operator(text)(X), operator(X))


@pytest.mark.parametrize(
    "text", ["superes:2", "superres", "superres:two", "blur:gaussian", "blur:box:3", "slices:2", ""]
)
def test_misspelt_operators_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="expected") as error:
        parse_operator(text)
    assert repr(text) in str(error.value)
    if text == "superes:2":
        assert "did you mean 'superres'" in str(error.value)
