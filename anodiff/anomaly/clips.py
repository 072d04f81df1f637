"""ClipDetector: frames of a clip -> what the past did not announce -> the largest window of each frame -> its score."""

from __future__ import annotations

import contextlib
import math
import time as clocks
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.anomaly.clip_calibration import ClipCalibration
from anodiff.anomaly.frame_scores import FrameScorer
from anodiff.anomaly.fusion import fuse
from anodiff.anomaly.noising import reconstruct
from anodiff.anomaly.presets import resolve
from anodiff.anomaly.residuals import apply_polarity, residual
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.smoothing import smooth_maps
from anodiff.config import VideoConfig
from anodiff.data.clip_input import ClipInput, FramePreprocessor, Window, windows
from anodiff.diffusion import image_keys
from anodiff.engine.ahead import read_ahead
from anodiff.engine.inference import InferenceDenoiser
from anodiff.errors import ConfigError, InputError

if TYPE_CHECKING:
    from anodiff.data.video.clip import Frame

#: frames that wait for a score, in batches, at most: those left out to thin a fast clip wait too
WAITING = 4
#: residuals that compare frames, and granularities that leave the rest to the bands
RESIDUALS = ("absolute", "squared", "signed", "ssim")
PLAIN = ("none", "auto")
#: of a frame without a score
NO_BOX = (0, 0, 0, 0)
#: keys of the recipe on which no score depends
SETTLED = {"false_alarms_per_hour"}


@dataclass(frozen=True)
class ScoredFrame:
    """One frame of a clip.

    Attributes:
        frame: as it was read.
        score: of its largest window, before smoothing over time; higher = more anomalous; nan = it has none.
        box: (x, y, width, height) of that window in native pixels; NO_BOX without a score.
        map: float32 (h, w) on the model's grid, nan without a score.
        basis: the score is its ``own``, ``taken`` over from a neighbour, or there is ``none``.
    """

    frame: Frame
    score: float
    box: tuple[int, int, int, int]
    map: NDArray[np.float32]
    basis: Literal["own", "taken", "none"] = "own"


class ClipDetector:
    """Scores the frames of clips by what a diffusion model of normal clips did not expect.

    A score is a function of the model, the settings, the seed and the decoded pixels of the frame and its past: bit for
    bit the same on one device and software in a file, a stream, or beside other clips.

    Args: as :class:`anodiff.anomaly.AnomalyDetector`, for a model whose recipe has ``video``.

    Attributes:
        name, settings: of the preset, resolved. calibration: found in the model for exactly these settings, or None.
        nfe: denoiser calls a frame. scorer: from maps to scores. busy: seconds of `see` so far.

    Raises:
        ConfigError: a model of images, or settings that clips cannot honour.
    """

    def __init__(
        self,
        model: Any,
        preset: str | DetectorSettings = "default",
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        network_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        config = model.config
        if config.video is None:
            raise ConfigError(f"model {config.name!r}: expected a model of clips, found one of images")
        self.name, self.settings = resolve(preset, config)
        if self.settings.residual not in RESIDUALS or self.settings.refine or self.settings.standardise not in PLAIN:
            raise ConfigError(
                f"preset {self.name!r}: clips are compared by a residual of {', '.join(RESIDUALS)}, not refined, and "
                f"standardised by video.bands alone, found residual {self.settings.residual!r}, "
                f"refine {self.settings.refine!r}, standardise {self.settings.standardise!r}"
            )
        self.video, self.seed, self.schedule = config.video, seed, model.schedule
        self.denoiser = InferenceDenoiser(
            model.denoiser,
            device,
            precision,
            network_batch or config.engine.network_batch,
            config.engine.compiled,
            config.engine.max_memory,
        )
        self.input = ClipInput(config.video, model.constants.get("background"))
        self.prepare = FramePreprocessor(config)
        self.size: tuple[int, int] = config.preprocess.size
        self.nfe = self.settings.nfe_for(self.size)
        self.preprocess = config.preprocess.model_dump(mode="json")
        self.busy = 0.0
        self.calibration: ClipCalibration | None = None
        known = [c for c in model.calibrations.values() if self._agrees(c)]
        if known:
            self.use(known[0])
        else:
            self.scorer = FrameScorer.plain(self.video.window_px or self.size[0] // 5, self.settings.reconstructions)

    def use(self, calibration: ClipCalibration) -> None:
        """Scores from now on as calibrated. Raises ConfigError where frames are prepared otherwise than for it."""
        calibration.require_preprocess(self.preprocess)
        self.calibration = calibration
        self.scorer = FrameScorer(calibration.level_scale, calibration.window_px, calibration.band_scale)

    def video_settings(self) -> dict[str, Any]:
        """What the recipe says of clips and a calibration depends on, as plain values."""
        return self.video.model_dump(mode="json", exclude=SETTLED)

    def _agrees(self, calibration: ClipCalibration) -> bool:
        """Whether it was made for these settings; those that are newer than it have their defaults."""
        settings = {**DetectorSettings().to_json(), **calibration.settings}
        video = {**VideoConfig().model_dump(mode="json", exclude=SETTLED), **calibration.video}
        return settings == self.settings.to_json() and video == self.video_settings()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this detector's decisions, one sentence each."""
        if self.calibration is None:
            raw = f"preset {self.name!r}: the model is not calibrated for it, so scores are raw, without a threshold"
            return (raw, *self.denoiser.notes)
        said = (self.calibration.message, self.calibration.precision_note(self.denoiser.precision))
        return tuple(sentence for sentence in (*said, *self.denoiser.notes) if sentence)

    @torch.no_grad()
    def errors(self, frames: Tensor) -> Tensor:
        """Raw error of each level for uint8 (N, F, C, h, w), the current frame first -> (L, N, h, w) on the device."""
        clean, context = self.input(frames.to(self.denoiser.device))
        keys = image_keys(clean if context is None else torch.cat([clean, context], dim=1), self.seed)

        def given(x: Tensor, sigma: Tensor) -> Tensor:
            rows = None if context is None else context.repeat_interleave(len(x) // len(clean), dim=0)
            return self.denoiser(x, sigma, rows)

        levels = reconstruct(given, clean, keys.to(clean.device), self.settings, self.schedule)
        return torch.stack([residual(clean, level, self.settings.residual, self.settings.polarity) for level in levels])

    def maps(self, errors: Tensor, scorer: FrameScorer | None = None) -> Tensor:
        """Anomaly maps of raw errors: levels on one scale, fused, smoothed; (L, N, h, w) -> (N, h, w)."""
        fused = fuse((scorer or self.scorer).level(errors), self.settings.fusion)
        return apply_polarity(
            smooth_maps(fused, self.settings.smooth_px), self.settings.residual, self.settings.polarity
        )

    @torch.no_grad()
    def see(self, frames: Tensor) -> Tensor:
        """Anomaly maps (N, h, w), on the CPU, of uint8 frames as `errors` takes them; ``busy`` counts the seconds."""
        began = clocks.perf_counter()
        maps = self.maps(self.errors(frames)).cpu()
        self.busy += clocks.perf_counter() - began
        return maps

    def scores(
        self, clip: Iterable[Frame], batch_size: int = 16, *, ahead: int = 0, skip: int = 0
    ) -> Generator[ScoredFrame, None, None]:
        """Every frame of a clip in order, in constant memory.

        Frames that are left out to thin the clip take the score of the one before; the first ones, which have too
        little past, that of the first that has enough. After a gap (`anodiff.data.clip_input.Beat`) the past begins
        anew, and frames that have too little of it have no score.

        ahead: frames that a thread reads and prepares before they are asked for, at most; 0 = no thread. Close the
        generator before the clip then. skip: frames at the start that were scored before: they are read, not scored.

        Raises InputError: fewer frames than the model needs, or a size that changes.
        """
        waiting: list[Window] = []
        last: ScoredFrame | None = None
        count = ready = own = hidden = 0
        made = windows(clip, self.prepare, self.video)
        with contextlib.closing(read_ahead(made, ahead) if ahead else made) as seen:
            for window in seen:
                count += 1
                if count <= skip and (window.fresh or window.seen is not None):
                    own, waiting, ready = own + ready, [], 0  # what follows depends on nothing before this one
                waiting.append(window)
                ready += window.seen is not None
                if count <= skip:
                    hidden = len(waiting)
                    continue
                settled = ready or last is not None or window.fresh
                if ready == batch_size or (settled and len(waiting) >= WAITING * batch_size):
                    for number, scored in enumerate(self._scored(waiting, last)):
                        if number >= hidden:
                            yield scored
                        last = scored
                    own, waiting, ready, hidden = own + ready, [], 0, 0
        if not own and not ready:
            raise InputError(
                f"expected at least {self.video.reach + 1} frames without a gap at the model's rate, found {count}"
                f"{' with gaps' if last is not None or any(window.fresh for window in waiting) else ''}"
            )
        yield from islice(self._scored(waiting, last), hidden, None)

    def _scored(self, waiting: Sequence[Window], last: ScoredFrame | None) -> Iterator[ScoredFrame]:
        """Scores of all frames that wait, with one call for those that the model sees.

        last: the frame before them; None at the start of a clip, whose first frames wait for the first that is seen.
        """
        found = iter(self._own(waiting))
        ahead = next(found, None)
        decisive = next((window for window in waiting if window.fresh or window.seen is not None), None)
        first = ahead if last is None and decisive is not None and not decisive.fresh else None
        for window in waiting:
            if window.seen is not None:
                assert ahead is not None
                last, ahead = ahead, next(found, None)
                yield last
                continue
            source = None if window.fresh else last or first
            if source is None or source.basis == "none":
                last = self._unscored(window.frame)
                yield last
            else:
                yield replace(source, frame=window.frame, basis="taken")

    def _own(self, waiting: Sequence[Window]) -> list[ScoredFrame]:
        """The frames that the model sees, scored."""
        current = [window for window in waiting if window.seen is not None]
        if not current:
            return []
        geometry = self.prepare.geometry(current[0].frame.pixels)
        maps = self.see(torch.from_numpy(np.stack([np.stack(window.seen or ()) for window in current])))
        values, places = self.scorer.frames(maps, geometry.box)
        return [
            ScoredFrame(window.frame, float(value), self.scorer.native(place, geometry), one.numpy())
            for window, value, place, one in zip(current, values, places.tolist(), maps, strict=True)
        ]

    def _unscored(self, frame: Frame) -> ScoredFrame:
        nothing = np.broadcast_to(np.float32(math.nan), self.size)
        return ScoredFrame(frame, math.nan, NO_BOX, nothing, "none")
