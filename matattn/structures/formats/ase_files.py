"""ASE's databases (.db) and trajectories (.traj).

Nothing here unpickles: old trajectories are pickles, which ASE's reader of arrays refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from matattn.errors import StructureError
from matattn.structures.formats.atoms import make_atoms
from matattn.structures.formats.record import AnyStructure, Record, make_record


def open_database(path: Path) -> Any:
    """Return ASE's database of a file, and leave a file that is none as it is."""
    import sqlite3

    from ase.db.sqlite import SQLite3Database

    # ASE would create its tables in a database that has none.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
    if ("systems",) not in tables:
        raise StructureError(f"{path}: is not a database of ASE (it has no table 'systems')")
    return SQLite3Database(str(path), create_indices=False, use_lock_file=False)


def parse_database(path: Path) -> Iterator[Record]:
    """Yield the structures of a database; their ids are the file's name with the row."""
    for row in open_database(path).select(include_data=False):
        place = f"{path}, row {row.id}"
        yield make_record(partial(from_ase, row), place, f"{path.stem}:{row.id}")


def parse_trajectory(path: Path) -> Iterator[Record]:
    """Yield the frames of a trajectory."""
    from ase.io import ulm

    with open(path, "rb") as file:
        header = ulm.Reader(file)
        if header.get_tag() != "ASE-Trajectory":
            raise StructureError(f"{path}: is not a trajectory of ASE")
        for number in range(len(header)):
            frame = partial(_frame, file, number, header)
            yield make_record(frame, f"{path}, frame {number + 1}")


def _frame(file: Any, number: int, header: Any) -> AnyStructure:
    from ase.io import ulm

    frame = ulm.Reader(file, number)
    z, pbc = (frame.get(key, header.get(key)) for key in ("numbers", "pbc"))
    return make_atoms(z, frame.positions, frame.cell, pbc).structure()


def from_ase(atoms: Any) -> AnyStructure:
    """Return the structure of an object with ASE's numbers, positions (Å), cell (Å) and pbc."""
    return make_atoms(atoms.numbers, atoms.positions, atoms.cell, atoms.pbc).structure()
