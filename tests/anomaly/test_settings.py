"""Slots that contradict each other are refused; the cost is known before a run."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from anodiff.anomaly.settings import DetectorSettings


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"steps": 5}, "name a sampler"),
        ({"variance": "large"}, "ancestral"),
        ({"box": 8}, "boxes"),
        ({"residual": "ssim", "polarity": "brighter"}, "no sign"),
        ({"residual": "features", "polarity": "darker"}, "no sign"),
        ({"noise": "none", "pairs": 2}, "all draws are the same"),
        ({"noise": "none", "antithetic": True}, "all draws are the same"),
        ({"noise": "none", "where": "boxes"}, "nothing to place"),
        ({"noise": "none", "sampler": "ancestral", "steps": 3}, "nothing to place"),
        ({"levels": ()}, "levels"),
        ({"levels": (0.5, -1.0)}, "levels"),
        ({"levels": (float("inf"),)}, "levels"),
        ({"topk": 0.0}, "topk"),
        ({"smooth_px": -1.0}, "smooth_px"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"fusion": "median"}, "fusion"),
        ({"limits": (4.0, 0.0)}, "low below high"),
    ],
)
def test_what_cannot_be_is_refused(slots: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DetectorSettings(**slots)


@pytest.mark.parametrize(
    ("slots", "size", "calls"),
    [
        ({"levels": (0.1, 1.0, 2.0)}, (16, 16), 3),
        ({"levels": (0.1, 1.0), "antithetic": True, "pairs": 3}, (16, 16), 12),
        ({"noise": "none", "levels": (0.4,)}, (16, 16), 1),
        ({"sampler": "heun", "steps": 5}, (16, 16), 9),
        ({"sampler": "dpmpp", "steps": 7, "levels": (0.5, 1.0)}, (16, 16), 14),
        ({"where": "boxes"}, (17, 16), 4),
        ({"where": "boxes"}, (8, 8, 8), 8),
        ({"where": "boxes", "box": 5}, (16, 10), 8),
        ({"where": "boxes", "box": 100}, (16, 10), 1),
        ({"residual": "features", "levels": (0.1, 1.0)}, (16, 16), 5),
    ],
)
def test_cost_is_counted(slots: dict[str, Any], size: tuple[int, ...], calls: int) -> None:
    assert DetectorSettings(**slots).nfe_for(size) == calls


def test_equal_settings_have_equal_json() -> None:
    assert DetectorSettings(levels=[1, 2]).to_json() == DetectorSettings(levels=(1.0, 2.0)).to_json()  # type: ignore[arg-type]
    assert DetectorSettings(levels=(1.0,)).to_json() != DetectorSettings(levels=(1.5,)).to_json()
