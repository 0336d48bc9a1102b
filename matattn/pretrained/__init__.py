"""The models that come with matattn, one bundle a folder, found by name.

Imports the standard library only, so that a mistyped name fails before PyTorch is loaded.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from matattn.errors import BundleError
from matattn.kinds import KINDS, Kind, kind_of

FOLDER = Path(__file__).parent


def names(reads: str | None = None) -> list[str]:
    """Return the names of the models that come with matattn, sorted; of one kind of ``KINDS``."""
    folders = sorted(path.parent for path in FOLDER.glob("*/config.json"))
    return [folder.name for folder in folders if reads in (None, kind(folder).name)]


def find(model: str | Path) -> Path:
    """Return the bundle folder of a model: one of ``names()``, or a path.

    A name comes before a folder of that name; write ``./name`` for the folder. Raises BundleError,
    which lists the names, when there is neither.
    """
    shipped, name = names(), str(model)
    if name in shipped:
        return FOLDER / name
    if Path(name).exists():
        return Path(name)
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (known: {', '.join(shipped)})" if shipped else ""
    raise BundleError(
        f"{name}: no such folder, and no model of this name comes with matattn{hint}{listed}; "
        "give a name of `matattn models`, or the model/ folder of a finished run"
    )


def kind(folder: Path) -> Kind:
    """Return what the network of a bundle reads, from its config.json."""
    try:
        return kind_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError):
        return KINDS["structures"]  # loading the bundle reports what is wrong
