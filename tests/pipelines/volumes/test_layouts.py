"""Data sets of volumes as their owners lay them out, from training through scoring to evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

import anodiff as library

SHAPE = (12, 12, 10)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
LESION = (slice(4, 7), slice(5, 8), slice(4, 7))
Run = Callable[..., int]

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "polarity": "brighter",
    "presets": {"default": {"levels": [0.5], "noise": "none", "antithetic": False, "standardise": "scalar",
                            "smooth_px": 0.0}},
    "preprocess": {"size": [12, 12], "intensity": {"kind": "robust", "clip": 5.0}, "foreground": "otsu"},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "volume": {"axes": [2], "orientation": "RAS", "min_foreground": 0.05, "score_slices": 2},
    "training": {"images": 16, "batch_size": 4, "lr": 1e-3, "warmup_images": 4, "validate_every_images": 16,
                 "validation_images": 4, "ema_halflife_images": 8, "holdout": 0.4},
    "engine": {"network_batch": 8},
}  # fmt: skip


def brain(seed: int, sick: bool, gain: float = 1.0) -> np.ndarray:
    """A ball around 100 in air, with a brighter cube where it is sick."""
    rng = np.random.default_rng(seed)
    middle = (np.array(SHAPE) - 1) / 2
    inside = ((np.indices(SHAPE) - middle[:, None, None, None]) ** 2).sum(axis=0) < 4.6**2
    values = np.where(inside, 100 + 5 * rng.normal(size=SHAPE), np.abs(rng.normal(size=SHAPE)))
    if sick:
        values[LESION] += 60
    return (gain * values).astype(np.float32)


def truth(sick: bool, value: int = 1) -> np.ndarray:
    marked = np.zeros(SHAPE, np.uint8)
    if sick:
        marked[LESION] = value
    return marked


def put(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)


def nnunet(root: Path) -> list[Path]:
    """imagesTr, labelsTr, imagesTs, labelsTs of two channels; scored: imagesTs, by the names in dataset.json."""
    root.mkdir()
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "T2", "1": "FLAIR"}, "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz", "numTraining": 6,
    }))  # fmt: skip
    for n in range(10):
        part, sick = ("Tr", n == 5) if n < 6 else ("Ts", n >= 8)
        for channel in range(2):
            put(root / f"images{part}" / f"case_{n:03d}_{channel:04d}.nii.gz", brain(10 * n + channel, sick))
        put(root / f"labels{part}" / f"case_{n:03d}.nii.gz", truth(sick))
    return [root / "imagesTs"]


def manifest(root: Path) -> list[Path]:
    """A table with a split; the scored files are named."""
    lines = ["path,label,mask,group,split"]
    for n in range(10):
        sick = n >= 8
        put(root / "scans" / f"{n}.nii.gz", brain(10 * n, sick))
        if sick:
            put(root / "masks" / f"{n}.nii.gz", truth(sick))
        split = "train" if n < 4 else "val" if n < 6 else "test"
        lines.append(f"scans/{n}.nii.gz,{int(sick)},{f'masks/{n}.nii.gz' if sick else ''},p{n},{split}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return [root / "scans" / f"{n}.nii.gz" for n in range(6, 10)]


def brats(root: Path) -> list[Path]:
    """Folders of subjects with modalities, below train and test; the model takes FLAIR and T1."""
    for n in range(10):
        part, sick = ("train", n == 5) if n < 6 else ("test", n >= 8)
        name = f"BraTS-GLI-{n:05d}-000"
        for channel, kind in enumerate(("t1", "flair", "t2")):
            values = brain(10 * n + channel, sick) if kind != "t2" else np.full(SHAPE, 7, np.float32)
            put(root / part / name / f"{name}_{kind}.nii.gz", values)
        put(root / part / name / f"{name}_seg.nii.gz", truth(sick, value=4))
    return [root / "test"]


def bids(root: Path) -> list[Path]:
    """sub-NN/anat, lesion masks below derivatives; no split, so what is evaluated is the whole of it."""
    for n in range(10):
        sick = n >= 8
        put(root / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_FLAIR.nii.gz", brain(10 * n, sick))
        put(root / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_T1w.nii.gz", np.full(SHAPE, 7, np.float32))
        put(root / "derivatives" / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_label-lesion_mask.nii.gz", truth(sick))
    return [root / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_FLAIR.nii.gz" for n in range(6, 10)]


@pytest.mark.parametrize(
    ("make", "data", "layout", "channels"),
    [
        (nnunet, "", "nnunet", 2),
        (manifest, "table.csv", "", 1),
        (brats, "", "brats:flair,t1", 2),
        (bids, "", "bids:FLAIR", 1),
    ],
    ids=["nnunet", "manifest", "brats", "bids"],
)
def test_train_score_evaluate(
    scans: Any,
    anodiff: Run,
    tmp_path: Path,
    make: Callable[[Path], list[Path]],
    data: str,
    layout: str,
    channels: int,
) -> None:
    inputs = make(tmp_path / "set")
    options = ["--layout", layout] if layout else []
    recipe = RECIPE | {"preprocess": RECIPE["preprocess"] | {"channels": channels}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    source, run = tmp_path / "set" / data, tmp_path / "run"
    code = anodiff("train", tmp_path / "r.yaml", "--data", source, "--output", run, "--device", "cpu", *options)
    assert code == 0
    model = run / "model.safetensors"
    known = library.load(model)
    assert known.calibrations["default"].unit == "slice"
    assert known.provenance["training_groups"] + known.provenance["held_out_groups"] >= 5

    assert anodiff("score", model, *inputs, "--output", tmp_path / "scored", "--no-heatmaps") == 0
    rows = scans.table(tmp_path / "scored" / "scores.csv")
    assert [row["status"] for row in rows] == ["ok"] * 4
    scores = [float(row["score"]) for row in sorted(rows, key=lambda row: row["path"])]
    assert max(scores[:2]) < min(scores[2:])
    for row in rows:
        found = nibabel.load(tmp_path / "scored" / "maps" / f"{row['id']}.nii.gz")
        assert found.shape == SHAPE
        assert np.array_equal(found.affine, AFFINE)

    # by the names of channels that the model keeps, where it has several
    more = [] if layout.startswith("brats") else options
    assert anodiff("evaluate", model, source, "--output", tmp_path / "measured", "--no-heatmaps", *more) == 0
    metrics = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    assert metrics["n_anomalous"] == 2
    assert metrics["n_images"] == (10 if make is bids else 4)
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.95
    measured = {Path(row["path"]).name: row["score"] for row in scans.table(tmp_path / "measured" / "scores.csv")}
    assert measured.items() >= {Path(row["path"]).name: row["score"] for row in rows}.items()
