"""tracks.csv: boxes of clips in any layout, refused by the line where they are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.data.video.layouts import load_clips
from anodiff.errors import DataError

HEAD = "clip,track,frame,x,y,w,h\n"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for name in ("test/a", "test/b.c"):
        (tmp_path / name).mkdir(parents=True)
        for n in range(3):
            Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / name / f"{n}.png")
    return tmp_path


def test_boxes_belong_to_their_clips_with_first_and_last_pixel(scenes: Path) -> None:
    assert all(row.tracks is None for row in load_clips(scenes).rows)
    (scenes / "tracks.csv").write_text(HEAD + "test/a,7,2,3,1,4,5\ntest/a,8,0,0,0,1,1\n")
    rows = {Path(row.path).name: row for row in load_clips(scenes).rows}
    np.testing.assert_array_equal(rows["a"].tracks, [[7, 2, 3, 1, 6, 5], [8, 0, 0, 0, 0, 0]])
    assert rows["b.c"].tracks.shape == (0, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip,track,frame,x,y,w\n", "found no h"),
        (HEAD + "test/a,1,0,0,0,2,0\n", "line 2: expected numbers"),
        (HEAD + "test/a,1,0.5,0,0,2,2\n", "line 2: expected numbers"),
        (HEAD + "test/a,1,0,0,0,2\n", "line 2: expected numbers"),
        (HEAD + "test/z,1,0,0,0,2,2\n", "found no test/z"),
    ],
)
def test_what_is_no_box_is_named(scenes: Path, text: str, said: str) -> None:
    (scenes / "tracks.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        load_clips(scenes)
