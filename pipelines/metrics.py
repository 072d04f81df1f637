"""anodiff metrics: measure a folder of anomaly maps, made by any software, against a folder of masks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anodiff.errors import DataError, InputError, StorageError
from anodiff.pipelines.common import missing_text, say, table_text
from anodiff.pipelines.truth import read_csv, write_truth

if TYPE_CHECKING:
    from anodiff.data.maps import Pair, Reduction
    from anodiff.engine.progress import Progress
    from anodiff.metrics.evaluate import MapItem

SCORE_COLUMNS = ("id", "path", "score", "is_anomalous", "status", "error")
ELSEWHERE = "the maps were made elsewhere: not known"
NO_NORMALS = "no --normals: the threshold is set on maps of normal images that are not in the test set"
SAID = 20


def main(
    maps: Annotated[Path, typer.Argument(help="Folder of float maps: .npy, .tiff, .nii.gz or .nii.")],
    masks: Annotated[Path, typer.Argument(help="Folder of masks of the same names, on request with _mask behind.")],
    output: Annotated[Path, typer.Option(help="Folder for metrics.json, scores.csv and truth.csv.")],
    reduction: Annotated[Literal["max", "mean", "topk"], typer.Option(help="From a map to its image score.")] = "topk",
    topk: Annotated[float, typer.Option(help="Share of the pixels that topk averages, the largest ones.")] = 0.005,
    scores: Annotated[
        Path | None, typer.Option(help="CSV with id,score: image scores in place of --reduction.")
    ] = None,
    normals: Annotated[
        Path | None, typer.Option(help="Folder of maps of other normal images: sets the thresholds of Dice.")
    ] = None,
    groups: Annotated[Path | None, typer.Option(help="CSV with id,group: patients, for the intervals.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Measure maps of any software: image and pixel metrics with 95 % intervals, in OUTPUT/metrics.json.

    A map and its mask have one name below their folders, without extension (nested or flat: a/b.tiff, a__b.tiff). A
    map without a mask is a normal image; only this job assumes so. What cannot be used is named, and left out.

    \b
    Examples:
      anodiff metrics peer/maps bottle/ground_truth --output out/peer
      anodiff metrics maps masks --output out/max --reduction max --normals maps_of_normals
      anodiff metrics out/brain/maps masks --output out/again --scores out/brain/scores.csv --groups patients.csv
    """
    code, _ = run(
        maps, masks, output,
        reduction=reduction, topk=topk, scores=scores, normals=normals, groups=groups,
        n_boot=resamples, seed=seed,
    )  # fmt: skip
    raise typer.Exit(code)


def run(
    maps: Path,
    masks: Path,
    output: Path,
    *,
    reduction: Reduction = "topk",
    topk: float = 0.005,
    scores: Path | None = None,
    normals: Path | None = None,
    groups: Path | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Measures and writes; returns the exit code and what stands in metrics.json."""
    from anodiff.data.maps import find_maps, find_masks, pair_up
    from anodiff.engine.progress import Progress
    from anodiff.files import write_csv, write_json
    from anodiff.metrics import evaluate_maps

    if not 0 < topk <= 1:
        raise DataError(f"--topk: expected a share above 0 and up to 1, found {topk:g}")
    pairs = pair_up(find_maps(maps), find_masks(masks))
    paired = [pair for pair in pairs if pair.map]
    given = None if scores is None else Given(scores, "score", paired)
    patients = None if groups is None else Given(groups, "group", paired)
    folder = own_folder(output)
    failed = [{"id": pair.id, "error": pair.error} for pair in pairs if not pair.map]
    failed += [] if given is None else given.without_map()
    thresholds: dict[str, float] = {}
    n_normals = 0
    if normals is not None:
        thresholds, n_normals, unread = thresholds_of(normals, paired, quiet)
        failed += unread
    with Progress(len(paired), "maps", "measuring", quiet=quiet) as progress:
        reading = Reading(paired, reduction, topk, given, progress)
        metrics = evaluate_maps(
            reading.maps(),
            [None] * len(paired),  # from the masks: a map without one comes with an empty mask
            reading.scores,
            [patients.of(pair) if patients else None for pair in paired],
            pixel_threshold_fpr5=thresholds.get("fpr5"),
            pixel_thresholds={name: value for name, value in thresholds.items() if name != "fpr5"},
            candidate_threshold=thresholds.get("fpr1"),
            n_boot=n_boot,
            seed=seed,
        )
    failed += [{"id": row["id"], "error": row["error"]} for row in reading.rows if row["error"]]
    metrics = completed(metrics, len(paired) - reading.n_ok) | {
        "reduction": f"{reduction} {topk:g}" if reduction == "topk" else reduction,
        "pixel_threshold_fpr5": None,
        **{f"pixel_threshold_{name}": value for name, value in thresholds.items()},
        "n_normals": n_normals,
        "n_failed": len(failed),
        "failed": failed,
    }
    if given is not None:
        metrics["reduction"] = f"scores of {scores}"
    write_csv(folder / "scores.csv", SCORE_COLUMNS, reading.rows)
    write_truth(folder, [{**row, "path": "", "group": patients.of(pair) if patients else ""} for pair, row in
                         zip(paired, reading.rows, strict=True)])  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    typer.echo(metrics_text(metrics))
    for note in notes_of(failed, patients, paired):
        say(note, quiet)
    say(f"{reading.n_ok} maps measured, {len(failed)} failed; wrote {folder / 'metrics.json'}", quiet)
    return int(bool(failed)), metrics


class Given:
    """A column of a user's table by id ("score" or "group"); ids may carry an extension, and "/" for "__"."""

    def __init__(self, path: Path, column: str, pairs: Sequence[Pair]) -> None:
        from anodiff.data.maps import stem_of

        self.path, self.column = path, column
        self.rows: dict[str, dict[str, str]] = {}
        for row in read_csv(path, ("id", column)):
            name = stem_of(row["id"])
            if name in self.rows:
                raise DataError(f"{path}: expected one row for each id, found two for {row['id']}")
            self.rows[name] = row
        # the ids of maps, like "a.b", may end as an extension does
        self.known = {pair.id: self.rows.get(pair.id) or self.rows.get(stem_of(pair.id)) for pair in pairs}
        if not any(self.known.values()):
            raise DataError(
                f"{path}: expected the ids of the maps, such as {pairs[0].id}, "
                f"found {next(iter(self.rows), 'no row')} and none that has a map"
            )

    def of(self, pair: Pair) -> str:
        """The cell of a map, "" where there is none."""
        row = self.known[pair.id]
        return row[self.column] if row else ""

    def without_map(self) -> list[dict[str, str]]:
        """A sentence for every row whose id has no map."""
        used = {id(row) for row in self.known.values()}
        return [
            {"id": name, "error": f"{self.path}: expected a map of {row['id']}, which has a row, found none"}
            for name, row in self.rows.items()
            if id(row) not in used
        ]

    def number(self, pair: Pair) -> float:
        """The score of a map; InputError where there is none or no finite number."""
        text = self.of(pair)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{self.path}: expected a number as the score of {pair.id}, found {text!r}")
        return value


class Reading:
    """Reads every pair once, in order; keeps of each its row and score, never its pixels.

    scores: one place a pair, filled as its map is read (`pool_maps` looks at them when all maps are read); rows: of
    scores.csv and truth.csv; n_ok: maps that could be used.
    """

    def __init__(
        self, pairs: Sequence[Pair], reduction: Reduction, topk: float, given: Given | None, progress: Progress
    ) -> None:
        self.pairs, self.reduction, self.topk, self.given = pairs, reduction, topk, given
        self.progress = progress
        self.scores: list[float | None] = [None] * len(pairs)
        self.rows: list[dict[str, Any]] = []
        self.n_ok = 0

    def maps(self) -> Iterator[MapItem]:
        """(id, map, mask) of each pair; no map and no mask for one that cannot be used."""
        import numpy as np

        from anodiff.data.maps import read_pair

        for place, pair in enumerate(self.pairs):
            row: dict[str, Any] = {
                "id": pair.id,
                "path": pair.map,
                "map": os.path.abspath(pair.map),
                "error": pair.error,
            }
            row |= {"mask": os.path.abspath(pair.mask) if pair.mask else "", "status": "failed"}
            item: MapItem = (pair.id, None, None)
            if not pair.error:
                try:
                    values, truth = read_pair(pair.map, pair.mask)
                    self.scores[place] = row["score"] = self.score_of(pair, values)
                    item = (pair.id, values, np.zeros(values.shape, bool) if truth is None else truth)
                    row |= {"status": "ok", "label": int(item[2].any()), "is_anomalous": self.decision_of(pair)}
                    self.n_ok += 1
                except InputError as error:
                    row["error"] = str(error)
            self.rows.append(row)
            self.progress.update()
            yield item

    def score_of(self, pair: Pair, values: Any) -> float:
        """The image score: the user's, or the map reduced."""
        from anodiff.data.maps import map_score

        return map_score(values, self.reduction, self.topk) if self.given is None else self.given.number(pair)

    def decision_of(self, pair: Pair) -> bool | None:
        """The user's is_anomalous, where their table has it."""
        row = None if self.given is None else self.given.known[pair.id]
        return {"true": True, "1": True, "false": False, "0": False}.get((row or {}).get("is_anomalous", "").lower())


def own_folder(output: Path) -> Path:
    """The folder to write into; StorageError where it holds a run of another job, whose scores.csv would be lost."""
    from anodiff.engine.store import STATE_FOLDER
    from anodiff.files import make_folder

    if (output / STATE_FOLDER).exists():
        raise StorageError(f"{str(output)!r} holds a run of anodiff score or evaluate: give another --output")
    return make_folder(output)


def thresholds_of(
    folder: Path, test: Sequence[Pair], quiet: bool
) -> tuple[dict[str, float], int, list[dict[str, str]]]:
    """(values that 1, 5 and 10 % of the normal maps' pixels exceed, how many maps, those that could not be read).

    Raises:
        DataError: a map of the test set is among them, or none can be read.
    """
    from anodiff.data.maps import find_maps, read_map
    from anodiff.engine.progress import Progress
    from anodiff.metrics import thresholds_on_normals

    found = [(name, path) for name, paths in find_maps(folder).items() for path in paths]
    tested = {os.path.realpath(pair.map) for pair in test}
    both = [path for _, path in found if os.path.realpath(path) in tested]
    if both:
        raise DataError(
            f"{folder}: expected maps of normal images that are not in the test set, "
            f"found {len(both)} that are, the first is {both[0]}"
        )
    maps, failed = [], []
    with Progress(len(found), "maps", "normals", quiet=quiet) as progress:
        for name, path in found:
            try:
                maps.append(read_map(path))
            except InputError as error:
                failed.append({"id": name, "error": str(error)})
            progress.update()
    if not maps:
        raise DataError(f"{folder}: expected maps of normal images, found none that can be read: {failed[0]['error']}")
    return thresholds_on_normals(maps), len(maps), failed


def completed(metrics: Mapping[str, Any], n_bad: int) -> dict[str, Any]:
    """The contract's keys: cost is not known, and a map that failed is not an image without a label or a score."""
    from anodiff.metrics.evaluate import NO_THRESHOLD

    reasons = {key: NO_NORMALS if text == NO_THRESHOLD else text for key, text in metrics["reasons"].items()}
    counts = {key: metrics[key] - n_bad for key in ("n_unlabelled", "n_without_score")}
    unknown = dict.fromkeys(("nfe", "seconds_per_image"), ELSEWHERE)
    return {**metrics, **counts, **dict.fromkeys(unknown), "reasons": reasons | unknown}


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Every metric with its interval as a table, and the reason of each that is undefined."""
    named = [key for key in metrics if f"{key}_ci95" in metrics or key == "froc"]
    rows = [[key, metrics[key], *(metrics.get(f"{key}_ci95") or (None, None))] for key in named]
    counts = f"{metrics['n_images']} images, {metrics['n_anomalous']} anomalous, {metrics['n_groups']} groups"
    return "\n".join([table_text(["metric", "value", "95 % low", "high"], rows), counts, *missing_text(metrics, named)])


def notes_of(failed: Sequence[Mapping[str, str]], patients: Given | None, pairs: Sequence[Pair]) -> Iterator[str]:
    """What the reader should know of what was left out."""
    yield from (f"failed: {entry['error']}" for entry in failed[:SAID])
    if len(failed) > SAID:
        yield f"and {len(failed) - SAID} more, listed in metrics.json"
    alone = [pair.id for pair in pairs if patients is not None and not patients.of(pair)]
    if patients is not None and alone:
        yield f"note: {len(alone)} maps have no group in {patients.path}, each is its own; the first is {alone[0]}"
