"""A convolutional auto-encoder of short clips, the learnt baseline of every video table (after Hasan et al. 2016).

A few frames as channels go through a bottleneck and back, without skip connections; what comes back worse than normal
clips do is anomalous. It has as many weights as the model beside it, sees the same frames and as many examples.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anodiff.anomaly.frame_scores import window_means
from anodiff.anomaly.video_baselines import Frames, VideoBaseline, grey_frames
from anodiff.errors import DataError

if TYPE_CHECKING:
    from anodiff.config import AnodiffConfig

#: channels of the four resolutions, as multiples of the width
MULTIPLES = (1, 2, 4, 8)
#: widths are multiples of it, so that groups of channels can be normalised
GRAIN = 8
#: frames scored at once
BATCH = 16

Progress = Callable[[int], None]


class AutoEncoder(nn.Module):
    """(N, K, h, w) -> the same shape, through a sixteenth of the sides; channels are ``width`` times MULTIPLES."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        wide = [width * multiple for multiple in MULTIPLES]
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in itertools.pairwise([frames, *wide]))
        self.up = nn.ModuleList(_block(b, a, 1) for a, b in reversed(list(itertools.pairwise([wide[0], *wide]))))
        self.out = nn.Conv2d(wide[0], frames, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class; sides need not be multiples of 16."""
        sizes, inner = [], x
        for block in self.down:
            sizes.append(inner.shape[2:])
            inner = block(inner)
        for block in self.up:  # convolved before it is enlarged, at a quarter of the cost
            inner = nn.functional.interpolate(block(inner), size=sizes.pop(), mode="bilinear", align_corners=False)
        result: Tensor = self.out(inner)
        return result


def width_for(parameters: int, frames: int) -> int:
    """The width whose number of weights is nearest to ``parameters``."""
    counts = {}
    for width in itertools.count(GRAIN, GRAIN):
        with torch.device("meta"):
            counts[width] = weights_of(AutoEncoder(frames, width))
        if counts[width] >= parameters:
            return min(counts, key=lambda each: abs(counts[each] - parameters))
    raise AssertionError("unreachable")


def weights_of(network: nn.Module) -> int:
    """Number of weights."""
    return sum(each.numel() for each in network.parameters())


class ClipAutoEncoder(VideoBaseline):
    """Squared error of reconstructed frames in a square window, the largest window of the frame.

    Frames are grey, at ``size``, in [-1, 1] without the mean of the normal frames. Those at the start of a clip that
    have too little past are given the score of the first that has enough.

    Args:
        parameters: weights, about. images: examples learnt from, in all, drawn with replacement.
        size: (height, width) that frames are reduced to. window_px: side of the window, px of it.
        past, step: how many frames the network sees beside the current one, and how far apart they are.
        flip: examples are mirrored left to right at random.
        batch_size, lr: of Adam, whose rate falls to 0 along a half cosine.
        device, seed: where it is trained; of weights and examples.
        progress: called with the number of examples learnt from.

    Attributes:
        parameters_: weights, once fitted. loss_: mean squared error over the last tenth of the training.
    """

    name = "auto-encoder"

    def __init__(
        self,
        parameters: int = 3_500_000,
        images: int = 27_000,
        size: tuple[int, int] = (80, 120),
        window_px: int = 8,
        *,
        past: int = 3,
        step: int = 2,
        flip: bool = True,
        batch_size: int = 16,
        lr: float = 1e-3,
        device: str | torch.device = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.parameters, self.images, self.size, self.window_px = parameters, images, size, window_px
        self.past, self.step, self.flip = past, step, flip
        self.batch_size, self.lr, self.seed = batch_size, lr, seed
        self.device, self.progress = torch.device(device), progress

    @classmethod
    def like(cls, config: AnodiffConfig, parameters: int, device: str | torch.device, seed: int = 0) -> Self:
        """One that is beside a model of clips: its weights, frames, size, mirroring and number of examples."""
        video = config.video
        assert video is not None
        return cls(
            parameters,
            config.training.images,
            config.preprocess.size,
            max(1, config.preprocess.size[0] // 10),
            past=max(1, video.reach // video.step),
            step=video.step,
            flip=config.augment.flip_lr,
            batch_size=config.training.batch_size,
            device=device,
            seed=seed,
        )

    @property
    def reach(self) -> int:
        """How many frames back the oldest one lies that the network sees."""
        return self.past * self.step

    def fit(self, clips: Iterable[Frames]) -> Self:
        """Learn from normal clips. Raises DataError where none has enough frames."""
        height, width = self.size
        with tempfile.TemporaryFile() as store:
            lengths = []
            for clip in clips:
                began = store.tell()
                for grey in grey_frames(clip, self.size):
                    store.write(np.rint(grey).clip(0, 255).astype(np.uint8).tobytes())
                lengths.append((store.tell() - began) // (height * width))
            store.flush()
            starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            ends = itertools.pairwise(starts)
            rows = np.concatenate([np.arange(first + self.reach, last) for first, last in ends] or [starts[:0]])
            if not len(rows):
                raise DataError(
                    f"{self.name}: expected normal clips of at least {self.reach + 1} frames, found none in "
                    f"{len(lengths)}"
                )
            frames = np.memmap(store, dtype=np.uint8, mode="c", shape=(int(starts[-1]), height, width))
            self._learn(torch.from_numpy(frames), torch.from_numpy(rows))
        return self

    def scores(self, frames: Frames) -> NDArray[np.float64]:
        found: list[float] = []
        for stacks in _batched(self._stacks(frames), BATCH):
            found += self._errors(torch.from_numpy(np.stack(stacks)))
        # Without one frame that has enough past there is nothing to go by: the clip is too short to judge.
        missing = self._count - len(found)
        first = found[0] if found else 0.0
        return np.array([first] * missing + found, dtype=np.float64)

    def _stacks(self, frames: Frames) -> Iterator[NDArray[np.uint8]]:
        """uint8 (K, h, w), the current frame first, of every frame with enough past; counts all frames."""
        seen: deque[NDArray[np.uint8]] = deque(maxlen=self.reach + 1)
        self._count = 0
        for grey in grey_frames(frames, self.size):
            seen.append(np.rint(grey).clip(0, 255).astype(np.uint8))
            self._count += 1
            if len(seen) > self.reach:
                yield np.stack([seen[-1 - back] for back in range(0, self.reach + 1, self.step)])

    def _learn(self, frames: Tensor, rows: Tensor) -> None:
        offsets = torch.arange(0, self.reach + 1, self.step)
        # The mean over a thousand frames is that over all, to what a grey level can show.
        some = torch.linspace(0, len(frames) - 1, min(len(frames), 1000)).round().long()
        self.mean_ = frames[some].float().mean(dim=0).to(self.device)
        draws = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = AutoEncoder(len(offsets), width_for(self.parameters, len(offsets))).to(self.device)
        updates = max(1, self.images // self.batch_size)
        optimiser = torch.optim.Adam(network.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
        late = []
        for update in range(updates):
            chosen = rows[torch.randint(len(rows), (self.batch_size,), generator=draws)]
            clean = self._prepared(frames[chosen[:, None] - offsets])
            if self.flip:
                mirrored = torch.rand(self.batch_size, generator=draws).lt(0.5).to(self.device)
                clean = torch.where(mirrored.reshape(-1, 1, 1, 1), clean.flip(3), clean)
            loss = (network(clean) - clean).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if update >= int(updates * 0.9):
                late.append(float(loss.detach()))
            if self.progress is not None:
                self.progress(self.batch_size)
        self._network, self.parameters_ = network.eval(), weights_of(network)
        self.loss_ = float(np.mean(late))

    def _prepared(self, stacks: Tensor) -> Tensor:
        """uint8 (N, K, h, w) -> float32 in [-1, 1], the mean taken off."""
        return (stacks.to(self.device).float() - self.mean_) * (2 / 255)

    @torch.no_grad()
    def _errors(self, stacks: Tensor) -> list[float]:
        """The largest windowed squared error of each stack; always one batch shape, so that mates cannot matter."""
        count = len(stacks)
        clean = self._prepared(torch.cat([stacks, stacks[-1:].expand(BATCH - count, -1, -1, -1)]))
        error = (self._network(clean) - clean).square().mean(dim=1)[:count]
        return window_means(error, self.window_px).flatten(1).amax(dim=1).tolist()


def _block(inside: int, outside: int, stride: int) -> nn.Sequential:
    norm = nn.GroupNorm(GRAIN, outside)
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, padding=1), norm, nn.SiLU())


def _batched(stacks: Iterable[NDArray[np.uint8]], count: int) -> Iterator[list[NDArray[np.uint8]]]:
    source = iter(stacks)
    while batch := list(itertools.islice(source, count)):
        yield batch
