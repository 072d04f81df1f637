"""Files: whole or not at all, bit for bit, one sentence when the disk says no."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anodiff import files
from anodiff.errors import StorageError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = files.atomic_write(tmp_path / "a.txt", "old")

    def half(stream: io.BufferedWriter) -> None:
        stream.write(b"ne")
        raise ValueError("killed half-way")

    with pytest.raises(ValueError, match="half-way"):
        files.atomic_write(target, half)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_content_may_be_bytes_text_or_a_function(tmp_path: Path) -> None:
    assert files.atomic_write(tmp_path / "b", b"\x00\xff").read_bytes() == b"\x00\xff"
    assert files.atomic_write(tmp_path / "t", "ä").read_bytes() == "ä".encode()
    assert files.atomic_write(tmp_path / "f", lambda stream: stream.write(b"x")).read_bytes() == b"x"


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    files.atomic_write(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "input/output")],
)
def test_the_systems_no_becomes_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(StorageError, match=words) as caught:
        files.atomic_write(tmp_path / "map.npy", b"1234")
    assert "map.npy" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_really_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a tiny tmpfs")
    try:
        files.save_map(disk / "small.npy", np.zeros((8, 8)))
        with pytest.raises(StorageError, match="no space left"):
            files.save_map(disk / "large.npy", np.zeros((512, 512)))
        assert os.listdir(disk) == ["small.npy"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_missing_or_wrong_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="expected a folder, found a file"):
        files.make_folder(tmp_path / "file")
    with pytest.raises(StorageError, match="gone"):
        files.atomic_write(tmp_path / "gone" / "x", b"")


def test_leftovers_of_a_killed_run_are_removed_and_only_those(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / ".anodiff" / "reconstructions").mkdir(parents=True)
    parts = (".x.anodiff-part", "maps/.y.anodiff-part", ".anodiff/reconstructions/.z.anodiff-part")
    for name in (*parts, ".mine.part", "maps/y.npy"):
        (tmp_path / name).write_text("")
    files.remove_leftovers(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {".mine.part", "maps/y.npy"}


@pytest.mark.parametrize("ending", ["npy", "tiff"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_maps_come_back_bit_for_bit(tmp_path: Path, ending: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(0, 1e3, shape).astype(np.float32)
    values.flat[:4] = [np.nan, np.inf, -0.0, np.finfo(np.float32).tiny]
    back = files.load_map(files.save_map(tmp_path / f"m.{ending}", values))
    assert back.dtype == np.float32
    assert back.tobytes() == values.tobytes()


def test_a_map_of_an_unknown_kind_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="npy, tiff"):
        files.save_map(tmp_path / "m.exr", np.zeros((2, 2)))
    (tmp_path / "m.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(StorageError, match=r"m\.npy"):
        files.load_map(tmp_path / "m.npy")


@given(st.text())
def test_quoting_never_leaves_a_formula_and_changes_nothing_else(text: str) -> None:
    quoted = files.quote_cell(text)
    assert quoted in (text, "'" + text)
    assert quoted[:1] not in set("=+-@\t\r")


@given(st.text(alphabet="'=+-@\t\ra") | st.text())
def test_a_cell_comes_back_as_it_was(text: str) -> None:
    assert files.unquote_cell(files.quote_cell(text)) == text


def test_csv_cells() -> None:
    row = {
        "path": "=cmd|' /C calc'!A0", "nasty": 'a,"b"\nc', "score": -0.1, "f32": np.float32(0.5), "n": 3,
        "yes": True, "no": False, "none": None, "nan": float("nan"), "unicode": "Gehirn ä\u4e2d",
    }  # fmt: skip
    columns = [*row, "absent"]
    head, cells = csv.reader(io.StringIO(files.csv_text(columns, [row])))
    assert head == columns
    assert cells == [
        "'=cmd|' /C calc'!A0", 'a,"b"\nc', "-0.1", "0.5", "3", "true", "false", "", "", "Gehirn ä\u4e2d", "",
    ]  # fmt: skip


def test_csv_keeps_a_name_that_is_not_utf8_readable(tmp_path: Path) -> None:
    path = files.write_csv(tmp_path / "t.csv", ["path"], [{"path": os.fsdecode(b"a\xff.png")}])
    assert path.read_text(encoding="utf-8") == "path\na\\udcff.png\n"


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "m.json", {"a": float("nan"), "b": [np.float64(1.5), float("inf")], "c": 1})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": 1}
