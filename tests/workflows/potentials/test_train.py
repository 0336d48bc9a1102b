"""A small potential from the command's configuration to ASE."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.errors import BundleError, ConfigError, StructureError
from matattn.training import run_log
from matattn.workflows.run import run
from matattn.workflows.task import TASKS


@pytest.fixture
def potential(trained):
    return matattn.load(trained[0] / "model")


def test_it_learns(trained):
    folder, metrics = trained
    for name, unit in {"energy_per_atom": "meV/atom", "forces": "eV/Å", "stress": "GPa"}.items():
        result = metrics["test"][name]
        assert result["unit"] == unit
        assert result["mae"] < 0.7 * result["baselines"]["none"], name
    assert set(metrics["groups"]["train"]) == {"MD", "vacancy", "surface", "strained"}
    report = (folder / "report.md").read_text()
    assert "Where it must not be used" in report and "elements other than Si" in report
    assert (folder / "parity.png").is_file()
    name, value = TASKS["interatomic_potential"].objective(metrics)
    assert name == "val MAE of forces, eV/Å" and value == metrics["val"]["forces"]["mae"]
    table = (folder / "predictions.csv").read_text().splitlines()
    assert len(table) == 1 + 24 + 4 + 6


class Stopped(Exception):
    """Ends a training in the middle."""


def test_a_run_that_was_cut_ends_with_the_same_bits(
    compose, small, assert_same_bits, tmp_path, monkeypatch
):
    def train(folder):
        run(compose(*small, "trainer.max_epochs=3", f"paths.output_dir={tmp_path / folder}"))

    train("whole")

    def stop(self, trainer, module):
        if trainer.current_epoch == 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(Stopped):
            train("cut")
    assert not (tmp_path / "cut" / "metrics.json").exists()
    train("cut")
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")


def test_calculator_is_the_potential(potential):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = potential.calculator()
    structure = Structure(Lattice(np.array(atoms.cell)), ["Si"] * 8, atoms.positions,
                          coords_are_cartesian=True)  # fmt: skip
    found = potential.double().evaluate([structure])
    assert atoms.get_potential_energy() == pytest.approx(found.energy.item(), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), found.forces.numpy(), atol=1e-9)
    stress = found.stress[0].numpy()
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=1e-9)
    energies = atoms.calc.get_property("energies", atoms)
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    forces, ends = atoms.get_forces(), []
    for step in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[3, 1] += step
        ends.append(moved.get_potential_energy())
    assert forces[3, 1] == pytest.approx(-(ends[0] - ends[1]) / 2e-4, abs=1e-6)


def test_float32_is_near(potential):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = potential.calculator()
    exact = atoms.get_forces()
    atoms.calc = potential.calculator("float32")
    assert np.abs(atoms.get_forces() - exact).max() < 1e-4
    double, single = potential.calculator(), potential.calculator("float32")
    dtypes = [c.potential.dtype for c in (double, single)]
    assert dtypes == [torch.float64, torch.float32]  # the last one made does not decide for both
    assert single.potential.network.constants.dtype == torch.float64
    energies = [c.get_potential_energy(atoms) for c in (double, single)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-4)
    with pytest.raises(ValueError, match="choose float64, float32"):
        potential.calculator("bfloat16")


def test_what_it_cannot_know_is_refused(potential, trained):
    gold = Atoms("Au", pbc=True, cell=4 * np.eye(3), calculator=potential.calculator())
    with pytest.raises(StructureError, match="Au is not among the elements of this potential: Si"):
        gold.get_potential_energy()
    sheet = Atoms("Si", pbc=[True, True, False], cell=4 * np.eye(3))
    sheet.calc = potential.calculator()
    with pytest.raises(StructureError, match="periodic in some directions only"):
        sheet.get_potential_energy()
    from matattn.workflows.potentials.predict import Potential

    with pytest.raises(BundleError, match="reads structures; a potential is"):
        Potential.load("mp-band-gap")
    config = json.loads((trained[0] / "model" / "config.json").read_text())
    assert config["kind"] == "potentials" and config["elements"] == [14]


def test_strange_bundles_are_refused(trained, tmp_path):
    strange = tmp_path / "model"
    shutil.copytree(trained[0] / "model", strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"elements": ["Si"]}))
    sums = (strange / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((strange / "config.json").read_bytes()).hexdigest()
    sums = [f"{digest}  config.json" if line.endswith("config.json") else line for line in sums]
    (strange / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    with pytest.raises(BundleError, match="expected a list of atomic numbers"):
        matattn.load(strange)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.shift=0.5"], "task.shift"),
        (["task.energy_weight=0", "task.forces_weight=0", "task.stress_weight=0"], "above 0"),
        (["data.sizes=[24,0,0]", "task.select=best"], "needs validation rows"),
        (["trainer.precision=bf16-mixed"], "need the digits of 32-true"),
    ],
)
def test_bad_settings_are_refused(compose, small, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(compose(*small, f"paths.output_dir={tmp_path}", *overrides))


def test_command_predicts_files_row_by_row(trained, tmp_path):
    Structure(Lattice.cubic(5.43), ["Si"], [[0, 0, 0]]).to(str(tmp_path / "a.cif"))
    Structure(Lattice.cubic(4.0), ["Au"], [[0, 0, 0]]).to(str(tmp_path / "b.cif"))
    (tmp_path / "c.cif").write_text("nothing")
    files = [str(tmp_path / name) for name in ("a.cif", "b.cif", "c.cif")]
    result = CliRunner().invoke(app, ["predict", str(trained[0] / "model"), *files])
    assert result.exit_code == 0, result.output
    good, gold, broken = csv.DictReader(result.stdout.splitlines())
    assert good["status"] == "ok" and good["energy_unit"] == "eV" and good["pressure_unit"] == "GPa"
    assert float(good["max_force"]) < 1e-4  # by symmetry
    assert gold["status"] == "StructureError" and "Au is not among" in gold["message"]
    assert broken["status"] == "StructureError" and not broken["energy"]
    for command in (
        ["explain", str(trained[0] / "model"), files[0], "-o", str(tmp_path / "x")],
        ["embed", str(trained[0] / "model"), files[0], "-o", str(tmp_path / "x.npz")],
    ):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2 and "error:" in refused.stderr
