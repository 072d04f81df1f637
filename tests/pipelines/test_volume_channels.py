"""`anodiff score` of a folder of subjects with a model of named channels, from the command line's point of view."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import torch

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.pipelines import score


def test_subjects_are_scored_and_one_without_a_channel_is_a_row_with_its_error(tmp_path: Path) -> None:
    """Of a model whose estimate is 0 the map is the size of the channels' mean: of these two, and no other file."""
    config = parse_config(
        {
            "name": "two", "preset": "one-step",
            "presets": {"one-step": {"smooth_px": 0.0, "standardise": "none", "foreground": False, "polarity": "both"}},
            "preprocess": {"channels": 2, "size": [8, 8], "intensity": {"kind": "unit_range"}, "value_range": [-1, 1]},
            "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
            "volume": {"orientation": "RAS", "min_foreground": 0.0},
            "diffusion": {"prediction": "x0"},
        }
    )  # fmt: skip
    said = {"layout": "brats", "channels": ["t1", "flair"], "channel_files": ["t1", "flair"]}
    torch.manual_seed(0)
    DiffusionModel(config, build_denoiser(config), provenance=said).save(tmp_path / "m.safetensors")
    generator = np.random.default_rng(0)
    for subject, names in (("A", ("t1", "flair", "seg", "t2")), ("B", ("flair", "t2"))):
        for name in names:
            (tmp_path / f"data/{subject}").mkdir(parents=True, exist_ok=True)
            values = generator.choice([-0.5, 0.5], (8, 8, 4)) if name in said["channels"] else np.ones((8, 8, 4))
            image = nibabel.Nifti1Image(values.astype(np.float32), np.eye(4))
            nibabel.save(image, tmp_path / f"data/{subject}/{subject}_{name}.nii.gz")
    summary = score.run(
        tmp_path / "m.safetensors", [str(tmp_path / "data")], tmp_path / "out", device="cpu", quiet=True
    )
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert [(row["id"], row["status"]) for row in rows] == [("A__A", "ok"), ("B", "failed")]
    assert "B/t1: expected a volume, found no such file" in rows[1]["error"]
    assert summary.exit_code == 1
    found = nibabel.load(tmp_path / "out/maps/A__A.nii.gz").get_fdata()
    t1, flair = (nibabel.load(tmp_path / f"data/A/A_{name}.nii.gz").get_fdata() for name in ("t1", "flair"))
    np.testing.assert_allclose(found, np.abs(t1 + flair) / 2, atol=1e-6)
    skipped = {Path(row["path"]).name for row in csv.DictReader((tmp_path / "out/skipped.csv").open())}
    assert skipped == {"A_seg.nii.gz", "A_t2.nii.gz", "B_t2.nii.gz"}
