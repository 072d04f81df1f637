"""anodiff split: divide a data set by whole groups, and write the split as a CSV that is the truth from then on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anodiff.pipelines.common import GroupBy, Layout, Normal, new_file, say, table_text

if TYPE_CHECKING:
    from anodiff.data.findings import Finding
    from anodiff.data.splits import SplitCounts
    from anodiff.data.table import SampleTable

COLUMNS = ("path", "label", "mask", "group", "split")
READERS = 2
#: a cell that begins so would be quoted against spreadsheets, and the path then be another
_FORMULA = ("=", "+", "-", "@", "'", "\t", "\r")


def main(
    data: Annotated[Path, typer.Argument(help="Data set: a folder or file in a known layout, or a CSV manifest.")],
    output: Annotated[Path, typer.Option(help="The CSV to write: path, label, mask, group, split.")],
    layout: Layout = "auto",
    normal: Normal = "",
    group_by: GroupBy = "",
    fractions: Annotated[
        str | None,
        typer.Option(
            help="Shares of the normal images; default: the set's own split, else train=0.7,val=0.1,test=0.2."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Who goes where is a function of the seed and the groups' names.")] = 0,
) -> None:
    """Divide a data set into train, val and test by whole groups (patients, parts), and write it as a CSV.

    The CSV is a data set for train, calibrate and evaluate. Train and val hold normal images only: anomalous images of
    a group that was drawn for them are in no split. A set that comes with a split keeps it unless --fractions are
    given. Masks are read, and what is wrong with them is said.

    \b
    Examples:
      anodiff split magnetic_tile --output tiles.csv
      anodiff split chest_xray --group-by '([0-9]+)_[0-9]+[.]png' --output chest.csv --seed 1
      anodiff split scans.csv --group-by patient --fractions train=0.6,val=0.1,dev=0.1,test=0.2 --output split.csv
    """
    raise typer.Exit(run(data, output, layout=layout, normal=normal, group_by=group_by, fractions=fractions, seed=seed))


def run(
    data: Path,
    output: Path,
    *,
    layout: str = "auto",
    normal: str = "",
    group_by: str = "",
    fractions: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Divide, write and say what was found; 1 where images will fail, else 0."""
    from anodiff.data.findings import summaries
    from anodiff.data.layouts import load_table
    from anodiff.data.splits import DEFAULT, assign_splits, count_splits, has_splits, keep_splits, parse_fractions
    from anodiff.files import write_csv

    shares = None if fractions is None else parse_fractions(fractions)
    new_file(output)
    samples = load_table(data, layout, normal=normal, group_by=group_by)
    keeps = shares is None and has_splits(samples)
    divided = keep_splits(samples) if keeps else assign_splits(samples, shares or DEFAULT, seed)
    say(described(divided, data, keeps, seed), quiet)
    findings = checked(divided, quiet)
    rows, unnamed = manifest_rows(divided, output)
    more = [name for name in ("class", "foreground") if any(row[name] for row in rows)]
    write_csv(output, (*COLUMNS, *more), rows)
    typer.echo(counts_text(count_splits(divided)))
    for text in (*unnamed, *summaries(findings)):
        say(text, quiet)
    say(f"wrote {output}", quiet)
    return int(bool(unnamed) or any(finding.kind == "unusable" for finding in findings))


def described(samples: SampleTable, data: Path, keeps: bool, seed: int) -> str:
    """One or two lines: the layout, and what the split rests on."""
    named = samples.table["group"][samples.table["group"] != ""]
    basis = "the set's own split, kept" if keeps else f"a new split by seed {seed}"
    known = (
        f"{named.nunique()} groups are known"
        if len(named)
        else "no groups are known, so each image counts as one; --group-by says what belongs together"
    )
    return f"{data}: layout {samples.layout}; {basis}; {known}"


def checked(samples: SampleTable, quiet: bool) -> list[Finding]:
    """Reads every mask with its image."""
    from concurrent.futures import ThreadPoolExecutor

    from anodiff.data.findings import mask_finding, masked_rows, unmasked
    from anodiff.data.readers import MAX_PIXELS
    from anodiff.engine.progress import Progress

    rows = masked_rows(samples)
    findings: list[Finding] = []

    def check(row: tuple[str, str, int | None]) -> Finding | None:
        return mask_finding(row[0], row[1], row[2], MAX_PIXELS)

    with ThreadPoolExecutor(READERS) as pool, Progress(len(rows), "masks", "checking", quiet=quiet) as progress:
        for finding in pool.map(check, rows):
            progress.update(1)
            findings += [] if finding is None else [finding]
    return findings + unmasked(samples)


def manifest_rows(samples: SampleTable, output: Path) -> tuple[list[dict[str, object]], list[str]]:
    """The rows of the CSV, and a sentence for each image whose name a CSV in UTF-8 cannot hold (left out)."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    unnamed = []
    for row in samples.table.to_dict("records"):
        names = {column: manifest_path(str(row[column]), output) for column in ("path", "mask", "foreground")}
        try:
            "".join((*names.values(), str(row["group"]), str(row["class_name"]))).encode()
        except UnicodeEncodeError:
            unnamed.append(f"{names['path']!r}: expected a name in UTF-8, found other bytes; it is not in the CSV")
            continue
        label = None if pd.isna(row["label"]) else int(row["label"])
        known = {"label": label, "group": row["group"], "split": row["split"], "class": row["class_name"]}
        rows.append({**names, **known})
    return rows, unnamed


def manifest_path(path: str, output: Path) -> str:
    """A path as the CSV names it: below the CSV's folder where it lies there, so that both may move, else absolute."""
    if not path:
        return ""
    full, folder = os.path.abspath(path), os.path.abspath(output.parent)
    if not Path(full).is_relative_to(folder):
        return full
    below = os.path.relpath(full, folder)
    return f".{os.sep}{below}" if below.startswith(_FORMULA) else below


def counts_text(counts: list[SplitCounts]) -> str:
    """The table split x (normal, anomalous, unlabelled where there are, groups)."""
    unlabelled = any(count.unlabelled for count in counts)
    header = ["split", "normal", "anomalous", *["unlabelled"] * unlabelled, "groups"]
    rows = [
        [count.split or "(left out)", count.normal, count.anomalous, *[count.unlabelled] * unlabelled, count.groups]
        for count in counts
    ]
    return table_text(header, rows)
