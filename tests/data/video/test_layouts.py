"""Layouts of clips: as their owners ship them, with the truth that they state; refused where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from anodiff.data.video.clip import open_clip
from anodiff.data.video.layouts import load_clips
from anodiff.data.video.masks import read_masks
from anodiff.data.video.table import ClipRow, ClipTable
from anodiff.errors import DataError


def frames(folder: Path, count: int, suffix: str = "jpg", marked: tuple[int, ...] = ()) -> Path:
    """Pictures 1 ... count; those in ``marked`` (counted from 1) with a white square on black."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(1, count + 1):
        pixels = np.zeros((8, 12), np.uint8)
        pixels[2:4, 2:4] = 255 * (k in marked)
        Image.fromarray(pixels).save(folder / f"{k:03d}.{suffix}")
    return folder


def cell(*values: object) -> np.ndarray:
    out = np.empty((1, len(values)), dtype=object)
    for k, value in enumerate(values):
        out[0, k] = value
    return out


def marked(table: ClipTable, name: str) -> list[int] | None:
    """The anomalous frames of a clip, counted from 1."""
    row = next(row for row in table.rows if row.path.endswith(name))
    return None if row.truth is None else (np.flatnonzero(row.truth) + 1).tolist()


def test_frames_with_ranges_count_from_one_and_include_both_ends(tmp_path: Path) -> None:
    frames(tmp_path / "training" / "frames" / "01", 3)
    for name in ("01", "02", "10"):
        frames(tmp_path / "testing" / "frames" / name, 6)
    ranges = cell(np.array([[2], [4]], np.uint8), np.array([[1, 6], [1, 6]], np.uint8), np.zeros((0, 0)))
    savemat(tmp_path / "ped2.mat", {"gt": ranges})
    table = load_clips(tmp_path)
    assert table.layout == "frames_ranges"
    assert [row.split for row in table.rows] == ["train", "test", "test", "test"]
    assert [marked(table, f"testing/frames/{name}") for name in ("01", "02", "10")] == [[2, 3, 4], [1, 6], []]
    assert marked(table, "training/frames/01") is None
    assert {row.fps for row in table.rows} == {10.0}
    assert table.split("test").rows[0].id == "testing__frames__01"


@pytest.mark.parametrize(
    "bad", [np.array([[0], [4]]), np.array([[3], [7]]), np.array([[4], [3]]), np.array([[1, 2, 3]])]
)
def test_ranges_that_are_not_in_the_clip_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    frames(tmp_path / "testing" / "frames" / "01", 6)
    savemat(tmp_path / "ped2.mat", {"gt": cell(bad.astype(np.int16))})
    with pytest.raises(DataError, match=r"ped2\.mat, clip 01: expected ranges"):
        load_clips(tmp_path)


def test_ranges_of_another_number_of_clips_are_refused(tmp_path: Path) -> None:
    frames(tmp_path / "testing" / "frames" / "01", 6)
    savemat(tmp_path / "ped2.mat", {"gt": cell(np.ones((2, 1)), np.ones((2, 1)))})
    with pytest.raises(DataError, match="1 test clips, found those of 2"):
        load_clips(tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_ucsd_as_shipped(tmp_path: Path, listed: bool) -> None:
    frames(tmp_path / "Train" / "Train001", 3, "tif")
    for name in ("Test001", "Test002"):
        frames(tmp_path / "Test" / name, 8, "tif")
    frames(tmp_path / "Test" / "Test001_gt", 8, "bmp", marked=(3, 4))
    if listed:
        lines = "TestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [3:5];\n% a remark\n"
        (tmp_path / "Test" / "UCSDped2.m").write_text(lines + "TestVideoFile{end+1}.gt_frame = [1:2, 8];\n")
    table = load_clips(tmp_path)
    assert table.layout == "ucsd"
    assert [row.id for row in table.rows] == ["Train__Train001", "Test__Test001", "Test__Test002"]
    # The list speaks for all clips; without it the masks do, for those that have some.
    assert marked(table, "Test001") == ([3, 4, 5] if listed else [3, 4])
    assert marked(table, "Test002") == ([1, 2, 8] if listed else None)
    masks = list(read_masks(table.rows[1].masks))
    assert [int(mask.sum()) for mask in masks] == [0, 0, 4, 4, 0, 0, 0, 0]
    assert table.rows[2].masks == ""


def test_avenue(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    for name, count in (("training_videos/01", 3), ("testing_videos/01", 4), ("testing_videos/02", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / f"{name}.avi", count, codec="mpeg4", options={"bf": "0"})
    folder = tmp_path / "ground_truth_demo" / "testing_label_mask"
    folder.mkdir(parents=True)
    one = [np.zeros((8, 12), np.uint8) for _ in range(4)]
    one[2][1:3, 1:3] = 1
    savemat(folder / "1_label.mat", {"volLabel": cell(*one)})
    savemat(folder / "2_label.mat", {"volLabel": cell(*one[:2], one[2])})
    table = load_clips(tmp_path)
    assert table.layout == "avenue"
    assert [(row.id, row.split) for row in table.rows] == [
        ("training_videos__01", "train"),
        ("testing_videos__01", "test"),
        ("testing_videos__02", "test"),
    ]
    assert marked(table, "testing_videos/01.avi") == [3]
    assert [int(mask.sum()) for mask in read_masks(table.rows[1].masks)] == [0, 0, 4, 0]
    (folder / "2_label.mat").unlink()
    with pytest.raises(DataError, match=r"2_label\.mat: expected the masks of"):
        load_clips(tmp_path)


def test_shanghaitech(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    (tmp_path / "training" / "videos").mkdir(parents=True)
    write_video(tmp_path / "training" / "videos" / "01_001.avi", 3, codec="mpeg4", options={"bf": "0"})
    frames(tmp_path / "testing" / "frames" / "01_0014", 5)
    frames(tmp_path / "testing" / "frames" / "12_0142", 4)
    for kind in ("test_frame_mask", "test_pixel_mask"):
        (tmp_path / "testing" / kind).mkdir()
    np.save(tmp_path / "testing" / "test_frame_mask" / "01_0014.npy", np.array([0, 1, 1, 0, 0], np.int8))
    np.save(tmp_path / "testing" / "test_frame_mask" / "12_0142.npy", np.zeros(4))
    pixels = np.zeros((5, 8, 12), bool)
    pixels[1:3, 2:4, 2:5] = True
    np.save(tmp_path / "testing" / "test_pixel_mask" / "01_0014.npy", pixels)
    table = load_clips(tmp_path)
    assert table.layout == "shanghaitech"
    assert [(row.group, row.split, row.fps) for row in table.rows] == [
        ("01", "train", None),
        ("01", "test", 24.0),
        ("12", "test", 24.0),
    ]
    assert marked(table, "01_0014") == [2, 3]
    assert marked(table, "12_0142") == []
    assert np.array_equal(np.stack(list(read_masks(table.rows[1].masks))), pixels)
    np.save(tmp_path / "testing" / "test_frame_mask" / "12_0142.npy", np.array([0, 1, 2, 0]))
    with pytest.raises(DataError, match="flags 0 and 1"):
        load_clips(tmp_path)


@pytest.mark.parametrize("layout", ["ranges", "shipped", "flags"])
def test_flags_go_by_number_where_frames_are_missing(tmp_path: Path, layout: str) -> None:
    """Frames 1 ... 9, of which 5 to 7 are anomalous, and 3, 4 and 6 are missing."""
    name = {"ranges": "testing/frames/01", "shipped": "Test/Test001", "flags": "testing/frames/12_0142"}[layout]
    clip = frames(tmp_path / name, 9)
    if layout == "ranges":
        savemat(tmp_path / "ped2.mat", {"gt": cell(np.array([[5], [7]], np.uint8))})
    elif layout == "shipped":
        (tmp_path / "Test" / "UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [5:7];")
    else:
        file = tmp_path / "testing" / "test_frame_mask" / "12_0142.npy"
        file.parent.mkdir()
        np.save(file, np.array([0, 0, 0, 0, 1, 1, 1, 0, 0]))
    for number in (3, 4, 6):
        (clip / f"{number:03d}.jpg").unlink()
    (row,) = load_clips(tmp_path).rows
    with open_clip(row.path, fps=10) as opened:
        times = [frame.time for frame in opened]
    truth = row.truth_at(times)
    assert truth is not None
    assert [round(10 * time) + 1 for time, anomalous in zip(times, truth, strict=True) if anomalous] == [5, 7]
    if layout == "flags":  # one a frame that is there, or too few for either
        np.save(file, np.array([0, 0, 1, 1, 0, 0]))
        (row,) = load_clips(tmp_path).rows
        assert np.flatnonzero(row.truth_at(times)).tolist() == [2, 3]
        np.save(file, np.array([0, 0, 1, 1, 0, 0, 0]))
        (row,) = load_clips(tmp_path).rows
        with pytest.raises(DataError, match=r"12_0142: expected 6 flags, one a frame, or 9, .* found 7"):
            row.truth_at(times)


def test_umn_leaves_out_flags_beyond_the_last_frame_and_no_more(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    write_video(tmp_path / "Trim1.mp4", 4)
    savemat(tmp_path / "alarm1.mat", {"alarms": np.array([[0, 0, 1, 1, 1]], np.uint8)})
    table = load_clips(tmp_path)
    assert (table.layout, table.rows[0].split) == ("umn", "")
    row = table.rows[0]
    times = [k / 10 for k in range(4)]
    assert np.array_equal(row.truth_at(times), [False, False, True, True])
    with pytest.raises(DataError, match="expected 5 frames, one a flag, found 2"):
        row.truth_at(times[:2])
    # A clip that broke off says so itself.
    assert np.array_equal(row.truth_at(times[:2], broken=True), [False, False])
    with pytest.raises(DataError, match="found 6"):
        row.truth_at([*times, 0.4, 0.5])


def events(folder: Path, text: str) -> None:
    (folder / "events.csv").write_text("clip,start_s,end_s\n" + text)


def test_events_in_seconds_hold_from_start_to_before_end(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"{name}.mkv", 6)
    events(tmp_path, "a.mkv,0.1,0.3\na.mkv,0.5,9\nb,,\n")
    table = load_clips(tmp_path)
    assert table.layout == "events"
    assert [(row.id, row.split, row.events) for row in table.rows] == [
        ("a", "test", ((0.1, 0.3), (0.5, 9.0))),
        ("b", "test", ()),
        ("c", "train", ()),
    ]
    times = np.arange(6) / 10
    assert np.flatnonzero(table.rows[0].truth_at(times)).tolist() == [1, 2, 5]
    assert not table.rows[1].truth_at(times).any()


def test_folders_called_train_and_test_decide_and_an_event_in_training_is_refused(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "a.mkv", 3)
    events(tmp_path, "test/a.mkv,0,1\n")
    assert [(row.id, row.split) for row in load_clips(tmp_path).rows] == [("test__a", "test"), ("train__a", "train")]
    events(tmp_path, "train/a.mkv,0,1\n")
    with pytest.raises(DataError, match=r"training clip train/a\.mkv"):
        load_clips(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,2,1\n", "line 2: expected start_s before end_s"),
        ("a,x,1\n", "line 2: expected start_s before end_s"),
        ("a,1,\n", "line 2: expected start_s before end_s"),
        ("a,0,nan\n", "line 2: expected start_s before end_s"),
        ("a,0,1\n,0,1\n", "line 3: expected the name of a clip"),
        ("a,0,1\nz,0,1\n", "found no z"),
    ],
)
def test_events_that_cannot_be_used_are_refused_by_line(
    tmp_path: Path, write_video: Callable[..., Path], text: str, said: str
) -> None:
    write_video(tmp_path / "a.mkv", 2)
    events(tmp_path, text)
    with pytest.raises(DataError, match=said):
        load_clips(tmp_path)


def test_a_plain_folder_is_clips_of_which_nothing_is_known(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    write_video(tmp_path / "a.mkv", 2)
    frames(tmp_path / "b", 3)
    table = load_clips(tmp_path)
    assert (table.layout, [row.id for row in table.rows]) == ("clips", ["a", "b"])
    assert table.rows[0].truth_at([0.0, 0.1]) is None
    with pytest.raises(DataError, match=r"split test, found \(none\)"):
        table.split("test")


def test_a_wrong_layout_a_wrong_name_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'avenue'"):
        load_clips(tmp_path, "avenu")
    with pytest.raises(DataError, match="layout 'umn', found another"):
        load_clips(tmp_path, "umn")
    with pytest.raises(DataError, match="no such path"):
        load_clips(tmp_path / "absent")
    with pytest.raises(DataError, match="found none"):
        load_clips(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM", r"version 7\.3 \(HDF5\)"),
        (b"nonsense", "expected a MAT file"),
    ],
)
def test_other_mat_files_are_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    frames(tmp_path / "testing" / "frames" / "01", 2)
    (tmp_path / "gt.mat").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_clips(tmp_path)


def test_a_mat_file_without_the_variable_says_what_it_has(tmp_path: Path) -> None:
    frames(tmp_path / "testing" / "frames" / "01", 2)
    savemat(tmp_path / "gt.mat", {"other": np.zeros(3)})
    with pytest.raises(DataError, match="expected a variable 'gt', found other"):
        load_clips(tmp_path)


@pytest.mark.data
def test_ped2_has_its_official_protocol(data_root: Path) -> None:
    if not (data_root / "ucsd_ped2").is_dir():
        pytest.skip(f"real data absent: no folder {data_root / 'ucsd_ped2'}")
    table = load_clips(data_root / "ucsd_ped2")
    assert (len(table.split("train")), len(table.split("test"))) == (16, 12)
    truths = [row.truth for row in table.split("test").rows if row.truth is not None]
    assert sum(map(len, truths)) == 2010
    assert [k + 1 for k, truth in enumerate(truths) if truth.all()] == [8, 9, 10, 11]


@pytest.mark.data
def test_umn_has_flags_for_its_clips(data_root: Path) -> None:
    if not (data_root / "umn_crowd").is_dir():
        pytest.skip(f"real data absent: no folder {data_root / 'umn_crowd'}")
    table = load_clips(data_root / "umn_crowd")
    assert (table.layout, len(table)) == ("umn", 6)
    for row in table.rows:
        assert isinstance(row, ClipRow)
        assert row.truth is not None
        # Normal first, panic at the end.
        assert not row.truth[0]
        assert row.truth.any()
