"""From configuration to objects, with a closed list of what may be built."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from matattn.errors import ConfigError

# What each section of a configuration may build.
ALLOWED = {
    "model": ("matattn.models.",),
    "data": ("matattn.datasets.",),
    "optimizer": ("matattn.training.",),
    "trainer": ("lightning.",),
    "logger": ("lightning.",),
}


def check_targets(config: Any, place: str = "") -> None:
    """Raise ConfigError if a ``_target_`` in a (nested) plain config is not on the allow-list."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        allowed = ALLOWED.get(place.split(".")[0].split("[")[0], ())
        if target is not None and not str(target).startswith(allowed):
            raise ConfigError(
                f"{place or 'config'}._target_: {target!r} is not allowed; it must begin with "
                f"{' or '.join(allowed) or 'nothing: no target is allowed here'}"
            )
        for key, value in config.items():
            check_targets(value, f"{place}.{key}" if place else str(key))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            check_targets(value, f"{place}[{index}]")


def require(
    key: str, value: Any, kind: type | tuple[type, ...], valid: Callable[[Any], bool], wanted: str
) -> None:
    """Raise ConfigError naming ``key`` unless ``value`` is of its kind and valid."""
    if not isinstance(value, kind) or isinstance(value, bool) or not valid(value):
        raise ConfigError(f"{key}={value!r}: expected {wanted}")


def build(config: Mapping[str, Any], place: str, **arguments: Any) -> Any:
    """The object that ``config`` (with a ``_target_``) describes; ``place`` is its name in errors.

    Raises ConfigError when the target is not allowed or refuses its arguments.
    """
    import hydra
    from hydra.errors import InstantiationException

    check_targets(config, place)
    try:
        return hydra.utils.instantiate(dict(config), **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if type(cause).__module__ == "matattn.errors":
            raise cause from None
        mistakes = (TypeError, ValueError, ArithmeticError, InstantiationException)
        if isinstance(cause, mistakes) or type(cause).__module__.startswith("lightning"):
            reason = " ".join(str(cause).split())
            raise ConfigError(f"{place}: {reason}") from error
        raise cause from None


def import_extra(module: str) -> ModuleType:
    """A module of matattn that needs more than the core packages.

    Raises ConfigError naming the package that is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("matattn"):
            raise
        raise ConfigError(
            f"{module.rsplit('.', 1)[-1]} needs the package {error.name}: install matattn with its "
            "extras, pip install 'matattn[all]'"
        ) from error


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a resolved configuration."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
