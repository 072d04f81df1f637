"""A CSV manifest: path[,label,mask,group,split], paths relative to the CSV's own folder."""

from __future__ import annotations

import csv
from pathlib import Path

from anodiff.data.table import SPLITS, Sample, SampleTable, build_table
from anodiff.errors import DataError

MANIFEST_NAME = "manifest.csv"
KNOWN = ("path", "label", "mask", "group", "split")
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
    return path.is_file() or (path / MANIFEST_NAME).is_file()


def load(path: Path) -> SampleTable:
    """The sample table of a CSV file, or of the manifest.csv in a folder. Raises DataError naming the line at fault."""
    file = path if path.is_file() else path / MANIFEST_NAME
    samples = [
        Sample(
            resolve(file, sample.path),
            sample.label,
            resolve(file, sample.mask) if sample.mask else "",
            sample.group,
            sample.split,
        )
        for sample in read_manifest(file)
    ]
    return build_table(samples, "manifest", file)


def resolve(file: Path, name: str) -> str:
    """``name`` as listed in ``file``: absolute, or below the file's folder."""
    return str(file.parent / name)


def read_manifest(file: Path) -> list[Sample]:
    """The rows of a manifest with their paths as written (not yet resolved); other columns are ignored.

    label is 0 or 1 (or normal/good, anomalous); an empty field means unknown. Raises DataError naming file and line:
    no ``path`` column, an empty path, a label or split of another name, bytes that are not UTF-8.
    """
    samples = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            if "path" not in columns:
                raise DataError(
                    f"{file}: expected a column 'path' (of {', '.join(KNOWN)}), found {', '.join(columns) or 'nothing'}"
                )
            reader.fieldnames = columns
            for row in reader:
                samples.append(_sample(row, f"{file}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{file}: expected a readable CSV file in UTF-8, found {detail}") from None
    if not samples:
        raise DataError(f"{file}: expected rows below the header, found none")
    return samples


def _sample(row: dict[str, str | None], where: str) -> Sample:
    field = {name: row.get(name) or "" for name in KNOWN}
    if not field["path"]:
        raise DataError(f"{where}: expected a path, found an empty field")
    label, split = field["label"].strip().lower(), field["split"].strip().lower()
    if label not in LABELS:
        raise DataError(f"{where}: expected a label 0 (normal), 1 (anomalous) or nothing, found {field['label']!r}")
    if split not in SPLITS:
        raise DataError(f"{where}: expected a split train, val, dev, test or nothing, found {field['split']!r}")
    return Sample(field["path"], LABELS[label], field["mask"], field["group"].strip(), split)
