"""Batches as Ray Data brings them, without Ray: scores of files and arrays, and broken items among them."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from anodiff.errors import ConfigError, ModelFileError
from anodiff.integrations.ray import AnomalyPredictor


@pytest.fixture(scope="module")
def predictor(model_file: Path) -> AnomalyPredictor:
    return AnomalyPredictor(model_file, device="cpu", network_batch=4)


def discs(count: int) -> np.ndarray:
    """uint8 (N, 20, 24), each with a bright spot of another size."""
    y, x = np.mgrid[:20, :24]
    noise = np.random.default_rng(0).normal(0, 4, (count, 20, 24))
    spots = np.stack([90 * (np.hypot(y - 7, x - 14) < n) for n in range(count)])
    return (100 * (np.hypot(y - 9.5, x - 11.5) < 9) + noise + spots).clip(0, 255).astype(np.uint8)


def files(folder: Path, images: np.ndarray) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{n}.png") for n in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_nothing_heavy_and_no_ray_is_imported() -> None:
    code = (
        "import sys, anodiff.integrations.ray\n"
        "print([name for name in ('ray', 'torch', 'monai', 'pandas', 'nibabel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_scored_as_by_the_command_line(predictor: AnomalyPredictor, model_file: Path, tmp_path: Path) -> None:
    from anodiff.pipelines import score

    paths = files(tmp_path / "in", discs(5))
    score.run(model_file, paths, tmp_path / "out", device="cpu", quiet=True, heatmaps=False,
              overrides=["engine.network_batch=4"])  # fmt: skip
    with (tmp_path / "out" / "scores.csv").open() as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    found = predictor({"path": np.array(paths), "patient": np.arange(5)})
    assert found["patient"].tolist() == [0, 1, 2, 3, 4]
    for n, path in enumerate(paths):
        assert np.float32(found["score"][n]) == np.float32(rows[path]["score"])
        assert found["p_value"][n] == float(rows[path]["p_value"])
        assert str(found["is_anomalous"][n]).lower() == rows[path]["is_anomalous"]
        assert found["error"][n] == ""
    assert found["is_anomalous"].dtype == object
    assert set(found["is_anomalous"]) == {True, False}


def test_arrays_give_the_scores_of_their_files_whatever_their_mates_and_sizes(
    predictor: AnomalyPredictor, tmp_path: Path
) -> None:
    images = discs(5)
    by_path = predictor({"path": files(tmp_path / "in", images)})["score"]
    assert np.array_equal(predictor({"image": images})["score"], by_path)
    unlike = np.empty(3, dtype=object)
    unlike[:] = [images[4], np.pad(images[1], 3), images[2][..., None]]
    alone = predictor({"image": unlike})["score"]
    assert alone[0] == by_path[4]
    assert alone[2] == by_path[2]
    assert np.isfinite(alone[1])


def test_a_broken_item_never_stops_a_batch(predictor: AnomalyPredictor, tmp_path: Path) -> None:
    images = discs(3)
    paths = files(tmp_path / "in", images)
    (tmp_path / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:60])
    batch = [paths[0], str(tmp_path / "cut.png"), str(tmp_path / "gone.png"), paths[2], str(tmp_path / "no.nii.gz")]
    found = predictor({"path": batch})
    whole = predictor({"path": paths})["score"]
    assert found["score"][[0, 3]].tolist() == whole[[0, 2]].tolist()
    assert np.isnan(found["score"][[1, 2, 4]]).all()
    assert [found["is_anomalous"][n] for n in (1, 2, 4)] == [None] * 3
    for n, name in ((1, "cut.png"), (2, "gone.png"), (4, "no.nii.gz")):
        assert name in found["error"][n]
        assert "expected" in found["error"][n]
        assert "\n" not in found["error"][n]
    mixed = np.empty(3, dtype=object)
    mixed[:] = [images[0], np.full((20, 24), np.nan), np.zeros((2, 3, 4, 5))]
    broken = predictor({"image": mixed})
    assert broken["score"][0] == whole[0]
    assert "finite values" in broken["error"][1]
    assert "found the shape (2, 3, 4, 5)" in broken["error"][2]
    assert predictor({"path": []})["score"].shape == (0,)


def test_one_that_spoils_the_batch_is_found_out(predictor: AnomalyPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails only on the device fails alone: the others are scored again, one by one."""
    detector = predictor._arrays.detector()
    before, images = type(detector).__call__, discs(3)
    whole = predictor({"image": images})["score"]
    spoilt = predictor._arrays.model.get().preprocessor(predictor._arrays.raw(images[1], "")).image

    def fails(self: Any, batch: Any, inside: Any) -> Any:
        if any(bool((one == spoilt).all()) for one in batch):
            raise RuntimeError("device\nside")
        return before(self, batch, inside)

    monkeypatch.setattr(type(detector), "__call__", fails)
    found = predictor({"image": images})
    assert found["error"].tolist() == ["", "RuntimeError: device side", ""]
    assert found["score"][[0, 2]].tolist() == whole[[0, 2]].tolist()


def test_volumes_are_scored_by_path(predictor: AnomalyPredictor, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 9, (16, 16, 4)).clip(0, 255).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii.gz")
    (path,) = files(tmp_path / "in", discs(1))
    found = predictor({"path": [str(tmp_path / "v.nii.gz"), path]})
    assert found["error"].tolist() == ["", ""]
    assert np.isfinite(found["score"]).all()
    assert np.isnan(found["p_value"][0])
    assert found["is_anomalous"][0] is None


def test_a_volume_of_a_modality_that_the_model_does_not_know_has_no_score(raw_model: Path, tmp_path: Path) -> None:
    """As by the command line: the normals were MR by their names."""
    from anodiff.anomaly.volume_fitting import NormalVolume, fit_volumes
    from anodiff.anomaly.volumes import VolumeDetector
    from anodiff.config import VolumeConfig
    from anodiff.data.volumes import read_volume
    from anodiff.model import load

    values = np.random.default_rng(0).normal(100, 9, (5, 20, 24, 3)).clip(0, 255).astype(np.uint8)
    names = [f"sub-0{n}_T1w.nii" for n in range(4)]
    for name, each in zip([*names, "sub-05_ct.nii"], values, strict=True):
        nibabel.save(nibabel.Nifti1Image(each, np.eye(4)), tmp_path / name)
    model = load(raw_model)
    model.config = model.config.model_copy(update={"volume": VolumeConfig(statistics="slice")})
    detector = VolumeDetector(model, model.config.preset, device="cpu")
    normals = [NormalVolume(partial(read_volume, tmp_path / name), name) for name in names]
    calibration, failed = fit_volumes(detector, normals)
    assert not failed
    model.calibrations[detector.name] = calibration
    model.save(tmp_path / "volumes.safetensors")
    predictor = AnomalyPredictor(tmp_path / "volumes.safetensors", device="cpu")
    found = predictor({"path": [str(tmp_path / "sub-05_ct.nii"), str(tmp_path / names[0])]})
    assert "expected modality MR like the model's normal volumes, found CT" in found["error"][0]
    assert np.isnan(found["score"][0])
    assert found["error"][1] == ""
    assert np.isfinite(found["p_value"][1])


def test_what_is_wrong_with_the_run_is_raised(predictor: AnomalyPredictor, raw_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        AnomalyPredictor(tmp_path / "gone.safetensors", device="cpu")
    with pytest.raises(ConfigError):
        AnomalyPredictor(raw_model, "no-such-preset", device="cpu")
    with pytest.raises(ConfigError, match="expected a column of image or path, found file"):
        predictor({"file": ["a"]})
    plain = AnomalyPredictor(raw_model, device="cpu")({"image": discs(2)})
    assert np.isnan(plain["p_value"]).all()
    assert plain["is_anomalous"].tolist() == [None, None]
    again = pickle.loads(pickle.dumps(predictor))
    assert np.array_equal(again({"image": discs(2)})["score"], predictor({"image": discs(2)})["score"])
