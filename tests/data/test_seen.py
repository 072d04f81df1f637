"""Hashes that know an image again: the same for every lossless copy, another for every other image; a bounded table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from anodiff.data.readers import read_image
from anodiff.data.seen import SeenImages, pixel_hash


def test_copies_in_other_formats_are_known_again_and_nothing_else(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20), dtype=np.uint8)
    for name in ("a.png", "renamed.bmp", "b.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
    np.save(tmp_path / "c.npy", pixels)
    hashes = {pixel_hash(read_image(path)) for path in tmp_path.iterdir()}
    assert len(hashes) == 1
    assert 2**40 < max(hashes) < 2**64  # of 8 bytes: a hash of 4 would hit by chance in large sets
    other = pixels.copy()
    other[5, 5] ^= 1
    for number, changed in enumerate((other, pixels.reshape(20, 12), pixels[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(changed)).save(tmp_path / f"other{number}.png")
        assert pixel_hash(read_image(tmp_path / f"other{number}.png")) not in hashes


def test_a_cut_table_answers_for_a_fair_sample_and_says_where_it_cannot() -> None:
    trained = np.random.default_rng(1).integers(0, 2**64, 4000, np.uint64).tolist()
    seen = SeenImages.of(trained, most=1000)
    assert len(seen.hashes) == 1000
    assert seen.hashes.element_size() == 8
    assert seen.distinct == len(set(trained))
    assert seen.count(trained) == (1000, 1000)
    fresh = sorted({*np.random.default_rng(2).integers(0, 2**64, 4000, np.uint64).tolist()} - {*trained})
    count, told = seen.count(fresh)
    assert count == 0
    assert 800 < told < 1200
    assert seen.contains(max(trained)) is None
    whole = SeenImages.of(trained)
    assert whole.count([*trained, *fresh]) == (len(trained), len(trained) + len(fresh))


def test_no_image_at_all() -> None:
    assert SeenImages.of([]).contains(3) is False
