"""anodiff compare: two measured runs on the same images, in pairs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import DataError
from anodiff.pipelines.closing import few_groups_note
from anodiff.pipelines.common import say, table_text
from anodiff.pipelines.truth import Run, pixel_threshold, read_run

if TYPE_CHECKING:
    from anodiff.engine.progress import Progress
    from anodiff.metrics import Pools
    from anodiff.metrics.collect import MapItem

COMPARED = {
    "image_auroc": ("images", "auroc"),
    "image_ap": ("images", "ap"),
    "image_oracle_f1": ("images", "max_dice"),
    "pixel_auroc": ("pixels", "auroc"),
    "pixel_ap": ("pixels", "ap"),
    "oracle_max_dice": ("pixels", "max_dice"),
    "aupro": ("regions", "aupro"),
    "aupro_005": ("regions", "aupro_005"),
    "aupimo": ("regions", "aupimo"),
}
NAMED = 3
SHOWN = 20


def main(
    out1: Annotated[Path, typer.Argument(help="Output folder of anodiff evaluate or anodiff metrics.")],
    out2: Annotated[Path, typer.Argument(help="The one to compare it with, on the same images.")],
    output: Annotated[Path | None, typer.Option(help="JSON file for the comparison.")] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare on the images that both have.")] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare two runs on the same images: differences with 95 % intervals and p, and the images that changed sides.

    Patients (groups) are drawn with replacement, the same ones for both runs. Runs on other images, labels or masks
    are refused; an image that failed in one run is left out of both, and the exit code is then 1.

    \b
    Examples:
      anodiff compare out/default out/anoddpm
      anodiff compare out/ours out/peer --output difference.json
      anodiff compare out/all out/subset --common
    """
    found = run(out1, out2, output, common=common, n_boot=resamples, seed=seed)
    raise typer.Exit(int(bool(found["left_out"])))


def run(
    out1: Path,
    out2: Path,
    output: Path | None = None,
    *,
    common: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compares, prints and writes; returns what the JSON holds."""
    from anodiff.engine.progress import Progress
    from anodiff.files import make_folder, write_json

    runs = aligned(read_run(out1), read_run(out2))
    ids = shared_images(runs, (out1, out2), common)
    refuse_other_truths(runs, ids, (out1, out2))
    left_out = {id_: text for id_ in ids if (text := why_left_out(runs, id_, (out1, out2)))}
    used = [id_ for id_ in ids if id_ not in left_out]
    with Progress(2 * len(used), "maps", "comparing", quiet=quiet) as progress:
        known = known_truths(runs, used)
        readings = [Reading(each, known, progress) for each in runs]
        pools = [pooled(reading) for reading in readings]
    refuse_other_pixels(readings, (out1, out2))
    changed = changed_sides(runs, used, [reading.labels for reading in readings])
    found = {
        "a": str(out1),
        "b": str(out2),
        "n_images": len(used),
        "n_anomalous": pools[0].images.counts.positives,
        "n_groups": len(pools[0].images.groups),
        "n_boot": n_boot,
        "seed": seed,
        "metrics": differences(pools, [pixel_threshold(folder) for folder in (out1, out2)], n_boot, seed),
        "n_decided": sum(all(each[id_].is_anomalous is not None for each in runs) for id_ in used),
        "changed_sides": changed,
        "left_out": [{"id": id_, "error": text} for id_, text in left_out.items()],
    }
    typer.echo(comparison_text(found))
    for note in notes_of(found, runs):
        say(note, quiet)
    if output is not None:
        make_folder(output.parent)
        say(f"wrote {write_json(output, found)}", quiet)
    return found


def aligned(first: Run, second: Run) -> tuple[Run, Run]:
    """Both runs by the same names: ids, or, where they have none in common, ids below the folders that each run shares.

    The ids of one run may begin with test__ and those of another, measured from its test folder, may not.
    """
    from anodiff.data.maps import shared_folders

    if first.keys() & second.keys():
        return first, second
    named = [{id_.removeprefix(shared_folders(each)): image for id_, image in each.items()} for each in (first, second)]
    return (named[0], named[1]) if named[0].keys() & named[1].keys() else (first, second)


def shared_images(runs: Sequence[Run], folders: Sequence[Path], common: bool) -> list[str]:
    """The ids of both, in the order of the first; DataError where the sets differ, unless `common` ones will do."""
    first, second = runs
    only = [[id_ for id_ in first if id_ not in second], [id_ for id_ in second if id_ not in first]]
    both = [id_ for id_ in first if id_ in second]
    if not both or (any(only) and not common):
        said = [
            f"{len(ids)} only in {folder} ({first_of(ids)})" for ids, folder in zip(only, folders, strict=True) if ids
        ]
        hint = "; --common compares on those both have" if both else ""
        raise DataError(f"expected runs on the same images, found {len(both)} in both, {' and '.join(said)}{hint}")
    return both


def refuse_other_truths(runs: Sequence[Run], ids: Sequence[str], folders: Sequence[Path]) -> None:
    """DataError where an image has two labels, or two groups."""
    first, second = runs
    for what in ("label", "group"):
        pairs = {id_: (getattr(first[id_], what), getattr(second[id_], what)) for id_ in ids}
        other = {id_: pair for id_, pair in pairs.items() if pair[0] != pair[1] and not {None, ""} & set(pair)}
        refuse(other, f"{what}s", folders)


def refuse_other_pixels(readings: Sequence[Reading], folders: Sequence[Path]) -> None:
    """DataError where maps of an image differ in size, or its masks in content."""
    from anodiff.data.maps import size_text

    first, second = readings
    ids = [id_ for id_ in first.shapes if id_ in second.shapes]
    sizes = {id_: (first.shapes[id_], second.shapes[id_]) for id_ in ids if first.shapes[id_] != second.shapes[id_]}
    refuse({id_: (size_text(a), size_text(b)) for id_, (a, b) in sizes.items()}, "map sizes", folders)
    masks = {id_: (first.marked[id_], second.marked[id_]) for id_ in ids if first.marked[id_] != second.marked[id_]}
    refuse({id_: (a[0], b[0]) for id_, (a, b) in masks.items()}, "masks", folders)


def refuse(other: Mapping[str, tuple[Any, Any]], what: str, folders: Sequence[Path]) -> None:
    """DataError that counts the images that differ and names the first ones."""
    if other:
        named = "; ".join(f"{id_}: {a} and {b}" for id_, (a, b) in list(other.items())[:NAMED])
        raise DataError(
            f"expected the same {what} in {folders[0]} and {folders[1]}, found {len(other)} images that differ ({named}"
            f"{'; ...' if len(other) > NAMED else ''})"
        )


def first_of(ids: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def why_left_out(runs: Sequence[Run], id_: str, folders: Sequence[Path]) -> str:
    """Why an image cannot be compared, or ""."""
    named = list(zip((each[id_] for each in runs), folders, strict=True))
    without = [str(folder) for image, folder in named if image.score is None]
    if without:
        return f"no score in {' and '.join(without)}"
    without = [str(folder) for image, folder in named if not image.map]
    return f"no map in {without[0]}" if len(without) == 1 else ""


def known_truths(runs: Sequence[Run], ids: Sequence[str]) -> dict[str, tuple[int | None, str]]:
    """(label, group) of each image, from the run that knows it."""
    first, second = runs
    return {
        id_: (
            first[id_].label if first[id_].label is not None else second[id_].label,
            first[id_].group or second[id_].group,
        )
        for id_ in ids
    }


class Reading:
    """Reads the maps of one run once, and keeps of each what tells two runs apart.

    known: (label, group) of the images to read; shapes: of the maps; marked: (what the mask marks, digest of it);
    labels: known, else by the mask.
    """

    def __init__(self, images: Run, known: Mapping[str, tuple[int | None, str]], progress: Progress) -> None:
        self.images, self.known, self.progress = images, known, progress
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.marked: dict[str, tuple[str, bytes]] = {}
        self.labels: dict[str, int | None] = {}

    def maps(self) -> Iterator[MapItem]:
        """(id, map, mask) of each image; no map where the run has none."""
        from anodiff.data.maps import read_pair

        for id_, (label, _) in self.known.items():
            image = self.images[id_]
            self.labels[id_] = label
            item: MapItem = (id_, None, None)
            if image.map:
                values, truth = read_pair(image.map, image.mask)
                if truth is not None and label is None:
                    self.labels[id_] = int(truth.any())
                if truth is not None and label == 1 and not truth.any():
                    truth = None  # as evaluate does: which pixels are anomalous is not known
                self.shapes[id_] = values.shape
                self.marked[id_] = mark_of(truth, label)
                item = (id_, values, truth)
            self.progress.update()
            yield item


def mark_of(truth: Any, label: int | None) -> tuple[str, bytes]:
    """(words, digest) of what is marked: a normal image without a mask and an empty mask are the same."""
    import hashlib

    import numpy as np

    if truth is None:
        return ("nothing marked" if label == 0 else "no mask"), b""
    if not truth.any():
        return "nothing marked", b""
    return f"{int(truth.sum())} marked", hashlib.blake2b(np.packbits(truth).tobytes(), digest_size=16).digest()


def pooled(reading: Reading) -> Pools:
    """The images and pixels of one run."""
    from anodiff.metrics import pool_maps

    return pool_maps(
        reading.maps(),
        [label for label, _ in reading.known.values()],
        [reading.images[id_].score for id_ in reading.known],
        [group for _, group in reading.known.values()],
    )


def differences(
    pools: Sequence[Pools], thresholds: Sequence[float | None], n_boot: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Every metric of a, of b, and a - b with its interval and p; Dice at each run's own pixel threshold."""
    from anodiff.metrics import CutPool, paired_bootstrap

    found = {}
    for key, (level, metric) in COMPARED.items():
        one, other = (getattr(each, level) for each in pools)
        result = paired_bootstrap(one, other, metric, n_boot, seed)
        found[key] = {**result, "metric": key, "reason": why_undefined(pools[0], level, metric) or result["reason"]}
    missing = " and ".join(side for side, at in zip("ab", thresholds, strict=True) if at is None)
    cut = [CutPool(each.pixels, math.inf if at is None else at) for each, at in zip(pools, thresholds, strict=True)]
    result = paired_bootstrap(cut[0], cut[1], "dice", n_boot, seed) | {"metric": "dice_at_fpr5"}
    if missing:
        result |= dict.fromkeys(("a", "b", "difference", "ci95", "p"))
        result["reason"] = f"no pixel threshold is recorded in {missing}"
    return {**found, "dice_at_fpr5": result}


def why_undefined(pools: Pools, level: str, metric: str) -> str | None:
    """Why a metric has no value on these images, in a few words; None if it has one."""
    from anodiff.metrics import why_undefined as why

    if level == "regions":
        return pools.regions.why_undefined(metric)
    counts = getattr(pools, level).counts
    return why(metric, counts.positives, counts.negatives, level.removesuffix("s"))


def changed_sides(
    runs: Sequence[Run], ids: Sequence[str], labels: Sequence[Mapping[str, int | None]]
) -> list[dict[str, Any]]:
    """Images that one run calls anomalous and the other does not; `right` is "a" or "b", None without a label."""
    first, second = runs
    rows = []
    for id_ in ids:
        decisions = (first[id_].is_anomalous, second[id_].is_anomalous)
        if None in decisions or decisions[0] == decisions[1]:
            continue
        label = next((each[id_] for each in labels if each[id_] is not None), None)
        right = None if label is None else ("a" if decisions[0] == bool(label) else "b")
        scores = {"score1": first[id_].score, "score2": second[id_].score}
        rows.append({"id": id_, "label": label, **scores, "anomalous_in": "a" if decisions[0] else "b", "right": right})
    return rows


def comparison_text(found: Mapping[str, Any]) -> str:
    """The differences, then the images that changed sides."""
    head = [
        f"a = {found['a']}, b = {found['b']}",
        f"{found['n_images']} images, {found['n_anomalous']} anomalous; bootstrap over {found['n_groups']} groups",
        "",
    ]
    rows = [
        [key, each["a"], each["b"], each["difference"], *(each["ci95"] or (None, None)), each["p"]]
        for key, each in found["metrics"].items()
    ]
    reasons = [f"{key}: {each['reason']}" for key, each in found["metrics"].items() if each["reason"]]
    table = table_text(["metric", "a", "b", "a - b", "95 % low", "high", "p"], rows)
    return "\n".join([*head, table, *reasons, "", *sides_text(found)])


def sides_text(found: Mapping[str, Any]) -> list[str]:
    """The images that changed sides, the first ones as a table."""
    changed, decided = found["changed_sides"], found["n_decided"]
    if not decided:
        return ["No decisions to compare: at least one of the runs has no threshold."]
    counts = {side: sum(row["right"] == side for row in changed) for side in "ab"}
    line = f"{len(changed)} of {decided} images changed sides; a is right on {counts['a']}, b on {counts['b']}"
    rows = [[row["id"], row["label"], row["score1"], row["score2"], row["right"]] for row in changed[:SHOWN]]
    more = [f"... and {len(changed) - SHOWN} more"] * (len(changed) > SHOWN)
    return [line, *([table_text(["id", "label", "score a", "score b", "right"], rows)] if rows else []), *more]


def notes_of(found: Mapping[str, Any], runs: Sequence[Run]) -> Iterator[str]:
    """What the reader should know of the intervals and the pairing."""
    yield from (f"note: {note}" for note in few_groups_note(found["n_groups"]))
    left_out = found["left_out"]
    if left_out:
        first = left_out[0]
        yield f"note: {len(left_out)} images are left out, the first is {first['id']}: {first['error']}"
    first_run, second_run = runs
    paths = [(first_run[id_].path, second_run[id_].path) for id_ in first_run if id_ in second_run]
    moved = [pair for pair in paths if all(pair) and os.path.abspath(pair[0]) != os.path.abspath(pair[1])]
    if moved:
        yield (
            f"note: {len(moved)} images have the same id and another path, the first {moved[0][0]} and {moved[0][1]}: "
            "they are taken for the same images"
        )
