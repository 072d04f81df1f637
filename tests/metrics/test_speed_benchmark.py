"""The AUPRO benchmark runs, its reference converges to ours, and it says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anodiff.metrics import aupro
from benchmarks.speed import aupro as benchmark


def test_a_tiny_run_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "aupro.json"
    benchmark.main(["--maps", "4", "--side", "16", "--thresholds", "5", "--repeats", "2", "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["settings"]["maps"] == 4
    assert 0 < found["ratio"]["least"] <= found["ratio"]["median"] <= found["ratio"]["most"]
    assert "4 maps of 16x16, 2 repeats" in capsys.readouterr().out


def test_the_reference_converges_to_the_exact_value() -> None:
    maps, masks = benchmark.random_set(4, 24, 0)
    exact = aupro(maps, masks, 0.3)
    errors = [abs(benchmark.by_thresholds(maps, masks, 0.3, count) - exact) for count in (4, 16, 400)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3
