"""Images in NPZ and IDX files: read exactly, without the whole array in memory, and refused by one sentence."""

from __future__ import annotations

import gzip
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from anodiff.data import stacks
from anodiff.data.readers import file_of, read_image, read_mask
from anodiff.data.stacks import array_shapes, image_paths, is_stack, open_array, split_index
from anodiff.data.table import Sample, build_table, make_ids
from anodiff.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (6, 12, 10), dtype=np.uint8)
IDX_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(values: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, IDX_CODES[values.dtype.str[1:]], values.ndim, *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_read_exactly(tmp_path: Path, save: object, order: str) -> None:
    colour = RNG.integers(0, 2**16, (4, 9, 8, 3), dtype=np.uint16)
    save(tmp_path / "s.npz", images=np.asarray(GREY, order=order), deep=np.asarray(colour, order=order))  # type: ignore[operator]
    for n in range(len(GREY)):
        raw = read_image(f"{tmp_path}/s.npz#index=images/{n}")
        np.testing.assert_array_equal(raw.pixels[:, :, 0], GREY[n])
        assert (raw.dtype, raw.low, raw.high) == ("uint8", 0, 255)
    raw = read_image(f"{tmp_path}/s.npz#index=deep/2")
    np.testing.assert_array_equal(raw.pixels, colour[2])
    assert raw.high == 65535
    assert array_shapes(tmp_path / "s.npz") == {"images": GREY.shape, "deep": colour.shape}


@pytest.mark.parametrize("kind", sorted(IDX_CODES))
@pytest.mark.parametrize("packed", [True, False])
def test_idx_of_every_type(tmp_path: Path, kind: str, packed: bool) -> None:
    values = RNG.integers(0, 100, (3, 9, 8)).astype(kind)
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    np.testing.assert_array_equal(open_array(path), values)
    np.testing.assert_array_equal(read_image(f"{path}#index=2").pixels[:, :, 0], values[2].astype(np.float32))


def test_arrays_are_mapped_not_loaded_and_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "s.npz", images=GREY)
    opened = []
    original = stacks._open_npz
    monkeypatch.setattr(stacks, "_open_npz", lambda *a: (opened.append(a), original(*a))[1])
    barrier = threading.Barrier(4)
    found: dict[int, np.ndarray] = {}

    def read(n: int) -> None:
        barrier.wait()
        found[n] = read_image(f"{tmp_path}/s.npz#index=images/{n}").pixels[:, :, 0]

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, pixels in found.items():
        np.testing.assert_array_equal(pixels, GREY[n])
    assert len(opened) == 1
    assert isinstance(open_array(tmp_path / "s.npz", "images"), np.memmap)
    # A file that has changed is another one.
    np.savez_compressed(tmp_path / "s.npz", images=GREY[::-1], more=GREY)
    np.testing.assert_array_equal(read_image(f"{tmp_path}/s.npz#index=images/0").pixels[:, :, 0], GREY[-1])


def test_masks_and_single_images_of_a_stack(tmp_path: Path) -> None:
    truth = GREY > 128
    np.savez(tmp_path / "s.npz", images=GREY[:1], masks=truth)
    np.testing.assert_array_equal(read_mask(f"{tmp_path}/s.npz#index=masks/3", (12, 10)), truth[3])
    table = build_table([Sample(str(tmp_path / "s.npz"), 0)], "manifest", tmp_path).table
    assert table["path"].tolist() == [f"{tmp_path}/s.npz#index=images/0"]
    assert table["group"].tolist() == [str(tmp_path / "s.npz")]


def test_names_of_images(tmp_path: Path) -> None:
    assert split_index("a/s.npz#index=test_images/17") == ("a/s.npz", "test_images", 17)
    assert split_index("a/t10k-images-idx3-ubyte.gz#index=3") == ("a/t10k-images-idx3-ubyte.gz", "", 3)
    assert split_index("a/s.npz#index=x") == ("a/s.npz#index=x", "", None)
    odd = tmp_path / "s.npz#index=3"
    odd.write_bytes(b"x")
    assert split_index(odd) == (str(odd), "", None)
    assert [file_of(f"/d/{name}") for name in ("s.tif#page=2", "s.npz#index=k/1", "p.png")] == [
        "/d/s.tif",
        "/d/s.npz",
        "/d/p.png",
    ]
    names = (
        "s.npz",
        "S.NPZ",
        "a-idx3-ubyte",
        "a.idx3-ubyte.gz",
        "a.idx",
        "a.idx.gz",
        "a.png",
        "a.gz",
        "idx3-ubyte.txt",
    )
    assert [is_stack(name) for name in names] == [True] * 6 + [False] * 3


def test_ids_of_images_are_short_safe_and_unique() -> None:
    paths = ["/d/s.npz#index=test_images/1", "/d/s.npz#index=test_images/11", "/d/x-images-idx3-ubyte.gz#index=7"]
    assert make_ids(paths) == ["s_test_images_1", "s_test_images_11", "x-images-idx3-ubyte_7"]
    assert make_ids(paths[:1]) == ["s_test_images_1"]
    clash = make_ids(["/d/s.npz#index=a/1", "/d/s.npz#index=A/1", "/d/s_a_1.png"])
    assert len({name.casefold() for name in clash}) == 3
    assert make_ids(["/d/s.npz#index=a/1", "/d/s.npz#index=A/1", "/d/s_a_1.png"][::-1]) == clash[::-1]


def test_which_arrays_of_an_npz_are_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=GREY[:2], masks=GREY, labels=np.zeros(6))
    assert image_paths(tmp_path / "a.npz") == [f"{tmp_path}/a.npz#index=train_images/{n}" for n in range(2)]
    np.savez(tmp_path / "b.npz", x=GREY[:2], labels=np.zeros(6))
    assert image_paths(tmp_path / "b.npz") == [f"{tmp_path}/b.npz#index=x/{n}" for n in range(2)]
    (tmp_path / "c.npz").write_bytes(b"no archive")
    assert image_paths(tmp_path / "c.npz") == [str(tmp_path / "c.npz")]


def test_what_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", images=GREY, cube=np.zeros((2, 9, 9, 28)), flat=np.zeros(9), words=np.array(["a"]))
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object))
    for name, message in (
        ("s.npz", r"found a file of many; name one as .*s\.npz#index=KEY/0"),
        ("s.npz#index=images/6", "expected an image between 0 and 5, found 6"),
        ("s.npz#index=other/0", "expected an array 'other', found images, cube, flat, words"),
        ("s.npz#index=cube/0", "channels <= 16.*found 2 x 9 x 9 x 28"),
        ("s.npz#index=flat/0", "expected an array .*found 9"),
        ("s.npz#index=words/0", "expected numbers, found the type <U1"),
        ("objects.npz#index=images/0", "expected numbers, found the type object"),
        ("gone.npz#index=images/0", "found none"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="at most 100 pixels"):
        read_image(f"{tmp_path}/s.npz#index=images/0", max_pixels=100)


def test_damaged_files_are_refused_and_not_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = RNG.integers(0, 255, (50, 20, 20), dtype=np.uint8)
    np.savez_compressed(tmp_path / "s.npz", images=noise)
    whole = (tmp_path / "s.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    packed = gzip.compress(idx(noise))
    (tmp_path / "cut-idx3-ubyte.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "cut-idx3-ubyte").write_bytes(idx(noise)[:-1])
    (tmp_path / "long-idx3-ubyte").write_bytes(idx(noise) + b"x")
    (tmp_path / "long-idx3-ubyte.gz").write_bytes(gzip.compress(idx(noise) + b"x"))
    (tmp_path / "head-idx3-ubyte").write_bytes(idx(noise)[:6])
    (tmp_path / "other-idx3-ubyte").write_bytes(b"GIF89a" * 10)
    names = ["cut.npz#index=images/0", "flipped.npz#index=images/0"]
    names += [f"{name}#index=0" for name in ("cut-idx3-ubyte.gz", "cut-idx3-ubyte", "long-idx3-ubyte")]
    names += [f"{name}#index=0" for name in ("long-idx3-ubyte.gz", "head-idx3-ubyte", "other-idx3-ubyte")]
    for name in names:
        with pytest.raises(InputError, match=r"expected .* found"):
            read_image(tmp_path / name)
    monkeypatch.setattr(stacks, "_open_npz", lambda *_: pytest.fail("opened again"))
    with pytest.raises(InputError):
        read_image(tmp_path / names[1])


def test_an_array_larger_than_the_room_for_it_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000)}"
        head = head.ljust(117) + b"\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(1000))
    with pytest.raises(InputError, match=r"expected room for 1,000,000,000,000,000 unpacked bytes"):
        read_image(f"{tmp_path}/bomb.npz#index=images/0")
