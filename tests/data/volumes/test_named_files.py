"""DICOM files that were named one by one: what lies beside them in the folder is not spoken of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anodiff.data.volumes import find_volumes, read_volume
from anodiff.data.volumes.inputs import expand_volumes
from anodiff.data.volumes.volume import VolumeSource

HEIGHTS = [(0.0, 0.0, 2.0 * k) for k in range(4)]


def expand(*files: Path) -> list[VolumeSource]:
    found = expand_volumes([str(file) for file in files])
    assert found.skipped == []
    return found.sources


def names(source: VolumeSource) -> set[str]:
    return {Path(file).name for file in source.files}


@pytest.fixture
def series(write_series: Any, tmp_path: Path) -> list[Path]:
    """Four slices, s_96.dcm to s_99.dcm."""
    write_series(tmp_path / "a", HEIGHTS)
    return sorted((tmp_path / "a").iterdir())


def copy(file: Path, name: str) -> Path:
    return Path(shutil.copy(file, file.parent / name))


def test_a_lone_image_says_nothing_of_its_neighbours(write_slice: Any, series: list[Path]) -> None:
    """Copies of it, other slices of its series and a damaged one lie beside it; nobody named any of them."""
    other = write_slice(series[0].parent / "x.dcm", np.arange(20, dtype=np.int16).reshape(4, 5), None,
                        SeriesInstanceUID="1.2.3.7")  # fmt: skip
    for file in (series[0], other):
        for number in range(8):
            copy(file, f"{number}_{file.name}")
    series[3].write_bytes(series[3].read_bytes()[:600])
    assert "8 copies of slices were left out" in read_volume(find_volumes(other.parent).sources[-1]).remarks
    for named in ([series[0]], [other], [series[0], other], [series[1], series[0], other]):
        sources = expand(*named)
        assert sorted(source.path for source in sources) == sorted(map(str, named))
        for source in sources:
            assert source.copies == source.damaged == source.remarks == ()
            assert not [
                remark for remark in read_volume(source).remarks if "left out" in remark or "the series holds" in remark
            ]


def test_a_series_counts_the_copies_that_were_named(series: list[Path]) -> None:
    whole = find_volumes(series[0].parent).sources[0]
    more = [copy(series[1], "t.dcm"), copy(series[1], "u.dcm"), copy(series[2], "v.dcm")]
    for named, remarks in (
        ([], ()),
        (more[:1], ("1 copy of a slice was left out",)),
        (more, ("3 copies of slices were left out",)),
    ):
        (source,) = expand(*series, *named)
        assert source.path == whole.path
        volume = read_volume(source)
        assert volume.remarks == remarks
        assert np.array_equal(volume.data, read_volume(whole).data)


def test_a_copy_stands_for_its_slice(series: list[Path]) -> None:
    whole = find_volumes(series[0].parent).sources[0]
    twin = copy(series[1], "t.dcm")
    (source,) = expand(series[0], series[2], series[3], twin)
    assert names(source) == {"s_96.dcm", "s_98.dcm", "s_99.dcm", "t.dcm"}
    series[1].unlink()
    volume = read_volume(source)
    assert volume.remarks == ()
    assert np.array_equal(volume.data, read_volume(whole.path).data)
    # without it the series is not complete: these are three images
    copy(twin, "s_97.dcm")
    assert [names(each) for each in expand(series[0], series[2], series[3])] == [
        {"s_96.dcm"},
        {"s_98.dcm"},
        {"s_99.dcm"},
    ]


def test_other_volumes_of_the_series_are_counted_where_all_were_named(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", [*HEIGHTS, *HEIGHTS], EchoTime=[10.0] * 4 + [80.0] * 4)
    first, second = (list(map(Path, source.files)) for source in find_volumes(tmp_path / "a").sources)
    (source,) = expand(*first)
    assert read_volume(source).remarks == ()
    # of the second a part only: its slices are images
    assert [len(each.files) for each in expand(*first, *second[:2])] == [4, 1, 1]
    assert all(each.remarks == () for each in expand(*first, *second[:2]))
    both = expand(*first, *second)
    assert [f"number {n}" in each.remarks[0] for n, each in enumerate(both, start=1)] == [True, True]


def test_a_damaged_slice_is_spoken_of_where_it_was_named(series: list[Path]) -> None:
    last = series[0]
    content = last.read_bytes()
    last.write_bytes(content[: content.index(b"\x28\x00\x10\x00")])  # up to Rows
    (source,) = expand(*series[1:])
    assert read_volume(source).remarks == ()
    found = expand_volumes([str(file) for file in series])
    assert [path for path, _ in found.skipped] == [str(last)]
    assert f"{last}, of this series, is left out" in " ".join(read_volume(found.sources[0]).remarks)


def test_copies_are_counted_by_the_volume_they_are_copies_of(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", [*HEIGHTS, *HEIGHTS], EchoTime=[10.0] * 4 + [80.0] * 4)
    copy(Path(find_volumes(tmp_path / "a").sources[0].files[1]), "t.dcm")
    first, second = (read_volume(source).remarks for source in find_volumes(tmp_path / "a").sources)
    assert "1 copy of a slice was left out" in first
    assert not [remark for remark in second if "left out" in remark]


@pytest.mark.data
def test_files_of_a_real_folder_say_nothing_of_its_other_files(data_root: Path) -> None:
    """MR_small.dcm has eight copies beside it, in other transfer syntaxes."""
    folder = data_root / "medical_io" / "dicom"
    for files in (["MR_small.dcm"], ["CT_small.dcm", "MR_small.dcm"]):
        sources = expand(*(folder / file for file in files))
        assert [Path(source.path).name for source in sources] == files
        assert not [remark for source in sources for remark in read_volume(source).remarks if "left out" in remark]
    (slices,) = expand(*(data_root / "medical_io" / "ct_series").iterdir())
    assert len(slices.files) == 17
