"""Errors meant for the user: each message is one sentence that names the file, what was expected and what was found."""

from __future__ import annotations


class AnodiffError(Exception):
    """Base of every error that anodiff raises on purpose; the command line prints it as one line and exits with 2."""


class InputError(AnodiffError):
    """One input cannot be used: it becomes a failed row and the batch goes on."""


class DataError(AnodiffError):
    """A data set as a whole cannot be used (empty folder, no normal image, masks that do not fit)."""


class ConfigError(AnodiffError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelFileError(AnodiffError):
    """A model file is missing, truncated, pickled, of another format version or does not fit the request."""


class StorageError(AnodiffError):
    """Results cannot be written: no space, no permission, or an output folder of another run."""


class TrainingError(AnodiffError):
    """Training cannot go on (a non-finite loss, a checkpoint of another run)."""
