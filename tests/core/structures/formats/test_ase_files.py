"""ASE's binary files: a damaged frame loses only itself."""

import pytest

from matattn.errors import StructureError
from matattn.structures.files import entries


def test_a_frame_without_a_known_atom_or_cell(tmp_path):
    trajectory = pytest.importorskip("ase.io.trajectory")
    from ase import Atoms

    good = Atoms("NaCl", [[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    ghost = Atoms("XCl", [[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    flat = Atoms("NaCl", [[0, 0, 0], [2, 2, 2]], cell=[4, 4, 0], pbc=True)
    none = Atoms("NaCl", [[0, 0, 0], [2, 2, 2]], pbc=True)
    with trajectory.Trajectory(tmp_path / "a.traj", "w") as writer:
        for atoms in (good, ghost, flat, none, good):
            writer.write(atoms)
    found = [entry.structure for entry in entries(tmp_path / "a.traj")]
    assert found[0].formula == found[4].formula == "Na1 Cl1"
    messages = ["frame 2: atom 1: 0 is no atomic number", "frame 3: the lattice vectors lie in one",
                "frame 4: is periodic, and has no lattice"]  # fmt: skip
    for message, error in zip(messages, found[1:4], strict=True):
        assert isinstance(error, StructureError)
        assert str(error).startswith(f"{tmp_path / 'a.traj'}, {message}")


def test_an_old_file_is_named(tmp_path):
    pytest.importorskip("ase")
    (tmp_path / "a.traj").write_bytes(b"not a trajectory of any kind, but long enough")
    (entry,) = entries(tmp_path / "a.traj")
    assert "cannot be read as a trajectory of ASE" in str(entry.structure)
