"""Every kind of image and mask file is read with its own values."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from anodiff.data.readers import RawImage, count_pages, read_image, read_mask, split_page
from anodiff.errors import InputError

PngWriter = Callable[[np.ndarray], bytes]
GREY = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
DEEP = (np.arange(24 * 20, dtype=np.uint16) * 131).reshape(24, 20)
DEEP_COLOUR = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=-1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
def test_grey_8_bit_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path)
    raw = read_image(path)
    assert isinstance(raw, RawImage)
    assert raw.pixels.shape == (24, 20, 1)
    assert raw.pixels.dtype == np.float32
    assert (raw.low, raw.high, raw.dtype) == (0, 255, "uint8")
    np.testing.assert_array_equal(raw.pixels[:, :, 0], GREY)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_colour_8_bit_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOUR).save(path)
    np.testing.assert_array_equal(read_image(path).pixels, COLOUR)


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    raw = read_image(tmp_path / "a.jpg")
    assert np.abs(raw.pixels[:, :, 0] - smooth).max() <= 4


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").pixels.shape == (24, 20, 3)


AWKWARD = ["s%d.png", "a b.png", "[0].png", "*.png", "a#b.png", "c:d.png", "pipe:1.png", "-i.png", "Gehirn ä 脑.png",
           "quo'te\".png", "new\nline.png", "a,b=1.png", "%.png"]  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_png_of_an_awkward_name_reads_itself(png_bytes: PngWriter, tmp_path: Path, name: str) -> None:
    """16-bit colour goes through FFmpeg, which takes names for patterns and addresses: here, of the neighbour."""
    for other in ("s0.png", "s1.png", "0.png"):
        (tmp_path / other).write_bytes(png_bytes(DEEP_COLOUR[::-1]))
    (tmp_path / name).write_bytes(png_bytes(DEEP_COLOUR))
    np.testing.assert_array_equal(read_image(tmp_path / name).pixels, DEEP_COLOUR)
    Image.fromarray(GREY).save(tmp_path / name, format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / name).pixels[:, :, 0], GREY)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_16_bit_keeps_its_values(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP).save(path)
    raw = read_image(path)
    assert (raw.low, raw.high, raw.dtype) == (0, 65535, "uint16")
    np.testing.assert_array_equal(raw.pixels[:, :, 0], DEEP)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_png_keeps_its_low_byte(tmp_path: Path, channels: int, png_bytes: PngWriter) -> None:
    samples = np.concatenate([DEEP_COLOUR, DEEP_COLOUR[:, :, :1]], axis=-1)[:, :, :channels]
    path = tmp_path / "deep.png"
    path.write_bytes(png_bytes(samples))
    raw = read_image(path)
    assert raw.dtype == "uint16"
    # Grey with alpha leaves one channel, colour with alpha three.
    np.testing.assert_array_equal(raw.pixels, samples[:, :, : 1 if channels == 2 else 3])


def test_16_bit_colour_tiff_keeps_its_low_byte(tmp_path: Path) -> None:
    for layout in ("contig", "separate"):
        path = tmp_path / f"{layout}.tif"
        data = DEEP_COLOUR if layout == "contig" else np.moveaxis(DEEP_COLOUR, 2, 0)
        tifffile.imwrite(path, data, photometric="rgb", planarconfig=layout)
        raw = read_image(path)
        assert (raw.dtype, raw.high) == ("uint16", 65535)
        np.testing.assert_array_equal(raw.pixels, DEEP_COLOUR)


def test_float_tiff_keeps_values_and_finds_its_range(tmp_path: Path) -> None:
    values = np.linspace(-3, 5, 480, dtype=np.float32).reshape(24, 20)
    Image.fromarray(values).save(tmp_path / "a.tif")
    raw = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(raw.pixels[:, :, 0], values)
    assert (raw.low, raw.high, raw.dtype) == (-3, 5, "float32")


def test_float_within_0_and_1_has_that_range(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0.2, 0.7, 480).reshape(24, 20))
    raw = read_image(tmp_path / "a.npy")
    assert (raw.low, raw.high) == (0, 1)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float16", "float64", "bool"])
def test_npy_of_any_number(tmp_path: Path, kind: str) -> None:
    values = (np.arange(480).reshape(24, 20) % 120).astype(kind)
    np.save(tmp_path / "a.npy", values)
    raw = read_image(tmp_path / "a.npy")
    np.testing.assert_array_equal(raw.pixels[:, :, 0], values.astype(np.float32))
    assert raw.dtype == kind
    assert raw.low <= raw.pixels.min() <= raw.pixels.max() <= raw.high


def test_npy_channels_last_and_fortran_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((10, 12, 5))
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy").pixels, values.astype(np.float32))


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR // 128 * 128).quantize(8)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_and_colours_kept(tmp_path: Path) -> None:
    rgba = np.dstack([COLOUR, np.zeros_like(GREY)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png").pixels, COLOUR)
    Image.fromarray(np.dstack([GREY, GREY]), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png").pixels[:, :, 0], GREY)


def test_one_bit_image_spans_the_range(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels[:, :, 0], (GREY > 100) * 255)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, turn: int, suffix: str) -> None:
    quadrants = np.kron(np.array([[20, 90], [160, 230]], dtype=np.uint8), np.ones((16, 24), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quadrants).save(path, exif=exif)
    # The EXIF standard's eight cases, written out.
    right = {
        1: quadrants,
        2: quadrants[:, ::-1],
        3: quadrants[::-1, ::-1],
        4: quadrants[::-1],
        5: quadrants.T,
        6: quadrants.T[:, ::-1],
        7: quadrants.T[::-1, ::-1],
        8: quadrants.T[::-1],
    }[turn]
    found = read_image(path).pixels[:, :, 0]
    assert found.shape == right.shape
    assert np.abs(found - right).max() <= 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_of_deep_colour_equals_that_of_8_bit(tmp_path: Path, turn: int, png_bytes: PngWriter) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    shallow = read_image(tmp_path / "a.png").pixels
    payload = exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(payload)) + b"eXIf" + payload + struct.pack(">I", zlib.crc32(b"eXIf" + payload))
    deep = png_bytes(COLOUR.astype(np.uint16) * 257)
    (tmp_path / "deep.png").write_bytes(deep[:33] + chunk + deep[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png").pixels, shallow * 257)


def test_format_is_found_by_content_not_by_name(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels[:, :, 0], GREY)


def test_pages_are_counted_and_read_by_number(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    pages = [Image.fromarray(np.roll(GREY, k, axis=0)) for k in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert count_pages(path) == 3
    for k in range(3):
        page = read_image(f"{path}#page={k + 1}")
        np.testing.assert_array_equal(page.pixels[:, :, 0], np.roll(GREY, k, axis=0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pages_of_other_files(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "broken.tif").write_bytes(b"II\x2a\x00rubbish")
    assert count_pages(tmp_path / "a.png") == 1
    assert count_pages(tmp_path / "broken.tif") == 1
    assert count_pages(tmp_path / "missing.tif") == 1
    assert read_image(f"{tmp_path / 'a.png'}#page=1").pixels.shape == (24, 20, 1)


def test_a_file_whose_name_looks_like_a_page_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.tif#page=2"
    path.write_bytes(b"x")
    assert split_page(path) == (str(path), None)
    assert split_page(tmp_path / "b.tif#page=2") == (str(tmp_path / "b.tif"), 2)


@pytest.mark.parametrize("name", ["with space.png", "Größe_脳.png", "new\nline.png", "'quote\".png", "-dash.png"])
def test_any_name_is_read(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY).save(tmp_path / name, format="PNG")
    assert read_image(tmp_path / name).path == str(tmp_path / name)


def test_mask_threshold_is_half_the_range(tmp_path: Path) -> None:
    values = np.full((9, 10), 127, dtype=np.uint8)
    values[2, 3], values[4, 5] = 128, 255
    Image.fromarray(values).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", (9, 10))
    assert mask.dtype == bool
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(2, 3), (4, 5)]
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), mask)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "bool", "float32", "int64"])
def test_mask_of_zeros_and_ones(tmp_path: Path, kind: str) -> None:
    truth = GREY > 100
    np.save(tmp_path / "m.npy", truth.astype(kind))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.npy", truth.shape), truth)


def test_empty_and_one_bit_and_colour_masks(tmp_path: Path) -> None:
    truth = GREY > 100
    Image.new("L", (20, 24), 0).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", (24, 20)).any()
    Image.fromarray(truth).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bit.png"), truth)
    Image.fromarray(np.dstack([truth * 255, truth * 0, truth * 0]).astype(np.uint8)).save(tmp_path / "red.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "red.png"), truth)


def test_mask_of_another_size_or_scale(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png: expected a mask of 24x24 .* found 20x24"):
        read_mask(tmp_path / "m.png", (24, 24))
    Image.fromarray(GREY % 3).save(tmp_path / "labels.png")
    with pytest.raises(InputError, match=r"labels\.png: expected .* found the values 0, 1, 2: a label map\?"):
        read_mask(tmp_path / "labels.png", (24, 20))


def test_a_label_map_with_an_ignored_class_is_refused_and_nonzero_named(tmp_path: Path) -> None:
    labels = np.tile(np.array([0, 1, 2, 255], np.uint8), (8, 2))
    Image.fromarray(labels).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"found the values 0, 1, 2, 255: a label map\? .*#nonzero behind"):
        read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(f"{tmp_path / 'm.png'}#nonzero"), labels > 0)


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    for k in range(12):
        Image.fromarray(np.roll(GREY, k)).save(tmp_path / f"{k}.png")
    found: dict[int, np.ndarray] = {}

    def read(k: int) -> None:
        for _ in range(5):
            found[k] = read_image(tmp_path / f"{k}.png").pixels[:, :, 0]

    threads = [threading.Thread(target=read, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(12):
        np.testing.assert_array_equal(found[k], np.roll(GREY, k))
