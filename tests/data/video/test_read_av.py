"""Video files: pixels and times as written, turned as displayed, read up to a break and not beyond."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from anodiff.data.video.clip import Frame, open_clip
from anodiff.data.video.read_av import Clock
from anodiff.errors import InputError

Write = Callable[..., Path]
Picture = Callable[..., np.ndarray]
LOSSLESS = {"codec": "ffv1", "pix_fmt": "bgr0"}


def read(path: Path | str, **options: float) -> tuple[list[Frame], str | None]:
    with open_clip(str(path), **options) as clip:
        frames = list(clip)
    return frames, clip.broken


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(count)]


def test_a_lossless_video_gives_back_the_pixels_as_rgb(tmp_path: Path, write_video: Write, picture: Picture) -> None:
    frames, broken = read(write_video(tmp_path / "a.mkv", 5, **LOSSLESS))
    assert broken is None
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    for frame in frames:
        assert frame.pixels.dtype == np.uint8
        assert np.array_equal(frame.pixels, picture(frame.index))


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le"])
def test_a_grey_video_has_one_channel(tmp_path: Path, write_video: Write, pix_fmt: str) -> None:
    pictures = [np.full((16, 24), 10 * k + 50, np.uint8) for k in range(4)]
    path = write_video(tmp_path / "grey.mkv", pictures, codec="ffv1", pix_fmt=pix_fmt)
    with open_clip(path) as clip:
        assert (clip.info.height, clip.info.width, clip.info.channels) == (16, 24, 1)
        for frame, wanted in zip(clip, pictures, strict=True):
            assert np.abs(frame.pixels[..., 0].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_every_container_gives_all_frames_in_order_at_their_times(
    tmp_path: Path, write_video: Write, picture: Picture, suffix: str, codec: str
) -> None:
    options = {"bf": "2" if suffix != "avi" else "0", "g": "6"}
    frames, broken = read(write_video(tmp_path / f"clip.{suffix}", 12, codec=codec, options=options))
    assert broken is None
    assert [frame.time for frame in frames] == pytest.approx([k / 10 for k in range(12)], abs=1e-3)
    # The grey level of the corner says which frame it is: order of display, not of storage.
    levels = [float(frame.pixels[-8:, -8:].mean()) for frame in frames]
    assert levels == pytest.approx([float(picture(k)[-8:, -8:].mean()) for k in range(12)], abs=7)
    assert np.abs(frames[0].pixels[20:28, 4:28].astype(int) - (200, 40, 40)).max() < 16


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_of_a_variable_frame_rate_are_the_true_ones(tmp_path: Path, write_video: Write, suffix: str) -> None:
    times = [0, 40, 160, 200, 600, 610, 1000, 1400]
    path = write_video(tmp_path / f"vfr.{suffix}", 8, times_ms=times)
    frames, broken = read(path)
    assert broken is None
    assert [frame.time for frame in frames] == pytest.approx([time / 1000 for time in times], abs=1e-3)
    # Said or not, a rate changes nothing where frames have times.
    assert [frame.time for frame in read(path, fps=5)[0]] == [frame.time for frame in frames]


def test_a_raw_stream_takes_the_rate_that_it_is_given(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "raw.h264", 6, options={"bf": "0"})
    assert [frame.time for frame in read(path, fps=4)[0]] == pytest.approx([k / 4 for k in range(6)])


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        # ISO 14496-12: x' = a x + c y, y' = b x + d y. (0, 1, -1, 0) takes the left edge to the top: a quarter turn
        # clockwise on the screen.
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((1, 0, 0, 1), lambda image: image),
    ],
)
def test_frames_are_turned_and_mirrored_as_displayed(
    tmp_path: Path, write_video: Write, display: Callable[..., Path], matrix: tuple[int, ...], turned: Callable
) -> None:
    plain = read(write_video(tmp_path / "plain.mp4", 3))[0]
    path = display(write_video(tmp_path / "turned.mp4", 3), *matrix)
    with open_clip(path) as clip:
        shape = (clip.info.height, clip.info.width)
        for frame, before in zip(clip, plain, strict=True):
            assert frame.pixels.shape[:2] == shape
            assert np.array_equal(frame.pixels, turned(before.pixels))


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("mov", "mpeg4")]
)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_file_that_was_cut_off_is_read_to_the_break_and_says_so(
    tmp_path: Path, write_video: Write, suffix: str, codec: str, share: float
) -> None:
    # All frames of one size in bytes, so that the share of the file is the share of its frames.
    options = {"bf": "0", "g": "1", "qmin": "8", "qmax": "8"}
    whole = write_video(tmp_path / f"whole.{suffix}", noise(30), codec=codec, options=options)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    wanted, broken = read(whole)
    assert broken is None
    frames, broken = read(cut)
    assert 30 * share - 6 <= len(frames) < 30 * share + 1
    # What was given is what the whole file has there: no half frame at the end.
    for frame, before in zip(frames, wanted, strict=False):
        assert np.array_equal(frame.pixels, before.pixels)
        assert frame.time == before.time
    assert broken is not None
    assert broken.startswith(f"{cut}: broke off after {len(frames)} frames")


def test_damage_in_the_middle_ends_the_clip_there(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "clip.mp4", noise(20), options={"bf": "0"})
    wanted = read(path)[0]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    # Longer than a frame, so that the length at the beginning of one is hit.
    content[middle : middle + len(content) // 15] = b"\xff" * (len(content) // 15)
    path.write_bytes(content)
    frames, broken = read(path)
    assert 5 < len(frames) < 15
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(frames, wanted, strict=False))
    assert broken is not None
    # The place is that of the first frame that is missing: 0.1 s after the last one.
    assert f"broke off after {len(frames)} frames, at {frames[-1].time + 0.1:.2f} s: damaged data" in broken


def test_a_clip_whose_beginning_is_damaged_says_where_it_begins(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "clip.avi", 12, **LOSSLESS)
    content = bytearray(path.read_bytes())
    start = content.index(b"00dc", content.index(b"movi")) + 8
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    frames, broken = read(path)
    assert frames[0].index == 0
    assert frames[0].time > 0
    assert broken is not None
    assert f"begins at {frames[0].time:.2f} s" in broken


def test_no_frame_outlives_its_turn(tmp_path: Path, write_video: Write) -> None:
    """Without the garbage collector: a frame that refers to itself would wait for it, and hours of them fill memory."""
    path = write_video(tmp_path / "a.mkv", 30)
    gc.collect()
    gc.disable()
    try:
        with open_clip(path) as clip:
            for frame in clip:
                if frame.index == 28:
                    alive = sum(type(each) is av.VideoFrame for each in gc.get_objects())
    finally:
        gc.enable()
    # The decoder holds a few that are out of order.
    assert alive < 15


def test_a_clip_can_be_iterated_over_once(tmp_path: Path, write_video: Write) -> None:
    with open_clip(write_video(tmp_path / "a.mkv", 3)) as clip:
        assert clip.broken is None
        assert len(list(clip)) == 3
        with pytest.raises(RuntimeError, match="once"):
            iter(clip)
    clip.close()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "an empty file"),
        ("text.mp4", b"not a video at all" * 40, "another kind"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n", "another kind"),
        ("concat.avi", b"ffconcat version 1.0\nfile other.avi\n", "another kind"),
    ],
)
def test_what_is_no_video_is_refused_by_name(
    tmp_path: Path, write_video: Write, name: str, content: bytes | None, said: str
) -> None:
    """Playlists too: they would let a file name other files, and other machines, to be read."""
    write_video(tmp_path / "other.ts", 3, codec="mpeg4")
    write_video(tmp_path / "other.avi", 3, codec="mpeg4")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error, open_clip(path) as clip:
        list(clip)
    assert str(path) in str(error.value)


def test_a_name_that_ffmpeg_would_read_as_a_pattern_is_a_file(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "plain.mkv", 3)
    odd = path.rename(tmp_path / "cam%03d: a?b.mkv")
    assert len(read(odd)[0]) == 3


def test_frames_larger_than_allowed_are_refused_before_they_are_decoded(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "a.mkv", 2)
    with pytest.raises(InputError, match="at most 3,000 pixels"), open_clip(path, max_pixels=3000) as clip:
        list(clip)


def test_a_rate_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive"):
        open_clip(tmp_path, fps=0)


def test_the_clock_never_goes_back_and_bridges_missing_times() -> None:
    clock = Clock(10.0, None)
    found = [clock(time) for time in (None, None, None)]
    assert found == pytest.approx([0.0, 0.1, 0.2])
    clock = Clock(10.0, 5.0)
    found = [clock(time) for time in (5.0, 5.2, 5.1, 5.15, 7.0)]
    assert found == pytest.approx([0.0, 0.2, 0.3, 0.4, 2.0])


def test_a_missing_time_costs_no_other_frame_its_own() -> None:
    clock = Clock(10.0, 1.0)
    found = [clock(time) for time in (1.0, 1.5, None, 1.9, 2.5)]
    assert found == pytest.approx([0.0, 0.5, 0.6, 0.9, 1.5])


def test_missing_times_follow_the_pace_of_the_frames_and_not_a_gap() -> None:
    clock = Clock(25.0, 0.0)  # the rate that is taken where none is stated
    found = [clock(time) for time in (0.0, 0.1, 0.2, None, None, 0.5, 10.5, None, 0.3, None, 11.0)]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 10.5, 10.6, 10.7, 10.8, 11.0])


@pytest.mark.data
def test_umn_has_the_frames_that_its_header_says_at_thirty_a_second(data_root: Path) -> None:
    path = data_root / "umn_crowd" / "Trim4.mp4"
    if not path.is_file():
        pytest.skip(f"real data absent: no file {path}")
    with open_clip(path) as clip:
        assert (clip.info.height, clip.info.width, clip.info.frames) == (240, 320, 672)
        first = [frame for frame, _ in zip(clip, range(5), strict=False)]
    # The file's clock starts at 0.033 s, a player's at 0.
    assert [frame.time for frame in first] == pytest.approx([k / 30 for k in range(5)], abs=1e-3)


@pytest.mark.parametrize(("colorspace", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114)])
def test_colours_are_those_of_the_matrix_that_the_file_names(
    tmp_path: Path, colorspace: int, kr: float, kb: float
) -> None:
    """BT.709 (1) and BT.601 (5), limited range, by their definition: Y = Kr R + (1 - Kr - Kb) G + Kb B."""
    colour = np.array([200.0, 60.0, 30.0])
    luma = float(np.dot([kr, 1 - kr - kb, kb], colour))
    planes = (
        16 + luma * 219 / 255,
        128 + (colour[2] - luma) / (2 * (1 - kb)) * 224 / 255,
        128 + (colour[0] - luma) / (2 * (1 - kr)) * 224 / 255,
    )
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, 1
        values = np.stack([np.full((16, 16), round(value), np.uint8) for value in planes])
        for k in range(2):
            frame = av.VideoFrame.from_ndarray(values, format="yuv444p")
            frame.pts, frame.colorspace, frame.color_range = k, colorspace, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read(path)[0][0].pixels[4, 4] == pytest.approx(colour, abs=3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_of_two_streams_one_is_read_whole(tmp_path: Path, suffix: str) -> None:
    """A large picture beside a small preview that is shorter, and sound that is longer than both."""
    path = tmp_path / f"two.{suffix}"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream, (height, width) in zip(streams, ((16, 24), (48, 64)), strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        sound = container.add_stream("aac" if suffix == "mp4" else "mp2", rate=16000, layout="mono")
        for k in range(12):
            for stream, shade in zip(streams, (250, 20 + 15 * k), strict=True):
                if stream is streams[1] or k < 6:
                    pixels = np.full((stream.height, stream.width, 3), shade, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels).reformat(format="yuv420p")))
        kind = "fltp" if suffix == "mp4" else "s16"
        for k in range(40):
            silence = np.zeros((1, 1024), np.float32 if kind == "fltp" else np.int16)
            audio = av.AudioFrame.from_ndarray(silence, format=kind, layout="mono")
            audio.sample_rate, audio.pts = 16000, 1024 * k
            container.mux(sound.encode(audio))
        for stream in (*streams, sound):
            container.mux(stream.encode())
    with open_clip(path) as clip:
        assert (clip.info.height, clip.info.width) == (48, 64)
        frames = list(clip)
    assert clip.broken is None
    assert [frame.time for frame in frames] == pytest.approx([k / 10 for k in range(12)], abs=1e-3)
    assert [float(frame.pixels.mean()) for frame in frames] == pytest.approx([20 + 15 * k for k in range(12)], abs=6)
