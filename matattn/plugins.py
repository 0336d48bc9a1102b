"""What installed packages add to matattn: networks, data sets and configuration files.

A package declares them as entry points in its metadata: ``matattn.networks`` and
``matattn.datasets`` name what may be built, and ``matattn.conf`` a folder laid out as ``conf/``.
Only these declarations are read until something of them is used, so a package that is broken stops
only those who use it. Imports the standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matattn.errors import ConfigError
from matattn.extras import attribute
from matattn.kinds import KINDS

GROUPS = {"model": "matattn.networks", "data": "matattn.datasets"}  # by section of a configuration
CONF = "matattn.conf"
_TARGET = re.compile(r"^\s*_target_:\s*(matattn\.models\.[\w.]+)\.(\w+)", re.MULTILINE)
_WHAT = {"model": "network", "data": "data set"}


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package.

    Args:
        section: "model", "data", or "conf".
        name: that it is declared by; of a network, the name of its class.
        value: what it stands for: "module:attribute", or a module.
        package: name of the installed distribution.
        version: of that.
    """

    section: str
    name: str
    value: str
    package: str
    version: str

    @property
    def module(self) -> str:
        """Return the module that it is in."""
        return self.value.partition(":")[0].strip()

    @property
    def target(self) -> str:
        """Return its full name, as ``_target_`` gives it."""
        return self.value.replace(":", ".").replace(" ", "")

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def declared(section: str) -> list[Plugin]:
    """Return what installed packages declare for a section, sorted by name and package."""
    return _declared(section, tuple(sys.path))


@cache
def _declared(section: str, path: tuple[str, ...]) -> list[Plugin]:
    """Return what is declared by the packages on ``path``, which is ``sys.path``."""
    found = (_plugin(section, point) for point in entry_points(group=GROUPS.get(section, CONF)))
    return sorted(found, key=lambda plugin: (plugin.name, plugin.package))


def _plugin(section: str, point: EntryPoint) -> Plugin:
    dist = point.dist
    package = str(dist.name) if dist else "a package without a name"
    return Plugin(section, point.name, point.value, package, str(dist.version) if dist else "")


def find(section: str, target: str) -> Plugin | None:
    """Return what a ``_target_`` of a section stands for; None if no package declares it.

    Raises ConfigError naming the packages when it cannot be used.
    """
    if section not in GROUPS or target.startswith("matattn."):
        return None
    for plugin in declared(section):
        if plugin.target == target:
            if reason := problem(plugin):
                raise ConfigError(reason)
            return plugin
    return None


def problem(plugin: Plugin) -> str:
    """Return why a network or data set cannot be used, as far as its declaration tells; "" if not.

    Its name is one of matattn's own, or of another package's, or not that of the class.
    """
    what = _WHAT[plugin.section]
    if plugin.section == "model" and plugin.name != plugin.target.rpartition(".")[2]:
        return (
            f"{plugin} declares the network {plugin.name} = {plugin.value!r}: its name must be "
            "that of the class"
        )
    if plugin.name in own(plugin.section):
        return (
            f"{plugin} declares a {what} {plugin.name}, which is the name of one of matattn's own: "
            "rename it there"
        )
    others = [one for one in declared(plugin.section) if one.name == plugin.name]
    if len(others) > 1:
        packages = " and ".join(map(str, others))
        return f"{packages} both declare a {what} {plugin.name}: uninstall one of them"
    return ""


def own(section: str) -> set[str]:
    """Return the names of matattn's own networks or data sets, from its configuration files."""
    if section == "model":
        return set(own_networks())
    return {path.name.removesuffix(".yaml") for path in (files("matattn.conf") / section).iterdir()}


@cache
def own_networks() -> dict[str, str]:
    """Return the module of each network of matattn by the name of its class, sorted by name."""
    folder = files("matattn.conf") / "model"
    texts = (path.read_text("utf-8") for path in folder.iterdir() if path.name.endswith(".yaml"))
    modules = {name: module for text in texts for module, name in _TARGET.findall(text)}
    return dict(sorted(modules.items()))


def load(plugin: Plugin) -> Any:
    """Import what a package declares; raises ConfigError with its error, or for what is no network.

    Networks are subclasses of the base class of their kind, whose interface trainings rely on.
    """
    what = f"{plugin}: its {_WHAT[plugin.section]} {plugin.name} ({plugin.value})"
    try:
        built = getattr(import_module(plugin.module), plugin.target.rpartition(".")[2])
    except Exception as error:  # a package may raise anything
        text = " ".join(str(error).split())
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {text}") from error
    bases = [kind.network for kind in KINDS.values() if kind.network]
    if plugin.section == "model" and not (
        isinstance(built, type) and any(issubclass(built, attribute(base)) for base in bases)
    ):
        names = " or ".join(bases)
        raise ConfigError(f"{what} is no network: expected a subclass of {names}")
    if plugin.section == "data" and not callable(built):
        raise ConfigError(f"{what} is no data set: expected a function that returns one")
    return built


def check_dataset(plugin: Plugin, dataset: Any) -> None:
    """Raise ConfigError if what a package's function returned is no data set."""
    classes = [kind.dataset for kind in KINDS.values() if kind.dataset]
    if not isinstance(dataset, tuple(map(attribute, classes))):
        raise ConfigError(
            f"{plugin}: its data set {plugin.name} ({plugin.value}) returned an object of type "
            f"{type(dataset).__name__}, expected {' or '.join(classes)}"
        )


@dataclass(frozen=True)
class Folder:
    """A folder of configuration files: matattn's own, or one that a package brings."""

    package: str
    path: Path

    @cached_property
    def choices(self) -> frozenset[str]:
        """Return what it has to choose from: "model/my_net" for the file model/my_net.yaml."""
        paths = (path.relative_to(self.path) for path in self.path.rglob("*.yaml"))
        return frozenset(path.with_suffix("").as_posix() for path in paths)


def folders() -> list[Folder]:
    """Return the folders of configuration files that packages bring; one that is absent counts not.

    They are found without an import of the package.
    """
    found = []
    for plugin in declared("conf"):
        top, *rest = plugin.module.split(".")
        try:
            spec = find_spec(top)
        except (ImportError, ValueError, AttributeError):
            continue
        places = (Path(place, *rest) for place in (spec and spec.submodule_search_locations) or ())
        found += [Folder(str(plugin), place) for place in places if place.is_dir()]
    return found


def check_choices(choices: Mapping[str, Any]) -> None:
    """Raise ConfigError for a choice (``{"model": "my_net"}``) that stands in several folders."""
    everything = [Folder("matattn", Path(str(files("matattn.conf")))), *folders()]
    for group, name in choices.items():
        having = [one.package for one in everything if f"{group}/{name}" in one.choices]
        if len(having) > 1:
            raise ConfigError(
                f"{group}={name}: {' and '.join(having)} both have a file {group}/{name}.yaml; "
                "uninstall a package, or rename the file there"
            )


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,48}")


def described(package: Any) -> str:
    """Return name and version of the package that a bundle names, for a message.

    They are data of a stranger: what cannot be the name of a package is not shown.
    """
    content = package if isinstance(package, Mapping) else {}
    name, version = str(content.get("name", "")), str(content.get("version", ""))
    if not _NAME.fullmatch(name):
        return "a package whose name cannot be read"
    return f"{name} {version}" if _VERSION.fullmatch(version) else name


def same(package: Any, plugin: Plugin) -> bool:
    """Return whether a bundle names the package of ``plugin``, whatever its version."""
    name = package.get("name") if isinstance(package, Mapping) else None
    return isinstance(name, str) and _normal(name) == _normal(plugin.package)


def _normal(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def summary() -> list[tuple[str, str]]:
    """Return each package that adds something, and what, with what is wrong about it."""
    lines: dict[str, list[str]] = {}
    for section in (*GROUPS, "conf"):
        for plugin in declared(section):
            parts = lines.setdefault(str(plugin), [])
            if section == "conf":
                continue
            reason = problem(plugin)
            parts.append(f"{_WHAT[section]} {plugin.name}{f' (unusable: {reason})' * bool(reason)}")
    for folder in folders():
        lines[folder.package] += [
            choice.replace("/", "=") for choice in sorted(folder.choices) if choice.count("/") == 1
        ]
    return [(package, ", ".join(parts) or "nothing") for package, parts in lines.items()]
