"""A CSV manifest: path[,label,mask,group,split,class,foreground], paths relative to the CSV's own folder."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

from anodiff.data.layouts.volume_files import is_volume, volume_table
from anodiff.data.table import SPLITS, Sample, SampleTable, build_table
from anodiff.errors import DataError

MANIFEST_NAME = "manifest.csv"
KNOWN = ("path", "label", "mask", "group", "split", "class", "foreground")
LABELS = {
    "": None,
    "0": 0,
    "1": 1,
    "0.0": 0,
    "1.0": 1,
    "normal": 0,
    "good": 0,
    "anomalous": 1,
    "false": 0,
    "true": 1,
}


def matches(path: Path) -> bool:
    """Whether ``path`` is a CSV file, or a folder with a manifest.csv."""
    return (path.is_file() and path.suffix.lower() == ".csv") or (path / MANIFEST_NAME).is_file()


def load(path: Path, group_column: str = "group") -> SampleTable:
    """The sample table of a CSV file, or of the manifest.csv in a folder; groups may come from any of its columns.

    Raises DataError naming the line at fault.
    """
    file = file_in(path)
    samples = [
        Sample(
            resolve(file, sample.path),
            sample.label,
            resolve(file, sample.mask) if sample.mask else "",
            sample.group,
            sample.split,
            sample.class_name,
            resolve(file, sample.foreground) if sample.foreground else "",
        )
        for sample in read_manifest(file, group_column=group_column)
    ]
    build = volume_table if all(is_volume(sample.path) for sample in samples) else build_table
    return build(samples, "manifest", file)


def file_in(path: Path) -> Path:
    """The manifest itself, where ``path`` is one or has one."""
    return path if path.is_file() else path / MANIFEST_NAME


def column_names(file: Path) -> list[str]:
    """The columns of a CSV file in lower case, stripped. Raises DataError where it cannot be read."""
    with _reading(file), open(file, encoding="utf-8-sig", newline="") as stream:
        return _columns(csv.DictReader(stream, strict=True))


def resolve(file: Path, name: str) -> str:
    """``name`` as listed in ``file``: absolute, or below the file's folder."""
    return str(file.parent / name)


def read_manifest(file: Path, *, paths_only: bool = False, group_column: str = "group") -> list[Sample]:
    """The rows of a manifest with their paths as written (not yet resolved); other columns are ignored.

    label is 0 or 1 (or normal/good, anomalous); an empty field means unknown. With ``paths_only`` nothing but path and
    foreground is looked at. Raises DataError naming file and line: no ``path`` column, an empty path, a label or split
    of another name, bytes that are not UTF-8.
    """
    samples = []
    with _reading(file), open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        columns = _columns(reader)
        if "path" not in columns:
            raise DataError(
                f"{file}: expected a column 'path' (of {', '.join(KNOWN)}), found {', '.join(columns) or 'nothing'}"
            )
        reader.fieldnames = columns
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            samples.append(_plain_sample(row, where) if paths_only else _sample(row, where, group_column))
    if not samples:
        raise DataError(f"{file}: expected rows below the header, found none")
    return samples


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{file}: expected a readable CSV file in UTF-8, found {detail}") from None


def _columns(reader: csv.DictReader[str]) -> list[str]:
    return [name.strip().lower() for name in reader.fieldnames or []]


def _path(row: dict[str, str | None], where: str) -> str:
    if not row.get("path"):
        raise DataError(f"{where}: expected a path, found an empty field")
    return str(row["path"])


def _plain_sample(row: dict[str, str | None], where: str) -> Sample:
    return Sample(_path(row, where), foreground=(row.get("foreground") or "").strip())


def _sample(row: dict[str, str | None], where: str, group_column: str) -> Sample:
    field = {name: row.get(name) or "" for name in KNOWN}
    path, group = _path(row, where), (row.get(group_column) or "").strip()
    label, split = field["label"].strip().lower(), field["split"].strip().lower()
    if label not in LABELS:
        raise DataError(f"{where}: expected a label 0 (normal), 1 (anomalous) or nothing, found {field['label']!r}")
    if split not in SPLITS:
        raise DataError(f"{where}: expected a split train, val, dev, test or nothing, found {field['split']!r}")
    return Sample(path, LABELS[label], field["mask"], group, split, field["class"].strip(), field["foreground"].strip())
