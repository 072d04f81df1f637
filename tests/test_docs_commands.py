"""The commands that the pages show are ones that the command line takes, and the files that they name are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from anodiff.pipelines.cli import HELP_OPTIONS, JOBS

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"
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


def command_of(job: str) -> Any:
    """A job's command, as the command line makes it."""
    module = import_module(f"anodiff.pipelines.{JOBS[job][0]}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP_OPTIONS)
        app.command(job)(module.main)
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """As the command line does, but nothing is run. Raises click.UsageError."""
    command, rest = command_of(words[0]), words[1:]
    context = command.make_context(words[0], list(rest))
    if hasattr(command, "resolve_command"):
        name, inner, rest = command.resolve_command(context, rest)
        inner.make_context(name, list(rest), parent=context)


def pieces(text: str, start: str) -> Iterator[str]:
    """What begins so of all code of a page, in blocks and between the words, synopses with them; one line each."""
    blocks = BLOCK.findall(text)
    lines = [line for _, block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    for piece in (*lines, *(" ".join(each.split()) for each in inline)):
        if piece.startswith(start):
            yield piece.partition(" # ")[0]


def options_in(piece: str) -> set[str]:
    """The long options of a command, whatever stands about them."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", piece))


@pytest.mark.parametrize(
    "page",
    [
        "../README.md", "guide.md", "medical.md", "integrations.md", "surveillance.md", "tuning.md", "likelihood.md",
        "speed.md",
    ],
)  # fmt: skip
def test_every_command_of_a_page_parses(page: str) -> None:
    found = list(commands(PAGES / page))
    assert found
    for words in found:
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"anodiff {' '.join(words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(PAGES.glob("*.md"))], ids=lambda page: page.name)
def test_every_option_that_a_page_names_is_one_of_its_job(page: Path) -> None:
    for piece in pieces(page.read_text(encoding="utf-8"), "anodiff "):
        job = piece.split()[1]
        if job in JOBS:
            command = command_of(job)
            options = [each for one in (command, *getattr(command, "commands", {}).values()) for each in one.params]
            known = {name for each in options for name in (*each.opts, *each.secondary_opts)}
            assert options_in(piece) <= known | {"--help"}, piece
        else:
            assert job in ("JOB", "--help", "--version"), piece


def test_every_benchmark_that_a_page_names_is_there_with_its_options() -> None:
    shared = [ROOT / "benchmarks" / name for name in ("quality/runner.py", "speed/side_by_side.py")]
    found = 0
    for page in (ROOT / "README.md", *PAGES.glob("*.md"), *ROOT.glob("benchmarks/*/*.md")):
        for piece in pieces(page.read_text(encoding="utf-8"), "python -m benchmarks"):
            name = piece.split()[2]
            folder = ROOT / name.replace(".", "/")
            path = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
            assert path.is_file(), piece
            text = "".join(each.read_text(encoding="utf-8") for each in (path, *shared))
            assert not {option for option in options_in(piece) if f'"{option}"' not in text}, piece
            found += 1
    assert found > 10


def test_every_file_that_the_architecture_names_is_where_it_says() -> None:
    """A second file of a row that is called by its name alone lies in the folder of the first, or of its package."""
    named = 0
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        before: list[Path] = []
        for name in re.findall(r"`([a-z_/0-9]+\.py|[a-z_]+/[a-z_/]*)`", line):
            places = [
                ROOT / name,
                *(above / name for each in before for above in each.parents),
                ROOT / "anodiff" / name,
            ]
            (found, *_) = [place for place in places if place.exists()] or [None]
            assert found is not None, f"{name} in: {line}"
            before.append(found)
            named += 1
    assert named > 60


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
    text = "`anodiff score M\n  --of [--two N]`; `score --no`\n```\nanodiff denoise M --a|--b  # --c\n```\n"
    assert [options_in(each) for each in pieces(text, "anodiff ")] == [{"--a", "--b"}, {"--of", "--two"}]
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
