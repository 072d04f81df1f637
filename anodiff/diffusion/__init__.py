"""The mathematics of diffusion: schedules, noise, denoisers, samplers and objectives. Knows tensors only."""

from __future__ import annotations

from anodiff.diffusion.adapters import wrap_diffusers, wrap_monai
from anodiff.diffusion.denoiser import Denoiser
from anodiff.diffusion.guidance import NO_LABEL, classifier_free
from anodiff.diffusion.noise import FAMILIES, image_keys, sample_noise
from anodiff.diffusion.objective import (
    Fixed,
    LogNormal,
    LogUniform,
    SigmaDistribution,
    UniformStep,
    denoising_loss,
    draw_sigma,
    loss_weight,
    sigma_distribution,
    stratified_uniform,
    within_foreground,
)
from anodiff.diffusion.samplers import (
    SAMPLERS,
    NoiseSource,
    StepState,
    invert,
    nfe,
    sample_ancestral,
    sample_ddim,
    sample_dpmpp_2m,
    sample_heun,
)
from anodiff.diffusion.schedule import (
    SCHEDULES,
    NoiseSchedule,
    from_betas,
    karras_grid,
    log_grid,
    make_schedule,
    step_grid,
)

__all__ = [
    "FAMILIES",
    "NO_LABEL",
    "SAMPLERS",
    "SCHEDULES",
    "Denoiser",
    "Fixed",
    "LogNormal",
    "LogUniform",
    "NoiseSchedule",
    "NoiseSource",
    "SigmaDistribution",
    "StepState",
    "UniformStep",
    "classifier_free",
    "denoising_loss",
    "draw_sigma",
    "from_betas",
    "image_keys",
    "invert",
    "karras_grid",
    "log_grid",
    "loss_weight",
    "make_schedule",
    "nfe",
    "sample_ancestral",
    "sample_ddim",
    "sample_dpmpp_2m",
    "sample_heun",
    "sample_noise",
    "sigma_distribution",
    "step_grid",
    "stratified_uniform",
    "within_foreground",
    "wrap_diffusers",
    "wrap_monai",
]
