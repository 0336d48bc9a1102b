"""Errors that a user can act on: each message says what is wrong, where, and what to do.

docs/errors.md has a section for each.
"""

from __future__ import annotations


class MatattnError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""


class StructureError(MatattnError):
    """A crystal structure cannot be read or is not physical."""


class PredictionError(MatattnError):
    """A network has no value for a structure."""


class DataError(MatattnError):
    """A data file, a target column or a split cannot be used."""


class ConfigError(MatattnError):
    """The configuration is inconsistent."""


class BundleError(MatattnError):
    """A saved model is missing, damaged or not one of matattn's."""


class TrainingError(MatattnError):
    """Training cannot go on, for example because the loss is not finite."""


class WriteError(MatattnError, OSError):
    """A file cannot be written, for example because the disk is full."""


class ExplanationError(MatattnError):
    """A prediction cannot be explained by attention."""
