"""Inputs and outputs of the tests of the loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package: loop_jobs is found here

from loop_jobs import NAMES

from anodiff.engine.store import Item


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    for n, name in enumerate(NAMES):
        (tmp_path / name).write_text("x" * n)
    return [Item(name, str(tmp_path / name)) for name in NAMES]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
