"""The phantoms: what they promise a demo (plausible, varied, hard for trivial scores) and how they are written."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from anodiff.data.layouts import load_table
from anodiff.data.phantoms import LESIONS, make_phantom, write_phantoms
from anodiff.data.readers import read_image, read_mask


@pytest.fixture(scope="module")
def test_part() -> tuple[np.ndarray, np.ndarray]:
    """100 good slices and 100 with a lesion: images in [0, 1] and masks, both (200, 64, 64)."""
    good = [make_phantom(10_000 + k) for k in range(100)]
    lesions = [make_phantom(20_000 + k, lesion=LESIONS[k % 3]) for k in range(100)]
    images, masks = zip(*good, *lesions, strict=True)
    return np.stack(images) / 255.0, np.stack(masks)


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    return np.stack([make_phantom(k)[0] for k in range(400)]) / 255.0


def smoothed(maps: np.ndarray, width: float) -> np.ndarray:
    return np.stack([gaussian_filter(one, width) for one in maps]) if width else maps


def pixel_auroc(maps: np.ndarray, masks: np.ndarray) -> float:
    return float(roc_auc_score(masks.ravel(), maps.ravel()))


def inside(images: np.ndarray) -> np.ndarray:
    """Head against air: a detector that is given the foreground scores air as 0."""
    return images > 0.1


def test_shapes_types_and_determinism() -> None:
    image, mask = make_phantom(5, 48, "dark")
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((48, 48), np.uint8, (48, 48), bool)
    again, mask_again = make_phantom(5, 48, "dark")
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert (make_phantom(6, 48, "dark")[0] != image).mean() > 0.3
    assert not make_phantom(5)[1].any()


def test_the_lesion_changes_its_own_place_only() -> None:
    for seed in range(12):
        healthy, _ = make_phantom(seed)
        for kind in LESIONS:
            image, mask = make_phantom(seed, lesion=kind)
            changed = (image.astype(int) - healthy)[mask]
            rim = gaussian_filter(mask.astype(float), 1.5) > 1e-3
            np.testing.assert_array_equal(image[~rim], healthy[~rim])
            if kind == "bright":
                assert changed.mean() > 15
            elif kind == "dark":
                assert changed.mean() < -15
            else:
                assert abs(changed.mean()) < 8
                assert changed.std() > 8


def test_mixed_is_each_kind_in_turn_of_the_seed() -> None:
    found = set()
    for seed in range(12):
        mixed = make_phantom(seed, lesion="mixed")[0]
        found |= {kind for kind in LESIONS if np.array_equal(mixed, make_phantom(seed, lesion=kind)[0])}
    assert found == set(LESIONS)


def test_lesions_vary_in_size_and_place(test_part: tuple[np.ndarray, np.ndarray]) -> None:
    areas = test_part[1][100:].reshape(100, -1).sum(axis=1)
    assert areas.min() >= 10
    assert np.percentile(areas, 90) > 2.5 * np.percentile(areas, 10)
    rows, columns = np.nonzero(test_part[1].any(axis=0))
    assert np.ptp(rows) > 35
    assert np.ptp(columns) > 30


def test_anatomy_varies_and_is_symmetric_about_its_own_midline(normals: np.ndarray) -> None:
    levels = normals.max(axis=(1, 2))
    assert levels.std() > 0.04
    assert np.median(normals.std(axis=0)) > 0.08
    # The head fills most of the slice, and every slice looks like every other: a strong common plan.
    share = inside(normals).mean(axis=(1, 2))
    assert 0.45 < share.min() < share.max() < 0.9
    mean = normals.mean(axis=0)
    likeness = [np.corrcoef(mean.ravel(), image.ravel())[0, 1] for image in normals[:100]]
    assert np.mean(likeness) > 0.6


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        make_phantom(0, 16)
    with pytest.raises(ValueError, match="unknown lesion 'black'"):
        make_phantom(0, 64, "black")  # type: ignore[arg-type]


@pytest.mark.parametrize("foreground", [False, True])
def test_raw_intensity_and_blur_residual_stay_below_080(
    test_part: tuple[np.ndarray, np.ndarray], normals: np.ndarray, foreground: bool
) -> None:
    images, masks = test_part
    head = inside(images) if foreground else np.ones_like(masks)
    centre = normals[inside(normals)].mean() if foreground else normals.mean()
    aurocs = {"brighter": pixel_auroc(images * head, masks), "darker": pixel_auroc((1 - images) * head, masks)}
    aurocs["from the mean"] = pixel_auroc(smoothed(np.abs(images - centre), 1.5) * head, masks)
    for blur in (1, 3, 8):
        residual = images - smoothed(images, blur)
        aurocs[f"blur {blur}, smoothed"] = pixel_auroc(smoothed(np.abs(residual), 1.5) * head, masks)
        aurocs[f"blur {blur}, absolute"] = pixel_auroc(np.abs(smoothed(residual, 1.5)) * head, masks)
    assert max(aurocs.values()) < 0.80, aurocs


@pytest.mark.parametrize("foreground", [False, True])
def test_intensity_z_and_pca_residual_are_not_enough(
    test_part: tuple[np.ndarray, np.ndarray], normals: np.ndarray, foreground: bool
) -> None:
    images, masks = test_part
    head = inside(images) if foreground else np.ones_like(masks)
    z = (images - normals.mean(axis=0)) / (normals.std(axis=0) + 1e-3)
    pca = PCA(30, random_state=0).fit(normals[:300].reshape(300, -1))

    def unexplained(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1)
        return (flat - pca.inverse_transform(pca.transform(flat))).reshape(x.shape)

    residual = unexplained(images) / (unexplained(normals[300:]).std(axis=0) + 1e-3)
    for maps in (z, residual):
        signed_first = pixel_auroc(np.abs(smoothed(maps, 1.5)) * head, masks)
        magnitude_first = pixel_auroc(smoothed(np.abs(maps), 1.5) * head, masks)
        assert max(signed_first, magnitude_first) < 0.88


def test_a_slice_takes_a_few_milliseconds() -> None:
    """1,500 slices in 20 s is 13 ms each; CPU time, so that a busy machine does not matter."""
    make_phantom(0)
    start = time.process_time()
    for seed in range(60):
        make_phantom(seed, lesion="mixed")
    assert (time.process_time() - start) / 60 < 0.013


def test_written_set_is_the_mvtec_layout_and_reproducible(tmp_path: Path) -> None:
    one = write_phantoms(tmp_path / "one", 4, 2, 3, 6, size=48, seed=7)
    two = write_phantoms(tmp_path / "two", 4, 2, 3, 6, size=48, seed=7)
    other = write_phantoms(tmp_path / "other", 4, 2, 3, 6, size=48, seed=8)
    samples = load_table(one)
    assert samples.layout == "mvtec"
    counts = samples.table.groupby(["split", "label"]).size().to_dict()
    assert counts == {("train", 0): 4, ("val", 0): 2, ("test", 0): 3, ("test", 1): 6}
    assert samples.table["group"].nunique() == 15
    for _, row in samples.rows(label=1).table.iterrows():
        assert read_mask(row["mask"], read_image(row["path"]).pixels.shape[:2]).any()
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert (one / "train/good/0000.png").read_bytes() != (other / "train/good/0000.png").read_bytes()
    # No slice of one split is a slice of another.
    pictures = [np.asarray(Image.open(one / file)).tobytes() for file in files if "good" in file.parts]
    assert len(set(pictures)) == 9


def test_parts_that_are_not_asked_for_are_not_made(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path, 3, 0, 0, 0, size=32)
    assert sorted(path.name for path in root.iterdir()) == ["manifest.csv", "train"]
