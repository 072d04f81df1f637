"""Volumes on tensors: slices and axes, neighbours, windows, calibration, candidates; denoisers with known answers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.candidates import find_candidates
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.volume_calibration import VolumeCalibration, voxel_p_values
from anodiff.anomaly.volume_fitting import Limits, NormalVolume, fit_volumes
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.config import parse_config
from anodiff.data.volumes.geometry import Grid, plan
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.volume import Volume
from anodiff.errors import ConfigError, DataError, InputError

SHAPE = (8, 9, 10)
PLAIN = DetectorSettings(
    noise="gaussian", noise_scale="unit", levels=(0.5, 1.5), standardise="none", polarity="brighter"
)


class Shrink(nn.Module):
    """D = x / (1 + sigma^2): exact for voxels that are N(0, 1), each on its own."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def model(**volume: Any) -> SimpleNamespace:
    recipe = {"name": "m", "preprocess": {"size": [12, 12]}, "volume": {"orientation": None, **volume}}
    return SimpleNamespace(config=parse_config(recipe), denoiser=Shrink(), calibrations={})


def detector(settings: DetectorSettings = PLAIN, **volume: Any) -> VolumeDetector:
    return VolumeDetector(model(**volume), settings, device="cpu", precision="fp32", network_batch=4)


def prepared(seed: int, shape: tuple[int, int, int] = SHAPE, channels: int = 1) -> PreparedVolume:
    image = torch.randn(channels, *shape, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3) / 3
    foreground = torch.zeros(shape, dtype=torch.bool)
    foreground[1:-1, 1:-1, 1:-1] = True
    return PreparedVolume(image, foreground, plan(Grid(shape, np.eye(4)), None))


def volume(seed: int, shape: tuple[int, int, int] = SHAPE) -> Volume:
    image = prepared(seed, shape).image.numpy()
    return Volume(image, np.eye(4), 0.0, 1.0, "float32", f"v{seed}", "nifti")


def test_slices_are_scored_as_images_and_axes_averaged() -> None:
    found = detector(axes=[2], score_slices=2, min_foreground=0.0)
    inner = found.slicer.cut(prepared(0), 2)
    assert inner.index == tuple(range(1, 9))
    alone = AnomalyDetector(model(), PLAIN, device="cpu", precision="fp32", network_batch=4)
    each = [alone(inner.images[[n]], inner.foreground[[n]]) for n in range(8)]
    result = found(prepared(0))
    assert [slice_.score for slice_ in result.slices] == [float(one.scores[0]) for one in each]
    top = sorted((float(one.scores[0]) for one in each), reverse=True)[:2]
    assert result.score == pytest.approx(sum(top) / 2)
    single = [detector(axes=[axis], score_slices=2, min_foreground=0.0)(prepared(0)) for axis in (0, 1, 2)]
    averaged = detector(axes=[0, 1, 2], score_slices=2, min_foreground=0.0)(prepared(0))
    inside = averaged.inside
    assert np.array_equal(inside, prepared(0).foreground.numpy())
    mean = sum(one.map.astype(np.float64) for one in single) / 3
    assert np.allclose(averaged.map[inside], mean[inside], atol=1e-6)
    assert averaged.score == pytest.approx(sum(one.score for one in single) / 3)
    assert result.nfe == 8 * PLAIN.nfe


def test_a_voxel_outside_the_foreground_of_one_axis_is_not_averaged_with_nothing() -> None:
    """Foregrounds of single slices differ from axis to axis: where one axis alone scored a voxel its map stands."""
    found = detector(axes=[0, 2], min_foreground=0.0)
    ready = prepared(0)
    cut = found.slicer.cut

    def narrow(*given: Any) -> Any:
        stack = cut(*given)
        if given[1] == 2:
            stack.foreground[:, :, :5] = False
        return stack

    found.slicer.cut = narrow  # type: ignore[method-assign]
    both = found(ready)
    alone = detector(axes=[0], min_foreground=0.0)(ready)
    other = detector(axes=[2], min_foreground=0.0)
    other.slicer.cut = narrow  # type: ignore[method-assign]
    own = other(ready).inside
    left = alone.inside & ~own
    assert 0 < left.sum() < alone.inside.sum()
    assert np.array_equal(both.map[left], alone.map[left])


def test_only_the_middle_slice_is_compared() -> None:
    """D = x / (1 + s^2) reaches no neighbour, so 2.5-D must give what 2-D gives, up to the noise it draws."""
    settings = PLAIN.model_copy(update={"noise": "none"})
    flat = detector(settings, neighbours=0)(prepared(1))
    stacked = detector(settings, neighbours=2)
    cut = stacked.slicer.cut(prepared(1), 2)
    assert cut.images.shape[1] == 5
    middle = detector(settings).slicer.cut(prepared(1), 2).images[:, 0]
    assert torch.equal(cut.images[:, 2], middle)
    assert np.array_equal(stacked(prepared(1)).map, flat.map)
    with pytest.raises(ConfigError, match="all slices at once"):
        detector(PLAIN.model_copy(update={"residual": "features", "polarity": "both"}), neighbours=1)


@pytest.mark.parametrize("section", [{}, {"mode": "patches", "patch": [8, 8, 8]}])
def test_an_early_exit_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="early exit: expected a detector of images, found one of volumes"):
        VolumeDetector(model(**section), PLAIN, device="cpu", early_exit=True)
    assert VolumeDetector(model(**section), PLAIN, device="cpu", early_exit=False).detector.early_exit is None


def test_neighbours_are_the_slices_beside_and_repeated_at_the_ends() -> None:
    slicer = detector(neighbours=1, min_foreground=0.0, axes=[0]).slicer
    ready = replace(prepared(2, (6, 12, 12)), foreground=torch.ones(6, 12, 12, dtype=torch.bool))
    stack = slicer.cut(ready, 0)
    for n in range(6):
        for channel, place in enumerate((max(n - 1, 0), n, min(n + 1, 5))):
            assert torch.equal(stack.images[n, channel], ready.image[0, place].T)
    assert np.array_equal(slicer.join(stack.images[:, 1], stack), ready.image[0].numpy())


@pytest.mark.parametrize("preset", ["one-step", "chain"])
def test_windows_give_the_map_of_the_whole_volume(preset: str) -> None:
    """The noise is the volume's and the denoiser local, so windows of any size change nothing beyond rounding."""
    chain = PLAIN.model_copy(update={"sampler": "dpmpp", "steps": 3, "levels": (1.0,)})
    settings = PLAIN if preset == "one-step" else chain
    whole = AnomalyDetector(
        SimpleNamespace(denoiser=Shrink(), calibrations={}), settings, device="cpu", network_batch=2
    )
    expected = whole(prepared(3).image[None], prepared(3).foreground[None])
    for patch, overlap in (([4, 4, 4], 0.5), ([5, 9, 3], 0.2), ([20, 20, 20], 0.5)):
        found = detector(settings, mode="patches", patch=patch, overlap=overlap, min_foreground=0.0)(prepared(3))
        assert np.allclose(found.map, expected.maps[0].numpy(), atol=1e-5)
        assert found.score == pytest.approx(float(expected.scores[0]), abs=1e-5)
        assert {each.axis for each in found.slices} == {2}
        k = found.slices[0].index
        own = whole.scores(expected.maps[0, :, :, k][None], prepared(3).foreground[:, :, k][None])
        assert found.slices[0].score == pytest.approx(float(own), abs=1e-5)


def test_nothing_to_score_is_an_error_and_a_thin_volume_has_one_slice() -> None:
    empty = replace(prepared(4), foreground=torch.zeros(SHAPE, dtype=torch.bool))
    for mode in ("slices", "patches"):
        with pytest.raises(InputError, match="found none to score"):
            detector(mode=mode, patch=[4, 4, 4])(empty)
    thin = replace(prepared(5, (9, 3, 12)), image=torch.randn(1, 9, 1, 12), foreground=torch.ones(9, 1, 12).bool())
    result = detector(axes=[2])(thin)
    assert [(each.axis, each.index) for each in result.slices] == [(1, 0)]


def test_median_of_the_finished_map() -> None:
    plain, filtered = detector(median=1)(prepared(6)), detector(median=3)(prepared(6))
    expected = ndimage.median_filter(plain.map, size=3, mode="nearest")
    assert np.array_equal(filtered.map[plain.inside], expected[plain.inside])
    assert np.array_equal(filtered.map[~plain.inside], plain.map[~plain.inside])
    assert filtered.score == plain.score


class Ready(VolumeDetector):
    """Takes volumes as they are, with the foreground of `prepared`."""

    def prepare(self, volume: Volume) -> PreparedVolume:
        return replace(prepared(0, volume.shape), image=torch.from_numpy(volume.data))


def normals(count: int, start: int = 0) -> list[NormalVolume]:
    return [NormalVolume(partial(volume, start + n), f"p{n // 2}-{start}") for n in range(count)]


@pytest.mark.parametrize("mode", ["slices", "patches"])
@pytest.mark.parametrize("size", [None, list(SHAPE)])
def test_calibration_of_slices_and_volumes(mode: str, size: list[int] | None) -> None:
    settings = PLAIN.model_copy(update={"standardise": "auto", "levels": (1.0,)})
    found = Ready(
        model(mode=mode, patch=[8, 9, 10], size=size, score_slices=1), settings, device="cpu", network_batch=4
    )
    calibration, failed = fit_volumes(found, normals(22), normals(4, 100), Limits(rate=0.05))
    assert failed == ()
    assert calibration.unit == "slice"
    assert len(calibration.volume_scores) == 22
    assert len(calibration.scores) == 22 * 8
    assert calibration.standardisation is not None
    kinds = {"scalar"} if mode == "patches" and size is None else {"map", "rows", "scalar"}
    assert calibration.standardisation.granularity.kind in kinds
    again = [found(found.prepare(volume(n)), volume(n)) for n in range(22)]
    scores = sorted(each.score for each in again)
    assert torch.allclose(calibration.volume_scores, torch.tensor(scores, dtype=torch.float64))
    assert sum(bool(each.is_anomalous) for each in again) <= 1
    lowest = min(again, key=lambda each: each.score)
    assert lowest.p_value == pytest.approx(1.0)
    voxels = np.concatenate([each.map[each.inside] for each in again])
    assert float((voxels > calibration.voxel_quantiles[0.99]).mean()) == pytest.approx(0.01, abs=2e-3)
    kept = VolumeCalibration.from_parts(calibration.to_json(), calibration.to_tensors())
    assert isinstance(kept, VolumeCalibration)
    assert kept.to_json() == calibration.to_json()
    assert found.notes == ()
    found.config = found.config.model_copy(update={"median": 3})
    assert "volume.median was 1, is 3" in found.notes[0]
    assert found.volume_calibration is None
    assert found.slice_calibration is calibration


def test_slices_of_other_axes_are_not_held_against_a_map_of_these() -> None:
    """A map of normal error belongs to places of a slice: those of another axis are other places."""
    settings = PLAIN.model_copy(update={"standardise": "map", "levels": (1.0,)})
    found = Ready(model(axes=[2]), settings, device="cpu", network_batch=4)
    calibration, _ = fit_volumes(found, normals(4), normals(4, 100))
    found.config = found.slicer.volume = found.config.model_copy(update={"axes": (0, 2)})
    with pytest.raises(ConfigError, match=r"volume.axes: expected some of \[2\]"):
        found(found.prepare(volume(0)), volume(0))
    assert calibration.standardisation is not None
    scalar = replace(calibration.standardisation.granularity, kind="scalar")
    found.detector.calibration = replace(
        calibration, standardisation=replace(calibration.standardisation, granularity=scalar)
    )
    result = found(found.prepare(volume(0)), volume(0))
    assert {each.p_value for each in result.slices} == {None}
    assert result.p_value is None


def test_a_volume_that_cannot_be_cut_is_left_out_of_a_calibration() -> None:
    class Picky(Ready):
        def prepare(self, volume: Volume) -> PreparedVolume:
            self.slicer.cut = partial(_cut_or_refuse, self.slicer.cut)  # type: ignore[method-assign]
            return super().prepare(volume)

    def _cut_or_refuse(cut: Any, ready: Any, axis: int, source: Volume) -> Any:
        if source.path == "v2":
            raise InputError("v2: expected another volume, found this one")
        return cut(ready, axis, source)

    found = Picky(model(), PLAIN, device="cpu", network_batch=4)
    calibration, failed = fit_volumes(found, normals(6))
    assert len(calibration.volume_scores) == 5
    assert failed == ("v2: expected another volume, found this one",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"statistics": "slice", "foreground_erode_mm": 2.0},
        {"statistics": "slice", "crop_to_foreground": True, "size": [4, 4, 4]},
        {"crop_to_foreground": True},
    ],
)
def test_settings_that_would_do_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        model(**wrong)


def test_parts_share_no_patient_and_failures_are_told() -> None:
    settings = PLAIN.model_copy(update={"standardise": "scalar", "levels": (1.0,)})

    def broken() -> Volume:
        raise InputError("x.nii: expected a volume, found a damaged file")

    found = Ready(model(), settings, device="cpu", network_batch=4)
    calibration, failed = fit_volumes(found, [*normals(8), NormalVolume(broken, "q")], None, Limits(rate=0.05))
    counts = calibration.counts
    assert counts["standardise_groups"] + counts["threshold_groups"] == 4
    assert len(calibration.volume_scores) == counts["threshold_groups"] * 2
    assert failed == ("x.nii: expected a volume, found a damaged file",)
    assert "needs at least 19 normal volumes" in found.notes[-1]
    with pytest.raises(DataError, match="one part only"):
        fit_volumes(found, normals(4), normals(4))
    with pytest.raises(DataError, match="at least 2 patients"):
        fit_volumes(found, normals(2))
    with pytest.raises(DataError, match=r"x\.nii"):
        fit_volumes(found, [NormalVolume(broken, "a"), NormalVolume(broken, "b")])
    whole = Ready(model(mode="patches", patch=[8, 8, 8]), PLAIN.model_copy(update={"standardise": "map"}), device="cpu")
    with pytest.raises(ConfigError, match=r"volume\.size"):
        fit_volumes(whole, normals(2), normals(2, 50))


def test_candidates_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 8, 7)).astype(np.float32)
    inside = rng.random(values.shape) < 0.8
    affine = np.array([[0, 2.0, 0, 5], [-1.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    quantiles = {0.5: 0.0, 0.95: 0.8, 0.99: 1.0, 0.999: 2.0, 1.0: 2.2}
    found, marked, _ = find_candidates(values, inside, 1.0, affine, quantiles, min_volume_mm3=18.0)
    left = {tuple(place) for place in np.argwhere((values > 1.0) & inside)}
    parts = []
    while left:
        part, queue = [], [left.pop()]
        while queue:
            here = queue.pop()
            part.append(here)
            near = {other for other in left if max(abs(a - b) for a, b in zip(here, other, strict=True)) <= 1}
            left -= near
            queue += near
        if len(part) * 9.0 >= 18.0:
            parts.append(part)
    parts.sort(key=lambda part: -max(values[place] for place in part))
    assert [each.voxels for each in found] == [len(part) for part in parts]
    assert len(found) > 1
    for number, (each, part) in enumerate(zip(found, parts, strict=True), start=1):
        assert each.number == number
        assert each.volume_mm3 == pytest.approx(9.0 * len(part))
        world = np.mean([affine @ np.array([*place, 1]) for place in part], axis=0)[:3]
        assert np.allclose(each.centre_mm, world)
        assert each.peak == max(values[place] for place in part) == values[each.peak_voxel]
        assert each.mean_p_value == pytest.approx(np.mean([0.001 if values[p] > 2.0 else 0.01 for p in part]))
    assert marked.sum() == sum(len(part) for part in parts)
    assert find_candidates(values, inside, 99.0, affine)[0] == []


def test_voxel_p_values_are_bounds_by_counting() -> None:
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    quantiles = {share: float(normal.quantile(share)) for share in (0.5, 0.95, 0.99, 0.999, 1.0)}
    values = torch.linspace(-1, 5, 50)
    share = (normal[None] >= values[:, None]).double().mean(dim=1)
    bounds = voxel_p_values(values, quantiles)
    assert bool((bounds >= share - 1e-3).all())
    assert set(np.round(bounds.tolist(), 4)) == {1.0, 0.5, 0.05, 0.01, 0.001}
