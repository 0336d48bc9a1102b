"""Local energies from differences, against netket's."""

import jax
import numpy as np
import pytest

from matattn.datasets.j1j2 import load
from matattn.spins import PAULI
from matattn.workflows.spins.exchange import exchange, local_energies

CASES = [
    ("square", "4x4", "factored", {}),
    ("square", "6x6", "spatial", {}),
    pytest.param("chain", "8", "factored", {}, marks=pytest.mark.slow),
    pytest.param("ladder", "6x2", "t5", {}, marks=pytest.mark.slow),
    ("triangular", "4x6", "decoupled", {}),
]


@pytest.mark.parametrize("lattice, extent, attention, more", CASES)
def test_local_energies_are_netkets(network, perturbed, lattice, extent, attention, more):
    system = load("test", lattice, extent, 0.5, marshall=lattice != "triangular")
    model = network(system, attention=attention, **more)
    variables, spins = perturbed(model, system)
    connected, elements = system.hamiltonian.get_conn_padded(spins)
    psi = model.apply(variables, spins)
    ratios = np.exp(model.apply(variables, connected) - psi[:, None])
    wanted = (elements * ratios).sum(-1) / (PAULI * system.sites)
    for incremental in (False, None):
        ratios_of = jax.jit(exchange(model, system.bonds[0], 1024, incremental))
        log_psi, found = ratios_of(variables, spins)
        assert np.abs(log_psi - psi).max() < 1e-12
        difference = np.abs(local_energies(system, spins, found) - wanted)
        assert difference.max() < 1e-12 * np.abs(wanted).max()


def test_incremental_needs_blind_attention(network):
    system = load("test", "chain", "8", 0.5)
    with pytest.raises(ValueError, match="blind attention"):
        exchange(network(system, attention="t5"), system.bonds[0], 32, incremental=True)
