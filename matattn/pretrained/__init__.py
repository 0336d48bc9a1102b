"""The models that come with matattn, one bundle a folder, found by name.

Imports the standard library only: a mistyped name is told at once, before PyTorch is loaded.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from matattn.errors import BundleError
from matattn.kinds import KINDS, Kind, kind_of

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the models that come with matattn, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def find(model: str | Path) -> Path:
    """The bundle folder of a model: of a name of ``names()``, or of a path, which is itself.

    A name stands before a folder of that name; write ``./name`` for the folder. Raises BundleError,
    listing the names, when there is neither.
    """
    known, given = names(), str(model)
    if given in known:
        return FOLDER / given
    if Path(given).exists():
        return Path(given)
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (known: {', '.join(known)})" if known else ""
    raise BundleError(
        f"{given}: no such folder, and no model of this name comes with matattn{hint}{listed}; "
        "give a name of `matattn models`, or the model/ folder of a finished run"
    )


def kind(folder: Path) -> Kind:
    """Return what the network of a bundle reads, from its config.json."""
    try:
        return kind_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError):
        return KINDS["structures"]  # loading the bundle says what is wrong
