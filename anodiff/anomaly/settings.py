"""The slots of a detector: noise -> reconstruct -> compare -> standardise -> fuse -> smooth -> score.

A published method is a choice of slots; see :mod:`anodiff.anomaly.presets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anodiff.anomaly.fusion import Fusion
from anodiff.anomaly.reduce import Reduction
from anodiff.anomaly.residuals import Polarity, Residual
from anodiff.anomaly.standardise import Standardise
from anodiff.diffusion import nfe

Sigma = Annotated[float, Field(gt=0, lt=1e4, allow_inf_nan=False)]
Pixels = Annotated[float, Field(ge=0, le=1e4)]
Count = Annotated[int, Field(ge=1, le=65_536)]


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
        variance: of an ancestral chain.
    Comparison
        residual, polarity: see :func:`anodiff.anomaly.residuals.residual`; polarity is declared, never learnt.
    Standardisation
        standardise: granularity of the normal error that is subtracted and divided by; "auto" lets held-out normals
            choose.
        map_px: smoothing width of its map; None lets held-out normals choose.
        scale_floor: quiet places are not trusted: this share of the level's overall scale is added to the local one
            (in quadrature), so that 0 is a pure local z-score and large values approach one scale for all.
    Map and score
        fusion of the levels, smooth_px: standard deviation of the final smoothing (px on the model grid).
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
    variance: Literal["small", "large"] = "small"
    residual: Residual = "signed"
    polarity: Polarity = "both"
    standardise: Standardise = "auto"
    map_px: Pixels | None = None
    scale_floor: Annotated[float, Field(ge=0, le=100)] = 0.35
    fusion: Fusion = "mean"
    smooth_px: Pixels = 0.0
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
        if self.residual in ("ssim", "features") and self.polarity != "both":
            raise ValueError(
                f"residual {self.residual!r} has no sign: expected polarity 'both', found {self.polarity!r}"
            )
        return self

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
        features = 1 + len(self.levels) if self.residual == "features" else 0
        return len(self.levels) * self.draws * boxes * calls + features

    def box_edges(self, size: Sequence[int]) -> list[int]:
        """Sides of a box in an image of spatial ``size``, px."""
        return [min(side, self.box) if self.box is not None else math.ceil(side / 2) for side in size]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept with a calibration: equal for equal settings."""
        return self.model_dump(mode="json")
