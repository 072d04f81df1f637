"""anodiff configs: every shipped recipe is valid, opens with its command, and can be copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from anodiff.config import load_config, shipped_configs

Run = Callable[..., int]


def test_ls_names_every_recipe(anodiff: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff("configs", "ls") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_configs())
    assert all(len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_show_prints_the_file_which_opens_with_its_command(
    anodiff: Run, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert anodiff("configs", "show", name) == 0
    text = capfd.readouterr().out
    assert text == shipped_configs()[name].read_text()
    assert text.startswith(f"# anodiff train {name} ")


def test_cp_copies_and_never_overwrites(anodiff: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff("configs", "cp", "brain_flair", tmp_path / "mine.yaml") == 0
    assert load_config(tmp_path / "mine.yaml") == load_config("brain_flair")
    assert anodiff("configs", "cp", "brain_flair", tmp_path) == 0
    assert (tmp_path / "brain_flair.yaml").is_file()
    capfd.readouterr()
    assert anodiff("configs", "cp", "brain_flair", tmp_path) == 2
    assert "there already" in capfd.readouterr().err
    assert anodiff("configs", "cp", "brain_flair", tmp_path / "missing" / "mine.yaml") == 0
    assert (tmp_path / "missing" / "mine.yaml").is_file()
    capfd.readouterr()
    assert anodiff("configs", "--help") == 0
    assert "Copy a recipe, to change it.\n" in capfd.readouterr().out  # whole, not cut off


def test_an_unknown_name_gets_the_nearest(anodiff: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff("configs", "show", "brain_flare") == 2
    assert "did you mean 'brain_flair'" in capfd.readouterr().err
