"""Parquet: structures in four dresses, and rows that are none."""

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.errors import StructureError
from matattn.structures.files import entries
from matattn.structures.formats import parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SALT = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
OURS = {"id": "a1", "lattice": (4 * np.eye(3)).tolist(), "Z": [11, 17],
        "frac": [[0, 0, 0], [0.5] * 3]}  # fmt: skip
OPTIMADE = {"immutable_id": "m-1", "lattice_vectors": OURS["lattice"],
            "cartesian_site_positions": [[0, 0, 0], [2.0] * 3],
            "species_at_sites": ["Na", "Cl"]}  # fmt: skip
ASE = {"numbers": [11, 17], "positions": [[0, 0, 0], [2.0] * 3], "cell": OURS["lattice"],
       "pbc": [True] * 3}  # fmt: skip
PYMATGEN = {"id": "p", "structure": json.dumps(SALT.as_dict())}


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize(
    "row, name", [(OURS, "a1"), (OPTIMADE, "m-1"), (ASE, "1"), (PYMATGEN, "p")]
)
def test_structures_in_four_dresses(tmp_path, row, name):
    path = write(tmp_path / "a.parquet", [row | {"gap": 1.5, "forces": [[1.0], [2.0]]}])
    (entry,) = entries(path)
    assert entry.structure == SALT and entry.id == name
    assert entry.place == f"{path}, row 1 ({name})"


def test_a_bad_row_harms_no_other(tmp_path):
    rows = [OURS, OURS | {"id": "b", "Z": [11]}, OURS | {"id": None}, OURS | {"lattice": None}]
    found = [entry.structure for entry in entries(write(tmp_path / "a.parquet", rows))]
    assert found[0] == found[2] == SALT
    assert isinstance(found[1], StructureError) and "row 2 (b): " in str(found[1])
    assert isinstance(found[3], StructureError) and "row 4 (a1): " in str(found[3])


def test_rows_are_read_some_at_a_time(tmp_path):
    rows = [OURS | {"id": f"{n}"} for n in range(1000)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=300)
    stream = parquet.read_rows(path)
    assert next(stream)[0] == "0"
    assert [name for name, _, _ in stream][-1] == "999"


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    rows = [{"id": "a", "Z": [1] * 200_000} for _ in range(50)]
    path = write(tmp_path / "a.parquet", rows)
    monkeypatch.setattr(parquet, "_MUCH", 2**16)
    (entry,) = entries(path)
    assert "unpacks to more than 500 times its size" in str(entry.structure)
    monkeypatch.setattr(parquet, "_MUCH", 2**28)
    monkeypatch.setattr(parquet, "_MOST_BYTES", 2**20)
    (entry,) = entries(path)
    assert "rows take more than 1 MiB" in str(entry.structure)


def test_damaged_files_are_one_line(tmp_path):
    path = write(tmp_path / "a.parquet", [OURS | {"id": f"{n}"} for n in range(300)])
    content, generator = path.read_bytes(), np.random.default_rng(0)
    cases = [content[:-20], b"PAR1" * 10, content[: len(content) // 2] + content[-200:]]
    for _ in range(60):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 5):
            damaged[place] = int(generator.integers(256))
        cases.append(bytes(damaged))
    for damaged in cases:
        path.write_bytes(damaged)
        for entry in entries(path):
            structure = entry.structure
            assert not isinstance(structure, StructureError) or "\n" not in str(structure)
