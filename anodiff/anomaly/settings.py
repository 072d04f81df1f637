"""The slots of a detector: noise -> reconstruct -> compare -> standardise -> fuse -> smooth -> score.

A published method is a choice of slots; see :mod:`anodiff.anomaly.presets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from anodiff.anomaly.fusion import Fusion
from anodiff.anomaly.reduce import Reduction
from anodiff.anomaly.residuals import Polarity, Residual
from anodiff.anomaly.standardise import Standardise
from anodiff.diffusion import nfe

Sigma = Annotated[float, Field(gt=0, lt=1e4, allow_inf_nan=False)]
Pixels = Annotated[float, Field(ge=0, le=1e4)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=65_536)]


Side = Annotated[int, Field(ge=1, le=101)]


class Refinement(BaseModel):
    """What a chain does with its own intermediate result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("side", check_fields=False)
    @classmethod
    def _odd(cls, side: int) -> int:
        if side % 2 == 0:
            raise ValueError(f"a box around a pixel has an odd side, found {side}")
        return side


class Harmonise(Refinement):
    """THOR (methods 5.6): at the levels ``at`` the chain is given back what it should not have changed.

    Each estimate at these levels and at ``looks`` gives one error map, and so does the end of the chain.

    side: of the box that closes and dilates the mask, px on the model grid.
    """

    kind: Literal["harmonise"] = "harmonise"
    at: Annotated[tuple[Sigma, ...], Field(min_length=1, max_length=64)]
    looks: Annotated[tuple[Sigma, ...], Field(max_length=64)] = ()
    side: Side = 13

    @property
    def levels(self) -> tuple[float, ...]:
        """All levels whose estimates are kept, from the highest."""
        return tuple(sorted({*self.at, *self.looks}, reverse=True))


class Stitch(Refinement):
    """AutoDDPM (methods 5.5): the loudest ``share`` of the image is filled in anew, in the rest of it.

    level: where the second chain starts, of ``steps`` steps, each done ``repeats`` times.
    side: of the box that dilates the mask, px on the model grid.
    """

    kind: Literal["stitch"] = "stitch"
    level: Sigma
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    repeats: Annotated[int, Field(ge=1, le=10)] = 5
    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    side: Side = 3


class DetectorSettings(BaseModel):
    """All that decides a score besides the model and the pixels.

    Noise
        noise, noise_scale: the family and its scale; "model" is what the model was trained with; "none" shows the clean
            image, still told the level (denoising auto-encoders, Kascenas et al. 2022).
        levels: start levels sigma, in units of the [-1, 1] data; each gives one error map.
        pairs: independent draws a level, averaged as images before they are compared.
        antithetic: each draw n is used as +n and -n, so that errors of first order in the noise cancel; doubles the
            cost.
        where: "all" pixels, or "boxes": in turn only inside each box of a tiling, the rest left clean (pDDPM,
            methods 5.2).
        box: side of a box in px on the model grid; None halves each side (4 boxes in 2-D, 8 in 3-D).
    Reconstruction
        sampler: "one-step" (one call, the denoiser's mean) or a chain of ``steps`` steps from each level down to 0.
        grid: spacing of a chain's levels; "step" takes steps of the DDPM table of the model (vp-linear where it has
            none).
        trajectory: "each" level has its chain; "shared": one deterministic chain from the highest level, "inverted":
            one inversion from the clean image up to it, on which each level's estimate is read, see
            :mod:`anodiff.anomaly.trajectory`; ``steps`` are then those of all levels together.
        variance: of an ancestral chain.
        guidance: weight by which a chain is pulled towards the image (DDAD, methods 5.7); 0 = not at all.
        refine: what a chain does with its own intermediate result, :class:`Harmonise` or :class:`Stitch`; needs one
            level and one draw.
    Comparison
        residual, polarity: see :func:`anodiff.anomaly.residuals.residual`; polarity is declared, never learnt.
            "features+absolute": two maps, the distance of features and |x - r| (DDAD); "features-relative": their
            product by its largest value (THOR); "features-stitched": |x - r| of the second chain times the soft mask
            of the first (AutoDDPM).
    Standardisation
        standardise: granularity of the normal error that is subtracted and divided by; "auto" lets held-out normals
            choose.
        map_px: smoothing width of its map; None lets held-out normals choose.
        scale_floor: quiet places are not trusted: this share of the level's overall scale is added to the local one
            (in quadrature), so that 0 is a pure local z-score and large values approach one scale for all.
    Map and score
        fusion of the levels ("images": their reconstructions are averaged before they are compared), smooth_px:
            standard deviation of the final smoothing (px on the model grid).
        limits: the fused map is kept within them before it is smoothed, so that a bright speck does not become a blob
            and a dark rim does not take from the lesion beside it; in standard deviations of normal error. The upper
            one may be None: [0, None] counts excess alone.
        reduction, topk: of the map to a score; ``topk`` is a share of the foreground.
        foreground: use the foreground mask where one is given (statistics, smoothing, score, pixel thresholds).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: Literal["model", "gaussian", "simplex", "pyramid", "coarse", "none"] = "model"
    noise_scale: Literal["model", "unit", "published"] = "model"
    levels: Annotated[tuple[Sigma, ...], Field(min_length=1, max_length=64)] = (1.0,)
    pairs: Count = 1
    antithetic: bool = False
    where: Literal["all", "boxes"] = "all"
    box: Annotated[int, Field(ge=2)] | None = None
    sampler: Literal["one-step", "ancestral", "ddim", "dpmpp", "heun"] = "one-step"
    steps: Count = 1
    grid: Literal["karras", "log", "step"] = "karras"
    trajectory: Literal["each", "shared", "inverted"] = "each"
    variance: Literal["small", "large"] = "small"
    guidance: Annotated[float, Field(ge=0, le=100)] = 0.0
    refine: Annotated[Harmonise | Stitch, Field(discriminator="kind")] | None = None
    residual: Residual = "signed"
    polarity: Polarity = "both"
    standardise: Standardise = "auto"
    map_px: Pixels | None = None
    scale_floor: Annotated[float, Field(ge=0, le=100)] = 0.35
    fusion: Fusion = "mean"
    smooth_px: Pixels = 0.0
    limits: tuple[Finite, Finite | None] | None = None
    reduction: Reduction = "topk"
    topk: Annotated[float, Field(gt=0, le=1)] = 0.005
    foreground: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> DetectorSettings:
        if self.sampler == "one-step" and self.steps != 1:
            raise ValueError(f"sampler 'one-step' takes 1 step, found steps = {self.steps}; name a sampler for a chain")
        if self.variance == "large" and self.sampler != "ancestral":
            raise ValueError(f"variance 'large' belongs to the sampler 'ancestral', found sampler {self.sampler!r}")
        if self.box is not None and self.where != "boxes":
            raise ValueError(f"box belongs to where = 'boxes', found where = {self.where!r}")
        if self.noise == "none":
            self._without_noise()
        if self.limits is not None and self.limits[1] is not None and self.limits[0] >= self.limits[1]:
            raise ValueError(f"limits are [low, high] with low below high, found {list(self.limits)}")
        if self.guidance and self.sampler == "one-step":
            raise ValueError("guidance pulls a chain: expected a sampler for one, found 'one-step'")
        if self.refine is not None:
            self._refined(self.refine)
        if self.trajectory != "each":
            self._one_trajectory()
        stitched = isinstance(self.refine, Stitch)
        if stitched != (self.residual == "features-stitched"):
            raise ValueError(
                "residual 'features-stitched' and refine of kind 'stitch' belong together, "
                f"found residual {self.residual!r} and {'that' if stitched else 'no such'} refine"
            )
        if self.residual in ("ssim", "features") and self.polarity != "both":
            raise ValueError(
                f"residual {self.residual!r} has no sign: expected polarity 'both', found {self.polarity!r}"
            )
        return self

    def _refined(self, refine: Harmonise | Stitch) -> None:
        """One chain from one level, whose own levels lie below its start."""
        if self.sampler == "one-step" or self.noise == "none" or self.where != "all":
            raise ValueError(
                "refine belongs to a chain of noise on all pixels, found "
                f"sampler {self.sampler!r}, noise {self.noise!r} and where {self.where!r}"
            )
        if len(self.levels) != 1 or self.draws != 1:
            raise ValueError(
                f"refine follows one chain: expected 1 level and 1 draw, found {len(self.levels)} and {self.draws}"
            )
        if self.fusion == "images":
            raise ValueError("fusion 'images' joins the levels of a preset: expected no refine, found one")
        highest = refine.level if isinstance(refine, Stitch) else max(refine.levels)
        if highest > self.levels[0]:
            raise ValueError(f"refine starts at most at the level {self.levels[0]:g}, found {highest:g}")

    def _without_noise(self) -> None:
        """Nothing that only tells one draw of noise from another."""
        if self.pairs != 1 or self.antithetic:
            raise ValueError(
                "without noise all draws are the same: expected pairs = 1 and antithetic = False, "
                f"found {self.pairs} and {self.antithetic}"
            )
        if self.where == "boxes" or self.sampler == "ancestral":
            raise ValueError(
                "noise 'none' has nothing to place or to draw: expected where = 'all' and no 'ancestral' sampler, "
                f"found {self.where!r} and {self.sampler!r}"
            )

    def _one_trajectory(self) -> None:
        """A deterministic chain of all pixels with a step for each of several levels."""
        name, inverted = f"trajectory {self.trajectory!r}", self.trajectory == "inverted"
        samplers = ("ddim", "heun") if inverted else ("ddim", "dpmpp", "heun")
        if self.sampler not in samplers:
            raise ValueError(
                f"{name} is deterministic: expected sampler {' or '.join(samplers)}, found {self.sampler!r}"
            )
        if self.where != "all" or self.refine is not None or self.grid == "step":
            raise ValueError(
                f"{name} runs over all pixels and through the levels themselves: expected where = 'all', no refine and "
                f"grid 'karras' or 'log', found {self.where!r}, {'one' if self.refine else 'none'} and {self.grid!r}"
            )
        if len(set(self.levels)) != len(self.levels) or len(self.levels) < 2:
            raise ValueError(f"{name} serves several levels: expected 2 or more, all different, found {self.levels}")
        fewest = len(self.levels) + inverted
        if self.steps < fewest:
            start = " and one for its start" if inverted else ""
            raise ValueError(f"{name} has a step for each level{start}: expected steps >= {fewest}, found {self.steps}")
        if inverted and (self.noise != "none" or self.guidance):
            raise ValueError(
                f"{name} starts at the clean image: expected noise 'none' and no guidance, found {self.noise!r} and "
                f"{self.guidance:g}"
            )

    @property
    def draws(self) -> int:
        """Reconstructions that are averaged at each level."""
        return self.pairs * (2 if self.antithetic else 1)

    @property
    def nfe(self) -> int:
        """Denoiser calls an image; with ``box``, whose number depends on the image size, those of four boxes."""
        return self.nfe_for(None)

    def nfe_for(self, size: Sequence[int] | None) -> int:
        """Denoiser calls for one image of spatial ``size``; None stands for a 2-D image in the default tiling."""
        if self.where == "all":
            boxes = 1
        elif size is None:
            boxes = 4
        else:
            boxes = math.prod(math.ceil(side / edge) for side, edge in zip(size, self.box_edges(size), strict=True))
        calls = 1 if self.sampler == "one-step" else nfe(self.sampler, self.steps)
        features = 1 + (1 if isinstance(self.refine, Stitch) else self.reconstructions)
        looks = features if self.residual.startswith("features") else 0
        chains = len(self.levels) if self.trajectory == "each" else 1
        return chains * self.draws * boxes * calls + looks + self._refinement_calls

    @property
    def _refinement_calls(self) -> int:
        """Calls of the refinement, those of the encoder that make its masks among them."""
        if isinstance(self.refine, Stitch):
            return self.refine.steps * self.refine.repeats + 2
        return 1 + len(self.refine.at) if isinstance(self.refine, Harmonise) else 0

    @property
    def reconstructions(self) -> int:
        """Reconstructions of an image that are compared with it."""
        if isinstance(self.refine, Harmonise):
            return len(self.refine.levels) + 1
        if isinstance(self.refine, Stitch):
            return 2
        return 1 if self.fusion == "images" else len(self.levels)

    @property
    def error_maps(self) -> int:
        """Error maps of an image, before they are fused."""
        if self.residual == "features-stitched":
            return 1
        return self.reconstructions * (2 if self.residual == "features+absolute" else 1)

    def box_edges(self, size: Sequence[int]) -> list[int]:
        """Sides of a box in an image of spatial ``size``, px."""
        return [min(side, self.box) if self.box is not None else math.ceil(side / 2) for side in size]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept with a calibration: equal for equal settings."""
        return self.model_dump(mode="json")
