"""DICOM files that are damaged: named in the row of their series, or rows of their own, never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anodiff.data.volumes import find_volumes, read_volume
from anodiff.data.volumes.dicom import Damage, read_frames
from anodiff.data.volumes.inputs import expand_volumes
from anodiff.errors import InputError

HEIGHTS = [(0.0, 0.0, 2.0 * k) for k in range(4)]


def cut_header(path: Path, before: str = "Rows") -> Path:
    """The file, ended just before an element of its header."""
    import pydicom
    from pydicom.tag import Tag

    content, tag = path.read_bytes(), Tag(before)
    assert tag in pydicom.dcmread(path)
    mark = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    path.write_bytes(content[: content.index(mark)])
    return path


def test_every_length_of_a_file_is_an_image_or_damage(
    write_slice: Any, tmp_path: Path, secrets: tuple[str, ...]
) -> None:
    """However short a file was cut, it is never taken for an object that has no pixels by nature."""
    content = write_slice(tmp_path / "a.dcm", np.arange(20, dtype=np.int16).reshape(4, 5)).read_bytes()
    named = 0
    for length in range(1, len(content), 3):
        (tmp_path / "cut.dcm").write_bytes(content[:length])
        found = read_frames(str(tmp_path / "cut.dcm"))
        assert isinstance(found, list | Damage), (length, found)
        assert not [word for word in secrets if word in str(found)]
        named += isinstance(found, Damage) and found.series == "1.2.3.1"
    assert named > 10
    (tmp_path / "text.dcm").write_bytes(b"this is no DICOM at all\n" * 20)
    assert isinstance(read_frames(str(tmp_path / "text.dcm")), Damage)


def test_objects_without_pixels_by_nature_are_not_damaged(write_slice: Any, tmp_path: Path) -> None:
    pixels = np.zeros((2, 2), np.uint8)
    for name, kind in (("sr", "1.2.840.10008.5.1.4.1.1.88.11"), ("plan", "1.2.840.10008.5.1.4.1.1.481.5")):
        path = write_slice(tmp_path / f"{name}.dcm", pixels, Rows=None, SOPClassUID=kind)
        assert not isinstance(read_frames(str(path)), Damage)
    image = write_slice(tmp_path / "ct.dcm", pixels, Rows=None)
    assert isinstance(read_frames(str(image)), Damage)


def test_a_modality_that_swallowed_what_follows_is_not_quoted(
    write_slice: Any, tmp_path: Path, secrets: tuple[str, ...]
) -> None:
    swallowed = "OT" + 5 * r"\0123" + "SECRETNAME^ANNA"
    path = write_slice(tmp_path / "x.dcm", np.zeros((2, 2), np.uint8), Rows=None, SOPClassUID="1.2.3.4")
    content = path.read_bytes()
    mark = b"\x08\x00\x60\x00CS"
    start = content.index(mark) + len(mark)
    length = int.from_bytes(content[start : start + 2], "little")
    text = swallowed.encode().ljust(len(swallowed) + len(swallowed) % 2)
    path.write_bytes(content[:start] + len(text).to_bytes(2, "little") + text + content[start + 2 + length :])
    found = read_frames(str(path))
    assert "an object of modality" in str(found)
    assert not [word for word in secrets if word in str(found)]


def test_a_damaged_slice_at_the_end_is_remarked_by_its_series(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", HEIGHTS)
    last = cut_header(tmp_path / "a" / "s_96.dcm")
    found = expand_volumes([tmp_path / "a"])
    (source,) = found.sources
    volume = read_volume(source)
    assert volume.shape == (5, 4, 3)
    assert [remark for remark in volume.remarks if str(last) in remark and "left out" in remark]
    assert [path for path, _ in found.skipped] == [str(last)]
    assert read_volume(source.path).remarks == volume.remarks
    # as a shell's pattern names them
    named = expand_volumes([str(path) for path in sorted((tmp_path / "a").iterdir())])
    assert [each.path for each in named.sources] == [source.path]
    assert named.sources[0].damaged == source.damaged


def test_a_damaged_slice_in_the_middle_is_named_beside_what_is_missing(write_series: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "a", HEIGHTS)
    middle = cut_header(tmp_path / "a" / "s_97.dcm", "BitsAllocated")
    (source,) = expand_volumes([tmp_path / "a"]).sources
    with pytest.raises(InputError, match="found 1 missing") as error:
        read_volume(source)
    assert str(middle) in str(error.value)


def test_a_slice_of_cut_pixels_is_left_out_at_the_end_and_refused_in_the_middle(
    write_series: Any, tmp_path: Path
) -> None:
    write_series(tmp_path / "a", HEIGHTS)
    files = sorted((tmp_path / "a").iterdir(), reverse=True)  # along the normal
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[:-10])
    found = expand_volumes([tmp_path / "a"])
    volume = read_volume(found.sources[0])
    assert volume.shape == (5, 4, 3)
    reason = "a damaged DICOM file: expected 40 bytes of pixels, found 30"
    assert f"{files[3]}, of this series, is left out: {reason}" in volume.remarks
    assert found.skipped == [(str(files[3]), f"{reason}; the rest of its series is read")]
    files[3].write_bytes(whole)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    (source,) = expand_volumes([tmp_path / "a"]).sources
    with pytest.raises(InputError, match="expected every slice, found 1 missing between others") as error:
        read_volume(source)
    assert "expected 40 bytes of pixels, found 39" in str(error.value)


def test_even_steps_do_not_hide_a_damaged_slice(write_series: Any, write_slice: Any, tmp_path: Path) -> None:
    """Of three slices the middle one: the two others would lie on even steps of twice the distance."""
    write_series(tmp_path / "a", HEIGHTS[:3])
    middle = tmp_path / "a" / "s_98.dcm"
    middle.write_bytes(middle.read_bytes()[:-4])
    (source,) = expand_volumes([tmp_path / "a"]).sources
    with pytest.raises(InputError, match="1 missing between others") as error:
        read_volume(source)
    assert str(middle) in str(error.value)
    # a damaged copy of a slice that is there, and one of another direction, leave no hole
    middle.unlink()
    write_series(tmp_path / "a", HEIGHTS[:3])
    for name, axes in (("copy", (1, 0, 0, 0, 1, 0)), ("localiser", (0, 1, 0, 0, 0, -1))):
        path = write_slice(tmp_path / "a" / f"{name}.dcm", np.zeros((4, 5), np.int16), HEIGHTS[1], axes)
        path.write_bytes(path.read_bytes()[:-4])
    (source,) = expand_volumes([tmp_path / "a"]).sources
    assert read_volume(source).shape == (5, 4, 3)
    assert len(source.damaged) == 2


def test_a_damaged_slice_at_a_place_that_two_share_is_not_missing(
    write_series: Any, write_slice: Any, tmp_path: Path
) -> None:
    """What cannot be used is that two slices share a place, and that is what is said."""
    write_series(tmp_path / "a", HEIGHTS[:3])
    for name, cut in (("again", 0), ("damaged", 4)):
        path = write_slice(tmp_path / "a" / f"{name}.dcm", np.ones((4, 5), np.int16), HEIGHTS[1], (1, 0, 0, 0, 1, 0))
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])
    (source,) = expand_volumes([tmp_path / "a"]).sources
    assert len(source.damaged) == 1
    with pytest.raises(InputError, match="expected one slice at each position, found 4 slices at 3 positions"):
        read_volume(source)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_pixels_are_counted_in_every_encoding(make_slice: Any, tmp_path: Path, syntax: str) -> None:
    from pydicom.uid import UID

    dataset = make_slice(np.arange(20, dtype=np.int16).reshape(4, 5), SOPInstanceUID="1.2.3.4.5")
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path = tmp_path / "a.dcm"
    dataset.save_as(path, implicit_vr=syntax.endswith("1.2"), little_endian=syntax.endswith("1.2"))
    assert len(read_frames(path)) == 1
    path.write_bytes(path.read_bytes()[:-1])
    assert read_frames(path) == "a damaged DICOM file: expected 40 bytes of pixels, found 39"


def test_warnings_become_remarks_that_name_the_file(
    write_series: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Pixels followed by more bytes than padding has: pydicom reads them, and warns."""
    import pydicom

    write_series(tmp_path / "a", HEIGHTS)
    for path in sorted((tmp_path / "a").iterdir())[:2]:
        dataset = pydicom.dcmread(path)
        dataset.PixelData += b"\0" * 6
        dataset.save_as(path)
    recwarn.clear()
    (source,) = expand_volumes([tmp_path / "a"]).sources
    (remark,) = (text for text in read_volume(source).remarks if "pydicom warns" in text)
    assert remark.startswith(f"{tmp_path / 'a'}")
    assert "(and in 1 more): pydicom warns: The pixel data length is odd" not in remark
    assert "(and in 1 more): pydicom warns: " in remark
    assert not list(recwarn)


def test_a_damaged_file_of_no_series_is_an_input_of_its_own(
    write_series: Any, write_slice: Any, tmp_path: Path
) -> None:
    write_series(tmp_path / "a", HEIGHTS)
    (tmp_path / "a" / "text.dcm").write_bytes(b"this is no DICOM at all\n" * 20)
    (tmp_path / "a" / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    other = write_slice(tmp_path / "a" / "other.dcm", np.zeros((4, 5), np.int16), SeriesInstanceUID="1.2.3.7")
    cut_header(other)
    found = expand_volumes([tmp_path / "a"])
    broken = {Path(source.path).name: source for source in found.sources if not source.files}
    assert set(broken) == {"text.dcm", "gone.dcm", "other.dcm"}
    assert len({source.id for source in found.sources}) == 4
    assert found.skipped == []
    for name, source in broken.items():
        with pytest.raises(InputError, match=rf"{name}: expected a volume, found"):
            read_volume(source.path)


def test_a_data_set_has_a_row_for_a_broken_file(write_series: Any, tmp_path: Path) -> None:
    from anodiff.data.layouts import load_table

    write_series(tmp_path, HEIGHTS)
    (tmp_path / "text.dcm").write_bytes(b"this is no DICOM at all\n" * 20)
    (tmp_path / "empty.nii").write_bytes(b"")
    assert {Path(path).name for path in load_table(tmp_path).table["path"]} >= {"text.dcm", "empty.nii"}


def test_ids_do_not_change_with_numbers_names_and_folders(write_series: Any, tmp_path: Path) -> None:
    """The same series, renumbered, renamed and moved, has the same id; nothing in it is of the patient."""
    import pydicom

    write_series(tmp_path / "one" / "s", HEIGHTS)
    write_series(tmp_path / "one" / "t", HEIGHTS, SeriesInstanceUID="1.2.3.2")
    for file in (tmp_path / "one" / "t").iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.SOPInstanceUID
        dataset.save_as(file)
    before = [source.id for source in find_volumes(tmp_path / "one").sources]
    assert len(before) == 2
    for folder in ("s", "t"):
        (tmp_path / "two" / folder).mkdir(parents=True)
        for number, file in enumerate(sorted((tmp_path / "one" / folder).iterdir())):
            dataset = pydicom.dcmread(file)
            dataset.SeriesNumber = 77
            name = file.name if folder == "t" else f"{9 - number}.dcm"
            dataset.save_as(tmp_path / "two" / folder / name)
    assert sorted(source.id for source in find_volumes(tmp_path / "two").sources) == sorted(before)
    assert not any("77" in name.split("_") or "5" in name.split("_") or "SECRET" in name for name in before)


def test_a_damaged_slice_of_a_series_that_is_named_in_part_is_an_input(write_series: Any, tmp_path: Path) -> None:
    """Nothing else of what was named would say that it is damaged."""
    write_series(tmp_path / "a", HEIGHTS)
    last = cut_header(tmp_path / "a" / "s_96.dcm")
    found = expand_volumes([str(last), str(tmp_path / "a" / "s_97.dcm")])
    assert {Path(source.path).name: bool(source.files) for source in found.sources} == {
        "s_96.dcm": False,
        "s_97.dcm": True,
    }
    assert found.skipped == []
    with pytest.raises(InputError, match=r"s_96\.dcm: expected a volume, found"):
        read_volume(str(last))


@pytest.mark.parametrize("tags", [{"FrameOfReferenceUID": "1.2.3.8"}, {"EchoTime": 80.0}])
def test_volumes_of_a_series_without_identities_have_names_of_their_own(
    write_series: Any, tmp_path: Path, tags: dict[str, Any]
) -> None:
    """Two volumes of one series in two folders, whose files have the same names and no identity: both are kept."""
    import pydicom

    for folder, own in (("s", {"EchoTime": 20.0}), ("t", {"EchoTime": 20.0} | tags)):
        write_series(tmp_path / "in" / folder, HEIGHTS, seed=len(folder + str(own)), **own)
    for file in (tmp_path / "in").rglob("*.dcm"):
        dataset = pydicom.dcmread(file)
        del dataset.SOPInstanceUID
        dataset.save_as(file)
    sources = find_volumes(tmp_path / "in").sources
    assert len({source.path for source in sources}) == len({source.id for source in sources}) == 2
    assert len(expand_volumes([tmp_path / "in"]).sources) == 2
    assert [read_volume(source.path).shape for source in sources] == [(5, 4, 4)] * 2
