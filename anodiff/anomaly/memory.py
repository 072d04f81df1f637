"""Feature memory: how far a patch's features lie from those of every normal patch (PatchCore, Roth et al. 2022).

Locally aware patch features (each averaged with its 3 x 3 neighbours), several resolutions side by side, a coreset of
the normal patches chosen by greedy k-centre on a random projection, the distance to the nearest of them, and the weight
that the paper gives to an anomaly whose nearest patch is itself rare. The paper weights the largest distance only;
here every distance has its weight, so that an image's score stays a function of its map.

One thing is added, so that it is not beaten for want of it: where anomalies are declared brighter, a patch darker than
the normal patch it resembles most has distance 0 (darker: likewise). Distances are not standardised per place, unlike
the errors of the other baselines: on the labelled development images of brain_lgg that made it weaker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anodiff.anomaly.baseline_choice import Finish, Form
from anodiff.anomaly.baselines import Baseline, Learnt
from anodiff.anomaly.planted import PlantedImages
from anodiff.anomaly.residuals import Polarity, channel_mean
from anodiff.anomaly.smoothing import resize_linear
from anodiff.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anodiff.engine.inference import InferenceDenoiser

#: images (N, C, *S) in [-1, 1] -> activations (N, K, *s), one tensor a resolution, finest first
Features = Callable[[Tensor], Sequence[Tensor]]

#: noise level at which the denoiser's encoder is told to look at a clean image
ENCODER_SIGMA = 0.1
#: most normal images that are looked at (evenly spaced beyond it), and patches of them that stand for the memory
MEMORY_IMAGES = 1000
MEMORY_PATCHES = 50_000
#: dimensions of the random projection in which the coreset is chosen
PROJECTION = 64
#: distances (or their factors) that are in memory at once, and images whose features are
VALUES_AT_ONCE = 1 << 24
IMAGES_AT_ONCE = 16


class FeatureMemory(Baseline):
    """fit(normals), then maps(images) and scores(maps), on any features.

    Args:
        features: see :func:`encoder_features` and :func:`timm_features`.
        polarity, finish: as for every baseline; the width and the reduction are all there is to choose.
        name: of the row in a table.
        nfe: network calls an image that the features cost.
        share, cap: of the candidate patches that the memory keeps, and how many at most.
        neighbours: patches around the nearest one that set the weight of a distance.
        device: where the memory lies and distances are computed.
        seed: of the choice of candidates, projection and first patch.

    Attributes:
        memory_: (M, K) float32, the patches that are kept; brightness_: (M,), their mean intensity.
    """

    # a distance is an amount, and its memory is filled twice, not five times
    forms: tuple[Form, ...] = ("signed",)
    held_out = 1

    def __init__(
        self,
        features: Features,
        polarity: Polarity = "both",
        finish: Finish | None = None,
        *,
        name: str = "feature memory",
        nfe: int = 0,
        share: float = 0.1,
        cap: int = 5000,
        neighbours: int = 9,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        if not 0 < share <= 1 or cap < 1 or neighbours < 1:
            raise ConfigError(
                "feature memory: expected 0 < share <= 1, cap >= 1 and neighbours >= 1, "
                f"found {share}, {cap} and {neighbours}"
            )
        super().__init__(polarity, finish)
        self.features, self.name, self.nfe = features, name, nfe
        self.share, self.cap, self.neighbours = share, cap, neighbours
        self.device, self.seed = torch.device(device), seed

    def _learn(
        self, normals: Tensor, parts: Tensor, foreground: Tensor | None, planted: Sequence[PlantedImages]
    ) -> Learnt:
        """The memory of all normals; errors of what is planted in a fold by a memory of the others."""
        found = []
        for fold, images in zip(parts.unique().tolist(), planted, strict=False):
            others = (parts != fold).nonzero()[:, 0].tolist()
            self._fill(normals, foreground, others)
            found.append(self._errors(images.images))
        self._fill(normals, foreground, list(range(len(normals))))
        return Learnt(found)

    def _fill(self, normals: Tensor, foreground: Tensor | None, known: list[int]) -> None:
        """Candidates by chance, alike many an image; their channels on one scale; the coreset of them.

        Patches that lie more than half outside the foreground are not stored. Raises DataError where no image has a
        foreground.
        """
        places = torch.linspace(0, len(known) - 1, min(len(known), MEMORY_IMAGES)).round().long().tolist()
        rows = [known[place] for place in places]
        generator = torch.Generator().manual_seed(self.seed)
        quota = math.ceil(MEMORY_PATCHES / len(rows))
        patches, brightness = [], []
        for images, inside in _chunks(normals, foreground, rows):
            found, bright = self._patches(images)
            kept = torch.ones(found.shape[:2], dtype=torch.bool)
            if inside is not None:
                kept = _by_area(inside.float()[:, None], self._grid).flatten(1).cpu() >= 0.5
            for row in range(len(images)):
                inner = kept[row].nonzero()[:, 0]
                chosen = inner[torch.randperm(len(inner), generator=generator)[:quota]]
                patches.append(found[row, chosen.to(found.device)])
                brightness.append(bright[row, chosen.to(bright.device)])
        candidates = torch.cat(patches)
        if not len(candidates):
            raise DataError(f"{self.name}: expected normal images with a foreground, found none in {len(rows)}")
        self.centre_ = candidates.mean(dim=0)
        self.scale_ = candidates.std(dim=0, correction=0).clamp(min=1e-6)
        candidates = (candidates - self.centre_) / self.scale_
        count = min(self.cap, max(1, round(self.share * len(candidates))))
        chosen = coreset(candidates, count, self.seed)
        self.memory_ = candidates[chosen].contiguous()
        self.brightness_ = torch.cat(brightness)[chosen]
        count = min(self.neighbours, len(self.memory_))
        self.near_ = torch.cat([d.topk(count, largest=False).indices for d in _distances(self.memory_, self.memory_)])

    def _errors(self, images: Tensor) -> Tensor:
        maps = [self._distance_maps(part) for part, _ in _chunks(images, None, list(range(len(images))))]
        return torch.cat(maps)[None].to(images.device)

    @property
    def _sign(self) -> Polarity:
        """A declared sign is in the distances already."""
        return "both"

    def _distance_maps(self, images: Tensor) -> Tensor:
        """Distances (n, *S) of images (n, C, *S), 0 where a patch differs in the direction that is not declared."""
        patches, brightness = self._patches(images)
        count, _, width = patches.shape
        values, nearest = self.distances(((patches - self.centre_) / self.scale_).reshape(-1, width))
        if self.polarity != "both":
            difference = brightness.reshape(-1) - self.brightness_[nearest]
            values = values * (difference > 0 if self.polarity == "brighter" else difference < 0)
        return resize_linear(values.reshape(count, 1, *self._grid), images.shape[2:])[:, 0]

    def distances(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted distance to the nearest stored patch, and its number; (Q, K) scaled as the memory -> (Q,), (Q,).

        d* w with w = 1 - exp(d*) / sum_m exp(d_m), m over the stored patches nearest to the nearest one, itself
        included (Roth et al. 2022, equation 7).
        """
        values, numbers = [], []
        start = 0
        for squared in _distances(patches, self.memory_):
            part = patches[start : start + len(squared)]
            nearest = squared.argmin(dim=1)
            around = torch.linalg.vector_norm(self.memory_[self.near_[nearest]] - part[:, None], dim=2)
            distance = torch.linalg.vector_norm(self.memory_[nearest] - part, dim=1)
            if self.near_.shape[1] > 1:
                distance = distance * (1 - 1 / (around - distance[:, None]).exp().sum(dim=1)).clamp(min=0)
            values.append(distance)
            numbers.append(nearest)
            start += len(squared)
        return torch.cat(values), torch.cat(numbers)

    def _patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features (n, places, K) on the finest grid of the features, and mean intensities (n, places)."""
        levels = [level.to(self.device) for level in self.features(images)]
        self._grid = tuple(levels[0].shape[2:])
        joined = torch.cat([resize_linear(_with_neighbours(level), self._grid) for level in levels], dim=1)
        grey = channel_mean(images.to(self.device, torch.float32))[:, None]
        bright = _with_neighbours(_by_area(grey, self._grid))
        return joined.flatten(2).transpose(1, 2), bright.flatten(1)


def encoder_features(denoiser: InferenceDenoiser, sigma: float = ENCODER_SIGMA) -> Features:
    """The denoiser's own encoder on clean images, told the noise level ``sigma``; all resolutions but the finest.

    The finest one holds little but the pixels; with one resolution it is taken.
    """

    def features(images: Tensor) -> Sequence[Tensor]:
        levels = denoiser.features(images, sigma)
        return levels[1:] or levels

    return features


def timm_features(
    name: str = "wide_resnet50_2",
    weights: str | Path | None = None,
    *,
    pretrained: bool = False,
    levels: Sequence[int] = (2, 3),
    device: str | torch.device = "cpu",
) -> Features:
    """Features of an ImageNet network of timm (the extra `features`), by default those of the paper.

    ``weights``: a local file (.safetensors, or a state dict by torch.save, read without running code from it).
    ``pretrained``: let timm fetch its own weights. Grey images are shown as three equal channels.

    Raises:
        ConfigError: timm is not installed, no weights are named, or they do not fit the network.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"features of {name!r} need timm, found none; pip install 'anodiff[features]'") from None
    if weights is None and not pretrained:
        raise ConfigError(f"features of {name!r} need weights: expected a file or pretrained=True, found neither")
    overlay = None if weights is None else {"state_dict": _read_weights(Path(weights))}
    try:
        network = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=tuple(levels)
        )
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{weights or name}: expected weights of the network {name!r}, found others ({detail})"
        ) from None
    network = network.to(device).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1).to(device) for key in ("mean", "std"))

    @torch.inference_mode()
    def features(images: Tensor) -> Sequence[Tensor]:
        colour = images if images.shape[1] == 3 else images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        found: Sequence[Tensor] = network(((colour.to(device, torch.float32) + 1) / 2 - mean) / std)
        return [level.float() for level in found]

    return features


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict by name; ConfigError for a file that is none."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        detail = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: expected a readable file of network weights, found none ({detail})") from None
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{path}: expected a state dict of tensors, found something else")
    return weights


def coreset(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """Numbers of ``count`` of the points (n, K) that lie near all others: greedy k-centre (Sener & Savarese 2018).

    From a first point by chance, always the one furthest from those taken, in a Gaussian random projection to
    PROJECTION dimensions (Johnson and Lindenstrauss 1984) where there are more.
    """
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(points), (1,), generator=generator))
    if points.shape[1] > PROJECTION:
        projection = torch.randn(points.shape[1], PROJECTION, generator=generator) / PROJECTION**0.5
        points = points @ projection.to(points.device)
    squares = (points * points).sum(dim=1)
    gap = torch.full_like(squares, torch.inf)
    chosen = torch.empty(min(count, len(points)), dtype=torch.long, device=points.device)
    latest = torch.tensor(first, device=points.device)
    for k in range(len(chosen)):
        chosen[k] = latest
        gap = torch.minimum(gap, squares + squares[latest] - 2 * (points @ points[latest]))
        gap[latest] = -torch.inf
        latest = gap.argmax()
    return chosen


def _distances(queries: Tensor, memory: Tensor) -> Iterator[Tensor]:
    """Squared distances (q, M) of a few queries at a time, up to rounding."""
    squares = (memory * memory).sum(dim=1)
    step = max(1, VALUES_AT_ONCE // max(len(memory), memory.shape[1] * 16))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        yield (part * part).sum(dim=1, keepdim=True) + squares - 2 * (part @ memory.T)


def _with_neighbours(x: Tensor) -> Tensor:
    """The mean over 3 x 3 (x 3) neighbours that exist; (N, K, *s) -> (N, K, *s)."""
    pool: Any = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    averaged: Tensor = pool(x, 3, stride=1, padding=1, count_include_pad=False)
    return averaged


def _by_area(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, K, *S) -> (N, K, *size), each place the mean of the area that it covers."""
    pool: Any = F.adaptive_avg_pool2d if x.ndim == 4 else F.adaptive_avg_pool3d
    averaged: Tensor = pool(x, tuple(size))
    return averaged


def _chunks(images: Tensor, foreground: Tensor | None, rows: list[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The images of the given rows, a few at a time."""
    for start in range(0, len(rows), IMAGES_AT_ONCE):
        part = rows[start : start + IMAGES_AT_ONCE]
        yield images[part], None if foreground is None else foreground[part]
