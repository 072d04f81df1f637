"""The command line: `anodiff JOB ...`. A job's module is imported only when it is run, so that help is instant.

Exit codes: 0 all is well, 1 some inputs failed (their rows say why), 2 unusable arguments, data or disk (one line says
why), 130 interrupted (the same command goes on from there).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

JOBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "synthetic normals -> train -> score -> evaluate -> report, in a few minutes"),
    "train": ("train", "learn what normal images look like; writes one model file"),
    "calibrate": ("calibrate", "fit a preset's threshold and maps on normal images; writes a new model file"),
    "tune": ("tune", "choose a detector's settings on normal images alone; writes a new model file"),
    "score": ("score", "scores, calibrated decisions, maps, heatmaps and a report for new images"),
    "watch": ("watch", "a camera, stream or recording scored as it comes; events as JSON lines"),
    "evaluate": ("evaluate", "score a labelled data set and measure: metrics.json and a report"),
    "metrics": ("metrics", "measure a folder of maps, made by any software, against a folder of masks"),
    "compare": ("compare", "two measured runs in pairs: differences with intervals, images that changed sides"),
    "split": ("split", "divide a data set by whole groups (patients, parts); writes the split as a CSV"),
    "generate": ("generate", "new images of what a model has learnt"),
    "denoise": ("denoise", "noise of known or estimated level taken off images"),
    "inpaint": ("inpaint", "fill holes, or what is anomalous, with what the model expects there"),
    "restore": ("restore", "undo a known loss: low resolution, blur, missing slices or k-space lines"),
    "edit": ("edit", "images re-imagined from a noise level down, as a whole or inside a mask"),
    "stylize": ("stylize", "content kept, style taken from another model or one image"),
    "likelihood": ("likelihood", "bits per dimension of images under a model"),
    "export": ("export", "a model for other programs: ONNX, torch.export or a MONAI bundle"),
    "import": ("import_", "bring in the weights of a MONAI or diffusers U-Net"),
    "info": ("info", "what a model file holds: recipe, calibrations, provenance"),
    "configs": ("configs", "list, show or copy the ready recipes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one job; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        import anodiff

        print(f"anodiff {anodiff.__version__}")
        return 0
    if words[0] not in JOBS:
        return _complain(f"unknown job {words[0]!r}{_nearest(words[0])}; anodiff --help lists the jobs")
    return run_job_command(words[0], words[1:])


def help_text() -> str:
    """The list of jobs."""
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in JOBS.items())
    return (
        "anodiff: anomaly detection with diffusion models, when normal examples are all you have\n\n"
        "Usage: anodiff JOB [ARGUMENTS]\n\n"
        f"Jobs:\n{jobs}\n\n"
        "anodiff JOB --help shows a job's options with examples; anodiff --version shows the version.\n"
        "Exit codes: 0 all is well, 1 some inputs failed, 2 unusable arguments, 130 interrupted."
    )


def run_job_command(name: str, arguments: Sequence[str]) -> int:
    """Imports the job's module, parses its arguments and runs it; expected errors become one line and exit code 2."""
    import typer

    from anodiff.errors import AnodiffError

    module = import_module(f"anodiff.pipelines.{JOBS[name][0]}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP_OPTIONS)
        app.command(name)(module.main)
    try:
        code = typer.main.get_command(app).main(list(arguments), prog_name=f"anodiff {name}", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except AnodiffError as error:
        return _complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("anodiff: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return _misused(error)
    return code if isinstance(code, int) else 0


HELP_OPTIONS = {"help_option_names": ["--help", "-h"]}


def _misused(error: Exception) -> int:
    """Shows an error in the arguments as the parser does, less the words by which its validator tells its own.

    Such an error is known by its ``show``, since typer has it from click or brings its own click along, by its version.
    """
    if not hasattr(error, "show"):
        raise error
    if isinstance(message := getattr(error, "message", None), str):
        error.message = message.removeprefix("Value error, ")  # type: ignore[attr-defined]
    error.show()
    return int(getattr(error, "exit_code", 2))


def _complain(message: str) -> int:
    print(f"anodiff: {message}", file=sys.stderr)
    return 2


def _nearest(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, JOBS, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


if __name__ == "__main__":
    sys.exit(main())
