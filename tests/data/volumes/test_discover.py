from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from anodiff.data.volumes import find_volumes, read_volume
from anodiff.errors import DataError, InputError

HEIGHTS = [(0.0, 0.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.0, 4.0)]
SAGITTAL = (0, 1, 0, 0, 0, -1)


def test_a_mixed_folder(write_series: Any, write_slice: Any, tmp_path: Path) -> None:
    """Two series in one folder, one of them in several folders, NIfTI beside, and what is no volume."""
    first = write_series(tmp_path / "d", HEIGHTS, SeriesInstanceUID="1.5", SeriesNumber=2)
    second = write_series(tmp_path / "d", HEIGHTS, SeriesInstanceUID="1.4", SeriesNumber=1, seed=1)
    (tmp_path / "far").mkdir()
    (tmp_path / "d" / "1.5_99.dcm").rename(tmp_path / "far" / "x")
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), tmp_path / "n.nii.gz")
    nib.save(nib.Nifti1Image(np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2), np.eye(4)), tmp_path / "n.nii")
    (tmp_path / "notes.txt").write_text("SECRET")
    (tmp_path / "empty.nii").write_bytes(b"")
    Image.new("L", (8, 8)).save(tmp_path / "p.png")
    write_slice(
        tmp_path / "seg.dcm", np.zeros((2, 2), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG"
    )
    write_slice(
        tmp_path / "report.dcm", np.zeros((2, 2), np.uint8), Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"
    )
    found = find_volumes(tmp_path)
    assert [source.kind for source in found.sources] == ["nifti"] * 3 + ["dicom"] * 2
    assert len({source.id for source in found.sources}) == 5
    assert {Path(path).name for path, _ in found.skipped} == {
        "notes.txt",
        "empty.nii",
        "p.png",
        "seg.dcm",
        "report.dcm",
    }
    reasons = "\n".join(reason for _, reason in found.skipped)
    assert "SECRET" not in reasons
    for reason in ("an empty file", "a segmentation", "Basic Text SR Storage", "a 2-D image", "not a volume"):
        assert reason in reasons
    for source, samples in zip(found.sources[3:], (second, first), strict=True):
        assert "3 slices of 5 x 4 pixels" in source.description
        for way in (source, source.path):
            assert np.array_equal(read_volume(way).data[0], samples.transpose(2, 1, 0))
    assert find_volumes(tmp_path / "n.nii", four_d="channels").sources[0].volume is None
    with pytest.raises(InputError, match="name one of them"):
        read_volume(tmp_path)
    with pytest.raises(DataError, match="neither"):
        find_volumes(tmp_path / "absent")


def test_file_names_do_not_matter(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", HEIGHTS)
    before = read_volume(tmp_path / "a").data
    for number, file in enumerate(sorted((tmp_path / "a").iterdir())):
        file.rename(tmp_path / "a" / f"{(number * 7) % 5}.IMA")
    assert np.array_equal(read_volume(tmp_path / "a").data, before)


def test_copies_count_once_and_are_said(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", HEIGHTS)
    for file in list((tmp_path / "a").iterdir()):
        (tmp_path / "a" / f"copy_{file.name}").write_bytes(file.read_bytes())
    volume = read_volume(tmp_path / "a")
    assert volume.shape == (5, 4, 3)
    assert "3 copies of slices were left out" in volume.remarks


def test_one_series_of_several_directions_is_several_volumes(write_series: Any, tmp_path: Path) -> None:
    write_series(
        tmp_path / "a", [*HEIGHTS, (0, 0, 0), (3, 0, 0)], orientation=[(1, 0, 0, 0, 1, 0)] * 3 + [SAGITTAL] * 2
    )
    sources = find_volumes(tmp_path).sources
    assert sorted(read_volume(source).shape[2] for source in sources) == [2, 3]
    assert all("the series holds 2 volumes" in " ".join(read_volume(source).remarks) for source in sources)


@pytest.mark.parametrize(
    "tags",
    [
        {"EchoTime": [10, 10, 10, 80, 80, 80]},
        {"AcquisitionNumber": [1, 1, 1, 2, 2, 2]},
        {"ImageType": [["ORIGINAL", "PRIMARY", "W"]] * 3 + [["ORIGINAL", "PRIMARY", "F"]] * 3},
    ],
)
def test_slices_at_one_place_are_told_apart(write_series: Any, tmp_path: Path, tags: dict[str, Any]) -> None:
    samples = write_series(
        tmp_path / "a", [*HEIGHTS, *HEIGHTS], AcquisitionTime=[f"10100{k}" for k in range(6)], **tags
    )
    sources = find_volumes(tmp_path / "a").sources
    assert len(sources) == 2
    data = sorted((read_volume(source).data[0] for source in sources), key=lambda a: float(a[0, 0, 0]))
    wanted = sorted((part.transpose(2, 1, 0) for part in (samples[:3], samples[3:])), key=lambda a: float(a[0, 0, 0]))
    assert all(np.array_equal(a, b) for a, b in zip(data, wanted, strict=True))


def test_a_mark_of_every_slice_tells_nothing_apart(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", [*HEIGHTS, *HEIGHTS], AcquisitionNumber=list(range(1, 7)))
    (source,) = find_volumes(tmp_path / "a").sources
    with pytest.raises(InputError, match="6 slices at 3 positions"):
        read_volume(source)


def test_stacks_of_images(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 255, (11, 9, 10)).astype(np.uint8)
    (tmp_path / "s").mkdir()
    for number, plane in enumerate(planes):
        Image.fromarray(plane).save(tmp_path / "s" / f"slice{number}.png")
    pages = [Image.fromarray(plane) for plane in planes[:4]]
    pages[0].save(tmp_path / "t.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(planes[0]).save(tmp_path / "alone.png")
    found = find_volumes(tmp_path, stacks=True, spacing=(0.5, 0.6, 2.0))
    assert [source.id for source in found.sources] == ["t", "s_stack"]
    assert [Path(path).name for path, _ in found.skipped] == ["alone.png"]
    tiff, folder = (read_volume(source) for source in found.sources)
    assert np.array_equal(folder.data[0], planes.transpose(2, 1, 0))
    assert np.array_equal(tiff.data[0], planes[:4].transpose(2, 1, 0))
    assert folder.spacing_mm == (0.5, 0.6, 2.0)
    assert (folder.low, folder.high, folder.ranged) == (0, 255, True)
    assert np.array_equal(read_volume(f"{tmp_path / 's'}#stack").data, folder.data)
    planes[3] = 7
    Image.fromarray(planes[3]).save(tmp_path / "s" / "slice3.png")
    assert np.array_equal(read_volume(f"{tmp_path / 's'}#stack").data[0], planes.transpose(2, 1, 0))
    Image.fromarray(planes[0, :8]).save(tmp_path / "s" / "slice11.png")
    with pytest.raises(InputError, match=r"slice11\.png: expected a slice of 10 x 9 x 1"):
        read_volume(find_volumes(tmp_path / "s", stacks=True).sources[0])


def test_a_stack_is_found_again_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other volumes lie below the same folder: the path names one of them, and its spacing."""
    planes = np.random.default_rng(0).integers(0, 255, (5, 9, 10)).astype(np.uint8)
    for folder, count in (("s", 3), ("s/below", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            Image.fromarray(planes[number]).save(tmp_path / folder / f"{number}.png")
    pages = [Image.fromarray(plane) for plane in planes]
    pages[0].save(tmp_path / "s" / "t.tif", save_all=True, append_images=pages[1:])
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), tmp_path / "s" / "n.nii")
    monkeypatch.chdir(tmp_path / "s")
    for root in (tmp_path / "s", "."):
        for spacing in ((1.0, 1.0, 1.0), (0.5, 0.1 + 0.2, 2.0)):
            stacks = [s for s in find_volumes(root, stacks=True, spacing=spacing).sources if s.kind == "stack"]
            assert sorted(len(source.files) for source in stacks) == [2, 3, 5]
            for source in stacks:
                again = read_volume(source.path)
                assert np.array_equal(again.data, read_volume(source).data)
                assert again.spacing_mm == spacing
    (source,) = find_volumes("t.tif", stacks=True, spacing=[1, 1, 1]).sources  # type: ignore[arg-type]
    assert read_volume(source.path).spacing_mm == (1, 1, 1)
    with pytest.raises(InputError, match=r"#stack=0\.5x0\.5x2 in mm, found #stack=2x3"):
        read_volume("t.tif#stack=2x3")
    with pytest.raises(InputError, match="a volume of that name, found none"):
        read_volume("n.nii#stack")


def test_a_folder_may_have_a_mark_in_its_name(write_series: Any, tmp_path: Path) -> None:
    samples = write_series(tmp_path / "a#1" / "#stack" / "b#series=12", HEIGHTS, seed=3)
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), tmp_path / "a#1" / "n#2.nii")
    (tmp_path / "a#1" / "s#stack").mkdir()
    for number in (1, 2):
        Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).save(tmp_path / f"a#1/s#stack/{number}.png")
    sources = find_volumes(tmp_path / "a#1", stacks=True).sources
    assert sorted(source.kind for source in sources) == ["dicom", "nifti", "stack"]
    assert len({source.id for source in sources}) == 3
    for source in sources:
        assert np.array_equal(read_volume(source.path).data, read_volume(source).data)
        if source.kind == "dicom":
            assert np.array_equal(read_volume(source).data[0], samples.transpose(2, 1, 0))


def test_heavy_packages_wait_for_a_file_that_needs_them() -> None:
    code = (
        "import sys, anodiff.data.volumes\n"
        "print([name for name in ('torch', 'monai', 'nibabel', 'pydicom', 'pandas', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dicom_series_of_one_patient_are_one_group_that_tells_nothing_of_them(
    tmp_path: Path, write_series: Any, secrets: tuple[str, ...]
) -> None:
    from anodiff.data.layouts import load_table

    for folder, patient, number in (("a", "SECRETID-0042", 1), ("b", "SECRETID-0042", 2), ("c", "SECRETOTHER", 3)):
        places = [(0.0, 0.0, float(k)) for k in range(2)]
        write_series(tmp_path / folder, places, PatientID=patient, SeriesInstanceUID=f"1.2.{number}")
    groups = load_table(tmp_path).table["group"].tolist()
    assert groups[0] == groups[1] != groups[2]
    assert not any(secret in group for secret in secrets for group in groups)


def test_a_folder_of_dicom_without_file_endings_is_a_data_set(tmp_path: Path, write_series: Any) -> None:
    from anodiff.data.layouts import load_table

    folder = tmp_path / "study"
    write_series(folder, [(0.0, 0.0, float(z)) for z in range(3)], SeriesInstanceUID="1.2.3")
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IM{number:03d}")
    (folder / "README").write_text("not a scan")
    found = load_table(tmp_path)
    assert (found.layout, len(found)) == ("volumes", 1)
    for path in folder.glob("IM*"):
        path.unlink()
    with pytest.raises(DataError):
        load_table(tmp_path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mnc", "a+orig.BRIK.gz"])
def test_formats_that_are_not_read_are_told_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"NRRD0004\n" * 60)
    [(path, reason)] = find_volumes(tmp_path).skipped
    assert path == str(tmp_path / name)
    assert re.fullmatch(r"(NRRD|MetaImage|MINC|AFNI), which is not read: convert it to NIfTI", reason)
