"""anodiff export: a model for other programs, as ONNX, torch.export or a MONAI bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anodiff.pipelines.common import Model, new_file, say

Format = Literal["onnx", "torch", "monai-bundle"]
#: largest difference from the model's own denoiser that goes without a note
EXPECTED_DIFFERENCE = 1e-4


def main(
    model: Model,
    output: Annotated[Path, typer.Option(help="The new file; of a bundle the new folder.")],
    format_: Annotated[Format, typer.Option("--format", help="What to write.")] = "onnx",
) -> None:
    """Write a model for other programs.

    onnx and torch hold the denoiser D(x, sigma) for images as the model sees them, in batches of any size; the detector
    around it stays here. A monai-bundle holds the whole model and runs with `python -m monai.bundle run`.

    \b
    Examples:
      anodiff export model.safetensors --format onnx --output denoiser.onnx
      anodiff export model.safetensors --format torch --output denoiser.pt2
      anodiff export model.safetensors --format monai-bundle --output brain_bundle
    """
    run(model, output, format_)


def run(model_path: Path, output: Path, format_: Format, *, quiet: bool = False) -> None:
    """Exports a model file. Errors are AnodiffErrors; nothing is written over."""
    from anodiff.integrations.bundle import export_bundle
    from anodiff.integrations.export import export_onnx, export_torch
    from anodiff.model import load

    model = load(model_path)
    if format_ == "monai-bundle":
        folder = export_bundle(model, output)
        command = f"cd {folder} && python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS"
        say(f"wrote {folder}; run it with: {command}", quiet)
        return
    made = {"onnx": export_onnx, "torch": export_torch}[format_](model, new_file(output))
    if made.difference is None:
        say(f"wrote {made.path}, not compared with the model (onnxruntime is not installed)", quiet)
        return
    say(f"wrote {made.path}; largest difference from the model's denoiser {made.difference:.1g}", quiet)
    if made.difference > EXPECTED_DIFFERENCE:
        say(f"note: expected a difference of at most {EXPECTED_DIFFERENCE:g}", quiet)
