"""Models of volumes in MONAI pipelines: what the jobs write for the same file, whatever way MONAI has turned it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, RandFlipd, SaveImaged

from anodiff.errors import ConfigError, InputError
from anodiff.integrations.arrays import ArrayModel
from anodiff.integrations.bundle import export_bundle
from anodiff.integrations.monai import AnomalyInferer, AnomalyMapd, DenoiseDiffusiond, InpaintDiffusiond
from anodiff.model import load

from .conftest import SIDES, Scored, ball, oblique, save_volume, score_job, tiny_model

Run = Callable[..., int]
QUICK = ("--device", "cpu", "--steps", "2")


def loading(axcodes: str | None = None) -> Compose:
    """As files are read; with ``axcodes`` also turned."""
    turn = [] if axcodes is None else [Orientationd("image", axcodes=axcodes)]
    return Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *turn])


@pytest.mark.parametrize("axcodes", [None, "RAS", "SPL"])
def test_a_map_is_what_the_scoring_job_writes_on_the_grid_that_came_in(scored: Scored, axcodes: str | None) -> None:
    before = loading(axcodes)
    ready = before({"image": scored.scan})
    d = AnomalyMapd("image", scored.model)(ready)
    there = d["image_anomaly"]
    assert isinstance(there, MetaTensor)
    assert there.shape == ready["image"].shape
    assert torch.equal(there.affine, ready["image"].affine)
    assert [each["class"] for each in there.applied_operations] == ([] if axcodes is None else ["Orientation"])
    assert d["image_score"] == pytest.approx(float(scored.row["score"]), rel=1e-5)
    assert d["image_remarks"] == scored.row["remarks"]
    back = Invertd("image_anomaly", before, orig_keys="image")(d)["image_anomaly"] if axcodes else there
    np.testing.assert_allclose(back[0], scored.map, atol=1e-5)
    np.testing.assert_allclose(back.affine, scored.affine, atol=1e-6)
    assert scored.map.std() > 0.002


def test_a_batch_of_unlike_orientations_comes_apart_and_is_inverted(scored: Scored, tmp_path: Path) -> None:
    other = save_volume(tmp_path / "other.nii.gz", ball(0)[:, ::-1].copy(), oblique() @ np.diag([1.0, -1, 1, 1]))
    before = loading("LAS")
    (batch,) = DataLoader(Dataset([{"image": scored.scan}, {"image": other}], before), batch_size=2)
    maps, scores = AnomalyInferer(scored.model, device="cpu", scores=True)(batch["image"])
    assert maps.shape == batch["image"].shape
    assert float(scores[0]) == pytest.approx(float(scored.row["score"]), rel=1e-5)
    expected = score_job(scored.model, other, tmp_path / "out")
    for each, job in zip(decollate_batch({"image": batch["image"], "map": maps}), (scored, expected), strict=True):
        back = Invertd("map", before, orig_keys="image")(each)["map"]
        np.testing.assert_allclose(back[0], job.map, atol=1e-5)
        np.testing.assert_allclose(back.affine, job.affine, atol=1e-6)


def test_saved_maps_are_those_of_the_job(scored: Scored, tmp_path: Path) -> None:
    before = loading("RAS")
    d = AnomalyMapd("image", scored.model)(before({"image": scored.scan}))
    d = Invertd("image_anomaly", before, orig_keys="image")(d)
    SaveImaged(
        "image_anomaly", output_dir=tmp_path, output_postfix="anomaly", separate_folder=False, resample=False,
        print_log=False,
    )(d)  # fmt: skip
    found = nib.load(tmp_path / "scan_anomaly.nii.gz")
    np.testing.assert_allclose(found.get_fdata(), scored.map, atol=1e-5)
    np.testing.assert_allclose(found.affine, scored.affine, atol=1e-5)


def test_a_bundle_writes_what_the_job_writes(scored: Scored, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "scan.nii.gz").write_bytes(scored.scan.read_bytes())
    bundle = export_bundle(load(scored.model), tmp_path / "bundle")
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
    (row,) = workflow.run()[0]
    assert (row["status"], row["remarks"]) == ("ok", scored.row["remarks"])
    assert row["score"] == pytest.approx(float(scored.row["score"]), rel=1e-5)
    found = nib.load(tmp_path / "out" / "scan_anomaly.nii.gz")
    np.testing.assert_allclose(found.get_fdata(), scored.map, atol=1e-5)
    np.testing.assert_allclose(found.affine, scored.affine, atol=1e-5)


@pytest.mark.parametrize("level", [0.3, None])
def test_noise_comes_off_as_in_the_job(anodiff: Run, scored: Scored, tmp_path: Path, level: float | None) -> None:
    words = ("--sigma", "auto" if level is None else level, "--output", tmp_path / "out", *QUICK)
    assert anodiff("denoise", scored.model, scored.scan, *words) == 0
    expected = nib.load(tmp_path / "out" / "images" / "scan.nii.gz").get_fdata()
    before = loading("SPL")
    ready = before({"image": scored.scan})
    d = DenoiseDiffusiond("image", scored.model, sigma=level)(dict(ready))
    assert torch.equal(d["image"].affine, ready["image"].affine)
    found = Invertd("image", before)(d)["image"]
    np.testing.assert_allclose(found[0], expected, atol=1e-3)  # of values around 300
    assert np.abs(found[0].numpy() - ball(0)).max() > 1


def test_holes_are_filled_as_in_the_job(anodiff: Run, scored: Scored, tmp_path: Path) -> None:
    hole = np.zeros(SIDES, dtype=np.uint8)
    hole[3:6, 2:6, 3:5] = 1
    save_volume(tmp_path / "hole.nii.gz", hole, oblique())
    words = ("--mask", tmp_path / "hole.nii.gz", "--output", tmp_path / "out", *QUICK)
    assert anodiff("inpaint", scored.model, scored.scan, *words) == 0
    expected = nib.load(tmp_path / "out" / "images" / "scan.nii.gz").get_fdata()
    keys = ("image", "hole")
    before = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="SPL")])
    d = before({"image": scored.scan, "hole": tmp_path / "hole.nii.gz"})
    d = InpaintDiffusiond("image", "hole", scored.model, steps=2)(d)
    found = Invertd("image", before)(d)["image"][0].numpy()
    np.testing.assert_array_equal(found[hole == 0], ball(0)[hole == 0])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - ball(0))[hole == 1].max() > 1


def test_an_axis_is_of_models_of_slices(scored: Scored) -> None:
    ready = loading()({"image": scored.scan})
    transform = DenoiseDiffusiond("image", scored.model, sigma=0.3, axis=1)
    if load(scored.model).config.network_dims == 3:
        with pytest.raises(ConfigError, match="sees volumes whole"):
            transform(ready)
        return
    mean = DenoiseDiffusiond("image", scored.model, sigma=0.3)(ready)["image"]
    other = DenoiseDiffusiond("image", scored.model, sigma=0.3, axis=2)(ready)["image"]
    np.testing.assert_allclose((transform(ready)["image"] + other) / 2, mean, atol=1e-3)


def test_a_cache_and_a_loader_give_the_same(scored: Scored) -> None:
    """What comes before the cache is computed here, what is random (and what follows it) in the loader."""
    before, flip = loading("RAS"), RandFlipd("image", prob=1.0, spatial_axis=0)
    first, again = AnomalyMapd("image", scored.model), pickle.loads(pickle.dumps(AnomalyMapd("image", scored.model)))
    steps = Compose([*before.transforms, first, flip, again])
    data = CacheDataset([{"image": scored.scan}], steps, num_workers=1, progress=False)
    (batch,) = DataLoader(data, batch_size=1)  # a forked worker may hang: OpenMP has run in this process
    assert float(batch["image_score"]) == pytest.approx(float(scored.row["score"]), rel=1e-5)
    (each,) = decollate_batch(batch)
    back = Invertd("image_anomaly", Compose([*before.transforms, flip]), orig_keys="image")(each)
    np.testing.assert_allclose(back["image_anomaly"][0], scored.map, atol=1e-5)


def test_missing_values_count_as_outside_as_in_the_job(tmp_path: Path) -> None:
    tiny_model(volume={"neighbours": 1, "orientation": "LPI"}).save(tmp_path / "model.safetensors")
    values = ball(1).astype(np.float32)
    values[2:4, 3, 3] = np.nan
    job = score_job(
        tmp_path / "model.safetensors", save_volume(tmp_path / "sub-1_FLAIR.nii.gz", values), tmp_path / "o"
    )
    d = AnomalyMapd("image", job.model)(loading()({"image": job.scan}))
    np.testing.assert_allclose(d["image_anomaly"][0], job.map, atol=1e-5)
    assert "2 of 720 values are NaN" in d["image_remarks"]
    assert d["image_remarks"] == job.row["remarks"]


def test_where_a_tensor_lies_is_read_from_its_meta_data(scored: Scored) -> None:
    """Spatial units, and a reader's space in which x and y run the other way."""
    reader = AnomalyMapd("image", scored.model).reader
    values = torch.from_numpy(ball(0).astype(np.float32))[None]
    flipped = np.diag([-1.0, -1, 1, 1]) @ oblique()
    plain = reader.volume(MetaTensor(values, affine=torch.from_numpy(oblique())), "image")
    for affine, meta in ((flipped, {"space": "LPS"}), (oblique(), {"xyzt_units": 10})):
        volume = reader.volume(MetaTensor(values, affine=torch.from_numpy(affine), meta=meta), "image")
        np.testing.assert_allclose(volume.affine, plain.affine)
        assert volume.spacing_mm == pytest.approx(plain.spacing_mm)
    micron = reader.volume(MetaTensor(values, affine=torch.eye(4), meta={"xyzt_units": 3}), "image")
    assert micron.spacing_mm == pytest.approx((0.001, 0.001, 0.001))
    assert reader.volume(values, "image").spacing_mm == (1, 1, 1)
    named = reader.volume(MetaTensor(values, meta={"filename_or_obj": "/x/sub-01_ct.nii.gz"}), "image")
    assert named.modality == "CT"


def test_what_a_model_of_volumes_cannot_use_is_refused(scored: Scored) -> None:
    picture = MetaTensor(torch.rand(1, 16, 16))
    for transform in (
        AnomalyMapd("image", scored.model),
        DenoiseDiffusiond("image", scored.model, sigma=0.3),
        InpaintDiffusiond("image", "image", scored.model),
    ):
        with pytest.raises(ConfigError, match="expected a model of 2-D images, found one of volumes"):
            transform({"image": picture})
    with pytest.raises(InputError, match="image: expected 1 channel"):
        AnomalyMapd("image", scored.model)({"image": torch.rand(2, *SIDES)})
    with pytest.raises(InputError, match="expected a volume"):
        ArrayModel(scored.model, device="cpu").volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(InputError, match="hole: expected a mask"):
        InpaintDiffusiond("image", "hole", scored.model)({"image": torch.rand(1, *SIDES), "hole": torch.ones(1, 2, 3)})
    flat = MetaTensor(torch.rand(1, *SIDES), affine=torch.diag(torch.tensor([1.0, 0, 1, 1])))
    with pytest.raises(InputError, match="flattens the volume"):
        AnomalyMapd("image", scored.model)({"image": flat})
