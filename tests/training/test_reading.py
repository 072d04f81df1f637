"""Images read for training and calibration: both ways in keep and leave out the same files, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anodiff.config import PreprocessConfig
from anodiff.data.layouts import load_table
from anodiff.data.preprocess import Preprocessor
from anodiff.errors import DataError
from anodiff.training.image_files import look_through
from anodiff.training.images import load_images

PREPROCESSOR = Preprocessor(PreprocessConfig(size=(16, 16), resize="none"))


def folder(path: Path, broken: tuple[int, ...] = (1, 4)) -> Path:
    """Six images and their table; some are no images, and the third has a foreground."""
    lines = ["path,label,group,foreground"]
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{n}.png")
        if n in broken:
            (path / f"{n}.png").write_bytes(b"no image")
        lines.append(f"{n}.png,0,g{n},{'m.png' if n == 2 else ''}")
    mask = np.zeros((16, 16), np.uint8)
    mask[3:9, 2:7] = 255
    Image.fromarray(mask).save(path / "m.png")
    (path / "t.csv").write_text("\n".join(lines) + "\n")
    return path / "t.csv"


def test_both_keep_the_same_images_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = load_table(folder(tmp_path))
    loaded = load_images(samples, PREPROCESSOR, 10**6, workers=3, labels=range(6))
    files = look_through(samples, PREPROCESSOR, 10**6, workers=3)
    names = [Path(path).name for path in loaded.paths]
    assert names == ["0.png", "2.png", "3.png", "5.png"]
    assert loaded.labels == (0, 2, 3, 5)
    assert loaded.given == files.given == (False, True, False, False)
    assert loaded.groups == files.groups == ("g0", "g2", "g3", "g5")
    assert loaded.hashes == files.hashes
    assert len(set(loaded.hashes)) == 4
    assert loaded.paths == files.paths
    assert loaded.failed == files.failed
    assert [Path(sentence.partition(":")[0]).name for sentence in loaded.failed] == ["1.png", "4.png"]
    assert files.sizes == ((16, 16),) * 4
    for row in range(4):
        image, foreground = files.read(row)
        assert image.equal(loaded.images[row])
        assert foreground.equal(loaded.foreground[row])
    assert int(loaded.foreground[1].sum()) == 30
    assert capsys.readouterr().err.count("left out: ") == 4


@pytest.mark.parametrize("read", [load_images, look_through])
def test_none_that_can_be_read(tmp_path: Path, read: object) -> None:
    samples = load_table(folder(tmp_path, broken=tuple(range(6))))
    with pytest.raises(DataError, match=r"expected readable images, found none in 6 \(.*0\.png"):
        read(samples, PREPROCESSOR, 10**6, quiet=True)  # type: ignore[operator]
