"""The way from noise to image: frames are those of the chain, whatever the batch; a GIF holds them."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from anodiff.config import parse_config
from anodiff.model import build_denoiser
from anodiff.restoration import Restorer, report
from anodiff.restoration.animation import FRAME_MS, LAST_MS, Frames, write_animation


def test_frames_begin_as_noise_end_as_the_image_and_change_nothing(tiny_recipe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = parse_config(tiny_recipe)
    model = SimpleNamespace(denoiser=build_denoiser(config), config=config)
    restorer = Restorer(model, device="cpu", precision="fp32", network_batch=2, steps=5)
    frames = Frames(3)  # the second batch of two is filled up with a copy
    found = restorer.generate([4, 0, 9], on_state=frames)
    torch.testing.assert_close(found.images, restorer.generate([4, 0, 9]).images, rtol=0, atol=0)
    alone = Frames(1)
    restorer.generate([9], on_state=alone)
    for number, image in enumerate(found.images):
        shown = frames.shown[number]
        assert len(shown) == 5
        last = ((image[0].clamp(-1, 1) + 1) * 127.5).round().numpy()
        np.testing.assert_array_equal(shown[-1], last)
        first = shown[0] / 127.5 - 1
        assert 0.5 < first.std() < 0.9  # N(0, 1) clipped to [-1, 1] has 0.72
    for mine, other in zip(alone.shown[0], frames.shown[2], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_gif_holds_the_frames(tmp_path: Path) -> None:
    frames = [np.full((8, 9), 40 * n, dtype=np.uint8) for n in range(4)]
    write_animation(tmp_path / "sub" / "a.gif", frames)
    with Image.open(tmp_path / "sub" / "a.gif") as gif:
        assert gif.info["loop"] == 0
        found = [(np.asarray(each.convert("L")), each.info["duration"]) for each in ImageSequence.Iterator(gif)]
    for (picture, _), frame in zip(found, frames, strict=True):
        np.testing.assert_array_equal(picture, frame)
    assert [duration for _, duration in found] == [FRAME_MS] * 3 + [LAST_MS]


def test_the_report_holds_animations_and_links_what_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_animation(tmp_path / "animations" / f"{name}.gif", [np.full((8, 8), n, dtype=np.uint8) for n in (0, 9)])
    size = (tmp_path / "animations" / "a.gif").stat().st_size
    monkeypatch.setattr(report, "MOST_ANIMATED", size)
    picture = np.zeros((8, 8), dtype=np.uint8)
    rows = [
        report.RestoredRow(name, name, pictures=lambda: (None, picture), animation=f"animations/{name}.gif")
        for name in ("a", "b")
    ]
    report.write_restoration_report(tmp_path / "report.html", "t", {}, rows, ())
    page = (tmp_path / "report.html").read_text()
    (held,) = re.findall(r'src="data:image/gif;base64,([^"]+)"', page)
    assert base64.b64decode(held) == (tmp_path / "animations" / "a.gif").read_bytes()
    assert re.findall(r'href="([^"]+)"', page) == ["animations/b.gif"]
