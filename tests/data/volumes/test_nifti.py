from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anodiff.data.volumes import read_mask, read_volume, write_map
from anodiff.data.volumes.geometry import plan
from anodiff.errors import InputError, StorageError

SHAPE = (4, 5, 6)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([1.1, 0.9, 2.5]), [-12.5, 33.0, 7.25]
)


def _values(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _save(path: Path, data: np.ndarray, affine: np.ndarray = OBLIQUE, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(data, affine), path)
    return path


def _world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3))


@pytest.mark.parametrize(("kind", "name"), [(nib.Nifti1Image, "a.nii"), (nib.Nifti2Image, "a.nii.gz")])
def test_values_and_world_coordinates_are_nibabels(tmp_path: Path, kind: type, name: str) -> None:
    path = _save(tmp_path / name, _values(), kind=kind)
    volume, image = read_volume(path), nib.load(path)
    assert volume.data.shape == (1, *SHAPE)
    assert np.array_equal(volume.data[0], image.get_fdata(dtype=np.float32))
    assert np.array_equal(_world(volume.affine, SHAPE), _world(image.affine, SHAPE))
    assert volume.spacing_mm == pytest.approx(image.header.get_zooms())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([1, -1], repeat=3)))
def test_a_marked_voxel_goes_there_and_back(tmp_path: Path, order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """All 48 orientations: canonical and back, written, read by nibabel: the same voxel, the same place."""
    turn = np.zeros((3, 3))
    for axis, (row, flip) in enumerate(zip(order, flips, strict=True)):
        turn[row, axis] = flip * (1.0, 2.0, 3.0)[axis]
    affine = nib.affines.from_matvec(turn, [10.0, -20.0, 30.0])
    data = _values()
    mark = (1, 3, 4)
    data[mark] = 100.0
    volume = read_volume(_save(tmp_path / "a.nii", data, affine))
    way = plan(volume, "RAS")
    canonical = way.forward(volume.data[0])
    there = np.unravel_index(canonical.argmax(), canonical.shape)
    assert np.allclose(way.model.affine @ [*there, 1], affine @ [*mark, 1])
    assert nib.aff2axcodes(way.model.affine) == ("R", "A", "S")
    reference = nib.as_closest_canonical(nib.load(tmp_path / "a.nii"))
    assert np.array_equal(canonical, reference.get_fdata(dtype=np.float32))
    assert np.allclose(way.model.affine, reference.affine)

    out = nib.load(write_map(volume, way.back(canonical), tmp_path / "map.nii.gz"))
    assert np.array_equal(out.get_fdata(dtype=np.float32), data)
    assert np.array_equal(out.affine, nib.load(tmp_path / "a.nii").affine)


def test_an_oblique_map_comes_back_at_its_place(tmp_path: Path) -> None:
    volume = read_volume(_save(tmp_path / "a.nii", _values()))
    way = plan(volume, "LPS")
    assert not np.allclose(np.abs(way.model.affine[:3, :3]).max(axis=0), np.linalg.norm(OBLIQUE[:3, :3], axis=0))
    out = nib.load(write_map(volume, way.back(way.forward(volume.data[0])), tmp_path / "map.nii"))
    assert np.array_equal(out.get_fdata(dtype=np.float32), volume.data[0])
    assert np.array_equal(out.affine, volume.affine)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_map_keeps_codes_units_and_zooms_but_no_text(tmp_path: Path, kind: type) -> None:
    image = kind(_values((*SHAPE, 2)), OBLIQUE)
    image.set_sform(OBLIQUE, code=4)
    other = OBLIQUE.copy()
    other[0, 3] += 2
    image.set_qform(other, code=2)
    image.header.set_xyzt_units("micron", "msec")
    texts = [name for name, (dtype, _) in image.header.structarr.dtype.fields.items() if dtype.kind == "S"]
    texts.remove("magic")
    assert len(texts) > 3
    for name in texts:
        image.header[name] = b"SECRET"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET"))
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(f"{tmp_path / 'a.nii'}#volume=2")
    assert volume.units == "micron"
    assert volume.spacing_mm == pytest.approx(np.array([1.1, 0.9, 2.5]) / 1000)
    assert any("sform and qform disagree by up to 2 " in remark for remark in volume.remarks)
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii"))
    source = nib.load(tmp_path / "a.nii")
    assert out.get_data_dtype() == np.float32
    assert out.shape == SHAPE
    for name in ("sform_code", "qform_code", "quatern_b", "quatern_c", "qoffset_x", "srow_x", "srow_z", "xyzt_units"):
        assert np.array_equal(out.header[name], source.header[name])
    assert out.header.get_zooms() == source.header.get_zooms()[:3]
    assert b"SECRET" not in (tmp_path / "map.nii").read_bytes()


def test_agreeing_forms_are_not_reported(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_values(), OBLIQUE)
    image.set_sform(OBLIQUE, code=1)
    image.set_qform(OBLIQUE, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").remarks == ()


@pytest.mark.parametrize("endian", ["<", ">"])
def test_scaled_integers(tmp_path: Path, endian: str) -> None:
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_dtype(np.uint8)
    # nibabel writes the samples as they are where slope and intercept are set by hand
    image = nib.Nifti1Image(np.arange(120, dtype=np.uint8).reshape(SHAPE), OBLIQUE, header)
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert np.allclose(volume.data[0], np.arange(120).reshape(SHAPE) * 0.5 - 10)
    assert (volume.low, volume.high, volume.ranged) == (-10, 117.5, True)
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii"))
    assert np.array_equal(out.get_fdata(dtype=np.float32), volume.data[0])


def test_two_and_four_dimensions(tmp_path: Path) -> None:
    flat = read_volume(_save(tmp_path / "flat.nii", _values((4, 5))))
    assert flat.shape == (4, 5, 1)
    assert nib.load(write_map(flat, flat.data[0], tmp_path / "flat_map.nii")).shape == (4, 5)
    data = _values((*SHAPE, 3))
    path = _save(tmp_path / "four.nii.gz", data)
    whole = read_volume(path)
    assert np.array_equal(whole.data, np.moveaxis(data, 3, 0))
    assert nib.load(write_map(whole, whole.data, tmp_path / "m.nii")).shape == (*SHAPE, 3)
    assert nib.load(write_map(whole, whole.data[0], tmp_path / "m.nii")).shape == SHAPE
    assert np.array_equal(read_volume(f"{path}#volume=3").data[0], data[..., 2])
    with pytest.raises(InputError, match="expected a volume"):
        read_volume(f"{path}#volume=4")


def test_pairs_and_wrong_names(tmp_path: Path) -> None:
    data = _values()
    nib.save(nib.Nifti1Pair(data, OBLIQUE), tmp_path / "pair.hdr")
    volume = read_volume(tmp_path / "pair.hdr")
    assert np.array_equal(volume.data[0], data)
    out = nib.load(write_map(volume, data, tmp_path / "map.nii"))
    assert np.array_equal(out.affine, volume.affine)
    assert np.array_equal(out.get_fdata(dtype=np.float32), data)
    packed = gzip.compress(_save(tmp_path / "a.nii", data).read_bytes())
    (tmp_path / "packed.nii").write_bytes(packed)
    assert np.array_equal(read_volume(tmp_path / "packed.nii").data[0], data)
    (tmp_path / "pair.img").unlink()
    with pytest.raises(InputError, match=r"ends in \.img"):
        read_volume(tmp_path / "pair.hdr")


def test_colour_and_mgh(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = np.arange(120).reshape(SHAPE)
    volume = read_volume(_save(tmp_path / "rgb.nii", rgb))
    assert volume.data.shape == (3, *SHAPE)
    assert np.array_equal(volume.data[1], rgb["G"])
    path = _save(tmp_path / "a.mgz", _values(), kind=nib.MGHImage)
    volume, image = read_volume(path), nib.load(path)
    assert np.array_equal(volume.data[0], image.get_fdata(dtype=np.float32))
    assert np.array_equal(volume.affine, image.affine)
    out = nib.load(write_map(volume, volume.data[0], tmp_path / "map.nii.gz"))
    assert np.allclose(_world(out.affine, SHAPE), _world(image.affine, SHAPE), atol=1e-4)
    assert np.allclose(out.get_qform(), image.affine, atol=1e-4)


def test_values_that_are_not_finite_count_as_outside(tmp_path: Path) -> None:
    data = _values()
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    volume = read_volume(_save(tmp_path / "a.nii", data))
    assert volume.valid is not None
    assert np.array_equal(volume.valid, np.isfinite(data))
    assert volume.data[0, 0, 0, 0] == volume.data.min() == data[np.isfinite(data)].min()
    assert any("2 of 120 values" in remark for remark in volume.remarks)
    with pytest.raises(InputError, match="only NaN or infinite"):
        read_volume(_save(tmp_path / "b.nii", np.full(SHAPE, np.nan, np.float32)))


def test_same_map_same_bytes(tmp_path: Path) -> None:
    volume = read_volume(_save(tmp_path / "a.nii", _values()))
    first = write_map(volume, volume.data[0], tmp_path / "one.nii.gz").read_bytes()
    assert write_map(volume, volume.data[0], tmp_path / "two.nii.gz").read_bytes() == first
    with pytest.raises(ValueError, match="grid"):
        write_map(volume, volume.data[0, 1:], tmp_path / "x.nii")
    with pytest.raises(StorageError, match=r"\.nii"):
        write_map(volume, volume.data[0], tmp_path / "x.mha")


def test_unusable_files_are_refused_by_name(tmp_path: Path) -> None:
    good = _save(tmp_path / "a.nii", _values()).read_bytes()
    packed = gzip.compress(good)
    singular = bytearray(good)
    singular[280:328] = np.zeros(12, "<f4").tobytes()
    cases = {
        "empty.nii": (b"", "empty file"),
        "text.nii": (b"hello world" * 100, "another format"),
        "cut.nii": (good[:500], "damaged"),
        "cut.nii.gz": (packed[: len(packed) // 2], "damaged"),
        "flat.nii": (bytes(singular), "flattens"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason) as caught:
            read_volume(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="complex"):
        read_volume(_save(tmp_path / "c.nii", _values().astype(np.complex64)))
    with pytest.raises(InputError, match="2 to 4 dimensions"):
        read_volume(_save(tmp_path / "five.nii", _values((2, 2, 2, 2, 3))))
    with pytest.raises(InputError, match="constant"):
        read_volume(_save(tmp_path / "same.nii", np.ones(SHAPE, np.float32)))
    with pytest.raises(InputError, match="at most 100 voxels"):
        read_volume(tmp_path / "a.nii", max_voxels=100)
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "absent.nii")
    nib.save(nib.AnalyzeImage(np.ones(SHAPE, np.int16), np.eye(4)), tmp_path / "old.hdr")
    with pytest.raises(InputError, match=r"Analyze 7\.5"):
        read_volume(tmp_path / "old.hdr")
    cifti = nib.Nifti2Image(_values((1, 1, 1, 1, 5, 5)), np.eye(4))
    cifti.header["intent_code"] = 3001
    nib.save(cifti, tmp_path / "x.dconn.nii")
    with pytest.raises(InputError, match="CIFTI-2"):
        read_volume(tmp_path / "x.dconn.nii")


def test_masks_must_lie_on_their_volume(tmp_path: Path) -> None:
    volume = read_volume(_save(tmp_path / "a.nii", _values()))
    truth = np.zeros(SHAPE, np.uint8)
    assert not read_mask(_save(tmp_path / "none.nii", truth), volume).any()
    truth[2, 3, 4] = 7
    assert np.array_equal(read_mask(_save(tmp_path / "m.nii", truth), volume), truth > 0)
    holes = np.full(SHAPE, np.nan, np.float32)
    holes[2, 3, 4] = 1
    assert np.array_equal(read_mask(_save(tmp_path / "holes.nii", holes), volume), truth > 0)
    moved = OBLIQUE.copy()
    moved[:3, 3] += 0.5
    with pytest.raises(InputError, match="at the place"):
        read_mask(_save(tmp_path / "moved.nii", truth, moved), volume)
    with pytest.raises(InputError, match="4 x 5 x 6"):
        read_mask(_save(tmp_path / "small.nii", truth[1:]), volume)
