"""`anodiff export`: what is written, what is said, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anodiff.model import load


def test_a_program_is_written_once(
    anodiff: Callable[..., int], world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "d.pt2"
    assert anodiff("export", world.raw, "--format", "torch", "--output", output) == 0
    assert "largest difference from the model's denoiser" in capsys.readouterr().err
    x, sigma = torch.randn(4, 1, 16, 16), torch.tensor([0.1, 0.5, 1.0, 3.0])
    with torch.no_grad():
        expected = load(world.raw).denoiser(x, sigma)
    torch.testing.assert_close(torch.export.load(output).module()(x, sigma), expected, atol=1e-5, rtol=1e-5)
    assert anodiff("export", world.raw, "--format", "torch", "--output", output) == 2
    assert "expected a new file" in capsys.readouterr().err


def test_a_bundle_is_a_folder(
    anodiff: Callable[..., int], world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("export", world.model, "--format", "monai-bundle", "--output", tmp_path / "b") == 0
    assert "python -m monai.bundle run" in capsys.readouterr().err
    found = sorted(str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert found == ["configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.safetensors"]
    assert json.loads((tmp_path / "b/configs/metadata.json").read_text())["name"] == "tiny anomaly detection"


def test_without_its_extra_onnx_is_refused_by_name(
    anodiff: Callable[..., int],
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from anodiff.integrations import export

    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert anodiff("export", world.raw, "--output", tmp_path / "d.onnx") == 2
    assert "pip install anodiff[onnx]" in capsys.readouterr().err
    assert not (tmp_path / "d.onnx").exists()


def test_a_difference_that_is_too_large_is_said(
    anodiff: Callable[..., int],
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from anodiff.integrations import export

    monkeypatch.setattr(export, "export_onnx", lambda model, path: export.Exported(path, 0.1))
    assert anodiff("export", world.raw, "--output", tmp_path / "d.onnx") == 0
    assert "note: expected a difference of at most 0.0001" in capsys.readouterr().err
    monkeypatch.setattr(export, "export_onnx", lambda model, path: export.Exported(path, None))
    assert anodiff("export", world.raw, "--output", tmp_path / "e.onnx") == 0
    assert "onnxruntime is not installed" in capsys.readouterr().err


def test_another_format_is_a_usage_error(anodiff: Callable[..., int], world: Any, tmp_path: Path) -> None:
    assert anodiff("export", world.raw, "--format", "tensorrt", "--output", tmp_path / "d") == 2
