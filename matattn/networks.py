"""The networks that a bundle may contain: those of ``conf/model``, and of installed packages.

The ``_target_`` of a configuration file puts a network on this closed list, and so does an entry
point ``matattn.networks`` of an installed package (``matattn.plugins``). The files are read as
text and nothing is imported, so an unknown name is reported before PyTorch is loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

from matattn import plugins
from matattn.errors import BundleError, ConfigError
from matattn.plugins import own_networks


def known() -> dict[str, str]:
    """Return the module of each network that can be used, matattn's own first."""
    added = (plugin for plugin in plugins.declared("model") if not plugins.problem(plugin))
    return own_networks() | {plugin.name: plugin.module for plugin in added}


def package(name: str) -> plugins.Plugin | None:
    """Return the package that brings a network; None for matattn's own.

    Raises BundleError, listing the known names, when there is no such network, and saying why when
    there is one that cannot be used.
    """
    if name in own_networks():
        return None
    brought = [plugin for plugin in plugins.declared("model") if plugin.name == name]
    if not brought:
        raise BundleError(f"unknown network {name!r}; known: {', '.join(known())}")
    if reason := plugins.problem(brought[0]):
        raise BundleError(reason)
    return brought[0]


def check(name: str, written_with: Any) -> None:
    """Raise BundleError unless the network of a bundle is here, of the package that it names.

    ``written_with`` is what the bundle says of that package, or None; it is never imported by it.
    """
    if written_with is not None and name not in own_networks():
        brought = [plugin for plugin in plugins.declared("model") if plugin.name == name]
        if not any(plugins.same(written_with, plugin) for plugin in brought):
            instead = f" (here it is one of {brought[0]})" if brought else ""
            raise BundleError(
                f"the network {name!r} is one of {plugins.described(written_with)}, which is not "
                f"installed{instead}: install that package, if you trust it"
            )
    found = package(name)
    if (written_with is None) != (found is None):
        theirs = "matattn" if written_with is None else plugins.described(written_with)
        raise BundleError(
            f"the network {name!r} is one of {theirs}, and here of {found or 'matattn'}"
        )


def find(name: str) -> type:
    """Return the class of a network; this imports its module.

    Raises BundleError, listing the known names, when there is no such network, or when its package
    is broken.
    """
    brought = package(name)
    if brought is None:
        return getattr(importlib.import_module(own_networks()[name]), name)
    try:
        return plugins.load(brought)
    except ConfigError as error:
        raise BundleError(str(error)) from error
