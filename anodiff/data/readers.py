"""Image and mask files to arrays: PNG, JPEG, BMP, TIFF (integer, float, several pages), NPY, and images in NPZ and IDX.

The format is found from the file's first bytes, never from its name. Every reason why a file cannot be used becomes an
InputError of one sentence. The functions keep no state and touch no global setting, so threads may share them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from anodiff.data.stacks import INDEX_MARK, is_stack, read_index, split_index
from anodiff.errors import InputError

MAX_PIXELS = 100_000_000
MIN_SIDE = 8
MAX_CHANNELS = 16
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
PAGE_MARK = "#page="
NONZERO_MARK = "#nonzero"
ORIENTATION_TAG = 0x0112
BITS_PER_SAMPLE_TAG = 258

# The format classes are called directly instead of Image.open: no other decoder can be reached, and the pixel limit is
# ours to raise per call (Pillow's own is one global of the whole process).
_PILLOW_FORMATS: tuple[tuple[bytes, Callable[[BinaryIO], Image.Image]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II\x2a\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00\x2a", TiffImagePlugin.TiffImageFile),
    (b"II\x2b\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00\x2b", TiffImagePlugin.TiffImageFile),
)
_NPY_MAGIC = b"\x93NUMPY"
#: numbers up to this one are taken for classes where a mask holds them with nothing between them and its full value
LAST_LABEL = 15
# Modes whose samples are used as they are stored; every other mode is converted to the named one first.
_KEEP_MODES = {"L", "RGB", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_CONVERT = {
    "1": "L",
    "LA": "L",
    "La": "LA",
    "P": "RGB",
    "PA": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}


@dataclass(frozen=True)
class RawImage:
    """A decoded image, before any normalisation.

    pixels: float32 (H, W, C), the values as stored; low, high: the value range of the stored type (uint8: 0..255,
    uint16: 0..65535, bool: 0..1; other types: 0..1 when the values lie within it, else their minimum and maximum);
    dtype: the stored type's NumPy name; path: where it came from, for messages; foreground: bool (H, W), where one was
    made elsewhere; None: the settings of the preprocessing say how it is found.
    """

    pixels: np.ndarray
    low: float
    high: float
    dtype: str
    path: str = ""
    foreground: np.ndarray | None = None


def split_page(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """``("stack.tif", 3)`` for ``"stack.tif#page=3"``, pages counted from 1; ``(path, None)`` where no page is named.

    A file whose own name ends so wins over the reading as a page.
    """
    text = os.fspath(path)
    name, mark, number = text.rpartition(PAGE_MARK)
    if not mark or not (number.isascii() and number.isdigit()) or os.path.lexists(text):
        return text, None
    return name, int(number)


def file_of(path: str | os.PathLike[str]) -> str:
    """The file on disk behind an image's name: without ``#page=3`` or ``#index=test_images/17``."""
    name, page = split_page(path)
    return name if page is not None else split_index(path)[0]


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> RawImage:
    """Decode one image, at its own size and with its own values, to a RawImage with pixels (H, W, C).

    Palette images become RGB; an alpha channel is dropped and the stored colours kept, whatever their opacity; EXIF
    orientation is applied, so "native" always means as displayed. One page of a multi-page TIFF is named as
    ``"stack.tif#page=3"`` (from 1), one image of an array file as ``"set.npz#index=test_images/17"`` (from 0). NPY
    arrays are (H, W) or (H, W, C) with at most 16 channels.

    Raises InputError: missing, unreadable, empty, truncated, not an image of these formats, a side under 8 pixels,
    more than ``max_pixels`` pixels (checked before anything is decoded), NaN or infinite values, a constant image
    (nothing in it can be scored), several pages and none named.
    """
    image = decode_image(path, max_pixels=max_pixels)
    height, width = image.pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{path}: expected at least {MIN_SIDE}x{MIN_SIDE} pixels, found {width}x{height}")
    if image.pixels.min() == image.pixels.max():
        raise InputError(
            f"{path}: expected an image with content, found a constant one "
            f"(every value is {image.pixels.flat[0]:g}), which cannot be scored"
        )
    return image


def read_mask(
    path: str | os.PathLike[str], shape: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an annotation to bool (H, W), True = anomalous, by the rule of :func:`mark_pixels`.

    Of several channels the largest counts. ``shape`` is the (H, W) that the image has. A path that ends in ``#nonzero``
    names a map of defect classes: every value but 0 is anomalous.

    Raises InputError for what cannot be decoded, for another size than ``shape``, and for a label map.
    """
    text = os.fspath(path)
    any_class = text.endswith(NONZERO_MARK) and not os.path.lexists(text)
    path = text.removesuffix(NONZERO_MARK) if any_class else text
    image = decode_image(path, max_pixels=max_pixels)
    values = image.pixels.max(axis=2)
    if shape is not None and values.shape != tuple(shape):
        raise InputError(
            f"{path}: expected a mask of {shape[1]}x{shape[0]} pixels like its image, "
            f"found {values.shape[1]}x{values.shape[0]}"
        )
    if any_class:
        return values != 0
    return mark_pixels(values, np.dtype(image.dtype), path)


def mark_pixels(values: np.ndarray, stored: np.dtype[Any], path: object) -> np.ndarray:
    """A mask's finite numbers of any shape as bool, True = anomalous; ``stored`` is the type that its file has.

    Accepted, nothing below 0 in any of them:

    - 0 and 1;
    - 0 and one other value above 15, such as 255, or 65535 in 16 bits;
    - shares between 0 and 1 in a floating-point type: from 0.5 on;
    - smooth rims, in 8 and 16 unsigned bits, or in floating point up to 255: any values, from half of the range on
      (8-bit: 128), where that is reached. Values 1 to 15 with none between 15 and the full value are no rim but
      classes: {0, 1, 2, 255} is a label map with 255 for "ignore".

    Raises InputError, which names ``path``, for everything else: label maps, other scales.
    """
    low, high = float(values.min()), float(values.max())
    if stored.kind in "bf" and low >= 0 and high <= 1:
        return np.asarray(values >= 0.5)
    if low >= 0 and (high <= 1 or high > LAST_LABEL) and not np.logical_and(values != 0, values != high).any():
        return np.asarray(values != 0)
    full = {"uint8": 255.0, "uint16": 65535.0}.get(stored.name, 255.0 if stored.kind == "f" and high == 255 else 0.0)
    if low >= 0 and full and high >= full / 2 and not _holds_labels(values, full):
        return np.asarray(values >= full / 2)
    found = np.unique(values)
    some = ", ".join(f"{value:g}" for value in found[:4]) + (f" ... {found[-1]:g}" if len(found) > 4 else "")
    raise InputError(
        f"{path}: expected a mask of 0 and 1 (or 0 and {full or 255:g}), found the values {some}: a label map? "
        f"(in a CSV of paths, {NONZERO_MARK} behind the mask's name makes every value but 0 anomalous)"
    )


def _holds_labels(values: np.ndarray, full: float) -> bool:
    """Whether there are values 1 ... LAST_LABEL, and none between them and the full one, as a rim would have."""
    small = np.logical_and(values > 0, values <= LAST_LABEL).any()
    return bool(small and not np.logical_and(values > LAST_LABEL, values < full).any())


def count_pages(path: str | os.PathLike[str]) -> int:
    """The number of pages of a TIFF; 1 for every other file and for one that cannot be opened (reading says why)."""
    name, page = split_page(path)
    if page is not None:
        return 1
    try:
        with open(name, "rb") as file:
            opener = _pillow_format(file.read(8))
            if opener is not TiffImagePlugin.TiffImageFile:
                return 1
            file.seek(0)
            return int(getattr(opener(file), "n_frames", 1))
    except Exception:
        return 1


def decode_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> RawImage:
    """Decode as ``read_image`` does, with no judgement of the content except that every value is finite.

    A constant image and one of few pixels are decoded: a mask, or a slice of a volume, may be either. Raises
    InputError for everything else that ``read_image`` refuses.
    """
    name, page = split_page(path)
    try:
        if split_index(path)[2] is not None:
            return _to_raw(*read_index(path, max_pixels), str(path))
        with open(name, "rb") as file:
            head = file.read(8)
            file.seek(0)
            if is_stack(name) and head:
                raise InputError(
                    f"{path}: expected one image, found a file of many; "
                    f"name one as {path}{INDEX_MARK}{'KEY/' if name.lower().endswith('.npz') else ''}0"
                )
            if not head:
                raise InputError(f"{path}: expected an image, found an empty file")
            if head.startswith(_NPY_MAGIC):
                array, dtype = _read_npy(name, path, max_pixels)
            else:
                opener = _pillow_format(head)
                if opener is None:
                    raise InputError(
                        f"{path}: expected a PNG, JPEG, BMP, TIFF or NPY image, found a file that begins with {head!r}"
                    )
                array, dtype = _read_pillow(opener(file), name, path, page, max_pixels)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected an image, found no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected an image, found a folder{_why_unlisted(name)}") from None
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise InputError(f"{path}: expected a readable image, found a damaged or unreadable file ({reason})") from None
    except Exception as error:
        # A hostile or damaged file can raise nearly anything inside a decoder; none of it may stop a batch.
        raise InputError(f"{path}: expected a readable image, found a damaged file ({_one_line(error)})") from None
    return _to_raw(array, dtype, str(path))


def _why_unlisted(folder: str) -> str:
    """Why a folder gave no images of its own, where that is the system's doing."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f" that cannot be listed ({error.strerror})"
    return ""


def _pillow_format(head: bytes) -> Callable[[BinaryIO], Image.Image] | None:
    return next((opener for magic, opener in _PILLOW_FORMATS if head.startswith(magic)), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_size(path: object, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{path}: expected at most {max_pixels:,} pixels (preprocess.max_pixels raises the limit), "
            f"found {width}x{height}"
        )


def _read_pillow(
    image: Image.Image, name: str, path: object, page: int | None, max_pixels: int
) -> tuple[np.ndarray, np.dtype[Any]]:
    """Samples (H, W) or (H, W, C) of one page, and their stored type."""
    pages = getattr(image, "n_frames", 1) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1
    if page is None and pages > 1:
        raise InputError(f"{path}: expected one image, found {pages} pages; name one as {path}{PAGE_MARK}1")
    if page is not None and not 1 <= page <= pages:
        raise InputError(f"{path}: expected a page between 1 and {pages}, found {page}")
    if page is not None and pages > 1:
        image.seek(page - 1)
    _check_size(path, *image.size, max_pixels)
    deep = _deep_colour(image)
    # Also where another decoder takes over: Pillow notices truncated files, the others may fill the rest with zeros.
    image.load()
    if deep == "png":
        array = _oriented(_read_png16(name), image)
    elif deep == "tiff":
        array = _read_tiff(name, (page or 1) - 1)
    else:
        if image.getexif().get(ORIENTATION_TAG, 1) != 1:
            image = ImageOps.exif_transpose(image)
        while image.mode in _CONVERT:
            image = image.convert(_CONVERT[image.mode])
        if image.mode not in _KEEP_MODES:
            raise InputError(f"{path}: expected grey or colour pixels, found the mode {image.mode}")
        array = np.asarray(image)
    return array, array.dtype


def _deep_colour(image: Image.Image) -> str:
    """``png`` or ``tiff`` for colour of more than 8 bits a sample, which Pillow would silently reduce to 8; else ''."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        tiles: list[Any] = list(image.tile)
        rawmode = str(tiles[0][3]) if tiles else ""
        return "png" if rawmode in ("RGB;16B", "RGBA;16B", "LA;16B") else ""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode not in ("I;16", "I;16B", "I", "F", "1"):
        return "tiff" if max(image.tag_v2.get(BITS_PER_SAMPLE_TAG, (8,))) > 8 else ""
    return ""


def _oriented(array: np.ndarray, image: Image.Image) -> np.ndarray:
    """Apply the EXIF orientation of ``image`` to (H, W, C) samples decoded elsewhere."""
    turn = int(image.getexif().get(ORIENTATION_TAG, 1))
    if turn in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _read_png16(name: str) -> np.ndarray:
    """uint16 (H, W, C) of a 16-bit colour PNG, alpha dropped."""
    import av

    # The open file, not its name: FFmpeg reads names as URLs and patterns, and would open another file for "s%d.png".
    with open(name, "rb") as file, av.open(file, "r") as container:
        frame = next(container.decode(video=0))
        if frame.format.name == "ya16be":
            plane = frame.planes[0]
            rows = np.frombuffer(bytes(plane), dtype=">u2").reshape(frame.height, plane.line_size // 2)
            return rows[:, : 2 * frame.width : 2, None].astype(np.uint16)
        return frame.to_ndarray()[:, :, :3]


def _read_tiff(name: str, page: int) -> np.ndarray:
    """Samples (H, W, C) of a page whose colours have more than 8 bits."""
    import tifffile

    with tifffile.TiffFile(name) as file:
        tiff_page = file.pages[page]
        array = np.asarray(tiff_page.asarray())
        if "S" in tiff_page.axes:
            array = np.moveaxis(array, tiff_page.axes.index("S"), -1)
    return array[:, :, :3] if array.ndim == 3 and array.shape[2] == 4 else array


def _read_npy(name: str, path: object, max_pixels: int) -> tuple[np.ndarray, np.dtype[Any]]:
    """An NPY array; its header is judged before any of its data is read, and pickled objects are never loaded."""
    array = np.lib.format.open_memmap(name, mode="r")
    shape = " x ".join(str(side) for side in array.shape) or "a single number"
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= MAX_CHANNELS):
        raise InputError(
            f"{path}: expected an array (height, width) or (height, width, channels <= {MAX_CHANNELS}), found {shape}"
        )
    if array.dtype.kind not in "buif":
        raise InputError(f"{path}: expected numbers, found the type {array.dtype}")
    _check_size(path, array.shape[1], array.shape[0], max_pixels)
    return np.array(array), array.dtype


def _to_raw(array: np.ndarray, dtype: np.dtype[Any], path: str) -> RawImage:
    """float32 (H, W, C) and the value range of the stored type. Raises InputError for values that are not finite."""
    if array.size == 0:
        raise InputError(f"{path}: expected an image with pixels, found none")
    with np.errstate(over="ignore"):
        pixels = np.ascontiguousarray(array, dtype=np.float32)
    if dtype.kind == "f" and not np.isfinite(pixels).all():
        count = int(np.size(pixels) - np.isfinite(pixels).sum())
        raise InputError(f"{path}: expected finite pixel values, found {count:,} that are NaN or infinite")
    low, high = 0.0, 1.0
    if dtype.kind == "u" and dtype.itemsize <= 2:
        high = float(np.iinfo(dtype).max)
    elif dtype.kind != "b" and not (pixels.min() >= 0 and pixels.max() <= 1):
        low, high = float(pixels.min()), float(pixels.max())
    name = dtype.newbyteorder("=").name
    return RawImage(pixels if pixels.ndim == 3 else pixels[:, :, None], low, high, name, path)


def image_suffix(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends like an image that ``read_image`` may know (any case)."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES
