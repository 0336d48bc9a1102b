"""The search: its steps, safety and resumption."""

import jax
import netket as nk
import numpy as np
import optax
import pytest

from matattn.datasets.j1j2 import load
from matattn.errors import ConfigError, TrainingError
from matattn.models.factored_attention import to_arrays
from matattn.workflows.spins.engine import VMCEngine, _blurred
from matattn.workflows.spins.exchange import exchange


@pytest.mark.slow
def test_without_blur_the_steps_are_netkets(settings, network):
    system = load("test", "square", "4x4", 0.5)
    model = network(system)
    own = settings(blur=0.0, diag_shift=(1e-2, 1e-2), steps=10**6, warmup=1)
    engine = VMCEngine(system, model, own)
    sampler = nk.sampler.MetropolisExchange(
        system.hilbert, graph=system.graph, d_max=2, n_chains=8, sweep_size=16
    )
    state = nk.vqs.MCState(
        sampler, model, n_samples=64, n_discard_per_chain=0, seed=0, sampler_seed=1
    )
    driver = nk.driver.VMC_SR(
        system.hamiltonian, optax.sgd(0.02), diag_shift=1e-2, momentum=0.8,
        variational_state=state, use_ntk=True, on_the_fly=False, mode="complex",
    )  # fmt: skip
    for _ in range(3):
        engine.step()
        driver.run(1, out=None, show_progress=False)
    ours, theirs = (to_arrays(s.variables) for s in (engine, state))
    assert max(np.abs(ours[key] - theirs[key]).max() for key in ours) < 1e-9


@pytest.mark.parametrize("attention", ["factored", "t5"])
def test_exact_gradient_finds_the_ground_state(settings, network, attention):
    system = load("test", "chain", "8", 0.0)
    engine = VMCEngine(
        system, network(system, attention=attention),
        settings(sampling="exact", steps=150, warmup=40, diag_shift=(1e-3, 1e-3), momentum=0.0),
    )  # fmt: skip
    ground = system.exact[0][0]
    found = engine.step(150)
    assert -1e-12 < found.energy - ground < 1e-6 * abs(ground)
    assert found.v_score < 1e-5


def test_weights_of_blurred_samples_are_exact(network, perturbed):
    """The density of blurred samples, summed over all configurations one by one."""
    system = load("test", "chain", "8", 0.5)
    model = network(system)
    variables, _ = perturbed(model, system)
    spins = np.asarray(system.hilbert.all_states())
    number = {tuple(row): k for k, row in enumerate(spins.tolist())}
    log_psi, ratios = jax.jit(exchange(model, system.bonds[0], 64))(variables, spins)
    probability = np.asarray(jax.nn.softmax(2 * log_psi.real))
    blurred = 0.7 * probability
    for row, mass in zip(spins, probability, strict=True):
        for i, j in system.bonds[0]:
            moved = row.copy()
            moved[[i, j]] = moved[[j, i]]
            blurred[number[tuple(moved.tolist())]] += 0.3 * mass / len(system.bonds[0])
    weights = 1 / (0.7 + 0.3 * (np.abs(ratios) ** 2).mean(-1))
    assert blurred.sum() == pytest.approx(1)
    assert np.abs(weights * blurred - probability).max() < 1e-14


def test_blurring_exchanges_a_share_of_the_rows():
    system = load("test", "square", "4x4", 0.5)
    spins = system.hilbert.random_state(jax.random.key(0), 4000)
    moved = _blurred(spins, system.bonds[0], 0.5, jax.random.key(1))
    assert (moved.sum(-1) == spins.sum(-1)).all()
    changed = np.asarray((moved != spins).sum(-1))
    assert set(np.unique(changed).tolist()) == {0, 2}
    one, other = system.bonds[0].T
    antiparallel = float((spins[:, one] != spins[:, other]).mean())
    assert (changed > 0).mean() == pytest.approx(0.5 * antiparallel, abs=0.03)


def test_a_resumed_engine_takes_the_same_steps(settings, network):
    system = load("test", "square", "4x4", 0.5)
    model = network(system)
    whole = VMCEngine(system, model, settings())
    whole.step(13)
    again = VMCEngine(system, model, settings())
    again.from_bytes(whole.to_bytes())
    for engine in (whole, again):
        engine.step(12)
    one, other = (to_arrays(engine.variables) for engine in (whole, again))
    assert all((one[key] == other[key]).all() for key in one)
    assert whole.last == again.last


def test_divergence_rolls_back_and_goes_on(settings, network):
    system = load("test", "square", "4x4", 0.5)
    engine = VMCEngine(system, network(system), settings())
    engine.step(35)
    energy_before = engine.last.energy
    healthy = to_arrays(engine.variables)
    broken = {"params": jax.tree.map(lambda x: x + 3.0, engine.state.parameters)}
    engine.state.parameters = broken["params"]
    found = engine.step(2)
    assert engine.rollbacks == 1 and engine.step_count < 35
    assert found.energy < energy_before + 0.1
    assert all(np.isfinite(array).all() for array in to_arrays(engine.variables).values())
    assert healthy.keys() == to_arrays(engine.variables).keys()


def test_numbers_that_are_none_stop_a_run_without_a_way_back(settings, network):
    system = load("test", "square", "4x4", 0.5)
    engine = VMCEngine(system, network(system), settings())
    engine.state.parameters = jax.tree.map(lambda x: x * np.nan, engine.state.parameters)
    with pytest.raises(TrainingError, match="the energy is nan per site at step 0; try a lower"):
        engine.step()


def test_settings_that_no_run_can_have(settings, network):
    with pytest.raises(ConfigError, match="no multiple of task.chains=7"):
        settings(chains=7)
    with pytest.raises(ConfigError, match="expected metropolis or exact"):
        settings(sampling="gibbs")
    system = load("test", "square", "4x4", 0.5)
    with pytest.raises(ConfigError, match="12,870 configurations; at most"):
        VMCEngine(system, network(system), settings(sampling="exact"))


def test_schedules(settings):
    made = settings(steps=100, warmup=10, lr=0.1, diag_shift=(1e-2, 1e-4))
    assert made.rate(0) == pytest.approx(0.01) and made.rate(9) == pytest.approx(0.1)
    assert made.rate(55) == pytest.approx(0.05) and made.rate(100) == pytest.approx(0)
    assert made.shift(0) == 1e-2 and made.shift(30) == pytest.approx(1e-3)
    assert made.shift(60) == pytest.approx(1e-4) == made.shift(90)
