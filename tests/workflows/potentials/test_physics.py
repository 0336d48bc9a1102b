"""The physics of the exact model, beside itself, and what a report shows of a small potential."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from matattn.datasets import stillinger_weber
from matattn.workflows.potentials import physics
from matattn.workflows.potentials.energy_model import Exact
from matattn.workflows.potentials.physics import most_stable, physics_of
from matattn.workflows.run import run


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(physics, "STEPS", 20)


@pytest.fixture(scope="module")
def dataset():
    return stillinger_weber.load("silicon", [24, 4, 6])


def test_the_exact_model_is_the_truth(exact, dataset):
    found = physics_of(exact, exact, dataset)
    assert found.crystal == "Si, Fd-3m" and found.truth == "Stillinger-Weber" and not found.remarks
    rows = {row["quantity"]: row for row in found.rows}
    for name, value in {"lattice constant a": 5.431, "C11": 151.4, "C12": 76.4, "C44": 56.4,
                        "highest phonon at Γ": 17.83}.items():  # fmt: skip
        assert rows[name]["potential"] == pytest.approx(value, rel=0.01)
        assert rows[name]["truth"] == pytest.approx(rows[name]["potential"], rel=1e-6)
    assert abs(rows["lowest phonon anywhere"]["potential"]) < 0.01
    assert rows["energy that forces do not explain, across the range"]["potential"] < 1e-7
    assert rows["time for energy and forces, an atom"]["potential"] > 0
    assert set(found.figures) == {"eos.png", "phonons.png", "dynamics.png"}


def test_without_a_labeller_strained_crystals_are_the_truth(exact, dataset, monkeypatch):
    rows, strains = list(range(30)), np.random.default_rng(0).uniform(-0.03, 0.03, (30, 6))
    monkeypatch.setattr(physics, "strained_crystals", lambda frames: (rows, strains))
    found = physics_of(exact, exact, replace(dataset, labeller=None))
    kept = [row for row in found.rows if "strained crystals" in row["quantity"]]
    assert len(kept) == 3 and found.truth == "labels"
    for row in kept:
        assert row["potential"] == pytest.approx(row["truth"], rel=1e-6)


def test_the_most_stable_structure_has_the_lowest_energy(dataset):
    frame = most_stable(dataset)
    energies = [dataset.frames[r].energy / len(dataset.frames[r].z) for r in dataset.rows("train")]
    assert frame.energy / len(frame.z) == min(energies) and frame.group != "vacancy"
    unknown = [replace(one, energy=np.nan) for one in dataset.frames]
    calm = most_stable(replace(dataset, frames=unknown))
    forces = [np.abs(dataset.frames[row].forces).max() for row in dataset.rows("train")]
    assert np.abs(calm.forces).max() == min(forces)


def test_a_potential_that_is_lost_is_a_remark(exact, dataset):
    """Its crystal flies apart, or it gives no numbers."""

    class Lost(Exact):
        def energy(self, batch):
            return -10 * torch.linalg.det(batch.cell).abs() + super().energy(batch)

    class Nothing(Exact):
        def energy(self, batch):
            return torch.nan * super().energy(batch)

    found = physics_of(Lost(exact.labeller), exact, dataset)
    assert "the potential is lost here" in found.remarks[0] and not found.crystal
    found = physics_of(Nothing(exact.labeller), exact, dataset)
    assert len(found.remarks) == 2 and "after 0 fs the forces are no numbers" in found.remarks[1]
    assert all(row["potential"] is None or np.isfinite(row["potential"]) for row in found.rows)


def test_what_libraries_raise_is_a_remark(exact, dataset, monkeypatch):
    def fail(*_):
        raise RuntimeError("no\nsymmetry")

    monkeypatch.setattr(physics, "SpacegroupAnalyzer", fail)
    found = physics_of(exact, exact, dataset)
    assert found.remarks[0].endswith("RuntimeError: no symmetry") and found.rows


def test_a_report_shows_it(compose, small, tmp_path):
    settings = [one for one in small if not one.startswith("task.physics")]
    metrics = run(compose(*settings, "trainer.max_epochs=1", f"paths.output_dir={tmp_path}"))
    assert any(row["quantity"].startswith("drift") for row in metrics["physics"])
    report = (tmp_path / "report.md").read_text()
    assert "## Physics" in report and "Stillinger-Weber" in report and "µs" in report
    assert (tmp_path / "dynamics.png").is_file() and "dynamics.png" in report
