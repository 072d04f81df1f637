"""The standard scale through the jobs: training finds and keeps it, scoring uses it, imports have to bring it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from anodiff.data.histogram import standard_scale
from anodiff.data.preprocess import Preprocessor
from anodiff.data.readers import read_image
from anodiff.errors import ConfigError
from anodiff.model import load
from anodiff.pipelines import import_, train, volume_scoring

NYUL = {"kind": "nyul", "landmarks": [25, 50, 75]}


def recipe(folder: Path, tiny: dict[str, Any], **extra: Any) -> Path:
    values = tiny | {"preset": "one-step", "augment": {}, "preprocess": {"size": [16, 16], "intensity": NYUL}} | extra
    values["training"] = tiny["training"] | {"images": 8, "validate_every_images": 8, "holdout": 0.3}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_scale_is_of_the_images_learnt_from_alone(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "normals"
    folder.mkdir()
    for n in range(8):
        pixels = np.random.default_rng(n).gamma(1.0 + n, 20.0, (16, 16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    path, _ = train.run(
        str(recipe(tmp_path, tiny_recipe)), folder, tmp_path / "run", overrides=[], device="cpu", quiet=True
    )
    model = load(path)
    split = [line.split(",") for line in (tmp_path / "run" / "split.csv").read_text().splitlines()[1:]]
    learnt = [row[0] for row in split if row[2] == "train"]
    assert 0 < len(learnt) < 8
    prepare = Preprocessor(model.config.preprocess)
    expected = standard_scale([prepare.landmarks(read_image(each, max_pixels=10_000)) for each in learnt])
    np.testing.assert_allclose(model.config.preprocess.intensity.standard, expected, atol=1e-12)
    # what the calibration was made with is what scoring does
    model.calibrations["one-step"].require_preprocess(model.config.preprocess.model_dump(mode="json"))


def test_a_model_of_volumes_scores_as_it_was_trained(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "normals"
    folder.mkdir()
    for n in range(3):
        values = np.random.default_rng(n).gamma(2.0 + n, 20.0, (16, 16, 4)).astype(np.float32)
        nib.Nifti1Image(values, np.eye(4)).to_filename(folder / f"{n}.nii")
    written = recipe(tmp_path, tiny_recipe, volume={"orientation": "RAS"})
    path, failed = train.run(str(written), folder, tmp_path / "run", overrides=[], device="cpu", quiet=True)
    assert not failed
    assert load(path).config.preprocess.intensity.standard is not None
    summary = volume_scoring.run(path, [str(folder / "0.nii")], tmp_path / "out", device="cpu", quiet=True)
    assert summary.failed == 0
    assert (tmp_path / "out" / "maps" / "0.nii.gz").is_file()


def test_weights_without_their_scale_are_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "foreign.yaml"
    values = {"name": "x", "network": {"kind": "monai"}, "preprocess": {"intensity": NYUL}}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"expected preprocess\.intensity\.standard, found none"):
        import_.main(tmp_path / "weights.pt", str(path), tmp_path / "out.safetensors")
