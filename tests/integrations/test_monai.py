"""MONAI pipelines: the numbers of `anodiff score`, on the grid of the image, in Compose, Invertd and DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    LoadImaged,
    Orientationd,
    Rotate90d,
    SpatialPadd,
)
from PIL import Image

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.readers import RawImage
from anodiff.data.volumes.read import read_volume
from anodiff.errors import ConfigError, InputError
from anodiff.integrations.arrays import ArrayModel
from anodiff.integrations.monai import AnomalyInferer, AnomalyMapd, DenoiseDiffusiond, InpaintDiffusiond
from anodiff.model import load

from .conftest import pictures, tiny_model


def by_hand(model_file: Path, image: np.ndarray) -> tuple[np.ndarray, float]:
    """Map and score as the scoring job makes them."""
    model = load(model_file)
    prepared = model.preprocessor(RawImage(image[:, :, None], float(image.min()), float(image.max()), "float32"))
    result = AnomalyDetector(model, "one-step", device="cpu")(prepared.image[None], prepared.foreground[None])
    return model.preprocessor.back(result.maps[0], prepared.geometry), float(result.scores[0])


def meta(image: np.ndarray, **values: object) -> MetaTensor:
    affine = np.diag([0.5, 0.7, 1.0, 1.0])
    return MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(affine), meta=dict(values))


def test_a_map_is_that_of_the_scoring_job(model_file: Path) -> None:
    image = pictures(1, 5, lesion=True)[0]
    given = meta(image, filename_or_obj="a.png")
    d = AnomalyMapd("image", model_file)({"image": given, "label": 3})
    expected, score = by_hand(model_file, image)
    np.testing.assert_array_equal(d["image_anomaly"][0], expected)
    assert d["image_score"] == score
    assert 0 < d["image_p_value"] <= 1
    assert isinstance(d["image_anomalous"], bool)
    assert d["image"] is given
    assert d["label"] == 3
    assert d["image_anomaly"].meta["filename_or_obj"] == "a.png"
    torch.testing.assert_close(d["image_anomaly"].affine, given.affine)


def test_a_model_with_windows_takes_images_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    model = tiny_model(preprocess={"size": [16, 16], "resize": "none"}, engine={"network_batch": 4, "window": [16, 16]})
    model.save(path)
    image = pictures(1, 5)[0].clip(0, 255).astype(np.uint8)  # 20 x 24
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = AnomalyDetector(model, "one-step", device="cpu")(*model.prepare([tmp_path / "a.png"]))
    d = AnomalyMapd("image", path)({"image": meta(image)})
    np.testing.assert_array_equal(d["image_anomaly"][0], expected.maps[0])
    assert d["image_score"] == float(expected.scores[0])


def test_an_uncalibrated_model_gives_raw_maps(raw_model: Path) -> None:
    d = AnomalyMapd("image", raw_model)({"image": meta(pictures(1)[0])})
    assert {"image", "image_anomaly", "image_score"} == d.keys()


def test_columns_first_images_are_the_same_images(model_file: Path, tmp_path: Path) -> None:
    image = pictures(1, 5)[0].clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = AnomalyMapd("image", model_file)({"image": meta(image.astype(np.float32))})["image_anomaly"]
    load_image = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
    d = AnomalyMapd("image", model_file, rows_first=False)(load_image({"image": tmp_path / "a.png"}))
    assert d["image"].shape == (1, 24, 20)
    np.testing.assert_array_equal(d["image_anomaly"][0].T, expected[0])


def test_invertd_takes_a_map_back_through_earlier_transforms(model_file: Path) -> None:
    image = pictures(1, 5, lesion=True)[0]
    before = Compose([Flipd("image", spatial_axis=1), Rotate90d("image"), SpatialPadd("image", (30, 28))])
    ready = before({"image": meta(image)})
    d = AnomalyMapd("image", model_file)(ready)
    there = d["image_anomaly"]
    assert there.shape == (1, 30, 28)
    assert [each["class"] for each in there.applied_operations] == ["Flip", "Rotate90", "SpatialPad"]
    assert len(d["image"].applied_operations) == 3
    back = Invertd("image_anomaly", before, orig_keys="image")(d)["image_anomaly"]
    assert back.shape == (1, 20, 24)
    np.testing.assert_array_equal(back[0], np.rot90(there[0].numpy()[3:27, 4:24], -1)[:, ::-1])


def test_invertd_takes_restored_images_back(model_file: Path) -> None:
    before = Compose([Flipd("image", spatial_axis=1), Rotate90d("image")])
    ready = before({"image": meta(pictures(1)[0])})
    d = DenoiseDiffusiond("image", model_file, sigma=0.2)(ready)
    assert len(d["image"].applied_operations) == 2
    back = Invertd("image", before)(d)["image"]
    np.testing.assert_array_equal(back[0], np.rot90(d["image"][0].numpy(), -1)[:, ::-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_data_loader_compute_the_same(model_file: Path, workers: int) -> None:
    images = pictures(4, 9)
    transform = Compose([AnomalyMapd("image", model_file)])
    data = Dataset([{"image": meta(image)} for image in images], transform)
    batches = list(DataLoader(data, batch_size=2, num_workers=workers))
    maps = torch.cat([batch["image_anomaly"] for batch in batches])
    for image, found in zip(images, maps, strict=True):
        np.testing.assert_array_equal(found[0], by_hand(model_file, image)[0])
    assert len(decollate_batch(batches[0])) == 2


def test_an_inferer_gives_maps_and_scores_of_a_batch(model_file: Path) -> None:
    images = pictures(3, 4, lesion=True)
    batch = torch.from_numpy(images)[:, None]
    maps, scores = AnomalyInferer(model_file, device="cpu", scores=True)(batch, None)
    for image, found, score in zip(images, maps, scores, strict=True):
        expected = by_hand(model_file, image)
        np.testing.assert_array_equal(found[0], expected[0])
        assert float(score) == pytest.approx(expected[1], rel=1e-6)
    data = Dataset([{"image": meta(image)} for image in images])
    (collated,) = DataLoader(data, batch_size=3)
    again = AnomalyInferer(model_file, device="cpu")(collated["image"])
    np.testing.assert_array_equal(again, maps)
    torch.testing.assert_close(decollate_batch(again)[1].affine, meta(images[0]).affine)
    assert AnomalyInferer(model_file)(batch[:0]).shape == (0, 1, 20, 24)


@pytest.fixture(scope="session")
def volume_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slices, stored in an order and with flips of their own."""
    data = pictures(8, 6).transpose(2, 1, 0)[:, ::-1]
    affine = np.array([[0, -1.1, 0, 4], [0, 0, 2.0, -3], [0.9, 0, 0, 7], [0, 0, 0, 1]])
    path = tmp_path_factory.mktemp("volume") / "v.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), path)
    return path


def test_volumes_are_scored_as_their_files_are(model_file: Path, volume_file: Path) -> None:
    """Also where MONAI has turned them, and turns the map back."""
    detector = VolumeDetector(load(model_file), "one-step", device="cpu")
    volume = read_volume(volume_file)
    prepared = detector.prepare(volume)
    expected = detector(prepared, volume)
    native = prepared.back(expected.map)

    loaded = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": volume_file})
    d = AnomalyMapd("image", model_file)(loaded)
    assert d["image_anomaly"].shape == (1, *native.shape)
    np.testing.assert_allclose(d["image_anomaly"][0], native, atol=1e-5)
    assert d["image_score"] == pytest.approx(expected.score, rel=1e-5)

    turn = Orientationd("image", axcodes="RAS")
    turned = AnomalyMapd("image", model_file)(turn(loaded))
    assert turned["image_score"] == pytest.approx(expected.score, rel=1e-5)
    back = Invertd("image_anomaly", turn, orig_keys="image")(turned)["image_anomaly"]
    np.testing.assert_allclose(back[0], native, atol=1e-5)
    np.testing.assert_allclose(back.affine, nib.load(volume_file).affine, atol=1e-6)


def test_noise_comes_off_in_the_images_own_values(model_file: Path) -> None:
    image = pictures(1, 3)[0]
    found = DenoiseDiffusiond("image", model_file, sigma=0.1)({"image": meta(image)})["image"]
    assert found.shape == (1, 20, 24)
    assert np.corrcoef(found[0].numpy().ravel(), image.ravel())[0, 1] > 0.8
    scaled = DenoiseDiffusiond("image", model_file, sigma=0.1)({"image": meta(3 * image + 50)})["image"]
    np.testing.assert_allclose(scaled[0], 3 * found[0] + 50, rtol=1e-3, atol=0.05)
    estimated = DenoiseDiffusiond("image", model_file)({"image": meta(image)})["image"]
    assert not torch.equal(estimated, found)


def test_only_holes_are_filled_whatever_they_held(model_file: Path) -> None:
    image = pictures(1, 3)[0]
    mask = np.zeros((1, 20, 24), dtype=np.float32)
    mask[0, 5:9, 10:15] = 1
    fill = InpaintDiffusiond("image", "hole", model_file, solver="proximal", steps=3)
    found = fill({"image": meta(image), "hole": mask})["image"]
    assert np.array_equal(found.numpy()[mask == 0], image[None][mask == 0])
    other = image.copy()
    other[mask[0] == 1] = 777
    again = fill({"image": meta(other), "hole": torch.from_numpy(mask[0])})["image"]
    np.testing.assert_array_equal(again, found)
    assert not np.array_equal(found.numpy()[mask == 1], image[None][mask == 1])


def test_volumes_are_restored_slice_by_slice(model_file: Path) -> None:
    """Axial slices of an LPI grid are the images that they look like; another axis is cut where it is asked for."""
    volume = np.ascontiguousarray(pictures(3, 3).transpose(2, 1, 0))
    lpi = torch.diag(torch.tensor([-1.0, -1.0, -1.0, 1.0]))

    def whole(values: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.from_numpy(values)[None], affine=lpi)

    denoise = DenoiseDiffusiond("image", model_file, sigma=0.1)
    clean = denoise({"image": whole(volume)})["image"]
    alone = denoise({"image": meta(pictures(3, 3)[1])})["image"]
    assert clean.shape == (1, *volume.shape)
    np.testing.assert_allclose(clean[0, :, :, 1].T, alone[0], rtol=1e-5, atol=1e-3)
    moved = whole(np.moveaxis(volume, 2, 0).copy())
    again = DenoiseDiffusiond("image", model_file, sigma=0.1, axis=0)({"image": moved})["image"]
    np.testing.assert_allclose(np.moveaxis(again[0].numpy(), 0, 2), clean[0], rtol=1e-5, atol=1e-3)
    hole = np.zeros((1, *volume.shape), dtype=bool)
    hole[0, 8:12, 8:12, 1] = True
    fill = InpaintDiffusiond("image", "hole", model_file, solver="proximal", steps=2)
    filled = fill({"image": whole(volume), "hole": hole})["image"]
    assert np.array_equal(filled.numpy()[~hole], volume[None][~hole])
    assert not np.array_equal(filled.numpy()[hole], volume[None][hole])


def test_transforms_pickle_without_the_model(model_file: Path) -> None:
    for transform in (
        AnomalyMapd("image", model_file),
        DenoiseDiffusiond("image", model_file),
        InpaintDiffusiond("image", "mask", model_file),
        AnomalyInferer(model_file),
    ):
        transform.reader.model.model.get()
        assert len(pickle.dumps(transform)) < 4000


def test_values_without_a_range_need_one(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tiny_model(preprocess={"size": [16, 16]}).save(path)
    image = meta(pictures(1)[0])
    with pytest.raises(InputError, match="value_range"):
        AnomalyMapd("image", path)({"image": image})
    stored = pictures(1)[0].clip(0, 255).astype(np.uint8)
    d = AnomalyMapd("image", path, value_range=(0, 255))({"image": meta(stored.astype(np.float32))})
    (as_stored,) = ArrayModel(path, device="cpu").images([stored])
    np.testing.assert_array_equal(d["image_anomaly"][0], as_stored.map)


def test_what_cannot_be_used_is_refused(model_file: Path) -> None:
    with pytest.raises(InputError, match="image: expected a tensor"):
        AnomalyMapd("image", model_file)({"image": torch.zeros(20, 24)})
    with pytest.raises(KeyError):
        AnomalyMapd("image", model_file)({})
    assert AnomalyMapd("image", model_file, allow_missing_keys=True)({}) == {}
    with pytest.raises(ConfigError, match="axis"):
        DenoiseDiffusiond("image", model_file, axis=3)
    with pytest.raises(ConfigError, match="sigma"):
        DenoiseDiffusiond("image", model_file, sigma=0.0)
    with pytest.raises(InputError, match="hole: expected a mask"):
        InpaintDiffusiond("image", "hole", model_file)({"image": meta(pictures(1)[0]), "hole": torch.zeros(1, 3, 3)})
    with pytest.raises(ConfigError, match="did you mean 'one-step'"):
        AnomalyMapd("image", model_file, preset="onestep")({"image": meta(pictures(1)[0])})
