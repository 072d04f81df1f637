"""A bundle is what MONAI's workflows expect, and scores as the detector does."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from anodiff.errors import ModelFileError, StorageError
from anodiff.integrations.arrays import ArrayModel
from anodiff.integrations.bundle import export_bundle, find, with_foregrounds
from anodiff.model import load

from .conftest import pictures, save_volume, score_job, tiny_model

#: required keys of the schema that metadata.json names
REQUIRED = (
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
    "task", "description", "authors", "copyright", "network_data_format",
)  # fmt: skip
AFFINE = np.diag([0.8, 0.9, 3.0, 1.0])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume, a PNG in a folder of its own, and a file that is broken."""
    folder = tmp_path_factory.mktemp("scans")
    volume = np.ascontiguousarray(pictures(4, 6).transpose(2, 1, 0))
    nib.save(nib.Nifti1Image(volume, AFFINE), folder / "a.nii.gz")
    (folder / "sub").mkdir()
    Image.fromarray(pictures(1, 5)[0].clip(0, 255).astype(np.uint8)).save(folder / "sub" / "b.png")
    (folder / "c.nii").write_bytes(b"nothing of the kind")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def bundle(model_file: Path, tmp_path: Path) -> Path:
    return export_bundle(load(model_file), tmp_path / "bundle")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_results(output: Path, scans: Path, model_file: Path) -> None:
    arrays = ArrayModel(model_file, device="cpu")
    image, broken, volume = None, None, None
    for row in rows_of(output / "scores.csv"):
        name = Path(row["path"]).name
        if name == "a.nii.gz":
            volume = row
        elif name == "b.png":
            image = row
        else:
            broken = row
    assert volume is not None
    assert image is not None
    assert broken is not None
    data = np.asarray(nib.load(scans / "a.nii.gz").dataobj)
    expected = arrays.volume(data[None], AFFINE)
    found = nib.load(output / "a_anomaly.nii.gz")
    np.testing.assert_allclose(found.get_fdata(), expected.map, atol=1e-4)
    np.testing.assert_allclose(found.affine, AFFINE)
    assert found.get_data_dtype() == np.float32
    assert float(volume["score"]) == pytest.approx(expected.score, rel=1e-4)
    (expected_image,) = arrays.images([np.asarray(Image.open(scans / "sub" / "b.png"))])
    found = nib.load(output / "sub" / "b_anomaly.nii.gz").get_fdata().squeeze()
    np.testing.assert_allclose(found.T, expected_image.map, atol=1e-4)
    assert float(image["p_value"]) == pytest.approx(expected_image.p_value)
    assert (broken["status"], broken["score"]) == ("failed", "")
    assert broken["error"]


def test_monai_finds_all_it_requires(bundle: Path, scans: Path, model_file: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        str(bundle / "configs/inference.json"),
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(scans),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    check_results(tmp_path / "out", scans, model_file)


def test_metadata_says_what_the_schema_asks_for(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert set(REQUIRED) <= metadata.keys()
    assert metadata["version"] in metadata["changelog"]
    for part in ("inputs", "outputs"):
        for each in metadata["network_data_format"][part].values():
            assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
                    "channel_def"} <= each.keys()  # fmt: skip
            assert len(each["channel_def"]) == each["num_channels"]
    text = (bundle / "docs/README.md").read_text()
    assert "monai.bundle run" in text
    assert "0.05 of normal inputs" in text


def test_the_weights_are_the_model_file(bundle: Path, model_file: Path) -> None:
    assert (bundle / "models/model.safetensors").read_bytes() == model_file.read_bytes()


def test_a_bundle_runs_as_a_command(bundle: Path, scans: Path, model_file: Path, tmp_path: Path) -> None:
    """In a process and a folder of its own, as on a new machine."""
    pytest.importorskip("fire", reason="the extra [bundle] is not installed")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--bundle_root", ".", "--dataset_dir", str(scans), "--output_dir", str(tmp_path / "maps")]
    command += ["--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3 inputs, 1 failed" in done.stdout
    check_results(tmp_path / "maps", scans, model_file)


def test_what_cannot_be_exported_is_refused(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="new or empty folder"):
        export_bundle(load(model_file), tmp_path / "full")
    with pytest.raises(ModelFileError, match="loaded from a file"):
        export_bundle(tiny_model(), tmp_path / "other")


def test_foregrounds_are_no_inputs_and_lie_beside_theirs(tmp_path: Path) -> None:
    names = ("p.png", "s/brainmask.nii", "s/z.nii", "x.nii.gz", "x_bet.nii.gz", "x_brain_mask.nii.gz", "y_brain.nii.gz")
    (tmp_path / "s").mkdir()
    for name in names:
        (tmp_path / name).touch()
    paths = find(tmp_path)
    inputs = ["p.png", "s/z.nii", "x.nii.gz", "x_bet.nii.gz", "y_brain.nii.gz"]
    assert paths == [str(tmp_path / name) for name in inputs]

    def beside(foreground: str) -> dict[str, str]:
        found = with_foregrounds(paths, foreground)
        return {
            os.path.relpath(each["image"], tmp_path): each["foreground"]
            and os.path.relpath(each["foreground"], tmp_path)
            for each in found
        }

    # x_bet is another volume of the subject x by its name, until a pattern says otherwise
    named = {"s/z.nii": "s/brainmask.nii"} | dict.fromkeys(("x.nii.gz", "x_bet.nii.gz"), "x_brain_mask.nii.gz")
    assert beside("") == {name: named.get(name, "") for name in inputs}
    assert beside("none") == dict.fromkeys(inputs, "")
    assert beside("{stem}_bet.nii.gz")["x.nii.gz"] == "x_bet.nii.gz"
    assert "x_bet.nii.gz" not in beside("{stem}_bet.nii.gz")


def test_a_brain_mask_counts_as_it_does_for_the_scoring_job(
    raw_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored in another order of voxels than its scan: where they are counts."""
    scans, bundle = tmp_path / "scans", export_bundle(load(raw_model), tmp_path / "bundle")
    scans.mkdir()
    scan = save_volume(scans / "x.nii.gz", np.ascontiguousarray(pictures(2, 6).transpose(2, 1, 0)), AFFINE)
    mask = np.zeros((24, 20, 2), dtype=np.uint8)
    mask[5:16, 4:17] = 1
    turned = AFFINE @ np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = 23 * AFFINE[0, 0]
    save_volume(scans / "x_brain_mask.nii.gz", mask[::-1], turned)
    found = {}
    for option in ("", "none"):
        workflow = ConfigWorkflow(
            str(bundle / "configs/inference.json"),
            workflow_type="infer",
            bundle_root=str(bundle),
            dataset_dir=str(scans),
            output_dir=str(tmp_path / f"out{option}"),
            device="cpu",
            foreground=option,
        )
        workflow.initialize()
        workflow.run()
        (row,) = rows_of(tmp_path / f"out{option}" / "scores.csv")
        found[option] = float(row["score"])
    assert capsys.readouterr().out.count("the foreground of 1 of 1 inputs is given") == 1
    assert found[""] == pytest.approx(float(score_job(raw_model, scan, tmp_path / "job").row["score"]), rel=1e-4)
    assert found["none"] != pytest.approx(found[""], rel=1e-2)
