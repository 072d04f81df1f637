"""frames.csv and events.csv: scores in the digits of a float32, times in all of theirs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from anodiff.pipelines.event_files import frame_rows, write_frames_csv


def test_scores_have_the_digits_of_a_float32(tmp_path: Path) -> None:
    score = float(np.float32(0.3))
    assert repr(score) == "0.30000001192092896"
    path = write_frames_csv(tmp_path / "frames.csv", frame_rows("a", [(0, 86400.123, score, float("nan"))], None))
    with path.open() as stream:
        (row,) = csv.DictReader(stream)
    assert row == {"clip": "a", "frame": "0", "time": "86400.123", "score": "0.3", "smoothed": "", "anomalous": ""}
    assert np.float32(row["score"]) == np.float32(score)
