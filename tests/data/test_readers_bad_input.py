"""Every kind of file that cannot be used is refused with one sentence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.data.readers import read_image
from anodiff.errors import InputError

PngWriter = Callable[[np.ndarray], bytes]
GREY = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def refused(path: Path | str, *words: str, **options: int) -> str:
    """The one-sentence message with which ``path`` is refused; it names the file and each of ``words``."""
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert "expected" in message
    assert "found" in message
    for word in words:
        assert word in message
    return message


def attempt(path: Path, **options: int) -> tuple[np.ndarray | None, str]:
    """(pixels, "") of a file that can be read, else (None, the message). Any other exception is the test's failure."""
    try:
        return read_image(path, **options).pixels, ""
    except InputError as error:
        return None, str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_truncation_is_refused_or_harmless(tmp_path: Path, png_bytes: PngWriter) -> None:
    """Cut at many places: an InputError, or exactly the pixels of the whole file, never half an image."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    files = {"a.png": Image.fromarray(texture), "a.bmp": Image.fromarray(texture), "a.tif": Image.fromarray(texture)}
    for name, image in files.items():
        image.save(tmp_path / name)
    np.save(tmp_path / "a.npy", texture)
    (tmp_path / "deep.png").write_bytes(png_bytes(rng.integers(0, 65536, (40, 40, 3), dtype=np.uint16)))
    for name in [*files, "a.npy", "deep.png"]:
        data = (tmp_path / name).read_bytes()
        whole = read_image(tmp_path / name).pixels
        refusals = 0
        for cut in np.linspace(1, len(data) - 1, 25).astype(int):
            path = tmp_path / f"cut_{name}"
            path.write_bytes(data[:cut])
            found, message = attempt(path)
            if message:
                assert message.startswith(str(path))
                refusals += 1
            else:
                np.testing.assert_array_equal(found, whole)
        assert refusals >= 20, name


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "a.jpg", "damaged")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Bytes overwritten anywhere give an image or an InputError, no other exception."""
    rng = np.random.default_rng(1)
    for name in ("a.png", "a.tif", "a.bmp", "a.jpg"):
        Image.fromarray(COLOUR).save(tmp_path / name)
        data = bytearray((tmp_path / name).read_bytes())
        for _ in range(40):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 6):
                damaged[place] = rng.integers(256)
            path = tmp_path / f"damaged_{name}"
            path.write_bytes(damaged)
            _, message = attempt(path, max_pixels=1_000_000)
            assert "\n" not in message


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    refused(tmp_path / "a.png", "empty file")


def test_text_named_png(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("patient seen on Monday\n")
    refused(tmp_path / "notes.png", "PNG, JPEG, BMP, TIFF or NPY")


def test_missing_file_and_folder_and_dangling_link(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "no such file")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "a folder")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "link.png", "no such file")


@pytest.mark.parametrize("side", [1, 7])
def test_tiny_image(tmp_path: Path, side: int) -> None:
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "8x8", f"found {side}x{side}")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    """The header says 30,000 x 30,000; there is no image data at all, so only the header can have been read."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    png += struct.pack(">I", 1) + b"IDAT\x00" + struct.pack(">I", zlib.crc32(b"IDAT\x00"))
    path = tmp_path / "huge.png"
    path.write_bytes(png)
    refused(path, "100,000,000 pixels", "30000x30000", "preprocess.max_pixels")


def test_pixel_limit_is_a_setting(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", GREY)
    for name in ("a.png", "a.npy"):
        refused(tmp_path / name, "479 pixels", "20x24", max_pixels=479)
        assert read_image(tmp_path / name, max_pixels=480).pixels.size == 480


def test_only_our_own_limit_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit is a global of the process: it neither stops us nor is it changed."""
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Image.DecompressionBombError), Image.open(tmp_path / "a.png"):
        pass
    assert read_image(tmp_path / "a.png").pixels.size == 480
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_values_that_are_not_finite(tmp_path: Path, bad: float, suffix: str) -> None:
    values = np.linspace(0, 1, 480, dtype=np.float32).reshape(24, 20)
    values[3, 4] = values[5, 6] = bad
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    refused(path, "2 that are NaN or infinite")


def test_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    values = np.ones((9, 9))
    values[0, 0] = 1e300
    np.save(tmp_path / "a.npy", values)
    refused(tmp_path / "a.npy", "infinite")


def test_constant_image(tmp_path: Path) -> None:
    Image.new("L", (20, 20), 7).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "constant", "7")


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (3, 64, 64), ()])
def test_npy_of_wrong_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    refused(tmp_path / "a.npy", "(height, width")


def test_npy_without_numbers_or_with_pickles(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.full((9, 9), "a"))
    refused(tmp_path / "text.npy", "numbers")
    np.save(tmp_path / "complex.npy", np.ones((9, 9), dtype=complex))
    refused(tmp_path / "complex.npy", "numbers")
    np.save(tmp_path / "object.npy", np.full((9, 9), {"a": 1}), allow_pickle=True)
    refused(tmp_path / "object.npy", "damaged")
    np.savez(tmp_path / "archive.npz", a=GREY)
    refused(tmp_path / "archive.npz", "a file of many", "#index=KEY/0")


def test_pages_that_are_not_there_or_not_named(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    pages = [Image.fromarray(np.roll(GREY, k, axis=0)) for k in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    refused(path, "3 pages", "#page=1")
    refused(f"{path}#page=4", "between 1 and 3")
    refused(f"{path}#page=0", "between 1 and 3")
