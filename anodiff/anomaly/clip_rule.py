"""The event rule of a calibrated model of clips, from the scores of normal frames that its calibration keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anodiff.anomaly.event_rule import EventRule, EventSettings
from anodiff.anomaly.events import Series, fit_rule
from anodiff.errors import ConfigError

if TYPE_CHECKING:
    from anodiff.anomaly.clip_calibration import ClipCalibration
    from anodiff.anomaly.clips import ClipDetector
    from anodiff.config import VideoConfig


def rule_of(detector: ClipDetector, *, rate: float | None = None, causal: bool = False) -> EventRule:
    """For recorded clips, or with ``causal`` for a stream; ``rate`` in false alarms an hour, by default the recipe's.

    Raises:
        ConfigError: the model is not calibrated for the preset, or the rate is not above 0.
    """
    calibration = detector.calibration
    if calibration is None:
        raise ConfigError(
            f"preset {detector.name!r}: events need a threshold from normal clips, found a model that is not "
            "calibrated for it (anodiff calibrate)"
        )
    return rule_from(calibration, detector.video, rate=rate, causal=causal)


def rule_from(
    calibration: ClipCalibration, video: VideoConfig, *, rate: float | None = None, causal: bool = False
) -> EventRule:
    """As `rule_of`, of a calibration and the recipe's section alone. Raises ConfigError for a rate not above 0."""
    lengths = list(calibration.lengths)
    parts = zip(calibration.times.split(lengths), calibration.series.split(lengths), strict=True)
    normals = [Series(str(number), times.numpy(), scores.numpy()) for number, (times, scores) in enumerate(parts)]
    settings = EventSettings(smooth_s=video.smooth_s, causal=causal)
    return fit_rule(normals, settings, video.false_alarms_per_hour if rate is None else rate)
