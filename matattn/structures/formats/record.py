"""What the parser of a format yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pymatgen.core import Molecule, Structure

from matattn.errors import StructureError

AnyStructure = Structure | Molecule
# The id of a structure or "", its place for messages, and itself or its error.
Record = tuple[str, str, AnyStructure | StructureError]
Parser = Callable[[Path], Iterator[Record]]


def make_record(convert: Callable[[], AnyStructure], place: str, name: str = "") -> Record:
    """Return a structure, or the error in its place."""
    try:
        return name, place, convert()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # pymatgen raises anything on damaged data
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"
        return name, place, StructureError(f"{place}: {reason}")
