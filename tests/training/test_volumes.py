"""Normal slices and patches of volumes: what is drawn, what is never drawn, and what a mirror or a turn does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from anodiff.config import AugmentConfig, parse_config
from anodiff.data.volumes.read import read_volume
from anodiff.data.volumes.slices import VolumeSlicer
from anodiff.errors import DataError
from anodiff.training.augment import NUMBERS
from anodiff.training.patches import PatchExamples, PatchSource, lesion_free_starts, turned, window_sums
from anodiff.training.slabs import Slab, slab_slices
from anodiff.training.volumes import (
    LESION_MARGIN_MM,
    NormalPart,
    SliceExamples,
    anatomical_axes,
    normal_voxels,
    read_normals,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of a few thousand weights only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SHAPE = (16, 16, 24)
NO_FLIP = torch.full((1, NUMBERS), 0.5)


def recipe(volume: dict[str, Any], **changes: Any) -> Any:
    given: dict[str, Any] = {
        "name": "tiny",
        "preprocess": {"size": [16, 16], "intensity": {"kind": "unit_range"}, "value_range": [0, 1]},
        "network": {"channels": [8, 16], "blocks": 1, "attention": [False, True], "stem": 1, "head_channels": 8},
        "volume": {"orientation": "RAS", "min_foreground": 0.0, **volume},
        "training": {"images": 16, "batch_size": 4, "warmup_images": 4, "validate_every_images": 8,
                     "validation_images": 4, "ema_halflife_images": 8, "lr": 1e-3},
        "engine": {"network_batch": 4},
    }  # fmt: skip
    return parse_config({**given, **changes})


def write(path: Path, values: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([*spacing, 1.0])), path)
    return str(path)


def ramp() -> np.ndarray:
    """A volume whose every slice k is known by its value: k / 24, and brighter to the right."""
    i, _, k = np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij")
    return (k / 32 + i / 256).astype(np.float32)


def lesion(k: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:7, 5:7, k] = 1
    return mask


def slice_numbers(examples: SliceExamples) -> list[list[int]]:
    """The k of each slice of each example, read back from its smallest value."""
    images = examples.sample(10**6, 0).clean
    lowest = images.flatten(2).min(dim=2).values
    return [[round(float((value + 1) / 2 * 32)) for value in row] for row in lowest]


def test_slices_at_a_lesion_or_near_one_are_never_drawn(tmp_path: Path) -> None:
    volume, mask = write(tmp_path / "v.nii", ramp()), write(tmp_path / "m.nii", lesion(10))
    config = recipe({})
    got = read_normals([NormalPart(volume, "p", mask)], config)
    near = range(10 - int(LESION_MARGIN_MM), 10 + int(LESION_MARGIN_MM) + 1)
    assert [n for [n] in slice_numbers(got.examples)] == [k for k in range(24) if k not in near]  # type: ignore[arg-type]
    everything = read_normals([NormalPart(volume, "p")], config)
    assert len(everything.examples) == 24
    assert everything.covered == 1
    assert got.covered == pytest.approx(17 / 24, abs=0.05)


def test_neighbours_are_those_of_the_volume_and_free_of_lesions_too(tmp_path: Path) -> None:
    volume, mask = write(tmp_path / "v.nii", ramp()), write(tmp_path / "m.nii", lesion(23))
    got = read_normals([NormalPart(volume, "p", mask)], recipe({"neighbours": 2}))
    stacks = slice_numbers(got.examples)  # type: ignore[arg-type]
    assert stacks[0] == [0, 0, 0, 1, 2]
    assert stacks[5] == [3, 4, 5, 6, 7]
    assert stacks[-1] == [15, 16, 17, 18, 19]
    assert max(max(stack) for stack in stacks) < 23 - LESION_MARGIN_MM


def test_a_single_slice_with_a_lesion_is_not_learnt_from_whatever_way_it_lies(tmp_path: Path) -> None:
    """It is cut along its thin axis, whatever the recipe's axes are."""
    values, mask = np.random.default_rng(0).random((1, 16, 16)).astype(np.float32), np.zeros((1, 16, 16), np.uint8)
    mask[0, 3, 3] = 1
    volume, truth = write(tmp_path / "v.nii", values), write(tmp_path / "m.nii", mask)
    config = recipe({"axes": [2]})
    assert len(read_normals([NormalPart(volume, "p")], config).examples) == 1
    with pytest.raises(DataError, match="expected a normal slice"):
        read_normals([NormalPart(volume, "p", truth)], config)
    with pytest.raises(DataError, match="expected slices along k, of which a part can be held out, found 1 x 16 x 16"):
        read_normals([NormalPart(volume, "p", slab=Slab(2, 0.5, held=True))], config)


def test_examples_are_what_scoring_would_see(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", np.random.default_rng(0).random(SHAPE).astype(np.float32))
    config = recipe({"neighbours": 1, "axes": [0, 2], "min_foreground": 0.01})
    slicer = VolumeSlicer(config.preprocess, config.volume)
    volume = read_volume(path)
    expected = torch.cat([slicer.cut(slicer.prepare(volume), axis, volume).images for axis in (0, 2)])
    got = read_normals([NormalPart(path, "p")], config).examples.sample(10**6, 0).clean
    torch.testing.assert_close(got, expected, atol=2**-11, rtol=0)


@pytest.mark.parametrize(("axis", "dim"), [(0, 1), (1, -1), (2, -1)])
def test_left_and_right_change_places_whatever_the_cut(axis: int, dim: int) -> None:
    """A mirrored body: along the left-right axis slices change places, across it they are mirrored."""
    body = torch.randn(3, 16, 16, 16).half()
    rows = torch.tensor([[0, 1, 2]])
    examples = SliceExamples(body[:, None, :, :, 0], rows, torch.tensor([axis]), AugmentConfig(flip_lr=True))
    u = NO_FLIP.clone()
    plain = examples.draw(torch.tensor([0]), u, CPU).clean
    u[0, 4] = 0.1
    mirrored = examples.draw(torch.tensor([0]), u, CPU).clean
    torch.testing.assert_close(mirrored, plain.flip(dim), rtol=0, atol=0)
    assert not torch.equal(plain, mirrored)


def test_axes_of_the_body_are_found_in_any_orientation() -> None:
    assert anatomical_axes("RAS") == (0, 2)
    assert anatomical_axes("LPI") == (0, 2)
    assert anatomical_axes("AIR") == (2, 1)
    assert anatomical_axes(None) == (0, 2)


def test_window_sums_equal_brute_force() -> None:
    marked = np.random.default_rng(0).random((6, 5, 7)) < 0.2
    sums = window_sums(marked, (3, 2, 4))
    for place in np.ndindex(4, 4, 4):
        window = tuple(slice(start, start + side) for start, side in zip(place, (3, 2, 4), strict=True))
        assert sums[place] == marked[window].sum()


@pytest.mark.parametrize("settings", [AugmentConfig(), AugmentConfig(rotate_deg=20, scale=0.1)])
def test_no_patch_touches_a_lesion_however_it_is_turned(settings: AugmentConfig) -> None:
    generator = np.random.default_rng(0)
    free = np.ones((24, 24, 24), bool)
    for place in generator.integers(0, 24, (6, 3)):
        free[tuple(place)] = False
    foreground = np.zeros_like(free)
    foreground[4:20, 4:20, 4:20] = True
    starts = lesion_free_starts(free, foreground, (6, 6, 6), settings)
    # a lesion is 1, all else -1: whatever is interpolated from a lesion is above -1
    volume = torch.where(torch.from_numpy(free), -1.0, 1.0)[None].half()
    source = PatchSource(volume, starts.inner, starts.anywhere, (1.0, 1.0, 1.0), 50)
    examples = PatchExamples([source], (6, 6, 6), settings)
    drawn = examples.draw(torch.arange(50), torch.rand(50, NUMBERS), CPU).clean
    assert drawn.shape == (50, 1, 6, 6, 6)
    assert float(drawn.max()) < -1 + 1e-5
    middles = starts.inner.long() + 3
    assert bool(torch.from_numpy(foreground)[tuple(middles.T)].all())
    assert 0 < starts.covered < 1


def test_covered_is_the_share_of_the_foreground_in_any_patch() -> None:
    free = np.ones((12, 8, 8), bool)
    free[6] = False
    foreground = np.ones_like(free)
    starts = lesion_free_starts(free, foreground, (4, 4, 4), AugmentConfig())
    reached = np.zeros_like(free)
    for start in starts.inner.tolist():
        reached[tuple(slice(n, n + 4) for n in start)] = True
    assert starts.covered == pytest.approx(reached.mean())


def test_patches_are_pieces_of_the_volume_at_their_place() -> None:
    volume = torch.arange(8**3, dtype=torch.float32).view(1, 8, 8, 8).half()
    start = torch.tensor([[1, 3, 2]], dtype=torch.int32)
    examples = PatchExamples([PatchSource(volume, start, start, (1.0, 1.0, 1.0), 1)], (4, 4, 4), AugmentConfig())
    drawn = examples.draw(torch.tensor([0]), NO_FLIP, CPU).clean
    torch.testing.assert_close(drawn[0], volume[:, 1:5, 3:7, 2:6].float())
    flipped = PatchExamples(examples.sources, (4, 4, 4), AugmentConfig(flip_lr=True), (1, 2))
    u = NO_FLIP.clone()
    u[0, 4] = 0.2
    torch.testing.assert_close(flipped.draw(torch.tensor([0]), u, CPU).clean, drawn.flip(3))


def test_a_turn_is_one_in_millimetres() -> None:
    """A quarter turn about k of a linear image x/1mm gives y, also where j steps are twice as wide."""
    i, j, _ = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in (21, 11, 5)), indexing="ij")
    volume = (i * 1.0)[None, None]
    u = NO_FLIP.clone()
    u[0, 0] = 1.0
    spacing = torch.tensor([[1.0, 2.0, 1.0]])
    found = turned(volume, (5, 3, 3), spacing, 2, u, AugmentConfig(rotate_deg=90))
    expected = -(j * 2.0)[8:13, 4:7, 1:4]
    torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=0)
    del u
    same = turned(volume, (5, 3, 3), spacing, 2, NO_FLIP, AugmentConfig(rotate_deg=90))
    torch.testing.assert_close(same[0, 0], volume[0, 0, 8:13, 4:7, 1:4], atol=1e-4, rtol=0)


def test_a_slab_and_the_rest_do_not_touch() -> None:
    normal = np.zeros((4, 4, 100), bool)
    normal[:, :, 10:90] = True
    normal[:, :, 40:60] = False  # lesions

    def sides(**options: int) -> tuple[np.ndarray, np.ndarray]:
        held, kept = (slab_slices(Slab(2, 0.25, side, **options), normal, 1.0) for side in (True, False))
        return np.flatnonzero(held), np.flatnonzero(kept)

    held, kept = sides()
    assert len(held) == pytest.approx(0.25 * 60, abs=1)
    assert normal[0, 0, held].all()
    assert np.abs(held[:, None] - kept[None]).min() == 11
    held, kept = sides(reach=4)
    assert np.abs(held[:, None] - kept[None]).min() == 15
    held, kept = sides(least=24)
    assert (held[0], len(held)) == (10, 25)
    assert kept[0] == 45


SIDES = (48, 96, 48)


def sample_table(folder: Path, **masks: np.ndarray | None) -> Any:
    from anodiff.data.layouts import load_table

    for name, mask in masks.items():
        write(folder / f"{name}.nii", np.random.default_rng(0).random(SIDES).astype(np.float32))
        if mask is not None:
            write(folder / f"{name}_mask.nii", mask)
    return load_table(folder)


@pytest.mark.parametrize("augment", [{}, {"rotate_deg": 10, "scale": 0.1}])
def test_a_single_patient_gives_both_sides_a_patch_that_may_turn(tmp_path: Path, augment: dict[str, float]) -> None:
    from anodiff.pipelines.volume_training import normal_parts

    config = recipe({"mode": "patches", "patch": [6, 6, 6], "spacing": [2, 2, 2]}, augment=augment)
    # The share is next to nothing, so that the slab is as thick as a patch needs it.
    config = config.model_copy(update={"training": config.training.model_copy(update={"holdout": 0.01})})
    learnt, held, notes = normal_parts(sample_table(tmp_path, a=None), config)
    assert "one patient only" in notes[0]
    assert len(read_normals(learnt, config).examples) > 0
    assert len(read_normals(held, config).examples) > 0
    volume = read_volume(learnt[0].path)
    prepared = VolumeSlicer(config.preprocess, config.volume).prepare(volume)
    kept, out = (normal_voxels(part, volume, prepared) for part in (learnt[0], held[0]))
    assert not (kept.any(axis=(0, 2)) & out.any(axis=(0, 2))).any()


def test_volumes_of_which_nobody_says_that_they_are_normal_are_passed_over_and_counted(tmp_path: Path) -> None:
    from anodiff.pipelines.volume_training import normal_parts

    blank = np.zeros(SIDES, np.uint8)
    samples = sample_table(tmp_path, a=blank, b=blank, c=None)
    learnt, held, notes = normal_parts(samples, recipe({}))
    assert {Path(part.path).name for part in (*learnt, *held)} == {"a.nii", "b.nii"}
    assert notes[0].startswith("1 of 3 volumes have neither label nor mask")


def test_a_volume_without_anything_normal_is_named_and_all_of_them_refused(tmp_path: Path) -> None:
    volume = write(tmp_path / "v.nii", ramp())
    mask = write(tmp_path / "m.nii", np.ones(SHAPE, np.uint8))
    good = read_normals([NormalPart(volume, "a", mask), NormalPart(volume, "b")], recipe({}))
    assert good.paths == (volume,)
    assert good.groups == ("b",)
    assert "v.nii: expected a normal slice with enough foreground, found none" in good.failed[0]
    patches = recipe({"mode": "patches", "patch": [8, 8, 8]})
    with pytest.raises(DataError, match="lesion-free patch of 8 x 8 x 8 voxels"):
        read_normals([NormalPart(volume, "a", mask)], patches)


def test_a_volume_without_a_slice_to_learn_from_says_the_numbers_and_the_keys(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[:4, :4, 3:10] = 0.5  # a sixteenth of each of seven slices
    volume = write(tmp_path / "v.nii", values)
    settings = recipe({"min_foreground": 0.1})
    preprocess = settings.preprocess.model_copy(update={"foreground": "nonzero"})
    with pytest.raises(DataError) as caught:
        read_normals([NormalPart(volume, "p")], settings.model_copy(update={"preprocess": preprocess}))
    assert "24 of 24 slices along 2 may be used, whose foreground is at most 0.0625 (asked for: " in str(caught.value)
    assert "volume.min_foreground=0.1" in str(caught.value)
    volume, mask = write(tmp_path / "w.nii", ramp()), write(tmp_path / "m.nii", np.ones(SHAPE, np.uint8))
    with pytest.raises(DataError, match=r"0 of 24 slices along 2 .* 3 mm away, also from volume.neighbours=2"):
        read_normals([NormalPart(volume, "p", mask)], recipe({"neighbours": 2}))


def test_a_single_patient_is_told_how_many_slices_the_gap_takes(tmp_path: Path) -> None:
    from anodiff.pipelines.volume_training import cover_notes

    volume, settings = write(tmp_path / "v.nii", ramp()), recipe({"neighbours": 1})
    learnt, held = (NormalPart(volume, "p", slab=Slab(2, 0.2, side, reach=2)) for side in (False, True))
    kept, out = read_normals([learnt], settings), read_normals([held], settings)
    n, m = len(kept.examples), len(out.examples)
    assert n > 0
    assert (
        f"of 24 normal slices {m} are held out (training.holdout) and {24 - n - m} lie in the gap of 12 slices"
        in (kept.remarks[0])
    )
    assert f": {n} are left to learn from" in kept.remarks[0]
    assert out.remarks == ()
    [note] = cover_notes(kept, [learnt], settings)
    assert "lies only in the held-out slab and its gap is never learnt" in note
    assert "lesions" not in note
    masked = NormalPart(volume, "p", write(tmp_path / "m.nii", lesion(23)))
    assert "only beside lesions is never" in cover_notes(read_normals([masked], settings), [masked], settings)[0]
    thick = NormalPart(volume, "p", slab=Slab(2, 0.2, False, reach=20))
    with pytest.raises(DataError, match=r"in the gap of 30 slices .* 0 are left to learn from"):
        read_normals([thick], settings)


@pytest.mark.parametrize("mode", ["slices", "patches"])
def test_training_writes_a_calibrated_model(tmp_path: Path, mode: str) -> None:
    import yaml

    import anodiff
    from anodiff.pipelines import train

    generator = np.random.default_rng(0)
    for patient in "abc":
        values = generator.random(SHAPE).astype(np.float32)
        write(tmp_path / "data" / f"{patient}.nii", values)
        write(tmp_path / "data" / f"{patient}_mask.nii", lesion(20))
    volume = {"neighbours": 1} if mode == "slices" else {"mode": "patches", "patch": [8, 8, 8], "overlap": 0}
    cheap = {"default": {"levels": [0.5], "antithetic": False}}
    config = recipe(volume, augment={"flip_lr": True}, presets=cheap)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    path, failed = train.run(
        str(tmp_path / "r.yaml"),
        tmp_path / "data",
        tmp_path / "run",
        overrides=[],
        device="cpu",
        precision="fp32",
        quiet=True,
    )
    assert failed == ()
    model = anodiff.load(path)
    assert model.provenance["training_groups"] == 2
    assert model.provenance["held_out_groups"] == 1
    calibration = model.calibrations["default"]
    assert len(calibration.volume_scores) == 1  # type: ignore[attr-defined]
    assert (tmp_path / "run" / "preview.png").is_file()


@pytest.mark.data
def test_real_lesions_stay_out_of_what_is_learnt(data_root: Path, tmp_path: Path) -> None:
    """open_ms patient 26 at 4 mm, with a marker of 9 where the lesions are: no slice or patch shows any of it."""
    from anodiff.data.layouts import load_table

    table = load_table(data_root / "open_ms").rows(group="patient26").table
    image, mask = nib.load(table["path"][0]), nib.load(table["mask"][0])
    marked = np.where(np.asarray(mask.dataobj) > 0, 9.0, np.asarray(image.dataobj) > 0).astype(np.float32)
    nib.save(nib.Nifti1Image(marked[::2, ::2, ::2], image.affine @ np.diag([2, 2, 2, 1.0])), tmp_path / "v.nii")
    truth = np.asarray(mask.dataobj)[::2, ::2, ::2]
    nib.save(nib.Nifti1Image(truth, image.affine @ np.diag([2, 2, 2, 1.0])), tmp_path / "m.nii")
    settings = {"size": [32, 32], "intensity": {"kind": "unit_range"}, "value_range": [0, 9]}
    for volume in ({"axes": [2]}, {"mode": "patches", "patch": [8, 8, 8]}):
        config = recipe({"spacing": [4, 4, 4], **volume}, preprocess=settings)
        part = NormalPart(str(tmp_path / "v.nii"), "26", str(tmp_path / "m.nii"))
        drawn = read_normals([part], config).examples.sample(10**6, 0).clean
        assert len(drawn) > 5
        assert float(drawn.max()) == pytest.approx(2 / 9 - 1, abs=2e-3)
        spoilt = read_normals([NormalPart(part.path, "26")], config).examples.sample(10**6, 0).clean
        assert float(spoilt.max()) > 0
