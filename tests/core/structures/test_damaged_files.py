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
WORDS = [b"nan", b"1e300", b"-1", b"99999", b"loop_", b"'", b'"', b"{", b"]", b"null", b"\n", b"\0"]
SEEDS = {"a.cif": CIF, "POSCAR": POSCAR, "a.extxyz": EXTXYZ, "a.json": JSON}
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
    (entry,) = entries(tmp_path / name)
    assert not isinstance(entry.structure, StructureError)
    validate(entry.structure, entry.place)
