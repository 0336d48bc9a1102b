"""Pieces are the structures of their files, whatever the files are."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.db import connect

from matattn.errors import MatattnError, StructureError
from matattn.structures.files import entries
from matattn.workflows.screening import sources
from matattn.workflows.screening.sources import Member, find, pieces


def read(*paths):
    return [entry for piece in pieces(paths) for entry in piece.entries()]


def described(found):
    """Id, place and formula or error of each entry."""
    return [
        (e.id, e.place, str(e.structure) if isinstance(e.structure, StructureError)
         else e.structure.formula)
        for e in found
    ]  # fmt: skip


@pytest.fixture
def examples():
    return sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.cif"))


def test_lines_are_those_of_the_reader(pool):
    assert [name for name, _, _ in described(read(pool))[:4]] == [
        "NaCl", "MgO", "doubled NaCl", "flat"
    ]  # fmt: skip
    expected, found = described(entries(pool)), described(read(pool))
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert mine[1:] == other[1:]


def test_tables_and_databases_are_those_of_the_reader(tmp_path):
    rows = [{"id": f"r{n}", "numbers": [3 + n], "positions": [[0.0, 0, 0]],
             "cell": (4 * np.eye(3)).tolist(), "pbc": [True] * 3} for n in range(3)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with connect(tmp_path / "rows.db") as database:
        for row in rows:
            database.write(Atoms(row["numbers"], cell=row["cell"], pbc=True))
    for path in (tmp_path / "rows.parquet", tmp_path / "rows.db"):
        assert described(read(path)) == described(entries(path))
        assert len(read(path)) == 3


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
def test_an_archive_holds_its_files(tmp_path, examples, ending):
    path = tmp_path / f"all{ending}"
    with tarfile.open(path, "w:gz" if "gz" in ending else "w") as archive:
        for file in examples:
            archive.add(file, f"some/folder/{file.name}")
        (tmp_path / "bad.cif").write_text("data_x\n")
        (tmp_path / "notes.md").write_text("nothing")
        archive.add(tmp_path / "bad.cif", "../../bad.cif")
        archive.add(tmp_path / "notes.md", "notes.md")
    found = read(path)
    assert [e.id for e in found] == [*(file.stem for file in examples), "bad"]
    assert found[0].path == f"{path}:some/folder/{examples[0].name}"
    assert isinstance(found[-1].structure, StructureError)
    assert f"{path}:../../bad.cif" in str(found[-1].structure) and "/tmp" not in str(
        found[-1].structure
    ).replace(str(tmp_path), "")


def test_a_name_that_cannot_be_written_is_one_error(tmp_path):
    name = "x" * 300 + ".cif"
    (entry,) = Member(str(tmp_path / "a.tar"), name, b"data_x").entries()
    assert isinstance(entry.structure, StructureError) and len(entry.id) == 100


def test_a_member_that_is_too_large_is_refused(tmp_path, examples, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST_MEMBER", 100)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(examples[0], "x.cif")
    (entry,) = read(tmp_path / "a.tar")
    assert "has more than" in str(entry.structure)


@pytest.mark.parametrize("name", ["cut.tar.gz", "cut.parquet", "cut.jsonl.gz", "cut.aselmdb"])
def test_a_damaged_file_is_one_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b damaged")
    (entry,) = read(tmp_path / name)
    assert isinstance(entry.structure, StructureError) and str(tmp_path / name) in str(
        entry.structure
    )


def test_an_archive_without_structures_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    (entry,) = read(tmp_path / "a.tar")
    assert "holds no structure file" in str(entry.structure)


def test_folders_and_globs_are_searched(tmp_path, examples):
    for file in examples:
        shutil.copy(file, tmp_path)
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(examples[0], "x.cif")
    assert [path.name for path in find([str(tmp_path)])] == [
        *(file.name for file in examples), "more.tar"
    ]  # fmt: skip
    assert len(find([str(tmp_path / "*.cif")])) == len(examples)


@pytest.mark.parametrize("names, message", [(["-"], "reads its sources again"),
                                            (["absent.jsonl"], "no such file")])  # fmt: skip
def test_what_cannot_be_read_again_is_refused(names, message):
    with pytest.raises(MatattnError, match=message):
        find(names)


def test_pieces_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(json.dumps({"id": n}) for n in range(1000)))
    found = pieces([path])
    assert next(found).number == 1 and next(found).number == 2
