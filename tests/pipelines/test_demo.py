"""anodiff demo: its folder is guarded; the whole of it, with what it promises, is a slow test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anodiff.errors import StorageError
from anodiff.pipelines import demo


def test_only_a_demos_own_folder_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="not of a demo"):
        demo.prepare(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
    mine = tmp_path / "demo"
    demo.prepare(mine, overwrite=False)
    (mine / "data").mkdir()
    with pytest.raises(StorageError, match="--overwrite starts anew"):
        demo.prepare(mine, overwrite=False)
    demo.prepare(mine, overwrite=True)
    assert not (mine / "data").exists()


@pytest.mark.slow
def test_hard_lesions_are_found_where_baselines_fail(tmp_path: Path) -> None:
    """The promise of the demo: default >= 0.90 pixel AUROC, >= 0.05 above the best baseline; plain ones < 0.80."""
    demo.run(tmp_path / "demo", quiet=True)
    found = json.loads((tmp_path / "demo" / "results" / "baselines.json").read_text())["metrics"]
    ours, *baselines = [metrics["pixel_auroc"] for metrics in found.values()]
    assert ours >= 0.90
    assert ours >= max(baselines) + 0.05
    assert found["raw intensity"]["pixel_auroc"] < 0.80
    assert found["blur residual"]["pixel_auroc"] < 0.80
    assert (tmp_path / "demo" / "results" / "report.html").exists()
