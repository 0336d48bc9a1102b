"""The files of ``matattn properties``, with the exact model in place of a trained one."""

import csv

import pytest
from pymatgen.core import Lattice, Structure

from matattn.datasets import stillinger_weber
from matattn.errors import StructureError
from matattn.structures.files import Entry
from matattn.workflows.potentials.property_files import compute


def test_a_table_and_plots(exact, tmp_path):
    pos, cell = stillinger_weber.crystal(1)
    silicon = Structure(Lattice(cell), ["Si"] * 8, pos / cell[0, 0])
    entries = [
        Entry("Si", "Si.cif", "Si.cif", silicon),
        Entry("bad", "bad.cif", "bad.cif", StructureError("bad.cif: nothing in it")),
        Entry("Si", "b/Si.cif", "b/Si.cif", silicon),
    ]
    rows = []
    asked = ("eos", "elastic", "phonon")
    said = compute(exact, entries, tmp_path, asked, rows)
    assert said.startswith("2 of 3 crystals")
    with (tmp_path / "properties.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == ["Si", "bad", "Si-2"]
    assert table[1]["status"] == "StructureError" and "nothing in it" in table[1]["message"]
    assert float(table[0]["C11 (GPa)"]) == pytest.approx(151.4, rel=0.01)
    assert float(table[0]["highest_phonon_at_gamma (THz)"]) == pytest.approx(17.83, abs=0.02)
    assert table[0]["dynamically_stable"] == table[0]["elastically_stable"] == "True"
    for name in ("Si_eos.png", "Si_phonons.png", "Si-2_eos.png", "Si_elastic.csv"):
        assert (tmp_path / name).stat().st_size > 500
