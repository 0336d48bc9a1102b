"""ASE's rows in LMDB: those of the Open Catalyst Project, and hostile ones."""

import json
import pickle
import zlib

import numpy as np
import pytest

from matattn.errors import StructureError
from matattn.structures.files import entries
from matattn.structures.formats import aselmdb

lmdb = pytest.importorskip("lmdb")


def row(number=0, **more):
    """A row as fairchem writes it."""
    return {
        "numbers": [11, 17], "positions": [[0, 0, 0], [2 + 0.1 * number] * 3],
        "cell": ((4 + 0.2 * number) * np.eye(3)).tolist(), "pbc": [True] * 3,
        "unique_id": "a1", "ctime": 24.1, "mtime": 24.1, "user": "me", "calculator": "vasp",
        "energy": -6.0 - number, "forces": [[0, 0, 0]] * 2, "stress": [0] * 6,
        "key_value_pairs": {"sid": f"s{number}", "gap": 0.5 * number},
        "data": {"bulk_id": 7, "trajectory": [1, 2]},
    } | more  # fmt: skip


def packed(content):
    return zlib.compress(json.dumps(content).encode())


def write(path, values):
    with lmdb.open(str(path), subdir=False, map_size=2**28, lock=False) as database:
        with database.begin(write=True) as change:
            for key, value in values.items():
                change.put(str(key).encode(), value)
    return path


def test_structures_of_a_file(tmp_path):
    arrays = row(2) | {
        "numbers": {"__ndarray__": [[2], "int64", [11, 17]]},
        "positions": {"__ndarray__": [[2, 3], "float64", [0, 0, 0, 2.2, 2.2, 2.2]]},
        "cell": {"array": {"__ndarray__": [[3, 3], "float64", (4.4 * np.eye(3)).ravel().tolist()]},
                 "__ase_objtype__": "cell"},
        "pbc": {"__ndarray__": [[3], "bool", [True] * 3]},
    }  # fmt: skip
    molecule = row(3, pbc=[False] * 3, cell=np.zeros((3, 3)).tolist())
    values = {n + 1: packed(content) for n, content in enumerate([row(), row(1), arrays, molecule])}
    values |= {"nextid": packed(5), "metadata": packed({}), "deleted_ids": packed([])}
    path = write(tmp_path / "a.aselmdb", values)
    found = list(entries(path))
    assert [entry.id for entry in found] == ["a:1", "a:2", "a:3", "a:4"]
    assert [entry.structure.formula for entry in found] == ["Na1 Cl1"] * 4
    assert found[2].structure.lattice.a == pytest.approx(4.4)
    assert not hasattr(found[3].structure, "lattice")
    assert found[1].place == f"{path}, row 2"


def test_hostile_rows_harm_no_other(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    bomb = zlib.compress(b'{"numbers": [' + b" " * (aselmdb.LONGEST_ROW + 10))
    values = {
        1: packed(row()), 2: pickle.dumps(Payload()), 3: bomb, 4: packed(row())[:-9], 5: b"x" * 9,
        6: zlib.compress(b"[" * 100_000), 7: packed([1]), 8: packed(row(numbers=[11])),
        9: packed(row(cell=np.zeros((3, 3)).tolist())), 10: packed({}), 11: packed(row(1)),
    }  # fmt: skip
    path = write(tmp_path / "a.aselmdb", values)
    found = {entry.id: entry.structure for entry in entries(path)}
    assert len(found) == 11 and not (tmp_path / "canary").exists()
    expected = {
        2: "is a pickle", 3: "unpacks to more than 16 MiB", 4: "is cut off",
        5: "cannot be unpacked", 6: "is not JSON", 7: "expected a row of ASE, got list",
        8: "1 elements and 2 positions", 9: "has no lattice", 10: "expected a structure",
    }  # fmt: skip
    for number, structure in found.items():
        message = expected.get(int(number.partition(":")[2]))
        if message is None:
            assert structure.formula == "Na1 Cl1"
        else:
            assert isinstance(structure, StructureError)
            assert str(structure).startswith(f"{path}, row {number.partition(':')[2]}: ")
            assert message in str(structure)


def test_a_file_without_rows_is_told(tmp_path):
    path = write(tmp_path / "a.aselmdb", {"nextid": packed(1)})
    (entry,) = entries(path)
    assert "has no row under a number" in str(entry.structure)
    path.write_bytes(b"no database" * 1000)
    (entry,) = entries(path)
    assert "is not an LMDB file" in str(entry.structure)
