"""The recipe of a model: what one YAML file of configs/ says, validated.

Unknown keys are refused with the nearest right one; YAML never names a Python object. Every value that changes a score
travels inside the model file, so that a model is scored as it was trained.
"""

from anodiff.config.domains import VideoConfig, VolumeConfig
from anodiff.config.reading import (
    apply_overrides,
    find_config,
    known_keys,
    load_config,
    nearest_key,
    parse_config,
    shipped_configs,
    unknown_key,
)
from anodiff.config.recipe import AnodiffConfig
from anodiff.config.sections import (
    AugmentConfig,
    CalibrationConfig,
    ConditioningConfig,
    DiffusionConfig,
    EngineConfig,
    IntensityConfig,
    NetworkConfig,
    PreprocessConfig,
    SigmaConfig,
    TrainingConfig,
)

__all__ = [
    "AnodiffConfig",
    "AugmentConfig",
    "CalibrationConfig",
    "ConditioningConfig",
    "DiffusionConfig",
    "EngineConfig",
    "IntensityConfig",
    "NetworkConfig",
    "PreprocessConfig",
    "SigmaConfig",
    "TrainingConfig",
    "VideoConfig",
    "VolumeConfig",
    "apply_overrides",
    "find_config",
    "known_keys",
    "load_config",
    "nearest_key",
    "parse_config",
    "shipped_configs",
    "unknown_key",
]
