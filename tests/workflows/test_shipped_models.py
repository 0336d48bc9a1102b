"""The models that come with matattn predict what they predicted when they were released."""

import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import matattn
from matattn import pretrained
from matattn.datasets import crystals
from matattn.structures.files import read
from matattn.units import PROPERTIES
from matattn.workflows.potentials.properties import at_rest, elastic_constants
from matattn.workflows.reporting import without_folders
from matattn.workflows.structures.predict import encode

ROOT = Path(__file__).parents[2]
# {model: {formula: [value, lower, upper]}} of docs/examples/*.cif
GOLDEN = json.loads((ROOT / "tests" / "golden" / "shipped_models.json").read_text())
OF_PROPERTIES, POTENTIALS = pretrained.names("structures"), pretrained.names("potentials")


def test_every_shipped_model_has_golden_predictions():
    assert pretrained.names() == sorted(GOLDEN)


@pytest.mark.parametrize("name", OF_PROPERTIES)
def test_golden_predictions(name):
    model = matattn.load(name)
    target = model.targets[0]["name"]
    structures = [
        read(ROOT / "docs" / "examples" / f"{formula}.cif")[0] for formula in GOLDEN[name]
    ]
    for row, expected in zip(model.predict(structures), GOLDEN[name].values(), strict=True):
        found = [row[target], row[f"{target}_lower"], row[f"{target}_upper"]]
        assert found == pytest.approx(expected, abs=3e-4), row["formula"]
        assert row["status"] == "ok" and row["ood_flag"] is False


@pytest.mark.parametrize("name", pretrained.names())
def test_cards_name_no_folder_of_a_machine(name):
    for file in ("card.md", "config.json"):
        text = (pretrained.find(name) / file).read_text()
        assert without_folders(text) == text


@pytest.mark.parametrize("name", OF_PROPERTIES)
def test_a_shipped_model_says_what_it_is(name):
    folder = pretrained.find(name)
    config = json.loads((folder / "config.json").read_text())
    card = (folder / "card.md").read_text()
    assert config["licence"] == "CC-BY 4.0" and config["licence"] in card
    for target in config["targets"]:
        assert target["unit"] == PROPERTIES[target["name"]].unit
        assert target["name"] in card
        assert config["metrics"]["val"][target["name"]]["interval"]["coverage"] > 0.8
    assert "not comparable" in card and "/tmp" not in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6


@pytest.mark.parametrize("name", POTENTIALS)
def test_golden_crystal(name):
    """Cubic lattice constant (Å), elastic constants (GPa), intervals of energies and forces."""
    potential, expected = matattn.load(name), GOLDEN[name]
    crystal = Structure.from_spacegroup(
        expected["space_group"], Lattice.cubic(1.01 * expected["a"]), [expected["element"]],
        [[0, 0, 0]],
    )  # fmt: skip
    rest = at_rest(potential, crystal).structure
    assert rest.lattice.a == pytest.approx(expected["a"], abs=1e-3)
    stiffness = elastic_constants(potential, rest).relaxed
    for place, value in zip(((0, 0), (0, 1), (3, 3)), expected["stiffness"], strict=True):
        assert stiffness[place] == pytest.approx(value, rel=2e-3)
    (row,) = potential.predict([rest])
    assert row["energy_per_atom"] == pytest.approx(expected["energy_per_atom"], abs=1e-4)
    assert row["energy_per_atom_lower"] < row["energy_per_atom"] < row["energy_per_atom_upper"]
    assert row["force_half_width"] < 1 and row["ood_flag"] is False


@pytest.mark.parametrize("name", POTENTIALS)
def test_a_shipped_potential_says_what_it_is(name):
    folder = pretrained.find(name)
    card = (folder / "card.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["licence"] in card and "Where it must not be used" in card
    assert "/tmp" not in card and sum(p.stat().st_size for p in folder.iterdir()) < 2e6


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PROPERTIES)
def test_validation_error_is_the_recorded_one(name, data_dir):
    model = matattn.load(name)
    names = [target["name"] for target in model.targets]
    data = crystals.load("mp", str(data_dir / "crystals" / "mp2018.jsonl.gz"), names)
    rows = data.rows("val")
    values = model.values(encode(model.network, [data.items[row] for row in rows]))
    for column, target in enumerate(names):
        error = np.nanmean(np.abs(values[:, column] - data.labels()[rows, column]))
        recorded = model.config["metrics"]["val"][target]["mae"]
        assert error == pytest.approx(recorded, abs=1e-4)
