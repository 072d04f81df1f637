"""What a volume's row says of doubts: a candidate that is half a brain, a model that has seen little; and progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anodiff.anomaly.candidates import Candidate
from anodiff.model import load
from anodiff.pipelines.volume_remarks import SEEN_KEY, merged_remark, seen_remark, seen_share
from anodiff.pipelines.volume_scoring import remark_notes


def candidate(number: int, voxels: int) -> Candidate:
    return Candidate(number, voxels, 2.0 * voxels, (0.0, 0.0, 0.0), 9.0 - number, (0, 0, 0), None)


def test_a_candidate_of_much_of_the_foreground_is_remarked() -> None:
    few = [candidate(1, 5), candidate(2, 100), candidate(3, 7)]
    assert merged_remark(few, 1000) is None
    found = merged_remark(few, 990)
    assert found is not None
    assert found.startswith("candidate 2 holds 10% of the foreground (200 mm3): ")
    assert merged_remark([], 10) is None
    assert merged_remark(few, 0) is None


def test_a_model_that_has_seen_little_says_so() -> None:
    assert seen_share({}) is None
    assert seen_remark(None) is None
    assert seen_remark(seen_share({SEEN_KEY: 0.5})) is None
    found = seen_remark(seen_share({SEEN_KEY: 0.09}))
    assert found is not None
    assert found.startswith("the model has learnt from only 9% of the foreground of its normal volumes: ")


def test_what_is_remarked_of_several_volumes_is_said_once() -> None:
    rows = [{"path": f"v{n}", "remarks": ["same", f"own {n}"]} for n in range(7)]
    notes = remark_notes(rows)
    assert notes[:2] == ("7 volumes, the first one v0: same", "v0: own 0")
    assert notes[-1] == "and 3 more remarks on volumes, in scores.csv"


def test_rows_and_page_have_the_remarks_and_the_page_opens_at_the_peak(
    scans: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A lesion of a quarter of the head, brightest at one corner; off a terminal slices are told of in lines."""
    import html
    import json
    import re

    from anodiff.engine import progress
    from anodiff.pipelines import score

    model = load(volumes_model)
    model.provenance[SEEN_KEY] = 0.09
    model.save(tmp_path / "model.safetensors")
    values = scans.head(100)
    values[3:13, 3:10, 4:11] += 60
    values[11, 8, 9] += 500
    source = scans.save(tmp_path / "s.nii.gz", values, scans.oblique())
    monkeypatch.setattr(progress.Progress.__init__, "__kwdefaults__", {
        **progress.Progress.__init__.__kwdefaults__, "interval": 0.0})  # fmt: skip
    score.run(tmp_path / "model.safetensors", [str(source)], tmp_path / "out", device="cpu", batch_size=4)
    (row,), (first, *_) = (scans.table(tmp_path / "out" / name) for name in ("scores.csv", "lesions.csv"))
    assert "candidate 1 holds " in row["remarks"]
    assert "learnt from only 9% of the foreground" in row["remarks"]
    peak = [int(first[f"peak_{axis}"]) for axis in "ijk"]
    assert peak == [11, 8, 9]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "learnt from only 9% of the foreground" in page
    meta = json.loads(html.unescape(re.search(r'data-meta="([^"]*)"', page)[1]))  # type: ignore[index]
    start = [*meta["start"], 1]
    assert [round(sum(a * b for a, b in zip(line, start, strict=True))) for line in meta["stored"][:3]] == peak
    said = capsys.readouterr()
    told = re.findall(r"scoring: 0/1 volumes 0% \| slices (\d+) of (\d+) along k", said.err)
    assert [int(done) for done, _ in told][:2] == [4, 8]
    assert told[-1][0] == told[-1][1]
