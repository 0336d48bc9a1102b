"""Intervals of a small potential: where they come from, where they hold, and where it says so."""

import csv
import json

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.workflows.run import run


@pytest.fixture(scope="module")
def calibrated(compose, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    sizes = ["data.sizes=[24,24,12]", "trainer.max_epochs=12", f"paths.output_dir={folder}"]
    return folder, run(compose(*small, *sizes))


@pytest.fixture
def potential(calibrated):
    return matattn.load(calibrated[0] / "model")


def diamond(lattice=5.431):
    places = [[0, 0, 0], [0.25, 0.25, 0.25]]
    return Structure(Lattice.from_parameters(*[lattice / 2**0.5] * 3, 60, 60, 60), ["Si"] * 2,
                     places)  # fmt: skip


def test_nine_of_ten_validation_labels_are_inside(calibrated):
    rows = {(row["split"], row["group"]): row for row in calibrated[1]["intervals"]}
    assert {split for split, _ in rows} == {"val", "test"}
    everything = rows["val", ""]
    assert everything["structures"] == 24
    assert 0.9 <= everything["forces"]["coverage"] < 0.93
    assert everything["energy_per_atom"]["coverage"] >= 0.9
    assert everything["flagged"] <= 0.02
    assert rows["test", ""]["forces"]["coverage"] > 0.6
    report = (calibrated[0] / "report.md").read_text()
    assert "## Intervals" in report and "test, surface" in report


def test_a_row_has_the_intervals_of_its_structure(potential):
    near, far = potential.predict([diamond(), diamond(4.4)])
    assert near["energy_per_atom_lower"] < near["energy_per_atom"] < near["energy_per_atom_upper"]
    assert near["force_half_width"] > 0 and near["ood_score"] < 1 and near["ood_flag"] is False
    assert far["ood_flag"] is True and "unlike those of the training" in far["message"]
    width = near["energy_per_atom_upper"] - near["energy_per_atom"]
    assert far["energy_per_atom_upper"] - far["energy_per_atom"] > 2 * width


def test_the_calculator_gives_the_same(potential):
    (row,) = potential.predict([diamond()])
    atoms = bulk("Si", a=5.431)
    atoms.calc = potential.calculator()
    atoms.get_potential_energy()
    results = atoms.calc.results
    assert results["forces_half_width"].shape == results["novelty"].shape == (2,)
    half = row["energy_per_atom_upper"] - row["energy_per_atom"]
    assert results["energy_half_width"] == pytest.approx(2 * half, rel=1e-3)
    assert results["forces_half_width"].max() == pytest.approx(row["force_half_width"], rel=1e-3)
    assert results["novelty"].max() == pytest.approx(row["ood_score"], rel=1e-3)


def test_relaxed_crystals_are_flagged(calibrated, tmp_path):
    diamond().to(str(tmp_path / "near.cif"))
    output = tmp_path / "relaxed"
    command = ["relax", str(calibrated[0] / "model"), str(tmp_path / "near.cif"), "-o", str(output)]
    CliRunner().invoke(app, command)
    (row,) = csv.DictReader((output / "relaxed.csv").read_text().splitlines())
    assert float(row["ood_score"]) > 0 and row["ood_flag"] in ("True", "False")


def test_without_enough_structures_there_are_none(trained):
    assert "intervals" not in trained[1]
    (row,) = matattn.load(trained[0] / "model").predict([diamond()])
    assert row["energy_per_atom_lower"] is None and row["ood_flag"] is None
    assert "There are no intervals" in (trained[0] / "report.md").read_text()


def test_rows_that_chose_the_checkpoint_calibrate_nothing(compose, small, tmp_path):
    settings = ["data.sizes=[24,24,12]", "trainer.max_epochs=1", "task.select=best"]
    metrics = run(compose(*small, *settings, f"paths.output_dir={tmp_path}"))
    assert "intervals" not in metrics
    assert "uncertainty" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_labels_without_energies_have_no_interval_of_energies(compose, small, tmp_path):
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for number in range(60):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=number)
        forces = np.random.default_rng(number).normal(size=(8, 3))
        atoms.calc = SinglePointCalculator(atoms, forces=forces - forces.mean(0))
        atoms.info["split"] = "train" if number < 30 else "val"
        frames.append(atoms)
    write(tmp_path / "forces.extxyz", frames, format="extxyz")
    settings = [one for one in small if not one.startswith("data.")]
    metrics = run(compose(*settings, "data=potential_files", f"data.path={tmp_path}/forces.extxyz",
                          "data.split=official", "trainer.max_epochs=1",
                          f"paths.output_dir={tmp_path}/run"))  # fmt: skip
    (row,) = metrics["intervals"]
    assert "forces" in row and "energy_per_atom" not in row
    (row,) = matattn.load(tmp_path / "run" / "model").predict([diamond()])
    assert row["force_half_width"] > 0 and row["energy_per_atom_lower"] is None
