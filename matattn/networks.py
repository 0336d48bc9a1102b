"""The networks that a bundle may contain: those of ``conf/model``.

The ``_target_`` of a configuration file puts a network on this closed list. The files are read as
text and nothing is imported, so an unknown name is reported before PyTorch is loaded.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from importlib.resources import files

from matattn.errors import BundleError

_TARGET = re.compile(r"^\s*_target_:\s*(matattn\.models\.[\w.]+)\.(\w+)", re.MULTILINE)


@cache
def known() -> dict[str, str]:
    """Return the module of each network by the name of its class, sorted by name."""
    folder = files("matattn.conf") / "model"
    texts = (path.read_text("utf-8") for path in folder.iterdir() if path.name.endswith(".yaml"))
    modules = {name: module for text in texts for module, name in _TARGET.findall(text)}
    return dict(sorted(modules.items()))


def find(name: str) -> type:
    """Return the class of a network; this imports its module.

    Raises BundleError, listing the known names, when there is no such network.
    """
    if name not in known():
        raise BundleError(f"unknown network {name!r}; known: {', '.join(known())}")
    return getattr(importlib.import_module(known()[name]), name)
