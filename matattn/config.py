"""From configuration to objects, with a closed list of what may be built."""

from __future__ import annotations

import hashlib
import importlib
import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from matattn.errors import ConfigError
from matattn.runtime import memory

# What each section of a configuration may build: how the name begins, and where it is defined.
ALLOWED = {
    "model": ("matattn.models.",),
    "data": ("matattn.datasets.",),
    "optimizer": ("matattn.training.",),
    "trainer": (
        "lightning.Trainer", "lightning.pytorch.trainer.", "lightning.pytorch.callbacks.",
        "lightning.pytorch.strategies.",
    ),
    "logger": ("lightning.pytorch.loggers.",),
}  # fmt: skip


# What does not change a run's result does not change its folder either.
_NO_MATTER = ("paths", "overwrite", "logger", "data.download")
MOST_TENSORS = 5_000  # parameters of a network: of hundreds of blocks
TRAINED = 4  # times the memory of its weights: with gradients and AdamW's two moments


def check_targets(config: Any, place: str = "") -> None:
    """Raise ConfigError if a ``_target_`` in a (nested) plain config is not on the allow-list, or
    for a text in which Hydra would find one later."""
    if isinstance(config, str) and "${" in config:
        raise ConfigError(f"{place}={config!r}: ${{ is not allowed here")
    if isinstance(config, Mapping):
        target = config.get("_target_")
        allowed = ALLOWED.get(place.split(".")[0].split("[")[0], ())
        if target is not None and not _is_allowed(str(target), allowed):
            raise ConfigError(
                f"{place or 'config'}._target_: {target!r} is not allowed; it must begin with "
                f"{' or '.join(allowed) or 'nothing: no target is allowed here'}"
            )
        for key, value in config.items():
            check_targets(value, f"{place}.{key}" if place else str(key))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            check_targets(value, f"{place}[{index}]")


def _is_allowed(target: str, allowed: tuple[str, ...]) -> bool:
    """By its name, and by where it is defined: Hydra also follows what a module imports."""
    import hydra
    from hydra.errors import HydraException

    if not target.startswith(allowed):
        return False
    try:
        found = hydra.utils.get_object(target)
    except (HydraException, ImportError, ValueError):
        return True  # what cannot be found is said when it is built
    return f"{getattr(found, '__module__', '')}.".startswith(allowed)


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

    if not isinstance(config, Mapping) or not isinstance(config.get("_target_"), str):
        raise ConfigError(f"{place}={config!r}: expected a section with _target_ and its arguments")
    check_targets(config, place)
    _check_arguments(config, place)
    try:
        with _bounded_network():
            return hydra.utils.instantiate(dict(config), **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if type(cause).__module__ == "matattn.errors":
            raise cause from None
        mistakes: tuple[type[Exception], ...]
        mistakes = (TypeError, ValueError, ArithmeticError, InstantiationException)
        if place == "model":  # sizes that no tensor can have, or no memory
            mistakes = (*mistakes, RuntimeError, MemoryError)
        if isinstance(cause, mistakes) or type(cause).__module__.startswith("lightning"):
            reason = " ".join(str(cause).split()) or type(cause).__name__
            if "allocate" in reason:  # PyTorch says where in its sources, and hydra in whose call
                reason = "the network does not fit into memory; choose smaller sizes"
            raise ConfigError(f"{place}: {reason}") from error
        raise cause from None


def _check_arguments(config: Mapping[str, Any], place: str) -> None:
    """Raise ConfigError for an argument of another kind than a function of ours says."""
    import hydra
    from hydra.errors import HydraException

    name = config["_target_"]
    if not name.startswith("matattn."):
        return
    try:
        target = hydra.utils.get_object(name)
        made = cast(Any, target).__init__ if isinstance(target, type) else target
        hints = get_type_hints(made)
    except (HydraException, ImportError, NameError, TypeError, ValueError):
        return  # what cannot be found is said when it is built
    for key, value in config.items():
        if key in hints and not _fits(value, hints[key]):
            kind = hints[key]
            wanted = str(kind if get_args(kind) else kind.__name__).replace("collections.abc.", "")
            raise ConfigError(f"{place}.{key}={value!r}: expected {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the kind that a signature says; true where it says other kinds
    than those of a configuration."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if hint is float or hint is int:
        number = (int, float) if hint is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if origin is Sequence:  # one name may stand for a list of names
        listed = [value] if isinstance(value, str) else value
        return isinstance(listed, list | tuple) and all(_fits(item, inner[0]) for item in listed)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
    return True


@contextmanager
def _bounded_network() -> Iterator[None]:
    """Refuse parameters that this machine cannot train, before there is anything in them."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    most, used, count = memory() / TRAINED, 0, 0

    def check(module: Any, name: str, parameter: Any) -> None:
        nonlocal used, count
        if parameter is not None and not hasattr(parameter, "materialize"):  # sizes yet unknown
            used, count = used + parameter.nbytes, count + 1
        if used > most or count > MOST_TENSORS:
            raise ConfigError(
                f"model: the network has more than {used / 4e6:.0f} million parameters in {count} "
                f"tensors; this machine can train {most / 4e6:.0f} million in {MOST_TENSORS}"
            )

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


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


def what_matters(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """``config`` without the keys of ``_NO_MATTER``."""
    kept = {key: value for key, value in config.items() if place + key not in _NO_MATTER}
    if "data" in kept and not place:
        kept["data"] = what_matters(kept["data"], "data.")
    return kept


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a resolved configuration."""
    text = json.dumps(config, sort_keys=True, default=str)
    # These loaders moved; the folders of earlier runs keep their names.
    text = text.replace("matattn.datasets.pde.", "matattn.datasets.pde_")
    return hashlib.sha256(text.encode()).hexdigest()[:8]
