"""The report of volumes: every voxel where it belongs in three planes, small, safe, and alive in a browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anodiff.errors import InputError
from anodiff.visualize import HeatScale
from anodiff.visualize.sheets import image_sheet, map_sheet, mask_sheet, mosaic, shrink, shrink_factors, to_ras
from anodiff.visualize.volume_report import (
    Lesion,
    VolumeRow,
    VolumeViews,
    notebook_html,
    render_volume_report,
    volume_html,
    write_volume_report,
)

SCALE = HeatScale(0.0, 1.0, 2.0)
SHAPE = (7, 9, 5)


def views(seed: int = 0, **changes: Any) -> VolumeViews:
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 3:5, 1:3] = True
    given: dict[str, Any] = {
        "image": rng.random(SHAPE).astype(np.float32),
        "map": (rng.random(SHAPE) + mask).astype(np.float32),
        "mask": mask,
        "affine": np.diag([1.0, 2.0, 3.0, 1.0]),
    }
    return VolumeViews(**{**given, **changes})


def unpack(uri: str, meta: dict[str, Any]) -> np.ndarray:
    """The volume (I, J, K) of a sheet, by its description alone."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("L"))
    i, j, k = meta["shape"]
    tiles = [
        picture[(n // meta["columns"]) * j : (n // meta["columns"] + 1) * j,
                (n % meta["columns"]) * i : (n % meta["columns"] + 1) * i].T
        for n in range(k)
    ]  # fmt: skip
    return np.stack(tiles, axis=2)


def metas(page: str) -> list[dict[str, Any]]:
    return [json.loads(html.unescape(text)) for text in re.findall(r'data-meta="([^"]*)"', page)]


def sheet_uris(page: str) -> list[tuple[str, str]]:
    return re.findall(r'class="sheet" data-kind="(\w+)" src="([^"]+)"', page)


def test_a_sheet_holds_every_voxel_of_every_slice() -> None:
    volume = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    sheet = map_sheet(volume, 10**6)
    meta = {"shape": sheet.shape, "columns": sheet.columns}
    np.testing.assert_array_equal(unpack(sheet.uri, meta), volume)
    mask = volume > 128
    held = mask_sheet(mask, 10**6)
    np.testing.assert_array_equal(unpack(held.uri, {"shape": held.shape, "columns": held.columns}) > 127, mask)
    picture, columns = mosaic(volume)
    assert picture.shape == (9 * -(-5 // columns), 7 * columns)


def test_images_survive_jpeg_to_a_few_greys() -> None:
    i, j, k = np.meshgrid(*(np.arange(side) for side in (32, 24, 6)), indexing="ij")
    volume = (4 * i + 3 * j + 5 * k).astype(np.uint8)
    sheet = image_sheet(volume, 10**6)
    back = unpack(sheet.uri, {"shape": sheet.shape, "columns": sheet.columns})
    assert np.abs(back.astype(int) - volume).mean() < 3


@pytest.mark.parametrize("how", ["mean", "max"])
def test_shrinking_takes_blocks(how: str) -> None:
    volume = np.random.default_rng(1).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    small = shrink(volume, (2, 2, 1), how)
    padded = np.pad(volume, [(0, 1), (0, 0), (0, 0)], mode="edge")
    function = {"mean": np.mean, "max": np.max}[how]
    for place in np.ndindex(3, 2, 3):
        block = padded[2 * place[0] : 2 * place[0] + 2, 2 * place[1] : 2 * place[1] + 2, place[2]]
        assert small[place] == pytest.approx(float(function(block)), abs=0.5)


def test_blocks_come_near_to_cubes_and_files_stay_within_their_bytes() -> None:
    assert shrink_factors((0.5, 0.5, 5.0), 3) == (3, 3, 1)
    assert shrink_factors((1.0, 1.0, 1.0), 2) == (2, 2, 2)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 40), dtype=np.uint8)
    sheet = map_sheet(noise, 6000)
    assert sheet.size <= 6000
    assert sheet.factors == (3, 3, 3)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_a_marked_voxel_keeps_its_world_place(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """Whatever the order and direction of the axes of the file, the page says the file's voxel and nibabel's mm."""
    from nibabel.affines import apply_affine

    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (row, sign) in enumerate(zip(axes, flips, strict=True)):
        affine[row, column] = sign * (1.0 + column)
    affine[:3, 3] = [-4.0, 11.0, 3.0]
    values = np.zeros(SHAPE, np.float32)
    voxel = (1, 7, 2)
    values[voxel] = 5.0
    page = render_volume_report("t", {}, [VolumeRow("a", "a", views=views(map=values, affine=affine))], scale=SCALE)
    (meta,) = metas(page)
    start = np.array([*meta["start"], 1.0])
    np.testing.assert_allclose((np.array(meta["stored"]) @ start)[:3], voxel, atol=1e-5)
    np.testing.assert_allclose((np.array(meta["affine"]) @ start)[:3], apply_affine(affine, voxel), atol=1e-5)
    shown = unpack(dict(sheet_uris(page))["map"], meta["sheets"]["map"])
    assert np.unravel_index(shown.argmax(), shown.shape) == tuple(meta["start"])
    assert np.all(np.diag(np.array(meta["affine"]))[:3] > 0)


def test_orientation_agrees_with_nibabel() -> None:
    import nibabel as nib

    values = np.random.default_rng(0).random(SHAPE)
    affine = np.array([[0.1, 2, 0, 5], [0, 0.1, -3, 1], [-1, 0, 0.2, -7], [0, 0, 0, 1.0]])
    turned, upright = to_ras(values, affine)
    expected = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    np.testing.assert_array_equal(turned, expected.get_fdata())
    np.testing.assert_allclose(upright, expected.affine)


def test_the_map_is_above_the_threshold_on_the_page_where_it_is() -> None:
    given = views()
    page = render_volume_report("t", {}, [VolumeRow("a", "a", views=given)], scale=SCALE)
    shown = unpack(dict(sheet_uris(page))["map"], metas(page)[0]["sheets"]["map"])
    np.testing.assert_array_equal(shown >= 128, np.asarray(given.map) > SCALE.centre)


def test_candidates_start_the_viewer_and_are_listed_by_peak() -> None:
    lesions = [Lesion(10.0, 1.5, (2.0, 6.0, 3.0)), Lesion(500.0, 1.9, (4.0, 14.0, 9.0), 0.01)]
    without = replace(views(), map=None)  # which would say where they are
    page = render_volume_report("t", {}, [VolumeRow("a", "a", lesions=lesions, views=without)], scale=SCALE)
    (meta,) = metas(page)
    assert meta["start"] == [4, 7, 3]
    assert [lesion["at"] for lesion in meta["lesions"]] == [[4, 7, 3], [2, 3, 1]]
    assert meta["lesions"][0]["text"] == "peak 1.9, 500 mm³, centre at (4, 14, 9) mm, p 0.01"


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_the_page_goes_to_the_peak_of_a_candidate_and_not_to_its_centre(flips: tuple[int, ...]) -> None:
    """A bar with its peak at one end, in a file of other axes: the page says the file's voxel and nibabel's mm."""
    from nibabel.affines import apply_affine

    affine = np.zeros((4, 4))
    for column, (row, sign) in enumerate(zip((2, 0, 1), flips, strict=True)):
        affine[row, column] = sign * (1.0 + column)
    affine[:, 3] = [-4.0, 11.0, 3.0, 1.0]
    values = np.zeros(SHAPE, np.float32)
    values[1:6, 4, 2] = 3.0  # all of it beyond the end of the scale
    values[5, 4, 2] = 4.0
    centre = tuple(float(at) for at in apply_affine(affine, (3, 4, 2)))
    lesion = Lesion(60.0, 4.0, (centre[0], centre[1], centre[2]), None, (5, 4, 2))
    rows = [
        VolumeRow(name, name, lesions=[lesion] if name == "a" else [], views=views(map=values, affine=affine))
        for name in "ab"  # without candidates it is the largest value, not the first that is as bright as it
    ]
    with_one, without = metas(render_volume_report("t", {}, rows, scale=SCALE))
    assert with_one["lesions"][0]["at"] == with_one["start"] == without["start"]
    start = np.array([*with_one["start"], 1.0])
    np.testing.assert_allclose((np.array(with_one["stored"]) @ start)[:3], (5, 4, 2), atol=1e-5)
    peak, middle = (", ".join(f"{at:.0f}" for at in place) for place in (apply_affine(affine, (5, 4, 2)), centre))
    assert with_one["lesions"][0]["text"] == f"peak 4 at ({peak}) mm, 60 mm³, centre at ({middle}) mm"


def test_the_peak_that_counts_is_given_where_the_map_is_larger_elsewhere() -> None:
    given = views(affine=np.diag([-1.0, 2.0, 3.0, 1.0]))
    page = render_volume_report("t", {}, [VolumeRow("a", "a", peak_voxel=(1, 8, 0), views=given)], scale=SCALE)
    assert metas(page)[0]["start"] == [SHAPE[0] - 2, 8, 0]


def test_no_place_is_minus_nought() -> None:
    lesion = Lesion(10.0, 1.5, (-0.4, 6.0, -0.49), None, (0, 3, 0))
    given = views(affine=np.array([[1, 0, 0, -0.3], [0, 2, 0, 0], [0, 0, 3, -0.2], [0, 0, 0, 1.0]]))
    page = render_volume_report("t", {}, [VolumeRow("a", "a", lesions=[lesion], views=given)], scale=SCALE)
    text = metas(page)[0]["lesions"][0]["text"]
    assert text == "peak 1.5 at (0, 6, 0) mm, 10 mm³, centre at (0, 6, 0) mm"


def test_only_the_highest_scores_are_read_and_the_page_says_so() -> None:
    asked: list[int] = []

    def reader(i: int) -> Callable[[], VolumeViews]:
        def read() -> VolumeViews:
            asked.append(i)
            return views(i)

        return read

    rows = [VolumeRow(f"v{i}", f"{i}.nii", score=float(i), views=reader(i)) for i in range(6)]
    page = render_volume_report("t", {}, rows, scale=SCALE, max_viewers=2)
    assert sorted(asked) == [4, 5]
    assert "The 2 highest scores can be opened in the viewer" in page
    assert "all 6 volumes are listed" in page
    assert len(metas(page)) == 2
    assert all(f"v{i}" in page for i in range(6))


def test_ten_volumes_stay_within_the_promised_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    rows = [VolumeRow(f"v{i}", "", score=1.0, views=VolumeViews(noise, noise)) for i in range(4)]
    write_volume_report(tmp_path / "r.html", "t", {}, rows, scale=SCALE, most_mb=0.4)
    # beside the sheets: 30 kB of script and style, 40 kB a still
    assert (tmp_path / "r.html").stat().st_size < 0.4e6 + 4 * 80_000 + 60_000


def test_a_volume_that_cannot_be_read_keeps_its_row_and_grids_must_agree() -> None:
    def gone() -> VolumeViews:
        raise InputError("a.nii is gone")

    page = render_volume_report("t", {}, [VolumeRow("a", "a.nii", score=1.0, views=gone)], scale=SCALE)
    assert not metas(page)
    assert "a.nii" in page
    with pytest.raises(
        ValueError, match=r"b: the map must be on the grid of the image, \(7, 9, 5\), found \(3, 3, 3\)"
    ):
        render_volume_report("t", {}, [VolumeRow("b", "b", views=views(map=np.ones((3, 3, 3))))], scale=SCALE)


def test_without_scale_or_place_the_page_promises_neither() -> None:
    page = render_volume_report("t", {}, [VolumeRow("a", "a", score=1.0, views=views(affine=None))])
    (meta,) = metas(page)
    assert not meta["oriented"]
    assert "map" not in meta["sheets"]
    assert "Not calibrated." in page
    assert 'id="v-opacity"' not in page


HOSTILE = ['"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>", "' onclick='x", "a\nb\u202e\x00"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_every_string_is_escaped_and_nothing_is_loaded(hostile: str) -> None:
    def page_of(text: str) -> str:
        rows = [
            VolumeRow(text, text, 1, 2.0, 0.5, True, views=views()),
            VolumeRow(text + "2", text, status="failed", error=text),
        ]
        facts = {"model": text, "unit": text, "false_alarm_rate": 0.1}
        metrics = {"image_auroc": None, "reasons": {"image_auroc": text}}
        settings = {"a": {"b": text}}
        return render_volume_report(
            text, facts, rows, scale=SCALE, threshold=1.0, notes=[text], settings=settings, metrics=metrics
        )

    tags = [re.findall(r"<(/?[a-z][a-z0-9]*)", re.sub(r"<script>.*?</script>", "", page_of(text), flags=re.S))
            for text in ("plain", hostile)]  # fmt: skip
    assert tags[0] == tags[1]
    page = page_of(hostile)
    assert page.count("<script") == 1
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|localStorage", page)
    assert "default-src 'none'; img-src data:; script-src 'sha256-" in html.unescape(page)
    assert all(uri.startswith("data:image/") for uri in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"<[^>]*\sstyle=", page)


def test_the_script_finds_every_element_it_names() -> None:
    page = render_volume_report("t", {}, [VolumeRow("a", "a", views=views(reconstruction=np.ones(SHAPE)))], scale=SCALE)
    named = set(re.findall(r"\$\(\"#([\w-]+)", page))
    assert named <= set(re.findall(r'id="([\w-]+)"', page))
    for pane in re.findall(r'<div class="pane"[^>]*>', page):
        assert 'tabindex="0"' in pane
    assert len(re.findall(r'<label class="slice">.*?type="range"', page)) == 3


def test_a_notebook_gets_one_frame_that_holds_the_page() -> None:
    given = views()
    frame = notebook_html(given, SCALE, title='a "scan"', height_px=400)
    assert frame.count("<iframe") == 1
    inside = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])  # type: ignore[index]
    assert inside == volume_html(given, SCALE, title='a "scan"')
    assert len(metas(inside)) == 1
    assert 'id="inputs"' not in inside


@pytest.mark.slow
def test_the_viewer_runs_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    lesions = [Lesion(10.0, 1.5, (2.0, 6.0, 3.0))]
    write_volume_report(
        tmp_path / "report.html", "t", {}, [VolumeRow("a", "a", lesions=lesions, views=views())], scale=SCALE
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert 'data-ready="a"' in done.stdout
    assert "voxel (2, 3, 1) of the file" in done.stdout
    assert "(2.0, 6.0, 3.0) mm" in done.stdout


def test_a_bent_candidate_opens_inside_of_it_and_p_values_without_a_threshold_are_said() -> None:
    """A ring: its centre is empty."""
    values = np.zeros((9, 9, 5), np.float32)
    values[2:7, 2:7, 2] = 9.0
    values[3:6, 3:6, 2] = 0.0
    views = VolumeViews(np.random.default_rng(0).random(values.shape), values, affine=np.eye(4))
    row = VolumeRow("x", "x.nii", score=1.0, p_value=0.2, lesions=[Lesion(16.0, 9.0, (4.0, 4.0, 2.0))], views=views)
    page = render_volume_report("t", {}, [row], scale=HeatScale.around(0.0, 1.0))
    meta = json.loads(html.unescape(re.search(r'data-meta="([^"]*)"', page)[1]))  # type: ignore[index]
    assert values[tuple(meta["start"])] == 9
    assert values[tuple(meta["lesions"][0]["at"])] == 9
    assert "No threshold." in page
    assert "no p-values" not in page
