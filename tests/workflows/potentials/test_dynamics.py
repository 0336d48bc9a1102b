"""Energies that belong to their forces, and energies that do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from matattn.datasets import stillinger_weber
from matattn.errors import StructureError
from matattn.potentials.dataset import Frame, Labeller
from matattn.structures.batch import edge_vector
from matattn.workflows.potentials.dynamics import constant_energy, scan
from matattn.workflows.potentials.energy_model import Exact


@pytest.fixture
def frame():
    pos, cell = stillinger_weber.crystal(1)
    pos = pos + np.random.default_rng(0).normal(scale=0.05, size=pos.shape)
    nothing = np.full((8, 3), np.nan)
    return Frame("a", np.full(8, 14), pos, cell, np.nan, nothing, nothing[:3])


def with_jumps(batch):
    """Every neighbour within 3.75 Å gives a meV, at once."""
    near = (edge_vector(batch).detach().norm(dim=1) < 3.75).double()
    counts = near.new_zeros(batch.num_graphs).index_add(0, batch.batch[batch.edge_index[1]], near)
    return stillinger_weber.energy(batch) + 1e-3 * counts


def test_a_smooth_energy_is_explained_by_its_forces(exact, frame):
    assert scan(exact, frame) < 1e-7


def test_jumps_are_found(frame):
    assert scan(Exact(Labeller("jumps", with_jumps, 4.0)), frame) > 1e-3


def test_energy_stays_in_dynamics(exact, frame):
    found = constant_energy(exact, frame, 200)
    assert len(found.times) == 201 and found.times[-1] == pytest.approx(0.2)
    assert found.energies[0] == 0 and abs(found.energies).max() < 1e-3
    assert abs(found.drift) < 2 and found.scatter < 0.2
    again = constant_energy(exact, frame, 200)
    np.testing.assert_array_equal(found.energies, again.energies)


def test_steps_that_are_half_as_long_scatter_a_quarter(exact, frame, monkeypatch):
    """Velocity Verlet is of second order."""
    whole = constant_energy(exact, frame, 100).scatter
    monkeypatch.setattr("matattn.workflows.potentials.dynamics.TIME_STEP", 0.5)
    assert constant_energy(exact, frame, 200).scatter == pytest.approx(whole / 4, rel=0.3)


def test_forces_that_are_no_numbers_end_it(frame):
    nothing = Exact(Labeller("nothing", lambda b: stillinger_weber.energy(b) * torch.nan, 4.0))
    with pytest.raises(StructureError, match="after 0 fs the forces are no numbers"):
        constant_energy(nothing, replace(frame), 10)
