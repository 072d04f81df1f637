"""The synthetic camera as a data set; what its pictures show is tested beside the clips of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from anodiff.data.video.synthetic import write_scenes
from anodiff.errors import ConfigError


def test_clips_too_short_for_an_event_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected clips of at least 0\.4 minutes, found 0\.15"):
        write_scenes(tmp_path / "scenes", minutes=0.15)
    assert not (tmp_path / "scenes").exists()
