"""What normal clips teach a detector, beside what any normals do: window, bands, and how a normal clip's score runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anodiff.anomaly.calibration import Calibration
from anodiff.anomaly.clip_blocks import p_value
from anodiff.anomaly.temporal import Floats


@dataclass(frozen=True)
class ClipCalibration(Calibration):
    """A calibration on normal clips: ``scores`` are those of their frames, smoothed, and ``unit`` is "frame".

    Attributes:
        video: what the recipe said of clips (plain values).
        level_scale: mean normal error of each level, (L,): levels are divided by it before they are averaged.
        window_px: side of the square whose mean error is a frame's score.
        band_scale: normal error of a window at each height of the model's grid, (h,), or None where not divided by.
        series: scores of the normal clips one after the other, before smoothing; ``lengths``: frames of each;
            ``smoothed``: the same after smoothing; ``times``: seconds of each from the start of its clip. What a
            threshold per hour is set by.
        choices: what was compared to choose window and bands: [window, bands, score on planted anomalies].
    """

    video: dict[str, Any] = field(default_factory=dict)
    level_scale: Tensor = field(default_factory=lambda: torch.ones(1))
    window_px: int = 1
    band_scale: Tensor | None = None
    series: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    smoothed: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    times: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    lengths: tuple[int, ...] = ()
    choices: tuple[tuple[int, bool, float], ...] = ()

    def clip_p_value(self, score: float, seconds: float) -> float | None:
        """p-value of a clip of so many seconds by its highest smoothed score, see `clip_blocks`; None: too long."""
        return p_value(self.clips, score, seconds, float(self.video.get("smooth_s", 0.0)))[0]

    @property
    def clips(self) -> list[tuple[Floats, Floats]]:
        """(times, scores before smoothing) of each normal clip."""
        parts = zip(*(values.split(list(self.lengths)) for values in (self.times, self.series)), strict=True)
        return [(times.numpy(), scores.numpy()) for times, scores in parts]

    def to_tensors(self) -> dict[str, Tensor]:
        """See `Calibration.to_tensors`."""
        own = {"times": self.times, "level_scale": self.level_scale, "series": self.series, "smoothed": self.smoothed}
        return {**super().to_tensors(), **own, **({} if self.band_scale is None else {"band_scale": self.band_scale})}

    def to_json(self) -> dict[str, Any]:
        """See `Calibration.to_json`."""
        choices = [list(choice) for choice in self.choices]
        own = {"video": self.video, "window_px": self.window_px, "lengths": list(self.lengths), "choices": choices}
        return {**super().to_json(), **own}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ClipCalibration:
        """See `Calibration.from_parts`."""
        plain = Calibration.from_parts(values, tensors)
        return cls(
            **vars(plain),
            video=dict(values["video"]),
            level_scale=tensors["level_scale"],
            window_px=values["window_px"],
            band_scale=tensors.get("band_scale"),
            series=tensors["series"],
            smoothed=tensors["smoothed"],
            times=tensors["times"],
            lengths=tuple(values["lengths"]),
            choices=tuple((window, bands, value) for window, bands, value in values["choices"]),
        )
