"""``matattn relax`` from files to files, stopped and continued."""

import csv

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from matattn import bundle
from matattn.cli import app
from matattn.datasets.stillinger_weber import crystal
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.workflows.potentials import relax_files
from matattn.workflows.potentials.predict import Potential


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bundle of a potential that was not trained: smooth, and with minima."""
    import torch

    torch.manual_seed(0)
    arguments = {"dim": 8, "hidden": 8, "channels": 4, "num_radial": 8, "num_blocks": 1}
    folder = tmp_path_factory.mktemp("model") / "model"
    network = CrystalformerPotential(**arguments)
    config = {"kind": "potentials", "elements": [14], "data": {"name": "none"}, "seed": 0,
              "metrics": {}, "licence": ""}  # fmt: skip
    bundle.save(folder, network, arguments, config, "a card\n")
    return folder


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(3):
        pos, cell = crystal(1)
        moved = pos / cell[0, 0] + generator.normal(scale=0.01, size=pos.shape)
        Structure(Lattice(cell), ["Si"] * 8, moved).to(str(tmp_path / f"si{number}.cif"))
    Structure(Lattice.cubic(4), ["Au"], [[0, 0, 0]]).to(str(tmp_path / "gold.cif"))
    (tmp_path / "broken.cif").write_text("nothing")
    return [str(tmp_path / f"{name}.cif") for name in ("si0", "gold", "si1", "broken", "si2")]


def relax(model, files, output, *options):
    loose = ["--max-force", "0.05", "--max-stress", "5", "--max-steps", "60"]
    arguments = ["relax", str(model), *files, "-o", str(output), *loose, *options]
    return CliRunner().invoke(app, arguments)


def table(folder):
    with (folder / "relaxed.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_file_has_a_row_and_every_crystal_a_cif(model, files, tmp_path):
    result = relax(model, files, tmp_path / "out", "--path")
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "out")
    assert [row["id"] for row in rows] == ["si0", "gold", "si1", "broken", "si2"]
    assert "Au is not among the elements" in rows[1]["message"]
    assert [row["status"] == "StructureError" for row in rows] == [False, True, False, True, False]
    for row in rows[::2]:
        relaxed = Structure.from_file(tmp_path / "out" / f"{row['id']}.cif")
        first = Structure.from_file(row["path"])
        change = relaxed.volume / first.volume - 1
        assert float(row["volume_change"]) == pytest.approx(change, abs=1e-5)
        assert float(row["energy_after_per_atom"]) <= float(row["energy_before_per_atom"]) + 1e-9
        (again,) = Potential.load(model).double().predict([relaxed])
        after = float(row["energy_after_per_atom"])
        assert again["energy_per_atom"] == pytest.approx(after, abs=1e-5)
        assert (tmp_path / "out" / f"{row['id']}.extxyz").read_text().count("Lattice") == (
            int(row["steps"]) + 1
        )


def test_what_is_finished_is_not_done_again(model, files, tmp_path, monkeypatch):
    relax(model, files[:1], tmp_path / "out")
    before = (tmp_path / "out" / "si0.cif").stat().st_mtime_ns
    asked = []
    original = relax_files.relax

    def counted(potential, structures, *rest):
        asked.extend(structures)
        return original(potential, structures, *rest)

    monkeypatch.setattr(relax_files, "relax", counted)
    result = relax(model, files, tmp_path / "out")
    assert result.exit_code == 0 and len(asked) == 2
    assert (tmp_path / "out" / "si0.cif").stat().st_mtime_ns == before
    assert len(table(tmp_path / "out")) == 5
    other = relax(model, files, tmp_path / "out", "--pressure", "3")
    assert other.exit_code == 2 and "another model or other settings" in other.stderr


def test_mistakes_are_one_line(model, files, tmp_path):
    for arguments, message in (
        (["relax", "mp-band-gap", *files, "-o", str(tmp_path / "x")], "reads structures"),
        (["relax", str(model), str(tmp_path / "no.cif"), "-o", str(tmp_path / "y")], ""),
        (["relax", str(model), *files, "-o", str(tmp_path / "z"), "--max-force", "0"], "above 0"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (1, 2) and "Traceback" not in result.output
        assert message in result.stderr
