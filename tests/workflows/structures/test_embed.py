"""Features of structures, atoms and pairs as rows."""

import numpy as np
import pytest
from pymatgen.core import Molecule

import matattn
from matattn.workflows.structures import embed

WATER = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


@pytest.mark.parametrize(
    "kind, key, names",
    [
        ("whole", None, [""]),
        ("atoms", "atom", ["1", "2", "3"]),
        ("pairs", "pair", ["1-2", "1-3", "2-3"]),
    ],
)
def test_a_row_for_each(molecule_runs, kind, key, names):
    model = matattn.load(molecule_runs[kind][0] / "model")
    answers = model.embed([WATER, None, WATER])
    assert answers[0]["features"].shape[0] == len(names) and answers[1]["features"] is None
    rows = embed.table([{"id": f"m{n}", **row} for n, row in enumerate(answers)])
    assert [row["id"] for row in rows] == ["m0"] * len(names) + ["m1"] + ["m2"] * len(names)
    assert len({tuple(row) for row in rows}) == 1
    if key:
        assert [row[key] for row in rows] == [*names, "", *names]
    failed = rows[len(names)]
    assert failed["status"] == "StructureError" and failed["f0"] is None
    assert np.allclose([rows[0]["f0"], rows[0]["f1"]], answers[0]["features"][0][:2])


def test_without_any_feature_there_are_no_columns(molecule_runs):
    model = matattn.load(molecule_runs["atoms"][0] / "model")
    (row,) = embed.table(model.embed([None]))
    assert list(row) == ["formula", "natoms", "atom", "status", "message"]
