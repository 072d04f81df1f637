"""The command line: instant help, one line for each mistake, exit codes."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import pytest

import anodiff as library
from anodiff.errors import ConfigError
from anodiff.pipelines import cli

Run = Callable[..., int]


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from anodiff.pipelines.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'typer', 'rich', 'pandas', 'pydantic', 'matplotlib', 'av'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or code)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert all(name in done.stdout for name in cli.JOBS)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= 0.3  # processor time, which other programs on the machine do not stretch


@pytest.mark.parametrize("job", list(cli.JOBS))
def test_every_job_shows_examples(anodiff: Run, job: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff(job, "--help") == 0
    text = capfd.readouterr().out
    assert "Examples:\n" in text
    assert f"anodiff {job}" in text.split("Examples:")[1]


def test_mistyped_options_are_told_in_plain_words(anodiff: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff("export", "m.safetensors", "--output", "o", "--format", "torh") == 2
    said = capfd.readouterr().err
    assert "'torh' is not one of 'onnx', 'torch', 'monai-bundle'" in said
    assert "Value error" not in said
    assert anodiff("score", "m.safetensors", "in", "--output", "o", "--max-memory", "-1") == 2
    said = capfd.readouterr().err
    assert said == "anodiff: --max-memory: expected GiB above 0, found -1\n"


#: jobs that run no network over inputs: they read, measure or copy what others have made
NO_NETWORK = {"metrics", "compare", "split", "import", "export", "info", "configs"}


@pytest.mark.parametrize("job", sorted(cli.JOBS.keys() - NO_NETWORK))
def test_jobs_that_compute_take_the_common_options(anodiff: Run, job: str, capfd: pytest.CaptureFixture[str]) -> None:
    anodiff(job, "--help")
    text = capfd.readouterr().out
    for option in ("--device", "--precision", "--batch-size", "--seed", "--set", "--output"):
        assert option in text, option


def test_a_job_that_takes_a_device_is_one_that_computes(anodiff: Run, capfd: pytest.CaptureFixture[str]) -> None:
    for job in cli.JOBS.keys() & NO_NETWORK:
        anodiff(job, "--help")
        assert "--device" not in capfd.readouterr().out, job


def test_top_level(anodiff: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert anodiff("--version") == 0
    assert library.__version__ in capfd.readouterr().out
    assert anodiff("scroe") == 2
    error = capfd.readouterr().err
    assert "did you mean 'score'" in error
    assert error.count("\n") == 1


def test_wrong_arguments_exit_with_2(anodiff: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert anodiff("info") == 2
    assert anodiff("info", "--nonsense") == 2
    assert anodiff("train", "brain_flair", "--output", "x") == 2
    assert "--data" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [(ConfigError("a: expected b,\nfound c"), 2, "anodiff: a: expected b, found c\n"), (KeyboardInterrupt(), 130, "")],
)
def test_what_a_job_raises_becomes_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    text: str,
) -> None:
    def main() -> None:
        raise raised

    monkeypatch.setattr(import_module("anodiff.pipelines.info"), "main", main)
    assert cli.main(["info"]) == code
    error = capfd.readouterr().err
    assert error == text or not text


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(import_module("anodiff.pipelines.info"), "main", main)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])
