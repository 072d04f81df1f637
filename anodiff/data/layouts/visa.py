"""The VisA layout (Zou et al. 2022): <category>/Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly; ../split_csv.

A category is one data set. Its masks are maps of defect classes (1, 2, ...), so that every value but 0 is anomalous.
"""

from __future__ import annotations

import csv
from pathlib import Path

from anodiff.data.layouts.annotations import mask_index, mask_of
from anodiff.data.layouts.folder import list_images
from anodiff.data.readers import NONZERO_MARK
from anodiff.data.table import Sample, SampleTable, build_table
from anodiff.errors import DataError

IMAGES, MASKS = Path("Data", "Images"), Path("Data", "Masks", "Anomaly")
CLASSES = {"Normal": 0, "Anomaly": 1}
SPLIT_FILE = Path("split_csv", "1cls.csv")
_COLUMNS = {"object", "split", "image"}
_SPLITS = ("train", "test")


def matches(path: Path) -> bool:
    """Whether ``path`` is a category with Data/Images/Normal."""
    return (path / IMAGES / "Normal").is_dir()


def load(path: Path) -> SampleTable:
    """The sample table of one category, with the split of the set's own one-class protocol where its CSV is there.

    An image that the CSV lists and the disk lacks is in the table too, and fails by name; one that it does not list is
    in no split. Raises DataError where there is no image, or the CSV is unusable.
    """
    splits = _splits(path)
    truth = path / MASKS
    masks = mask_index(truth)
    samples = []
    for name, label in CLASSES.items():
        folder = path / IMAGES / name
        found = list_images(folder) if folder.is_dir() else []
        listed = [str(image) for image in splits if image.parent == folder and str(image) not in set(found)]
        for image in found + sorted(listed):
            mask = "" if label == 0 or masks is None else mask_of(image, folder, truth, masks) + NONZERO_MARK
            samples.append(Sample(image, label, mask, split=splits.get(Path(image), "")))
    return build_table(samples, "visa", path)


def _splits(path: Path) -> dict[Path, str]:
    """Image -> split, of the rows of this category in ``split_csv`` beside the categories; empty without the file."""
    root = path.resolve().parent
    file = root / SPLIT_FILE
    if not file.is_file():
        return {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := sorted(_COLUMNS - set(reader.fieldnames or [])):
                raise DataError(f"{file}: expected the columns object, split and image, found no {missing[0]}")
            rows = [row for row in reader if row["object"] == path.resolve().name]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: expected a readable CSV file in UTF-8, found {error}") from None
    splits = {}
    for row in rows:
        # Listed below the folder of all categories, whatever name the category was opened by.
        category, _, below = row["image"].partition("/")
        if row["split"] not in _SPLITS or category != row["object"]:
            raise DataError(
                f"{file}: expected a split {' or '.join(_SPLITS)} and an image below {row['object']}/, "
                f"found {row['split']!r} and {row['image']!r}"
            )
        splits[path / below] = row["split"]
    return splits
