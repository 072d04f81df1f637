"""The data sets of the quality table, and their split as a file: groups never straddle, test is never learnt from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from anodiff.data.layouts import load_table
from anodiff.data.splits import assign_splits, keep_splits, parse_fractions
from anodiff.data.table import SampleTable, group_keys, select, split_groups
from anodiff.files import make_folder, write_csv, write_json
from anodiff.pipelines.common import drawn
from anodiff.pipelines.split import COLUMNS, manifest_rows

DIGITS = ",".join(map(str, range(10)))
#: of the training normals of a set that has no val split of its own
VAL_SHARE = 0.2


@dataclass(frozen=True)
class DataSet:
    """One column of the table.

    Attributes:
        name: also that of its recipe, unless ``recipe`` is another.
        path: below the data folder. normal, group_by: as of every job.
        fractions: of a set without a split; otherwise its own is kept, and val is taken from train where it has none.
        others: path of another set, whose test images are the anomalies (out of distribution).
        most_test: images of test, of each label, drawn at random.
        overrides: by variant of the recipe (see models.VARIANTS), besides those of the variant.
    """

    name: str
    path: str
    recipe: str
    normal: str = ""
    group_by: str = ""
    fractions: str = ""
    others: str = ""
    most_test: int | None = None
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, data: Path, work: Path, seed: int) -> Path:
        """split.csv in the work folder, made from the data where it is not there yet; a data set in itself.

        Ends the program where the split that is there is of another seed: models learnt from it.
        """
        output = work / self.name / "split.csv"
        record = output.with_suffix(".json")
        if output.exists():
            # those from before there was a record are of the seed that is the default
            made = json.loads(record.read_text(encoding="utf-8"))["seed"] if record.exists() else 0
            if made != seed:
                raise SystemExit(f"{output}: expected a split of seed {seed}, found one of {made}; take another --work")
        else:
            make_folder(output.parent)
            rows, unnamed = manifest_rows(self.divided(data, seed), output)
            if unnamed:
                raise SystemExit("; ".join(unnamed))
            write_json(record, {"seed": seed})
            write_csv(output, COLUMNS, rows)
        return output

    def divided(self, data: Path, seed: int) -> SampleTable:
        """The samples with their splits; those in no split are left out."""
        samples = load_table(data / self.path, normal=self.normal, group_by=self.group_by)
        if self.others:
            samples = _against(samples, load_table(data / self.others, normal=self.normal))
        if self.fractions:
            samples = assign_splits(samples, parse_fractions(self.fractions), seed)
        else:
            samples = _with_val(keep_splits(samples), seed)
        kept = samples.table[samples.table["split"] != ""]
        samples = replace(samples, table=kept.reset_index(drop=True))
        return samples if self.most_test is None else _fewer(samples, self.most_test, seed)


def _against(samples: SampleTable, others: SampleTable) -> SampleTable:
    """All of the one set are normal; the test images of the other are anomalies in its test split."""
    anomalies = select(others, "test").table.assign(label=pd.array([1] * len(select(others, "test")), dtype="Int64"))
    return replace(samples, table=pd.concat([samples.table, anomalies], ignore_index=True))


def _with_val(samples: SampleTable, seed: int) -> SampleTable:
    """A share of the training normals' groups held out as val, where there is no val."""
    if "val" in set(samples.table["split"]):
        return samples
    _, held = split_groups(select(samples, "train", normal_only=True), VAL_SHARE, seed)
    splits = samples.table["split"]
    chosen = pd.Series(group_keys(samples)).isin(set(group_keys(held))) & splits.eq("train")
    return replace(samples, table=samples.table.assign(split=splits.mask(chosen, "val")))


def _fewer(samples: SampleTable, most: int, seed: int) -> SampleTable:
    """At most so many test images of each label."""
    parts = [samples.table[samples.table["split"] != "test"]]
    for label in (0, 1):
        parts.append(drawn(samples.rows(split="test", label=label), most, seed).table)
    return replace(samples, table=pd.concat(parts, ignore_index=True))


#: by data set: metric -> what our best single preset is asked to reach; brain_lgg: what the main job reached
TARGETS: dict[str, dict[str, float]] = {
    "brain_lgg": {"pixel_auroc": 0.984, "pixel_ap": 0.646, "image_auroc": 0.867},
    "bottle": {"image_auroc": 0.995, "pixel_auroc": 0.98, "pixel_ap": 0.78},
    "magnetic_tile": {"image_auroc": 0.85, "pixel_auroc": 0.85},
    "chest_xray": {"image_auroc": 0.75},
    "pneumoniamnist": {"image_auroc": 0.80},
}

BRAIN_DAE = {"auto-encoder": ("diffusion.noise_where=foreground",)}
NIH_PATIENT = "([0-9]+)_[0-9]+[.]png"
SETS = {
    entry.name: entry
    for entry in (
        DataSet("brain_lgg", "brain_lgg", "brain_flair", overrides=BRAIN_DAE),
        DataSet("bottle", "mvtec/bottle", "bottle"),
        DataSet("magnetic_tile", "magnetic_tile", "magnetic_tile", fractions="train=0.6,val=0.15,test=0.25"),
        DataSet(
            "chest_xray", "chest_xray", "chest_xray",
            normal="No_findings", group_by=NIH_PATIENT, fractions="train=0.55,val=0.15,test=0.3",
        ),
        DataSet("pneumoniamnist", "pneumoniamnist.npz", "pneumoniamnist"),
        DataSet("mnist_in", "mnist", "mnist_in", normal=DIGITS, others="fashion_mnist", most_test=500),
    )
}  # fmt: skip
