"""Observables, against exact diagonalisation."""

import json
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from matattn.datasets.j1j2 import load
from matattn.workflows.spins.observables import draw, energy, exact_sum, observables, symmetrized

GOLDEN = Path(__file__).parents[2] / "golden" / "wavefunction"


class Table(nn.Module):
    """Any state: its amplitude by the number whose bit i says that spin i is up."""

    psi: tuple

    @nn.compact
    def __call__(self, spins):
        number = ((spins > 0) * (1 << np.arange(spins.shape[-1]))).sum(-1)
        scale = self.param("scale", nn.initializers.ones, (), float)
        amplitude = jnp.asarray(np.array(self.psi))[number] * scale
        return jnp.log(jnp.maximum(jnp.abs(amplitude), 1e-30)) + 1j * jnp.angle(amplitude)


@pytest.fixture(scope="module")
def ground_state():
    """The exact state of 4x4 sites at J2 = 0.5 in the rotated basis, as a network."""
    golden = np.load(GOLDEN / "square4x4_J2_0.5_ground_state.npz")
    system = load("test", "square", "4x4", 0.5)
    up = (golden["states"][:, None] >> np.flatnonzero(system.sublattice > 0)) & 1
    table = np.zeros(2**16)
    table[golden["states"]] = golden["psi"] * (1 - 2 * (up.sum(1) % 2))
    return system, Table(tuple(table)), {"params": {"scale": jnp.ones(())}}


def test_observables_of_the_exact_ground_state(ground_state):
    system, model, variables = ground_state
    row = next(r for r in json.loads((GOLDEN / "ed_energies.json").read_text())["systems"][
        "square_4x4_P"] if r["J2"] == 0.5)  # fmt: skip
    exact = exact_sum(system, model, variables, 4096)
    assert exact.energy == pytest.approx(row["E0"] / 16, abs=1e-10)
    assert exact.variance < 1e-18 and exact.overlaps[0] == pytest.approx(1, abs=1e-10)
    spins = draw(system, model, variables, 4096, 64, 4096, seed=0)
    found = energy(system, model, variables, spins, 4096)
    assert found.mean == pytest.approx(row["E0"] / 16, abs=1e-9)  # zero variance
    assert found.v_score < 1e-12 and found.pauli == pytest.approx(4 * found.mean)
    seen = observables(system, model, variables, spins, 4096)
    peak = row["S_q_full"]["pi_pi"]
    assert seen.structure_factor[2, 2] == pytest.approx(
        peak, abs=5 * seen.structure_factor_error[2, 2]
    )
    assert seen.structure_factor_error[2, 2] < 0.05 * peak
    assert seen.staggered[0] == pytest.approx(seen.structure_factor[2, 2] / 16)
    assert abs(seen.total_spin) < 1e-8  # a singlet, sample by sample
    sign, error = seen.sign
    assert sign == pytest.approx(row["marshall_avg_sign"], abs=5 * error + 1e-3)
    first = seen.correlations[[1, 3, 4, 12]]
    assert first.mean() == pytest.approx(row["SS_nn_mean"], abs=0.01)


@pytest.mark.slow
def test_observables_without_marshall_are_the_same(ground_state):
    """A state in the plain basis: the sign is looked up, correlations do not change."""
    system, model, variables = ground_state
    plain = load("test", "square", "4x4", 0.5, marshall=False)
    golden = np.load(GOLDEN / "square4x4_J2_0.5_ground_state.npz")
    table = np.zeros(2**16)
    table[golden["states"]] = golden["psi"]
    other = Table(tuple(table))
    spins = draw(system, model, variables, 512, 64, 4096, seed=0)
    one = observables(system, model, variables, spins, 4096)
    two = observables(plain, other, variables, spins, 4096)
    assert np.abs(one.structure_factor - two.structure_factor).max() < 1e-9
    assert one.sign == pytest.approx(two.sign, abs=1e-9)
    assert energy(plain, other, variables, spins, 4096).mean == pytest.approx(-0.5286202095)


def test_symmetrizing_keeps_one_of_each_class_and_projects(network, perturbed):
    system = load("test", "square", "4x4", 0.5)
    model = network(system)
    variables, spins = perturbed(model, system)
    wrapped, weights = symmetrized(system, model, variables)
    assert len(wrapped.permutations) == 128 // 4 and wrapped.flip
    psi = np.exp(wrapped.apply(weights, spins))
    for permutation in system.symmetries[::17]:
        images = np.asarray(spins)[:, permutation]
        assert np.exp(wrapped.apply(weights, images)) == pytest.approx(psi, rel=1e-9)
        assert np.exp(wrapped.apply(weights, -images)) == pytest.approx(psi, rel=1e-9)
