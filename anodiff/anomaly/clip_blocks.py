"""p-value of a clip by its highest score, whatever its length, from normal clips of other lengths.

The highest of more frames is larger by chance, so a clip is compared with stretches as long as itself. Where normal
clips are longer they are cut into blocks of its length; a clip's blocks share its weight, so that clips, not blocks,
are what must be exchangeable (Dunn, Wasserman and Ramdas 2022; Lee, Barber and Willett 2023):

    p = (1 + sum_k mean_i 1[s_ki >= s]) / (K + 1)   for K normal clips, s_ki the highest of block i of clip k.

Where they are shorter, the clip is as many blocks as it has room for, begun ones counted, and the union bound holds
for its highest: m p, at most 1, with p of one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anodiff.anomaly.temporal import Floats, smooth_in_time, stretches

#: of lengths that are equal but for the rounding of times
SLACK = 1e-6
#: seconds between two frames that are not footage, as for events
MAX_GAP_S = 2.0


@dataclass(frozen=True)
class Blocks:
    """How a clip is compared: with blocks of ``seconds``, of which it has ``parts``, in ``clips`` normal clips."""

    seconds: float
    parts: int
    clips: int

    @property
    def least(self) -> float:
        """The smallest p-value that can come out."""
        return min(1.0, self.parts / (self.clips + 1))


def footage_seconds(times: Floats, max_gap_s: float = MAX_GAP_S) -> float:
    """Seconds of frames (n,): each stretch between gaps from its first frame to its last and one usual frame more."""
    usual = np.diff(times)
    step = float(np.median(usual)) if usual.size else 0.0
    return float(sum(times[piece][-1] - times[piece][0] + step for piece in stretches(times, max_gap_s)))


def choose_blocks(lengths: Sequence[float], seconds: float) -> Blocks:
    """By lengths alone, never by scores: the blocks that allow the smallest p-value, the longest of those.

    Args:
        lengths: seconds of each normal clip.
        seconds: of the clip.
    """

    def blocks(length: float) -> Blocks:
        clips = sum(known >= length * (1 - SLACK) for known in lengths)
        return Blocks(length, max(1, math.ceil(seconds / length - SLACK)) if length > 0 else 1, clips)

    candidates = [blocks(length) for length in {seconds, *(known for known in lengths if 0 < known < seconds)}]
    return min(candidates, key=lambda each: (each.parts / (each.clips + 1), -each.seconds))


def block_highest(times: Floats, scores: Floats, seconds: float, smooth_s: float) -> Floats:
    """The highest smoothed score of each whole block of a clip (n,) that has one at least, (m,).

    Blocks are smoothed one by one, since the ends of a clip that is as long as one are smoothed with less beside them.
    """
    size = max(1, round(len(times) * seconds / max(footage_seconds(times), 1e-12)))
    size = min(size, len(times))
    starts = range(0, len(times) - size + 1, size)
    cuts = [slice(start, start + size) for start in starts]
    return np.array([smooth_in_time(times[cut], scores[cut], smooth_s).max() for cut in cuts])


def p_value(
    clips: Sequence[tuple[Floats, Floats]], score: float, seconds: float, smooth_s: float
) -> tuple[float | None, Blocks]:
    """p-value of a clip of so many seconds with this highest smoothed score, and how it was compared.

    None where none below 1 could come out: the normal clips are too short and too few for so long a clip.

    Args:
        clips: (times, scores before smoothing) of each normal clip.
        score: highest smoothed score of the clip.
        seconds: of its footage.
        smooth_s: of the smoothing.
    """
    lengths = [footage_seconds(times) for times, _ in clips]
    chosen = choose_blocks(lengths, seconds)
    if chosen.least >= 1:
        return None, chosen
    known = [clip for clip, length in zip(clips, lengths, strict=True) if length >= chosen.seconds * (1 - SLACK)]
    shares = [float((block_highest(*clip, chosen.seconds, smooth_s) >= score).mean()) for clip in known]
    return min(1.0, chosen.parts * (1 + sum(shares)) / (len(known) + 1)), chosen
