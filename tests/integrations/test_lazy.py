"""A model by its path: read once, in any thread or process, and only the file that was meant."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import anodiff.model
from anodiff.errors import ConfigError, InputError, ModelFileError
from anodiff.integrations.arrays import ArrayModel
from anodiff.integrations.lazy import LazyModel, content_digest


def test_threads_read_a_model_once(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    load = anodiff.model.load
    monkeypatch.setattr(anodiff.model, "load", lambda path: (reads.append(path), load(path))[1])
    lazy = LazyModel(model_file)
    assert not reads
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: lazy.get(), range(8)))
    assert len(reads) == 1
    assert all(each is found[0] for each in found)


def test_it_pickles_as_a_path(model_file: Path) -> None:
    lazy = LazyModel(model_file)
    lazy.get()
    data = pickle.dumps(lazy)
    assert len(data) < 500
    again = pickle.loads(data)
    assert (again.path, again.digest) == (model_file, lazy.digest)
    assert again.get().calibrations.keys() == lazy.get().calibrations.keys()


def test_another_file_in_its_place_is_refused(model_file: Path, raw_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(model_file, path)
    data = pickle.dumps(LazyModel(path))
    shutil.copy(raw_model, path)
    with pytest.raises(ModelFileError, match=f"digest {content_digest(model_file)}, found another"):
        pickle.loads(data).get()


def test_what_is_no_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        LazyModel(tmp_path / "missing.safetensors")
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(ModelFileError, match="pickle"):
        LazyModel(tmp_path / "weights.pt")


def test_arrays_that_are_no_images_are_refused(model_file: Path) -> None:
    arrays = ArrayModel(model_file, device="cpu")
    for array, message in [
        (np.zeros(5), "an image"),
        (np.zeros((0, 4)), "an image"),
        (np.full((20, 24), np.nan), "finite"),
        (np.array([["a"] * 9] * 9), "numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            arrays.images([array])
    with pytest.raises(ConfigError, match="low below high"):
        ArrayModel(model_file, value_range=(3.0, 1.0))
    with pytest.raises(InputError, match="mask of"):
        arrays.inpaint(np.zeros((20, 24)), np.zeros((4, 4), dtype=bool))
