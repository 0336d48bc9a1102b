"""From configuration to typed settings and objects, with a closed list of what may be built."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Generic,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from matattn import plugins
from matattn.errors import ConfigError
from matattn.extras import import_extra
from matattn.kinds import KINDS
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
_AS_BEFORE = {  # what keys that came later say of all runs from before, which keep their folders
    "task.loss": "l1",
    "task.physics": True,
    "data.inner": False,
    "model.moments": "none",
    "model.moment_channels": 2,
    "task.kinds": 0,
    "task.kind_epochs": None,
    "model.moment_degree": 3,
    "model.activation": "relu",
}
MOST_TENSORS = 5_000  # parameters of a network: of hundreds of blocks
TRAINED = 4  # times the memory of its weights: with gradients and AdamW's two moments


def setting(default: Any, expected: str, valid: Callable[[Any], bool]) -> Any:
    """Declare a value of a ``Section`` with its default, what is expected, and the check of it."""
    metadata = {"check": (expected, valid)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def at_least(default: Any, least: float) -> Any:
    """Declare a number that is at least ``least``; ``default`` is its default."""
    expected = "0 or more" if least == 0 else f"at least {least}"
    return setting(default, expected, lambda x: x >= least)


def one_of(default: str, names: Sequence[str]) -> Any:
    """Declare one of several names."""
    return setting(default, f"one of {', '.join(names)}", lambda name: name in names)


@dataclass(frozen=True)
class Section:
    """A section of the configuration: typed and checked when it is made, then frozen.

    Subclasses are frozen dataclasses whose fields are declared by ``setting`` and its like; their
    ``key`` is the name of the section. Raises ConfigError naming the key and what was expected.
    """

    key: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every value against its annotation and its own check."""
        hints = get_type_hints(type(self))
        for item in fields(self):
            value, hint = getattr(self, item.name), hints[item.name]
            expected, valid = item.metadata.get("check", (_described(hint), lambda _: True))
            infinite = isinstance(value, float) and not math.isfinite(value)
            if infinite or not _fits(value, hint) or not valid(value):
                raise ConfigError(f"{self.key}.{item.name}={value!r}: expected {expected}")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Make the section from plain values, which must be complete; raises ConfigError."""
        names = [item.name for item in fields(cls)]
        if unknown := [key for key in values if key not in names]:
            raise ConfigError(
                f"{cls.key}.{unknown[0]}: there is no such key in this section; it has "
                f"{', '.join(names)}"
            )
        if missing := [name for name in names if name not in values]:
            raise ConfigError(f"{cls.key}.{missing[0]}: cannot be left out")
        return cls(**values)


@dataclass(frozen=True)
class Target:
    """Something to be built: the full name of a class or function, and its arguments."""

    target: str
    arguments: Mapping[str, Any]

    @classmethod
    def read(cls, values: Any, key: str) -> Self:
        """Make it from a plain section with ``_target_``; raises ConfigError naming ``key``."""
        if not isinstance(values, Mapping) or not isinstance(values.get("_target_"), str):
            raise ConfigError(
                f"{key}={values!r}: expected a section with _target_ and its arguments"
            )
        arguments = {name: value for name, value in values.items() if name != "_target_"}
        return cls(values["_target_"], arguments)

    @property
    def name(self) -> str:
        """Return the name of the class or function itself."""
        return self.target.rsplit(".", 1)[-1]

    def plain(self) -> dict[str, Any]:
        """Return the section that it was read from."""
        return {"_target_": self.target, **self.arguments} | {"_target_": self.target}


@dataclass(frozen=True)
class Source(Section):
    """What the configuration says of its data beside how to load them.

    Args:
        name: of the data, in reports and folders.
        kind: one of ``matattn.kinds.KINDS``.
        structures: "crystals" or "molecules", where these are the kind.
        licence: of the data, and so of models that are trained on them; "" where it is not known.
        citations: keys of ``matattn/references.bib``, or BibTeX entries.
    """

    key: ClassVar[str] = "data"

    name: str
    kind: str = one_of("", tuple(KINDS))
    structures: str = one_of("crystals", ("crystals", "molecules"))
    licence: str = ""
    citations: list[str] = setting([], "a list of texts", lambda _: True)


_DESCRIBES = ("structures", "licence", "citations")


def read_data(data: Mapping[str, Any]) -> tuple[Source, Target]:
    """Return what the section ``data`` says of its data, and how to load them."""
    arguments = dict(data)
    if str(arguments.get("path")).startswith("~/"):
        arguments["path"] = str(Path(arguments["path"]).expanduser())
    described = {key: arguments.pop(key) for key in _DESCRIBES if key in data}
    source = Source(str(data.get("name", "")), arguments.pop("kind", None), **described)
    return source, Target.read(arguments, "data")


@dataclass(frozen=True)
class Paths(Section):
    """Where runs and data are."""

    key: ClassVar[str] = "paths"

    output_root: str = "outputs"
    output_dir: str | None = None
    data: str = "data"


@dataclass(frozen=True)
class Origin:
    """The model that a training starts from: name or folder, and the sum of its checksums."""

    path: str
    sha256: str


T = TypeVar("T", bound=Section)
O = TypeVar("O", bound=Section)  # noqa: E741


@dataclass(frozen=True)
class RunConfig(Generic[T, O]):
    """One run, as its configuration says; what the data decide is never written into it."""

    model_name: str
    model: Target
    source: Source
    data: Target
    task: T
    optimizer: O
    trainer: Target
    loggers: Mapping[str, Target]
    paths: Paths
    init_from: Origin | None
    seed: int
    overwrite: bool

    @property
    def epochs(self) -> int:
        """Return the number of epochs."""
        return self.trainer.arguments["max_epochs"]

    @property
    def accelerator(self) -> str:
        """Return the kind of device that Lightning is asked for."""
        return str(self.trainer.arguments.get("accelerator", "auto"))

    @property
    def processes(self) -> int:
        """Return the number of processes that share the training, on all nodes."""
        return self.trainer.arguments["devices"] * self.nodes

    @property
    def nodes(self) -> int:
        """Return the number of nodes of the training."""
        return self.trainer.arguments.get("num_nodes", 1)

    def record(self) -> dict[str, Any]:
        """Return the configuration as it is written into the run folder."""
        return {
            "model": self.model.plain(),
            "data": self.data.plain(),
            "task": _plain(self.task),
            "optimizer": _plain(self.optimizer),
            "trainer": self.trainer.plain(),
            "paths": _plain(self.paths),
            "logger": {name: logger.plain() for name, logger in self.loggers.items()},
            "init_from": asdict(self.init_from) if self.init_from else None,
            "seed": self.seed,
            "overwrite": self.overwrite,
        }

    def folder(self) -> Path:
        """Return where the run lives.

        That is <root>/<model>-<data>/seed<seed>-<hash of what matters>, or ``paths.output_dir``.
        """
        if self.paths.output_dir:
            return Path(self.paths.output_dir)
        hashed = what_matters(self.record())
        del hashed["seed"]
        name = f"seed{self.seed}-{config_hash(hashed)}"
        return Path(self.paths.output_root) / f"{self.model_name}-{self.source.name}" / name


def _plain(section: Section) -> dict[str, Any]:
    return {item.name: getattr(section, item.name) for item in fields(section)}


def what_matters(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return ``config`` without the keys that do not change a result."""
    kept = {
        key: value for key, value in config.items()
        if place + key not in _NO_MATTER and _AS_BEFORE.get(place + key, ...) != value
    }  # fmt: skip
    if place:
        return kept
    for section in ("data", "task", "model"):
        if isinstance(kept.get(section), Mapping):
            kept[section] = what_matters(kept[section], f"{section}.")
    if isinstance(target := kept.get("data", {}).get("_target_"), str):
        # These loaders moved; runs from before keep their folders, and go on.
        kept["data"]["_target_"] = target.replace(".datasets.pde.", ".datasets.pde_")
    return kept


def config_hash(config: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that stand for a resolved configuration."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_keys(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError for a section that nothing reads, as ``+foo=1`` adds one."""
    for name in config:
        if name not in known:
            places = dict(_places({key: config[key] for key in known if key in config}))
            raise ConfigError(f"{name}: there is no such key{_near(str(name), places)}")


def _near(name: str, places: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, places, n=1)
    return f"; did you mean {places[near[0]]!r}?" if near else ""


def _places(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the whole name of every key, the outermost last."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _places(value, f"{place}{name}.")
        yield str(name), f"{place}{name}"


def check_finite(config: Any, key: str = "") -> None:
    """Raise ConfigError naming the key of a number that is not finite."""
    if isinstance(config, float) and not math.isfinite(config):
        raise ConfigError(f"{key}={config}: expected a finite number")
    if isinstance(config, Mapping):
        for name, value in config.items():
            check_finite(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            check_finite(value, f"{key}[{index}]")


def check_targets(config: Any, key: str = "") -> None:
    """Raise ConfigError if a ``_target_`` in a (nested) plain config is not on the allow-list.

    So it does for a text in which Hydra would find one later.
    """
    if isinstance(config, str) and "${" in config:
        raise ConfigError(f"{key}={config!r}: ${{ is not allowed here")
    if isinstance(config, Mapping):
        if special := [name for name in config if re.fullmatch("_(?!target_).*_", str(name))]:
            raise ConfigError(f"{key}.{special[0]}: Hydra's own keys are not allowed here")
        target = config.get("_target_")
        allowed = ALLOWED.get(key.split(".")[0].split("[")[0], ())
        if target is not None and plugins.find(key, str(target)) is None:
            _check_target(str(target), allowed, f"{key or 'config'}._target_")
        for name, value in config.items():
            check_targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            check_targets(value, f"{key}[{index}]")


def _check_target(target: str, allowed: tuple[str, ...], key: str) -> None:
    """Raise ConfigError for a target that is elsewhere by its name, or by where it is defined.

    A module also has what it imports, up to ``torch.load``.
    """
    places = " or ".join(allowed) or "nothing: no target is allowed here"
    if group := plugins.GROUPS.get(key.removesuffix("._target_")):
        places += f" or be an entry point {group} of an installed package"
    if not target.startswith(allowed):
        raise ConfigError(f"{key}: {target!r} is not allowed; it must begin with {places}")
    built = find_target(target)
    if built is None:
        raise ConfigError(f"{key}: {target!r} is not allowed; nothing has this name")
    if not f"{getattr(built, '__module__', '')}.".startswith(allowed):
        raise ConfigError(
            f"{key}: {target!r} is not allowed; it must begin with {places}, and be defined there"
        )


def find_target(target: str) -> Any:
    """Return the class or function of a full name; None if there is none.

    Raises ConfigError when its module needs a package that is not installed, or when the installed
    package that declares it is broken.
    """
    for section in plugins.GROUPS:
        if (plugin := plugins.find(section, target)) is not None:
            return plugins.load(plugin)
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)):
            import_extra(module)  # which names the package that is missing
        return None
    except ValueError:
        return None


def build(target: Target | Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """Return the object that ``target`` describes; ``key`` is its section in errors.

    ``arguments`` are given beside those of the configuration, or in their place. Raises ConfigError
    when the target is not allowed or refuses its arguments.
    """
    import hydra
    from hydra.errors import InstantiationException

    target = target if isinstance(target, Target) else Target.read(target, key)
    config = target.plain()
    check_targets(config, key)
    _check_arguments(target, key)
    if (plugin := plugins.find(key, target.target)) is not None:
        plugins.load(plugin)  # which tells what is wrong with it
    try:
        with _bounded_network():
            built = hydra.utils.instantiate(config, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if type(cause).__module__ == "matattn.errors":
            raise cause from None
        mistakes: tuple[type[Exception], ...]
        mistakes = (TypeError, ValueError, ArithmeticError, ImportError, InstantiationException)
        if key == "model":  # sizes that no tensor can have, or no memory
            mistakes = (*mistakes, RuntimeError, MemoryError)
        if isinstance(cause, mistakes) or type(cause).__module__.startswith("lightning"):
            reason = " ".join(str(cause).split()) or type(cause).__name__
            if (unknown := re.search(r"unexpected keyword argument '(\w+)'", reason)) and (
                unknown[1] in target.arguments
            ):
                names = inspect.signature(find_target(target.target)).parameters
                hint = _near(unknown[1], {name: name for name in names})
                raise ConfigError(f"{key}.{unknown[1]}: there is no such key{hint}") from error
            if "allocate" in reason:  # PyTorch says where in its sources, and hydra in whose call
                reason = "the network does not fit into memory; choose smaller sizes"
            raise ConfigError(f"{key}: {reason}") from error
        raise cause from None
    if plugin is not None and key == "data":
        plugins.check_dataset(plugin, built)
    return built


def _check_arguments(target: Target, key: str) -> None:
    """Raise ConfigError for an argument of another kind than a function of ours says."""
    if not target.target.startswith("matattn."):
        return
    called: Any = find_target(target.target)
    if isinstance(called, type):
        called = inspect.getattr_static(called, "__init__")
    try:
        hints = get_type_hints(called)
    except (NameError, TypeError):  # names that only type checkers know
        return
    for name, value in target.arguments.items():
        if name in hints and not _fits(value, hints[name]):
            is_text = key == "data" and str in (hints[name], *get_args(hints[name]))
            hint = (
                f"; quote a text that looks like a number: '{key}.{name}=\"01\"'" if is_text else ""
            )
            raise ConfigError(f"{key}.{name}={value!r}: expected {_described(hints[name])}{hint}")


def _described(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    return str(hint if get_args(hint) else hint.__name__).replace("collections.abc.", "")


def _fits(value: Any, hint: Any) -> bool:
    """Check a plain value against an annotation; anything fits one of no configuration's kinds."""
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
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
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
