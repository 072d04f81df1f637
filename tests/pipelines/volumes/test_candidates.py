"""Lesion candidates of noisy maps: a stated limit, and what is beyond it said; numbers as short as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from anodiff.anomaly.candidates import find_candidates


def test_the_highest_peaks_are_listed_and_the_rest_is_counted() -> None:
    """Against the whole list: the first ones of it, and every voxel marked."""
    values = np.random.default_rng(0).random((12, 14, 10)).astype(np.float32)
    inside = np.ones(values.shape, dtype=bool)
    affine = np.diag([1.0, 2.0, 0.5, 1.0])
    quantiles = {0.5: 0.5, 0.99: 0.9}
    for least in (0.0, 1.5):
        whole = find_candidates(values, inside, 0.95, affine, quantiles, least)
        few = find_candidates(values, inside, 0.95, affine, quantiles, least, most=7)
        assert len(whole.listed) > 10
        assert few.listed == whole.listed[:7]
        assert few.left_out == len(whole.listed) - 7
        assert np.array_equal(few.marked, whole.marked)
        assert whole.left_out == 0
        assert int(whole.marked.sum()) == sum(each.voxels for each in whole.listed)
    none = find_candidates(values, inside, 0.95, affine, min_volume_mm3=1e6, most=7)
    assert none.listed == []
    assert none.left_out == 0
    assert not none.marked.any()


def test_a_noisy_map_lists_so_many_and_says_how_many_more(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    values = scans.head(100, lesion=True)
    values[::3, ::3, ::3] += 60 * (values[::3, ::3, ::3] > 50)
    source = scans.save(tmp_path / "s.nii.gz", values)
    scans.run(volumes_model, tmp_path / "all", source, heatmaps=False, overrides=["volume.max_candidates=1000"])
    scans.run(volumes_model, tmp_path / "few", source, overrides=["volume.max_candidates=5"])
    whole, few = (scans.table(tmp_path / name / "lesions.csv") for name in ("all", "few"))
    assert len(whole) > 20
    assert few == whole[:5]
    plain, limited = (scans.table(tmp_path / name / "scores.csv")[0] for name in ("all", "few"))
    said = f"{len(whole)} candidates: the 5 with the highest peaks are listed, {len(whole) - 5} are left out"
    assert plain["remarks"] == ""
    assert limited["remarks"].startswith(said)
    # the limit is of the list: score and p-value are those of the calibration
    assert (limited["score"], limited["p_value"]) == (plain["score"], plain["p_value"])
    assert limited["p_value"]
    page = (tmp_path / "few" / "report.html").read_text()
    assert said in page
    assert f"&#34;unlisted&#34;:{len(whole) - 5}" in page
    many = (tmp_path / "all" / "report.html").read_text()
    assert f"&#34;unlisted&#34;:{max(0, len(whole) - 50)}" in many
    for text in (page, many):
        assert f'<td class="num">{len(whole)}</td>' in text


def test_numbers_have_the_digits_of_a_float32(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    source = scans.save(tmp_path / "s.nii.gz", scans.head(100, lesion=True))
    scans.run(volumes_model, tmp_path / "out", source, heatmaps=False)
    cells = [(row["peak"], row["mean_p_value"]) for row in scans.table(tmp_path / "out" / "lesions.csv")]
    cells += [(row["score"],) for row in scans.table(tmp_path / "out" / "slices.csv")]
    for cell in (cell for row in cells for cell in row):
        assert cell == str(np.float32(cell))
    assert len(cells) > 5
