"""Labelled volumes through `anodiff evaluate`, and what a model knows again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anodiff.data.volumes import read_volume
from anodiff.errors import ConfigError, DataError, StorageError
from anodiff.pipelines import score


def test_evaluate_measures_inside_the_foreground(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    from anodiff.pipelines import evaluate

    lines = ["path,label,mask,group"]
    for n in range(3):
        sick = scans.head(400 + n, lesion=True)
        scans.save(tmp_path / f"sick{n}.nii.gz", sick)
        mask = np.zeros(sick.shape, dtype=np.uint8)
        mask[6:9, 7:10, 5:8] = 1
        scans.save(tmp_path / f"mask{n}.nii.gz", mask)
        scans.save(tmp_path / f"well{n}.nii.gz", scans.head(500 + n))
        lines += [f"sick{n}.nii.gz,1,mask{n}.nii.gz,s{n}", f"well{n}.nii.gz,0,,w{n}"]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    summary, metrics = evaluate.run(
        volumes_model, tmp_path / "test.csv", tmp_path / "out", device="cpu", quiet=True, heatmaps=False
    )
    assert summary.ok == 6
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.99
    assert metrics["n_images"] == 6
    assert metrics["froc"] > 0.9
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["pixel_ap"] == metrics["pixel_ap"]
    assert {row["id"] for row in scans.table(tmp_path / "out" / "truth.csv")} == {
        f"{k}{n}" for k in ("sick", "well") for n in range(3)
    }
    options: dict[str, Any] = {"device": "cpu", "quiet": True, "heatmaps": False}
    _, again = evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "out", **options)
    assert again == metrics
    # a mask that was mended is measured, although its volume is the same
    mask[6:9, 7:10, 5:7] = 0
    scans.save(tmp_path / "mask0.nii.gz", mask)
    summary, changed = evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "out", **options)
    assert summary.resumed == 5
    assert changed["pixel_ap"] != metrics["pixel_ap"]
    with pytest.raises(ConfigError, match="--baselines: expected 2-D images"):
        evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "no", baselines=True, **options)
    with pytest.raises(ConfigError, match="--map-format npy"):
        evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "no", map_format="npy", **options)
    # what score wrote has no masks beside it
    inputs = [str(tmp_path / f"{kind}{n}.nii.gz") for n in range(3) for kind in ("sick", "well")]
    score.run(volumes_model, inputs, tmp_path / "scored", **options)
    with pytest.raises(StorageError, match="measured was false"):
        evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "scored", **options)


def test_a_set_without_a_normal_volume_says_why_it_has_no_ranking(
    scans: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from anodiff.pipelines import evaluate

    for n in range(2):
        scans.save(tmp_path / f"sick{n}.nii.gz", scans.head(400 + n, lesion=True))
    (tmp_path / "sick.csv").write_text("path,label\nsick0.nii.gz,1\nsick1.nii.gz,1\n")
    _, metrics = evaluate.run(
        volumes_model, tmp_path / "sick.csv", tmp_path / "out", device="cpu", quiet=True, heatmaps=False
    )
    for key in ("image_auroc", "image_ap", "image_oracle_f1"):
        assert metrics[key] is None
        assert metrics["reasons"][key] == "no normal image"
    lines = capsys.readouterr().out.splitlines()
    assert "no value of image_auroc, image_ap: no normal volume" in lines
    dashes = {line.split()[0] for line in lines if line.endswith(" -")}
    assert {"image_auroc", "pixel_auroc"} <= dashes
    for key in dashes:
        assert any(key in line for line in lines if line.startswith("no "))


def test_what_was_learnt_from_is_known_again(
    scans: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import anodiff
    from anodiff.data.seen import SeenImages
    from anodiff.pipelines import calibrate, evaluate
    from anodiff.training.volumes import volume_hash

    lines = ["path,label,group,split"]
    for n in range(4):
        scans.save(tmp_path / f"n{n}.nii.gz", scans.head(n))
        lines.append(f"n{n}.nii.gz,0,p{n},")
    scans.save(tmp_path / "sick.nii.gz", scans.head(9, lesion=True))
    (tmp_path / "normals.csv").write_text("\n".join(lines) + "\n")
    model = anodiff.load(volumes_model)
    model.seen = SeenImages.of(volume_hash(read_volume(tmp_path / f"n{n}.nii.gz")) for n in range(3))
    model.save(tmp_path / "learnt.safetensors")
    options: dict[str, Any] = {"device": "cpu"}
    with pytest.raises(DataError, match="expected normal volumes that the model has not learnt from, found 3 of 4"):
        calibrate.run(tmp_path / "learnt.safetensors", tmp_path / "normals.csv", tmp_path / "a.safetensors", **options)
    calibrate.run(
        tmp_path / "learnt.safetensors", tmp_path / "normals.csv", tmp_path / "b.safetensors", allow_trained=True,
        **options,
    )  # fmt: skip
    assert "learnt from 3 of 4 of these normals" in capsys.readouterr().err
    (tmp_path / "test.csv").write_text("\n".join([*lines, "sick.nii.gz,1,s,"]) + "\n")
    evaluate.run(tmp_path / "learnt.safetensors", tmp_path / "test.csv", tmp_path / "out", heatmaps=False, **options)
    assert "learnt from 3 of these 5 volumes" in capsys.readouterr().err
    assert "learnt from 3 of these 5 volumes" in (tmp_path / "out" / "report.html").read_text()
