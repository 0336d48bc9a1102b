"""Reading structures from files: every format, and what damaged files say."""

import bz2
import gzip
import json
import lzma
import pickle
import sqlite3
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.errors import StructureError
from matattn.structures.files import entries, is_structure_file, read

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
ROW = {"id": "r1", "lattice": (4 * np.eye(3)).tolist(), "Z": [11, 17], "frac": [[0] * 3, [0.5] * 3]}


@pytest.fixture
def salt():
    return SALT.copy()


@pytest.mark.parametrize("name, fmt", [("a.cif", "cif"), ("POSCAR", "poscar"), ("a.json", "json")])
def test_read_formats(tmp_path, salt, name, fmt):
    path = tmp_path / name
    salt.to(filename=str(path), fmt=fmt)
    (structure,) = read(path)
    assert structure.composition == salt.composition
    assert structure.volume == pytest.approx(salt.volume)


def test_read_extended_xyz(tmp_path, salt):
    ase_io = pytest.importorskip("ase.io")
    path = tmp_path / "two.extxyz"
    atoms = salt.to_ase_atoms()
    ase_io.write(path, [atoms, atoms])
    first, second = read(path)
    assert first.composition == second.composition == salt.composition


def test_poscar_without_symbols_is_refused(tmp_path):
    path = tmp_path / "POSCAR"
    path.write_text("salt\n4.0\n1 0 0\n0 1 0\n0 0 1\n1 1\ndirect\n0 0 0\n.5 .5 .5\n")
    with pytest.raises(StructureError, match="no element symbols"):
        read(path)


def test_bad_entries_leave_the_others(tmp_path, salt):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([salt.as_dict(), {"lattice": 3}, salt.as_dict()]))
    first, second, third = read(path)
    assert isinstance(second, StructureError) and f"{path}, entry 2" in str(second)
    assert first == third == salt


def test_json_imports_no_module(tmp_path, salt):
    """A site property names a module, which pymatgen would import."""
    content = salt.as_dict()
    trap = {"@module": "module_that_must_not_be_imported", "@class": "X", "@version": "1"}
    content["properties"] = {"x": trap}
    for site in content["sites"]:
        site["properties"] = {"x": trap}
        site["species"][0]["properties"] = {"spin": trap}
    path = tmp_path / "trap.json"
    path.write_text(json.dumps(content))
    assert read(path)[0] == salt


def test_cif_says_why(tmp_path, salt):
    path = tmp_path / "twice.cif"
    salt.to(filename=str(path))
    path.write_text(path.read_text().replace("  1\n", "  2.5\n"))
    with pytest.raises(StructureError, match="(?i)occupanc"):
        read(path)


def test_read_list_of_structures(tmp_path, salt):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([salt.as_dict(), {"structure": salt.as_dict()}]))
    assert len(read(path)) == 2


def damaged_cif(path):
    SALT.to(filename=str(path), fmt="cif")
    path.write_text(path.read_text()[:350])


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("empty.cif", lambda path: path.write_text(""), "the file is empty"),
        ("cut.cif", damaged_cif, "line 12: a quote is not closed"),
        ("words.json", lambda path: path.write_text("{}"), "expected a structure of pymatgen"),
        ("none.json", lambda path: path.write_text("[]"), "holds no structure"),
        ("POSCAR_bad", lambda path: path.write_text("NaCl\n1.0\n1 0"), "cannot be read as POSCAR"),
        ("notes.txt", lambda path: path.write_text("x"), "unknown file type"),
        ("bytes.cif", lambda path: path.write_bytes(b"\xff\xfe\x00data"), "is not a CIF"),
        ("missing.cif", lambda path: None, "no such file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(StructureError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value)


OPENERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", OPENERS)
@pytest.mark.parametrize("name, fmt", [("a.cif", "cif"), ("POSCAR", "poscar"), ("a.json", "json")])
def test_compressed_files(tmp_path, salt, name, fmt, ending):
    path = tmp_path / f"{name}{ending}"
    content = OPENERS[ending](salt.to(fmt=fmt).encode())
    path.write_bytes(content)
    (entry,) = entries(path)
    assert entry.id == Path(name).stem and entry.structure.matches(salt)
    path.write_bytes(content[:-30])
    with pytest.raises(StructureError, match="cannot be"):
        read(path)
    path.write_bytes(salt.to(fmt=fmt).encode())
    with pytest.raises(StructureError, match=f"is not compressed, .* call it {name}$"):
        read(path)
    plain = tmp_path / f"b{name}.vasp"
    plain.write_bytes(content)
    with pytest.raises(StructureError, match=f"is compressed; call it .*{ending}$"):
        read(plain)


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.xyz", "a.json", "a.jsonl", "a.db", "a.traj",
                                  "a.xsf", "vasprun.xml", "a.vtu"])  # fmt: skip
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(StructureError, match="is a pointer of Git LFS.*git lfs pull"):
        read(path)


def test_a_file_is_called_by_its_name_and_its_entries_by_their_ids(tmp_path, salt):
    salt.to(filename=str(tmp_path / "salt.cif"))
    (alone,) = entries(tmp_path / "salt.cif")
    assert alone[:3] == ("salt", str(tmp_path / "salt.cif"), str(tmp_path / "salt.cif"))
    path = tmp_path / "rows.jsonl"
    lines = [ROW, {"structure": salt.as_dict()}, salt.as_dict(), {"id": "x", "Z": [1]}]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n{cut")
    read_entries = list(entries(path))
    assert [e.id for e in read_entries] == ["r1", "rows:2", "rows:3", "x", "rows:5"]
    assert [e.structure.formula for e in read_entries[:3]] == ["Na1 Cl1", "Na4 Cl4", "Na4 Cl4"]
    assert str(read_entries[3].structure).startswith(f"{path}:7: expected a structure of pymatgen")
    assert str(read_entries[4].structure).startswith(f"{path}:8: is not JSON")


def test_gzipped_json_lines_keep_what_stands_before_the_damage(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    content = gzip.compress("".join(json.dumps(ROW | {"id": n}) + "\n" for n in range(9)).encode())
    path.write_bytes(content)
    assert [entry.id for entry in entries(path)] == [str(n) for n in range(9)]
    path.write_bytes(content[:-8])
    *good, last = entries(path)
    assert len(good) == 9 and "cannot be unpacked" in str(last.structure)


def test_ase_files(tmp_path, salt):
    ase_db, trajectory = pytest.importorskip("ase.db"), pytest.importorskip("ase.io.trajectory")
    atoms = salt.to_ase_atoms()
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    other = atoms[:2]
    with ase_db.connect(tmp_path / "a.db") as database:
        for each in (atoms, slab, other):
            database.write(each, data={"x": np.ones(2)})
        del database[1]
    with trajectory.Trajectory(tmp_path / "a.traj", "w") as writer:
        for each in (atoms, atoms, slab, other):
            writer.write(each)
    broken, last = entries(tmp_path / "a.db")
    assert (broken.id, last.id) == ("a:2", "a:3") and last.structure.formula == "Na2"
    assert "a.db, row 2: is periodic in some directions only (pbc T T F)" in str(broken.structure)
    first, second, third, fourth = entries(tmp_path / "a.traj")
    assert first.structure.matches(salt) and second.id == "a:2"
    assert "a.traj, frame 3" in str(third.structure) and fourth.structure.formula == "Na2"


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled_or_written(tmp_path):
    pytest.importorskip("ase")
    path = tmp_path / "old.traj"
    path.write_bytes(b"PickleTrajectory" + pickle.dumps(Trap()))
    with pytest.raises(StructureError, match="cannot be read as a trajectory of ASE"):
        read(path)
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StructureError, match="no table 'systems'"):
        read(path)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "old.traj", path])
    (tmp_path / "bytes.db").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StructureError, match="cannot be read as a database of ASE"):
        read(tmp_path / "bytes.db")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.traj").write_text("1\n")
    monkeypatch.setitem(sys.modules, "ase.io", None)
    with pytest.raises(StructureError, match=r"needs the package ase.*pip install"):
        read(tmp_path / "a.traj")


def test_materials_project_ids(monkeypatch, tmp_path, salt):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MP_API_KEY", raising=False)
    with pytest.raises(StructureError, match="mp-22862: no such file; .*set MP_API_KEY"):
        read("mp-22862")

    class MPRester:
        def __init__(self, key, mute_progress_bars):
            assert key == "secret"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get_structure_by_material_id(self, identifier):
            if identifier == "mp-2":
                raise OSError("no network for ?key=secret")
            return salt if identifier == "mp-22862" else None

    client = ModuleType("mp_api.client")
    client.MPRester = MPRester
    monkeypatch.setitem(sys.modules, "mp_api.client", client)
    monkeypatch.setenv("MP_API_KEY", "secret")
    (entry,) = entries("mp-22862")
    assert entry.id == "mp-22862" and entry.structure == salt
    with pytest.raises(StructureError, match="mp-1: the Materials Project has no structure"):
        read("mp-1")
    with pytest.raises(StructureError, match="mp-2: cannot be fetched.*no network") as caught:
        read("mp-2")
    assert "secret" not in str(caught.value)
    salt.to(filename="mp-3.cif")
    assert len(read("mp-3.cif")) == 1


def test_names_that_are_known():
    names = ["a.cif", "A.CIF", "POSCAR", "CONTCAR_1", "a.vasp", "a.extxyz", "a.json", "a.jsonl.gz",
             "a.db", "a.traj", "a.cif.gz", "POSCAR.bz2", "a.xyz.xz", "CHGCAR", "run1_XDATCAR",
             "vasprun.xml.gz", "a.xsf", "geometry.in"]  # fmt: skip
    assert all(is_structure_file(Path(name)) for name in (*names, "two\nlines.cif"))
    assert not any(
        is_structure_file(Path(name))
        for name in ("a.txt", "a.cif.zip", "a.db.gz", "a.pckl", "mp-1")
    )
