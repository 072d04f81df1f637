"""A given foreground in MONAI's dictionary transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError
from anodiff.integrations.monai import AnomalyInferer, AnomalyMapd, DenoiseDiffusiond, InpaintDiffusiond
from anodiff.model import load

from .conftest import RECIPE, save_volume, tiny_model


def test_volumes_look_where_it_says(model_file: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(100, 20, (14, 15, 12)).astype(np.float32)
    mask = np.zeros(values.shape, dtype=bool)
    mask[4:12, 3:13, 3:9] = True
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(values)[None], affine=affine)
    inside = MetaTensor(torch.from_numpy(mask.astype(np.float32))[None], affine=affine)
    transform = AnomalyMapd("image", model_file, preset="one-step", foreground_key="brain")
    found = transform({"image": image, "brain": inside})
    detector = VolumeDetector(load(model_file), "one-step", device="cpu")
    span = (float(values.min()), float(values.max()))
    volume = Volume(values[None], affine.numpy(), *span, "float32", "v", "stack")
    prepared = detector.prepare(volume, foreground=mask)
    expected = detector(prepared, volume)
    np.testing.assert_allclose(found["image_anomaly"][0].numpy(), prepared.back(expected.map), rtol=1e-4, atol=1e-5)
    plain = AnomalyMapd("image", model_file, preset="one-step")({"image": image})
    assert not np.allclose(plain["image_anomaly"].numpy(), found["image_anomaly"].numpy())
    moved = MetaTensor(inside.as_tensor(), affine=affine + torch.eye(4, dtype=torch.float64)[[3]].T * 2)
    for wrong, match in (
        (inside[:, 1:], "brain: expected a foreground of .* like image"),
        (inside * 0, "an empty one"),
        (moved, "at the place of image"),
    ):
        with pytest.raises(InputError, match=match):
            transform({"image": image, "brain": wrong})


def test_images_look_where_it_says(model_file: Path) -> None:
    values = np.random.default_rng(1).normal(100, 20, (1, 16, 16)).astype(np.float32)
    mask = np.zeros((16, 16), dtype=bool)
    mask[3:9, 4:14] = True
    data = {"image": torch.from_numpy(values), "brain": torch.from_numpy(mask)}
    rows = AnomalyMapd("image", model_file, preset="one-step", value_range=(0, 255), foreground_key="brain")
    columns = AnomalyMapd(
        "image", model_file, preset="one-step", value_range=(0, 255), foreground_key="brain", rows_first=False
    )
    turned = {"image": data["image"].transpose(1, 2), "brain": data["brain"].T}
    np.testing.assert_allclose(
        rows(data)["image_anomaly"][0].numpy(), columns(turned)["image_anomaly"][0].T.numpy(), atol=1e-6
    )


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files with the same weights: one that must be given a foreground, and one to which all is inside."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in ("given", "none"):
        tiny_model(preprocess={**RECIPE["preprocess"], "foreground": kind}).save(folder / kind)
    return {kind: folder / kind for kind in ("given", "none")}


def transforms(model: Path, **options: Any) -> list[Any]:
    return [
        AnomalyMapd("image", model, **options),
        DenoiseDiffusiond("image", model, sigma=0.3, **options),
        InpaintDiffusiond("image", "hole", model, steps=2, **options),
    ]


@pytest.mark.parametrize("shape", [(1, 16, 14), (1, 12, 12, 3)])
def test_every_transform_takes_the_foreground_that_a_model_needs(
    kinds: dict[str, Path], shape: tuple[int, ...]
) -> None:
    values = torch.from_numpy(np.random.default_rng(2).normal(100, 20, shape).astype(np.float32))
    hole, part = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    hole[:, 4:8, 5:9] = True
    part[:, 3:11, 2:10] = True
    names = ("image_anomaly", "image", "image")
    alone, given, of_all = (
        transforms(kinds["given"]), transforms(kinds["given"], foreground_key="brain"), transforms(kinds["none"])
    )  # fmt: skip
    data = {"image": values, "hole": hole}
    for name, bare, ours, plain in zip(names, alone, given, of_all, strict=True):
        expected = plain(data)[name].numpy()
        whole = ours({**data, "brain": torch.ones(shape)})[name].numpy()
        np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(ours({**data, "brain": part})[name].numpy(), expected)
        for transform, brain, names_it in ((bare, None, "foreground_key"), (ours, "", "the key brain")):
            with pytest.raises(InputError, match=rf"image: expected a foreground mask.* \({names_it} names it\)"):
                transform({**data, "brain": brain})


def test_columns_first_and_files_are_the_same(kinds: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    values = torch.from_numpy(np.random.default_rng(3).normal(100, 20, (1, 16, 14)).astype(np.float32))
    inside = np.zeros((16, 14), dtype=np.uint8)
    inside[3:11, 2:10] = 255
    Image.fromarray(inside).save(tmp_path / "x.png")
    options: dict[str, Any] = {"sigma": 0.3, "foreground_key": "brain"}
    rows = DenoiseDiffusiond("image", kinds["given"], **options)
    columns = DenoiseDiffusiond("image", kinds["given"], rows_first=False, **options)
    expected = rows({"image": values, "brain": torch.from_numpy(inside)})["image"].numpy()
    turned = {"image": values.mT, "brain": torch.from_numpy(inside.T.copy())}
    np.testing.assert_allclose(columns(turned)["image"].mT.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(rows({"image": values, "brain": tmp_path / "x.png"})["image"].numpy(), expected)
    volume = torch.from_numpy(np.random.default_rng(4).normal(100, 20, (1, 12, 12, 2)).astype(np.float32))
    mask = np.zeros((12, 12, 2), dtype=np.uint8)
    mask[3:9, 2:10] = 1
    file = str(save_volume(tmp_path / "x.nii.gz", mask))
    image = MetaTensor(volume, affine=torch.eye(4, dtype=torch.float64))
    by_file, by_array = (
        rows({"image": image, "brain": each})["image"].numpy() for each in (file, torch.from_numpy(mask))
    )
    np.testing.assert_array_equal(by_file, by_array)


def test_the_inferer_takes_foregrounds_with_a_batch(kinds: dict[str, Path]) -> None:
    batch = torch.from_numpy(np.random.default_rng(5).normal(100, 20, (2, 1, 16, 14)).astype(np.float32))
    ours = AnomalyInferer(kinds["given"], device="cpu")
    with pytest.raises(InputError, match=r"image 0: expected a foreground mask.*\(the argument foreground names it\)"):
        ours(batch)
    inside = torch.zeros(2, 16, 14, dtype=torch.bool)
    inside[0, 3:11], inside[1, :, 4:9] = True, True
    maps = ours(batch, foreground=inside[:, None])
    each = AnomalyMapd("image", kinds["given"], foreground_key="brain")
    for n in range(2):
        alone = each({"image": batch[n], "brain": inside[n]})["image_anomaly"]
        np.testing.assert_allclose(maps[n].numpy(), alone.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="expected one for each of 2 images, found 1"):
        ours(batch, foreground=inside[:1])
    with pytest.raises(InputError, match="foreground 1: expected a foreground of image 1 with something inside"):
        ours(batch, foreground=inside * torch.tensor([1, 0])[:, None, None])
