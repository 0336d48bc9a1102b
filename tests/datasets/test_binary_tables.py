"""``data=table`` from Parquet and from ASE's LMDB files."""

import json
import pickle
import zlib

import numpy as np
import pytest

from matattn.datasets import crystals
from matattn.errors import DataError

CELL = (4 * np.eye(3)).tolist()
ROWS = [
    {"id": f"s{n}", "lattice": (np.eye(3) * (4 + 0.1 * n)).tolist(), "Z": [11, 17],
     "frac": [[0, 0, 0], [0.5] * 3], "tc": n + 0.5, "split": "train" if n else "test"}
    for n in range(6)
]  # fmt: skip


def load(path, targets=("tc",), **options):
    units = {"tc": "K", "energy": "eV"}
    return crystals.load("toy", str(path), list(targets), units=units, **options)


@pytest.fixture
def parquet():
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    return lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def aselmdb():
    lmdb = pytest.importorskip("lmdb")

    def write(path, rows, raw=()):
        with lmdb.open(str(path), subdir=False, map_size=2**28, lock=False) as database:
            with database.begin(write=True) as change:
                for number, row in enumerate(rows, start=1):
                    content = zlib.compress(json.dumps(row).encode())
                    change.put(f"{number}".encode(), content)
                for number, value in enumerate(raw, start=len(rows) + 1):
                    change.put(f"{number}".encode(), value)

    return write


def test_parquet_is_the_same_as_json_lines(tmp_path, parquet):
    parquet(tmp_path / "a.parquet", ROWS)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    one, other = load(tmp_path / "a.parquet"), load(tmp_path / "a.jsonl")
    assert one.fingerprint() == other.fingerprint()
    assert one.rows("test").tolist() == [0]


def test_optimade_in_parquet(tmp_path, parquet):
    rows = [{"immutable_id": r["id"], "lattice_vectors": r["lattice"], "tc": r["tc"],
             "cartesian_site_positions": [[0, 0, 0], [r["lattice"][0][0] / 2] * 3],
             "species_at_sites": ["Na", "Cl"], "split": r["split"]} for r in ROWS]  # fmt: skip
    parquet(tmp_path / "a.parquet", rows)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    one, other = load(tmp_path / "a.parquet"), load(tmp_path / "a.jsonl")
    assert list(one.ids()) == list(other.ids())
    assert np.allclose(one.items[3].pos, other.items[3].pos)


def test_bad_rows_of_parquet_are_told_by_place(tmp_path, parquet):
    bad = ROWS[1] | {"id": "bad", "Z": [11, 11, 17]}
    parquet(tmp_path / "a.parquet", [*ROWS[:3], bad, ROWS[1], *ROWS[3:]])
    data = load(tmp_path / "a.parquet")
    assert len(data.items) == 6
    assert any(line.startswith(f"{tmp_path / 'a.parquet'}, row 4 (bad): ") for line in data.skipped)
    assert any("row 5 (s1): duplicate id" in line for line in data.skipped)


def ase_row(number, **more):
    return {
        "numbers": [11, 17], "positions": [[0, 0, 0], [2] * 3], "cell": CELL, "pbc": [True] * 3,
        "energy": -6.0 - number, "key_value_pairs": {"tc": number + 0.5},
        "data": {"split": "train"}, "unique_id": "x", "forces": [[0, 0, 0]] * 2,
    } | more  # fmt: skip


def test_rows_of_ase(tmp_path, aselmdb):
    aselmdb(tmp_path / "d.aselmdb", [ase_row(n) for n in range(4)])
    data = load(tmp_path / "d.aselmdb", ["tc", "energy"])
    assert list(data.ids()) == [f"d:{n}" for n in range(1, 5)]
    assert data.labels().tolist() == [[n + 0.5, -6.0 - n] for n in range(4)]
    per_atom = load(tmp_path / "d.aselmdb", ["total_energy_per_atom"])
    assert per_atom.labels()[:, 0].tolist() == [-3.0 - n / 2 for n in range(4)]


def test_a_folder_of_files(tmp_path, aselmdb):
    for name in ("data1", "data0"):
        aselmdb(tmp_path / f"{name}.aselmdb", [ase_row(n) for n in range(2)])
    (tmp_path / "metadata.npz").write_bytes(b"")
    data = load(tmp_path)
    assert list(data.ids()) == ["data0:1", "data0:2", "data1:1", "data1:2"]


def test_hostile_rows_are_told_and_harm_no_other(tmp_path, aselmdb):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    bomb = zlib.compress(bytes(2**25))
    aselmdb(tmp_path / "d.aselmdb", [ase_row(0)], [pickle.dumps(Payload()), bomb, b"yy"])
    data = load(tmp_path / "d.aselmdb")
    assert len(data.items) == 1 and not (tmp_path / "canary").exists()
    for number, message in ((2, "is a pickle"), (3, "unpacks to more"), (4, "cannot be unpacked")):
        assert any(f"row {number}: {message}" in line for line in data.skipped)


def test_other_files_are_one_line(tmp_path):
    for name, message in (("a.aselmdb", "is not an LMDB file"), ("a.parquet", "cannot be read")):
        (tmp_path / name).write_bytes(b"no table at all" * 99)
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)
