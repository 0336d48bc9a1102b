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
