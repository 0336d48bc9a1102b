"""Files with bytes changed at random: a StructureError in place of the structure, nothing else."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matattn.errors import StructureError
from matattn.structures.files import entries
from matattn.structures.structure import validate

# MATATTN_EXAMPLES=5000 pytest tests/core/structures/test_damaged_files.py: a long run.
EXAMPLES = int(os.environ.get("MATATTN_EXAMPLES", "200"))
CIF = (Path(__file__).parents[3] / "docs/examples/SrTiO3.cif").read_bytes()
POSCAR = b"""NaCl
1.0
4.0 0.0 0.0
0.0 4.0 0.0
0.0 0.0 4.0
Na Cl
1 1
Direct
0.0 0.0 0.0
0.5 0.5 0.5
"""
EXTXYZ = b"""2
Lattice="4.0 0.0 0.0 0.0 4.0 0.0 0.0 0.0 4.0" Properties=species:S:1:pos:R:3 pbc="T T T"
Na 0.0 0.0 0.0
Cl 2.0 2.0 2.0
"""
JSON = b"""{"id": "a", "lattice": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], "Z": [11, 17],
"frac": [[0, 0, 0], [0.5, 0.5, 0.5]]}"""
XDATCAR = POSCAR.replace(b"Direct", b"Direct configuration= 1") + b"Direct\n0 0 0\n.5 .5 .4\n"
PYMATGEN = b"""{"lattice": {"matrix": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], "pbc": [true, true, true]},
"sites": [{"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, 0]},
{"species": [{"element": "Cl", "occu": 0.9999}], "abc": [0.5, 0.5, 0.5]}]}"""
VASPRUN = b"""<modeling>
<array name="atoms">
<rc><c>Na</c><c>1</c></rc>
<rc><c>Cl</c><c>2</c></rc>
</array>
<structure>
<varray name="basis" >
<v> 4 0 0 </v>
<v> 0 4 0 </v>
<v> 0 0 4 </v>
</varray>
<varray name="positions" >
<v> 0 0 0 </v>
<v> 0.5 0.5 0.5 </v>
</varray>
</structure>
</modeling>
"""
XSF = b"CRYSTAL\nPRIMVEC\n4 0 0\n0 4 0\n0 0 4\nPRIMCOORD\n2 1\n11 0 0 0\n17 2 2 2\n"
CUBE = b"""x
y
2 0.0 0.0 0.0
4 2.0 0.0 0.0
4 0.0 2.0 0.0
4 0.0 0.0 2.0
11 0.0 0.0 0.0 0.0
17 0.0 4.0 4.0 4.0
0.1 0.2
"""
CSSR = b"4 4 4\n90 90 90 SPGR = 1 P 1\n2 0\nx\n1 Na 0 0 0\n2 Cl 0.5 0.5 0.5\n"
AIMS = b"""lattice_vector 4 0 0
lattice_vector 0 4 0
lattice_vector 0 0 4
atom 0 0 0 Na
atom_frac 0.5 0.5 0.5 Cl
"""
LAMMPS = b"""x

2 atoms
0 4 xlo xhi
0 4 ylo yhi
0 4 zlo zhi

Masses

1 22.99 # Na
2 35.45

Atoms # atomic

1 1 0 0 0
2 2 2 2 2
"""
WORDS = [b"nan", b"1e300", b"-1", b"99999", b"loop_", b"'", b'"', b"{", b"]", b"null", b"\n", b"\0"]
SEEDS = {"a.cif": CIF, "POSCAR": POSCAR, "a.extxyz": EXTXYZ, "a.json": JSON, "XDATCAR": XDATCAR,
         "b.json": PYMATGEN, "vasprun.xml": VASPRUN, "a.xsf": XSF, "a.cube": CUBE, "a.cssr": CSSR,
         "geometry.in": AIMS, "a.lmp": LAMMPS}  # fmt: skip
change = st.tuples(
    st.floats(0, 1), st.integers(0, 8), st.one_of(st.binary(max_size=4), st.sampled_from(WORDS))
)


def mutated(content, changes):
    for position, removed, inserted in changes:
        at = int(position * len(content))
        content = content[:at] + inserted + content[at + removed :]
    return content


@pytest.mark.parametrize("name", SEEDS)
@settings(
    max_examples=EXAMPLES, derandomize="MATATTN_EXAMPLES" not in os.environ, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(changes=st.lists(change, min_size=1, max_size=6))
def test_only_structure_errors(tmp_path, name, changes):
    path = tmp_path / name
    path.write_bytes(mutated(SEEDS[name], changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in entries(path):
            if isinstance(entry.structure, StructureError):
                assert str(entry.structure).startswith(str(path))
                continue
            try:
                validate(entry.structure, entry.place)
            except StructureError as error:
                assert str(error).startswith(entry.place)
            else:
                assert np.isfinite(entry.structure.cart_coords).all()


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_themselves_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(SEEDS[name])
    entry, *_ = entries(tmp_path / name)
    assert not isinstance(entry.structure, StructureError)
    validate(entry.structure, entry.place)
