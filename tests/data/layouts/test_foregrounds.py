"""Which file is whose foreground: by its name, by a table, by the command line; and never a mask of lesions."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from anodiff.data.layouts import load_table
from anodiff.data.layouts.foregrounds import beside, foregrounds_among, foregrounds_of, given, listed_in, without
from anodiff.data.volumes.inputs import expand_volumes
from anodiff.errors import ConfigError


def volumes(folder: Path, *names: str) -> None:
    values = np.zeros((4, 4, 4), dtype=np.float32)
    values[1:3, 1:3, 1:3] = [[[1, 2], [3, 1]], [[2, 2], [1, 3]]]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def rows(folder: Path, layout: str) -> dict[str, tuple[str, str]]:
    """Path -> (lesion mask, foreground), below the folder."""
    samples = load_table(folder)
    assert samples.layout == layout
    table = samples.table[["path", "mask", "foreground"]].map(lambda name: name.replace(f"{folder}/", ""))
    return {path: (mask, inside) for path, mask, inside in table.itertuples(index=False)}


def test_beside_a_volume(tmp_path: Path) -> None:
    volumes(tmp_path, "x.nii.gz", "x_brain.nii.gz", "x_brain_mask.nii.gz", "x_seg.nii.gz", "y_brain.nii.gz",
            "y_brain_mask.nii", "z.nii", "z_foreground.mgz", "w.nii", "w_lesion.nii", "brainless.nii")  # fmt: skip
    expected = {
        "x.nii.gz": ("x_seg.nii.gz", "x_brain_mask.nii.gz"),
        "y_brain.nii.gz": ("", "y_brain_mask.nii"),  # without a y it is a volume
        "z.nii": ("", "z_foreground.mgz"),
        "w.nii": ("w_lesion.nii", ""),
        "brainless.nii": ("", ""),
    }
    assert rows(tmp_path, "volumes") == expected
    found = expand_volumes([str(tmp_path)])
    assert {Path(source.path).name for source in found.sources} == {*expected, "x_seg.nii.gz", "w_lesion.nii"}
    reasons = {Path(path).name: reason for path, reason in found.skipped}
    assert set(reasons) == {"x_brain.nii.gz", "x_brain_mask.nii.gz", "y_brain_mask.nii", "z_foreground.mgz"}
    assert reasons["z_foreground.mgz"] == f"the foreground mask of {tmp_path / 'z.nii'}, by its name"
    # alone it is what its user says
    alone = expand_volumes([str(tmp_path / "x_brain.nii.gz")])
    assert [Path(source.path).name for source in alone.sources] == ["x_brain.nii.gz"]


def test_of_a_subject_s_channels(tmp_path: Path) -> None:
    volumes(tmp_path, "S1/S1_flair.nii.gz", "S1/S1_t1.nii.gz", "S1/S1_seg.nii.gz", "S1/S1_brain_mask.nii.gz",
            "S2/S2_flair.nii.gz", "S2/S2_t1.nii.gz", "S2/S2_t1_brainmask.nii.gz", "S2/S2_seg.nii.gz")  # fmt: skip
    assert rows(tmp_path, "brats") == {
        "S1/S1_#channels=flair.nii.gz,t1.nii.gz": ("S1/S1_seg.nii.gz", "S1/S1_brain_mask.nii.gz"),
        "S2/S2_#channels=flair.nii.gz,t1.nii.gz": ("S2/S2_seg.nii.gz", "S2/S2_t1_brainmask.nii.gz"),
    }


def test_of_the_ms_set(tmp_path: Path) -> None:
    long = "FLAIR_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
    volumes(tmp_path, f"patient01/{long}", "patient01/GOLD_STANDARD_regtoMNI.nii.gz", "patient01/brainmask.nii.gz",
            "patient02/FLAIR.nii.gz", "patient02/FLAIR_brain.nii.gz", "patient02/GOLD_STANDARD.nii.gz")  # fmt: skip
    assert rows(tmp_path, "open_ms") == {
        f"patient01/{long}": ("patient01/GOLD_STANDARD_regtoMNI.nii.gz", "patient01/brainmask.nii.gz"),
        "patient02/FLAIR.nii.gz": ("patient02/GOLD_STANDARD.nii.gz", "patient02/FLAIR_brain.nii.gz"),
    }


@pytest.mark.data
def test_the_real_ms_set_has_none(data_root: Path) -> None:
    samples = load_table(data_root / "open_ms" / "cross_sectional" / "MNI")
    assert len(samples) == 2
    assert (samples.table["foreground"] == "").all()
    assert (samples.table["mask"] != "").all()


def test_of_a_bids_tree(tmp_path: Path) -> None:
    volumes(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz", "sub-1/anat/sub-1_FLAIR_brain.nii.gz",
            "sub-2/anat/sub-2_FLAIR.nii.gz", "sub-2/anat/sub-2_desc-brain_mask.nii.gz",
            "derivatives/sub-1/sub-1_lesion.nii.gz")  # fmt: skip
    assert rows(tmp_path, "bids") == {
        "sub-1/anat/sub-1_FLAIR.nii.gz": (
            "derivatives/sub-1/sub-1_lesion.nii.gz",
            "sub-1/anat/sub-1_FLAIR_brain.nii.gz",
        ),
        "sub-2/anat/sub-2_FLAIR.nii.gz": ("", "sub-2/anat/sub-2_desc-brain_mask.nii.gz"),
    }


def test_masks_alone_are_nobody_s(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("x_brain_mask.nii", "x_foreground.nii", "brainmask.nii")]
    volumes(tmp_path, *(Path(name).name for name in names))
    assert foregrounds_among(names) == {}
    assert foregrounds_among([*names, str(tmp_path / "x_t1.nii")]) == dict.fromkeys(names, str(tmp_path / "x_t1.nii"))


def test_a_folder_of_dicom_files(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    volumes(tmp_path, "study_brain.nii.gz")
    assert beside(str(tmp_path / "study")) == str(tmp_path / "study_brain.nii.gz")
    assert beside(f"{tmp_path / 'study'}#series=0123abcd") == str(tmp_path / "study_brain.nii.gz")
    volumes(tmp_path, "other/brainmask.nii")
    assert beside(str(tmp_path / "other")) == str(tmp_path / "other" / "brainmask.nii")


def test_patterns_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("scans/x.nii.gz", "scans/x_bet.nii.gz", "masks/x.nii", "m.nii"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    paths = ["scans/x.nii.gz", "scans/x_bet.nii.gz", "more/y.nii", "s/c_#channels=flair.nii,t1.nii"]
    found = foregrounds_of(paths, "{stem}_bet.nii.gz")
    assert found["scans/x.nii.gz"] == "scans/x_bet.nii.gz"
    assert found["more/y.nii"] == "more/y_bet.nii.gz"
    assert found[paths[3]] == "s/c_bet.nii.gz"
    assert without(paths, found) == [paths[0], *paths[2:]]
    assert foregrounds_of(paths[:1], f"{tmp_path}/masks/{{stem}}.nii") == {"scans/x.nii.gz": f"{tmp_path}/masks/x.nii"}
    for folder in ("scans", f"{tmp_path}/scans"):
        path, pattern = f"{folder}/x.nii.gz", "{folder}/../masks/{stem}.nii"
        assert foregrounds_of([path], pattern) == {path: f"{folder}/../masks/x.nii"}
    monkeypatch.chdir("scans")
    assert foregrounds_of(["x.nii.gz"], "{folder}/{stem}_bet.nii.gz") == {"x.nii.gz": "./x_bet.nii.gz"}
    monkeypatch.chdir(tmp_path)
    # what sets its own background to 0 is its own mask, and still an input
    assert without(paths, foregrounds_of(paths, "{stem}.nii.gz")) == paths
    assert foregrounds_of(["a.nii#volume=1", "a.nii#volume=2"], "m.nii") == {
        "a.nii#volume=1": "m.nii",
        "a.nii#volume=2": "m.nii",
    }
    assert foregrounds_of(paths, "none", {paths[0]: "m.nii"}, by_name=True) == {}
    with pytest.raises(ConfigError, match=r"expected a pattern such as .*found one file for 4"):
        foregrounds_of(paths, "m.nii")
    with pytest.raises(ConfigError, match=r"\{stem\} or \{folder\}"):
        foregrounds_of(paths, "{subject}.nii")
    with pytest.raises(ConfigError, match=r"--foreground bad/nosuch\.nii\.gz: expected a file, found none"):
        foregrounds_of(paths[:1], "bad/nosuch.nii.gz")
    with pytest.raises(ConfigError, match=r"found none for any of 4 inputs \(the first would be scans/x_no\.nii\)"):
        foregrounds_of(paths, "{stem}_no.nii")
    assert foregrounds_of(paths[:1], "m.nii#labels=1,2") == {"scans/x.nii.gz": "m.nii#labels=1,2"}


def test_a_manifest_says_it_and_the_command_line_more(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a_in.png", "m.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    table = tmp_path / "t.csv"
    table.write_text("path,label,foreground\na.png,0,m.png\nb.png,0,\na_in.png,0,\n")
    samples = load_table(table)
    own = [str(tmp_path / "m.png"), "", ""]
    assert list(samples.table["foreground"]) == own
    assert list(given(samples, "").table["foreground"]) == own
    named = given(samples, "{stem}_in.png").table
    assert [Path(path).name for path in named["path"]] == ["a.png", "b.png"]
    assert [Path(path).name for path in named["foreground"]] == ["a_in.png", "b_in.png"]
    assert (given(samples, "none").table["foreground"] == "").all()
    assert listed_in([table, tmp_path / "a.png"]) == {str(tmp_path / "a.png"): str(tmp_path / "m.png")}
