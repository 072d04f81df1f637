"""The commands that the pages show are ones that the command line takes: jobs, arguments and options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer

from anodiff.pipelines.cli import HELP_OPTIONS, JOBS

PAGES = Path(__file__).parents[1] / "docs"
#: every block, so that the end of one is not taken for the start of the next
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SHELLS = ("", "bash", "sh", "console")


def commands(page: Path) -> Iterator[list[str]]:
    """The words after ``anodiff`` of every such line of a block, continued lines joined, without what a shell takes."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    for block in (block for language, block in blocks if language in SHELLS):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").partition(" | ")[0]
            if command.startswith("anodiff "):
                yield shlex.split(command, comments=True)[1:]


def parse(words: list[str]) -> None:
    """As the command line does, but nothing is run. Raises click.UsageError."""
    module = import_module(f"anodiff.pipelines.{JOBS[words[0]][0]}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP_OPTIONS)
        app.command(words[0])(module.main)
    command, rest = typer.main.get_command(app), words[1:]
    context = command.make_context(words[0], list(rest))
    if hasattr(command, "resolve_command"):
        name, inner, rest = command.resolve_command(context, rest)
        inner.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize("page", ["medical.md", "integrations.md", "surveillance.md", "tuning.md", "likelihood.md"])
def test_every_command_of_a_page_parses(page: str) -> None:
    found = list(commands(PAGES / page))
    assert found
    for words in found:
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"anodiff {' '.join(words)}: {getattr(error, 'message', error)}")


def test_a_command_with_a_wrong_option_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nanodiff = 1\n```\n```bash\nanodiff info model.safetensors\n"
        "anodiff score m in/ \\\n  --output out --no-such 1  # x\n```\n"
    )
    good, wrong = commands(page)
    parse(good)
    with pytest.raises(Exception, match="no-such"):
        parse(wrong)
    assert len(list(commands(PAGES / "medical.md"))) > 10


def test_the_recipe_for_ct_is_one_and_takes_a_ct(tmp_path: Path) -> None:
    import numpy as np

    from anodiff.config import load_config
    from anodiff.data.volumes.slices import VolumeSlicer
    from anodiff.data.volumes.volume import Volume

    blocks = BLOCK.findall((PAGES / "medical.md").read_text(encoding="utf-8"))
    [text] = [block for language, block in blocks if language == "yaml" and "name: ct" in block]
    (tmp_path / "ct.yaml").write_text(text)
    config = load_config(tmp_path / "ct.yaml", ["preprocess.size=[16,16]"])
    assert config.volume is not None
    hounsfield = np.full((1, 16, 16, 8), -1000, np.float32)
    hounsfield[:, 4:12, 4:12] = 140
    volume = Volume(hounsfield, np.diag([2.0, 2.0, 2.0, 1.0]), -1000, 140, "int16", "ct", "dicom", modality="CT")
    slicer = VolumeSlicer(config.preprocess, config.volume)
    prepared = slicer.prepare(volume)
    stack = slicer.cut(prepared, 2, volume)
    assert stack.index == tuple(range(8))
    # the window is from -160 to 240 HU, so that 140 HU is halfway from its middle up, and air is not looked at
    assert stack.images[4, 0, 8, 8].item() == 0.5
    assert stack.images.min().item() == -1
    np.testing.assert_array_equal(prepared.foreground.numpy(), prepared.image[0].numpy() > 0)
