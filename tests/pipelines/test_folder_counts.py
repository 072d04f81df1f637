"""What an image of a folder costs beside the network: counted, never timed (see tests/engine/test_operation_counts.py).

Two runs that differ in their number of images tell what an image costs from what a run costs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from anodiff.data.preprocess import Preprocessor
from anodiff.pipelines import scoring
from anodiff.visualize import HeatScale, pictures, png, save_heatmap
from anodiff.visualize.heatmap import _frame

Run = Callable[..., int]
FEW, MANY = 2, 7


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called from here on, by name; appending is safe from any thread."""
    events: list[str] = []

    def counted(owner: Any, name: str, key: str) -> None:
        function = getattr(owner, name)

        def called(*arguments: Any, **options: Any) -> Any:
            events.append(key)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, called)

    counted(png, "packed", "pictures packed")
    counted(pictures, "packed", "pictures packed")
    counted(Image.Image, "save", "pictures saved by Pillow")
    counted(Image.Image, "resize", "resized")
    counted(ImageFont, "load_default", "fonts")
    counted(Preprocessor, "__call__", "preprocessed")
    counted(scoring, "read_image", "decoded")
    counted(os, "replace", "files written")
    return events


def test_an_image_is_packed_decoded_and_written_so_many_times(
    anodiff: Run, world: Any, tmp_path: Path, events: list[str]
) -> None:
    made = {}
    for count in (FEW, MANY):
        world.write_images(tmp_path / f"in{count}", count, lesion=True)
        events.clear()
        _frame.cache_clear()
        assert anodiff("score", world.model, tmp_path / f"in{count}", "--output", tmp_path / f"out{count}") == 0
        made[count] = Counter(events)
        assert len(list((tmp_path / f"out{count}" / "heatmaps").iterdir())) == count
    of_an_image = {key: (made[MANY][key] - made[FEW][key]) / (MANY - FEW) for key in made[MANY]}
    assert of_an_image["pictures packed"] == 5  # heatmap, reconstruction; in the report input, reconstruction, map
    assert of_an_image.get("pictures saved by Pillow", 0) == 0
    assert of_an_image["files written"] == 3  # map, heatmap, reconstruction
    assert of_an_image["decoded"] == 2  # to score, and for the report
    assert of_an_image["preprocessed"] == 1
    # the image to the model's grid; its map to the native one for the file and for the heatmap; reconstruction shown
    assert of_an_image["resized"] <= 4
    assert 1 <= made[MANY]["fonts"] <= 2  # once a run; twice where the two writers meet


def test_a_heatmap_packs_its_pixels_once_and_not_more_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    packed = png.packed
    monkeypatch.setattr(png, "packed", lambda pixels: sizes.append(pixels.nbytes) or packed(pixels))
    for side in (32, 64, 128, 256):
        save_heatmap(
            tmp_path / "x.png", np.zeros((side, side), np.uint8), np.zeros((side, side)), HeatScale(0.0, 1.0, 2.0)
        )
    assert len(sizes) == 4
    assert max(sizes) < 1_000_000
