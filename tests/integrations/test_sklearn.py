"""The estimator keeps scikit-learn's contract, and its numbers are those of the detector."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from anodiff.errors import ModelFileError
from anodiff.integrations.arrays import ArrayModel
from anodiff.integrations.sklearn import DiffusionAnomalyDetector

from .conftest import one_thread, pictures, tiny_model

NORMALS, NEW, LESIONS = pictures(48), pictures(10, 8), pictures(10, 9, lesion=True)
#: checks of scikit-learn that do not apply to images scored by a network, each with the reason
NOT_APPLICABLE = {"check_array_api_input": "arrays become tensors of the model's device; scikit-learn skips it itself"}


@pytest.fixture(scope="module")
def fitted(raw_model: Path) -> DiffusionAnomalyDetector:
    with one_thread():
        return DiffusionAnomalyDetector(raw_model, device="cpu").fit(NORMALS)


def test_scikit_learns_own_checks(tmp_path: Path) -> None:
    """On its data of few columns: each row is an image of one line."""
    path = tmp_path / "line.safetensors"
    network = {"channels": [8], "blocks": 1, "attention": [False], "stem": 2, "head_channels": 8}
    tiny_model(
        preprocess={"size": [8, 8], "resize": "stretch"},
        network=network,
        polarity="both",
        preset="dae",
        presets={"dae": {"standardise": "none", "smooth_px": 0.0}},
        engine={"network_batch": 32},
    ).save(path)
    estimator = DiffusionAnomalyDetector(path, value_range=(-20.0, 20.0), rate=0.2, device="cpu", batch_size=512)
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}
    assert not failed
    assert {each["check_name"] for each in found if each["status"] == "skipped"} <= NOT_APPLICABLE.keys()
    assert sum(each["status"] == "passed" for each in found) > 35


def test_its_numbers_are_those_of_the_detector(fitted: DiffusionAnomalyDetector, raw_model: Path) -> None:
    arrays = ArrayModel(raw_model, device="cpu")
    arrays.detector().calibration = fitted.calibration_
    expected = arrays.images(list(NEW))
    np.testing.assert_array_equal(fitted.score_samples(NEW), [-each.score for each in expected])
    np.testing.assert_array_equal(fitted.anomaly_maps(NEW), [each.map for each in expected])
    np.testing.assert_array_equal(fitted.p_values(NEW), [each.p_value for each in expected])
    np.testing.assert_array_equal(fitted.predict(NEW) == -1, [each.is_anomalous for each in expected])
    np.testing.assert_array_equal(fitted.predict(NEW) == -1, fitted.p_values(NEW) <= fitted.rate)


def test_higher_scores_are_more_normal(fitted: DiffusionAnomalyDetector) -> None:
    scores = fitted.score_samples(np.concatenate([NEW, LESIONS]))
    assert roc_auc_score([1] * len(NEW) + [0] * len(LESIONS), scores) > 0.9
    assert (fitted.predict(LESIONS) == -1).mean() > (fitted.predict(NEW) == -1).mean()


def test_rows_and_images_are_the_same(fitted: DiffusionAnomalyDetector, raw_model: Path) -> None:
    rows = DiffusionAnomalyDetector(raw_model, image_shape=(20, 24), device="cpu")
    rows.fit(NORMALS.reshape(48, -1))
    np.testing.assert_array_equal(rows.score_samples(NEW.reshape(10, -1)), fitted.score_samples(NEW))
    np.testing.assert_array_equal(fitted.score_samples(NEW[..., None]), fitted.score_samples(NEW))
    assert rows.n_features_in_ == fitted.n_features_in_ == 480
    with pytest.raises(ValueError, match="rows of 480 pixels"):
        DiffusionAnomalyDetector(raw_model, image_shape=(20, 24)).fit(np.zeros((30, 12)))
    with pytest.raises(ValueError, match="480 pixels as in fit, found 361"):
        fitted.predict(np.zeros((2, 19, 19)))


def test_it_works_in_a_pipeline(fitted: DiffusionAnomalyDetector, raw_model: Path) -> None:
    pipeline = make_pipeline(FunctionTransformer(lambda x: x * 1), clone(fitted))
    np.testing.assert_array_equal(pipeline.fit(NORMALS).predict(LESIONS), fitted.predict(LESIONS))
    pipeline.set_params(diffusionanomalydetector__rate=0.3)
    assert (pipeline.fit(NORMALS).predict(NEW) == -1).sum() >= (fitted.predict(NEW) == -1).sum()


def test_a_pickle_is_small_and_knows_its_model(fitted: DiffusionAnomalyDetector, tmp_path: Path) -> None:
    data = pickle.dumps(fitted)
    assert len(data) < Path(fitted.model).stat().st_size / 2
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.score_samples(LESIONS), fitted.score_samples(LESIONS))
    path = tmp_path / "m.safetensors"
    shutil.copy(fitted.model, path)
    data = pickle.dumps(DiffusionAnomalyDetector(path, device="cpu").fit(NORMALS))
    tiny_model(description="another").save(path)
    with pytest.raises(ValueError, match="found another") as raised:
        pickle.loads(data).predict(NEW)
    assert isinstance(raised.value.__cause__, ModelFileError)


def test_a_calibrated_model_needs_no_fit(model_file: Path, raw_model: Path) -> None:
    ready = DiffusionAnomalyDetector(model_file, prefit=True, device="cpu")
    expected = ArrayModel(model_file, device="cpu").images(list(LESIONS))
    np.testing.assert_array_equal(ready.predict(LESIONS) == -1, [each.is_anomalous for each in expected])
    assert ready.fit(NEW) is ready
    with pytest.raises(NotFittedError, match="not calibrated"):
        DiffusionAnomalyDetector(raw_model, prefit=True, device="cpu").predict(NEW)


def test_without_enough_normals_there_are_scores_and_no_decision(raw_model: Path) -> None:
    few = DiffusionAnomalyDetector(raw_model, rate=0.001, device="cpu").fit(NORMALS[:12])
    assert np.isfinite(few.score_samples(NEW)).all()
    with pytest.raises(ValueError, match=r"enough normals for a threshold at rate 0\.001"):
        few.predict(NEW)


def test_what_cannot_be_used_is_a_value_error(raw_model: Path) -> None:
    with pytest.raises(ValueError, match="path of a model file"):
        DiffusionAnomalyDetector().fit(NORMALS)
    with pytest.raises(ValueError, match="n_samples = 1"):
        DiffusionAnomalyDetector(raw_model, device="cpu").fit(NORMALS[:1])
    with pytest.raises(ValueError, match="an array of shape"):
        DiffusionAnomalyDetector(raw_model).fit(np.zeros((4, 3, 3, 1, 1)))
    with pytest.raises(ValueError, match="no spread"):
        DiffusionAnomalyDetector(raw_model, device="cpu").fit(np.zeros((4, 20, 24)))
    with pytest.raises(ModelFileError, match="no such file"):
        DiffusionAnomalyDetector("missing.safetensors").fit(NORMALS)
