"""Folders of frames, and what a list of files, folders, patterns and streams stands for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.data.video.clip import expand_clips, open_clip, shown
from anodiff.data.video.frames import frame_places
from anodiff.errors import DataError, InputError

Write = Callable[..., Path]


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def folder_of(path: Path, count: int = 3, suffix: str = "png") -> Path:
    for k in range(count):
        save(path / f"{k}.{suffix}", np.full((16, 24), 10 * k, np.uint8))
    return path


def test_frames_come_in_natural_order_at_25_a_second_or_as_said(tmp_path: Path) -> None:
    for k in (1, 2, 10):
        save(tmp_path / "clip" / f"f{k}.png", np.full((16, 24), k, np.uint8))
    (tmp_path / "clip" / ".hidden.png").write_bytes(b"")
    with open_clip(tmp_path / "clip") as clip:
        assert (clip.info.height, clip.info.width, clip.info.channels, clip.info.frames) == (16, 24, 1, 3)
        frames = list(clip)
    assert clip.broken is None
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [1, 2, 10]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.04, 0.08])
    with open_clip(tmp_path / "clip", fps=10) as clip:
        assert clip.info.fps == 10
        assert [frame.time for frame in clip] == pytest.approx([0, 0.1, 0.2])


def test_sixteen_bits_are_scaled_by_their_full_range_alike_in_every_frame(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", np.full((16, 16), 1000, np.uint16))
    save(tmp_path / "a" / "1.tif", np.full((16, 16), 65535, np.uint16))
    with open_clip(tmp_path / "a") as clip:
        assert [int(frame.pixels.max()) for frame in clip] == [round(1000 / 257), 255]


def test_colour_stays_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    for k in range(2):
        save(tmp_path / "a" / f"{k}.png", pixels)
    with open_clip(tmp_path / "a") as clip:
        assert np.array_equal(next(iter(clip)).pixels, pixels)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:45]), "damaged"),
        (lambda path: save(path, np.zeros((16, 25), np.uint8)), "expected a frame of 24x16"),
        (lambda path: save(path, np.zeros((16, 24, 3), np.uint8)), "3 channels"),
    ],
)
def test_a_folder_is_read_up_to_a_frame_that_cannot_be_used(tmp_path: Path, spoil: Callable, said: str) -> None:
    folder = folder_of(tmp_path / "clip", 4)
    spoil(folder / "2.png")
    with open_clip(folder) as clip:
        assert len(list(clip)) == 2
    assert clip.broken is not None
    assert clip.broken.startswith(f"{folder}: broke off after 2 frames, at 0.08 s: {folder / '2.png'}")
    assert said in clip.broken


def test_float_frames_have_no_common_range_and_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for k in range(2):
        np.save(tmp_path / "a" / f"{k}.npy", np.full((16, 16), 0.5, np.float32))
    with pytest.raises(InputError, match="8 or 16 bits"), open_clip(tmp_path / "a") as clip:
        list(clip)


def test_a_folder_of_one_image_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 frames, found 1"), open_clip(folder_of(tmp_path / "a", 1)) as clip:
        list(clip)


def test_a_folder_is_searched_to_its_bottom(tmp_path: Path, write_video: Write) -> None:
    for k in range(2):
        save(tmp_path / "b" / f"thumb{k}.png", np.zeros((8, 8), np.uint8))
    write_video(tmp_path / "b" / "x.mkv", 2)
    folder_of(tmp_path / "Test" / "Test001")
    folder_of(tmp_path / "Test" / "Test001_gt", suffix="bmp")
    folder_of(tmp_path / "Test" / "Test010")
    folder_of(tmp_path / "Test" / "Test002")
    folder_of(tmp_path / "single", 1)
    found = expand_clips([tmp_path])
    names = [os.path.relpath(source.path, tmp_path) for source in found]
    assert names == ["Test/Test001", "Test/Test002", "Test/Test010", "b/x.mkv"]
    assert [source.id for source in found] == ["Test__Test001", "Test__Test002", "Test__Test010", "b__x"]


def test_files_patterns_and_streams_are_taken_once_each(tmp_path: Path, write_video: Write) -> None:
    for name in ("a1.mkv", "a2.mkv", "a10.mkv"):
        write_video(tmp_path / name, 2)
    (tmp_path / "notes.txt").write_text("no clip")
    url = "rtsp://user:secret@camera.local:554/live?x=1"
    found = expand_clips([tmp_path / "a*.mkv", tmp_path / "a1.mkv", url, "camera:0", url])
    assert [os.path.basename(source.path) for source in found[:3]] == ["a1.mkv", "a2.mkv", "a10.mkv"]
    assert {source.path for source in found[3:]} == {url, "camera:0"}
    assert [source.id for source in found[:3]] == ["a1", "a2", "a10"]
    assert len({source.id for source in found}) == 5
    assert all("secret" not in source.id and "/" not in source.id for source in found)
    # A file named one by one stays, whatever it is.
    assert [source.id for source in expand_clips([tmp_path / "notes.txt"])] == ["notes"]


def test_dots_in_the_name_of_a_folder_belong_to_it(tmp_path: Path) -> None:
    for name in ("cam.01", "cam.02"):
        folder_of(tmp_path / name)
    assert [source.id for source in expand_clips([tmp_path])] == ["cam.01", "cam.02"]


def test_a_password_is_never_shown() -> None:
    assert shown("rtsp://user:secret@camera:554/live?a=b@c") == "rtsp://camera:554/live?a=b@c"
    assert shown("http://host/a.mp4") == "http://host/a.mp4"
    assert shown("some@where.mp4") == "some@where.mp4"


@pytest.mark.parametrize(
    ("item", "said"), [("nothing*.mp4", "no match"), ("absent.mp4", "no such path"), ("", "found none")]
)
def test_what_stands_for_no_clip_is_refused(tmp_path: Path, item: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        expand_clips([tmp_path / item])


@pytest.mark.data
def test_ped2_is_28_clips_of_240x160(data_root: Path) -> None:
    root = data_root / "ucsd_ped2"
    if not root.is_dir():
        pytest.skip(f"real data absent: no folder {root}")
    found = expand_clips([root])
    assert len(found) == 28
    with open_clip(found[0].path, fps=10) as clip:
        assert (clip.info.width, clip.info.height, clip.info.channels) == (240, 160, 1)


def test_a_number_that_is_missing_is_a_frame_that_is_missing(tmp_path: Path) -> None:
    for k in (1, 2, 3, 7, 8):
        save(tmp_path / "clip" / f"cam2_{k:03d}.png", np.full((16, 24), k, np.uint8))
    with open_clip(tmp_path / "clip", fps=10) as clip:
        frames = list(clip)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.6, 0.7])


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["5", "10", "15", "30"], [0, 1, 2, 5]),  # every fifth frame was kept
        (["f1", "f2", "f10"], [0, 1, 2]),  # no step is usual
        (["a", "b", "c"], [0, 1, 2]),
        (["7"], [0]),
        (["1", "1_b", "2"], [0, 1, 2]),
        (["cam1_1", "cam2_2", "cam3_3"], [0, 1, 2]),  # two numbers differ: neither says what it counts
        (["day_001", "day_002", "night_004", "night_005"], [0, 1, 2, 3]),
    ],
)
def test_numbers_count_frames_only_where_they_clearly_do(names: list[str], places: list[float]) -> None:
    assert frame_places([f"{name}.jpg" for name in names]) == places


def test_a_folder_is_read_up_to_a_jpeg_that_was_cut_off(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", 6, "jpg")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: 2 * len(whole) // 3])
    with open_clip(folder, fps=10) as clip:
        assert len(list(clip)) == 3
    assert clip.broken is not None
    assert clip.broken.startswith(f"{folder}: broke off after 3 frames, at 0.30 s: {folder / '3.jpg'}")
