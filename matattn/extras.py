"""Modules of matattn that need more than the core packages."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from matattn.errors import ConfigError


def import_extra(module: str) -> ModuleType:
    """Return a module of matattn that needs more than the core packages.

    Raises ConfigError naming the package that is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("matattn"):
            raise  # there is no such module
        raise ConfigError(
            f"{module.rsplit('.', 1)[-1]} needs the package {error.name}: install matattn with its "
            "extras, pip install 'matattn[all]'"
        ) from error


def attribute(name: str) -> Any:
    """Return what a full name of matattn stands for: "matattn.meshes.network.MeshNetwork"."""
    module, _, last = name.rpartition(".")
    return getattr(import_extra(module), last)
