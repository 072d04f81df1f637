"""A given foreground in MONAI's dictionary transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError
from anodiff.integrations.monai import AnomalyMapd
from anodiff.model import load


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
