"""Ground-state searches: local energies, natural gradient, safety, resumption, run folder."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
import optax
import pytest
from hydra import compose, initialize_config_module
from typer.testing import CliRunner

import matattn
from matattn import bundle
from matattn.cli import app
from matattn.conf.schema import register
from matattn.datasets.j1j2 import load
from matattn.errors import BundleError, ConfigError, TrainingError
from matattn.models.factored_attention import TransformerWaveFunction, to_arrays
from matattn.spins import PAULI
from matattn.workflows import run
from matattn.workflows.spins.attention_maps import attention_maps, folded, freeze
from matattn.workflows.spins.engine import Settings, VMCEngine, _blurred
from matattn.workflows.spins.exchange import exchange, local_energies
from matattn.workflows.spins.natural_gradient import natural_gradient
from matattn.workflows.spins.observables import draw, energy, exact_sum, observables, symmetrized

GOLDEN = Path(__file__).parents[1] / "golden" / "wavefunction"
SETTINGS = {
    "steps": 60, "samples": 64, "chains": 8, "blur": 0.5, "sampling": "metropolis",
    "chunk_size": 64, "lr": 0.02, "warmup": 10, "diag_shift": (1e-2, 1e-3), "momentum": 0.8,
    "seed": 0,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def keep_what_was_compiled(tmp_path_factory):
    """Many tests compile the same small steps."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    earlier = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in earlier.items():
        jax.config.update(name, value)


def settings(**changed):
    return Settings(**{**SETTINGS, **changed})


def network(system, **arguments):
    patch = (2,) * len(system.extent)
    given = {"dim": 8, "num_heads": 2, "num_layers": 1} | arguments
    return TransformerWaveFunction(system.extent, patch, **given)


def perturbed(model, system):
    spins = system.hilbert.random_state(jax.random.key(3), 12)
    variables = model.init(jax.random.key(0), spins)
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.3 * generator.normal(size=x.shape), variables), spins


CASES = [
    ("square", "4x4", "factored", {}),
    ("square", "6x6", "spatial", {}),
    pytest.param("chain", "8", "factored", {}, marks=pytest.mark.slow),
    pytest.param("ladder", "6x2", "t5", {}, marks=pytest.mark.slow),
    ("triangular", "4x6", "decoupled", {}),
]


@pytest.mark.parametrize("lattice, extent, attention, more", CASES)
def test_local_energies_are_netkets(lattice, extent, attention, more):
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


def test_incremental_needs_blind_attention():
    system = load("test", "chain", "8", 0.5)
    with pytest.raises(ValueError, match="blind attention"):
        exchange(network(system, attention="t5"), system.bonds[0], 32, incremental=True)


def test_natural_gradient_is_the_golden_one_on_both_sides():
    golden = np.load(GOLDEN / "sr_golden.npz")
    derivatives = np.stack([golden["O"].real, golden["O"].imag], axis=1)
    weights = np.full(12, 1 / 12)
    for columns in (30, 10):  # more and fewer parameters than rows
        some = derivatives[..., :columns]
        found = natural_gradient(some, golden["Eloc"], weights, float(golden["diag_shift"])) / 2
        x = (some - some.mean(0)).reshape(-1, columns) / np.sqrt(12)
        local = (golden["Eloc"] - golden["Eloc"].mean()) / np.sqrt(12)
        f = np.stack([local.real, local.imag], axis=-1).ravel()
        matrix = x.T @ x + float(golden["diag_shift"]) * np.eye(columns)
        wanted = np.linalg.solve(matrix, x.T @ f)
        assert np.abs(found - wanted).max() < 1e-10 * np.abs(wanted).max()
        if columns == 30:
            assert np.abs(found - golden["delta_theta"]).max() < 1e-10


@pytest.mark.slow
def test_without_blur_the_steps_are_netkets():
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
def test_exact_gradient_finds_the_ground_state(attention):
    system = load("test", "chain", "8", 0.0)
    engine = VMCEngine(
        system, network(system, attention=attention),
        settings(sampling="exact", steps=150, warmup=40, diag_shift=(1e-3, 1e-3), momentum=0.0),
    )  # fmt: skip
    ground = system.exact[0][0]
    found = engine.step(150)
    assert -1e-12 < found.energy - ground < 1e-6 * abs(ground)
    assert found.v_score < 1e-5


def test_weights_of_blurred_samples_are_exact():
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


def test_symmetrizing_keeps_one_of_each_class_and_projects():
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


def test_a_frozen_network_with_its_own_maps_is_the_same_state():
    """Where the weights do not depend on the spins, freezing changes nothing."""
    system = load("test", "square", "6x6", 0.5)
    model = network(system, num_layers=2)
    variables, spins = perturbed(model, system)
    maps = attention_maps(model, variables, np.asarray(spins))
    assert maps.shape == (2, 12, 2, 9, 9) and maps.std(1).max() < 1e-15
    frozen, weights = freeze(model, variables, maps.mean(1))
    assert np.abs(frozen.apply(weights, spins) - model.apply(variables, spins)).max() < 1e-12
    alpha = to_arrays(variables)["blocks_0/attention/alpha"]
    assert np.abs(folded(model, maps.mean(1))[0] - alpha).max() < 1e-12


def test_a_resumed_engine_takes_the_same_steps():
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


def test_divergence_rolls_back_and_goes_on():
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


def test_numbers_that_are_none_stop_a_run_without_a_way_back():
    system = load("test", "square", "4x4", 0.5)
    engine = VMCEngine(system, network(system), settings())
    engine.state.parameters = jax.tree.map(lambda x: x * np.nan, engine.state.parameters)
    with pytest.raises(TrainingError, match="the energy is nan per site at step 0; try a lower"):
        engine.step()


def test_settings_that_no_run_can_have():
    with pytest.raises(ConfigError, match="no multiple of task.chains=7"):
        settings(chains=7)
    with pytest.raises(ConfigError, match="expected metropolis or exact"):
        settings(sampling="gibbs")
    system = load("test", "square", "4x4", 0.5)
    with pytest.raises(ConfigError, match="12,870 configurations; at most"):
        VMCEngine(system, network(system), settings(sampling="exact"))


def test_schedules():
    made = settings(steps=100, warmup=10, lr=0.1, diag_shift=(1e-2, 1e-4))
    assert made.rate(0) == pytest.approx(0.01) and made.rate(9) == pytest.approx(0.1)
    assert made.rate(55) == pytest.approx(0.05) and made.rate(100) == pytest.approx(0)
    assert made.shift(0) == 1e-2 and made.shift(30) == pytest.approx(1e-3)
    assert made.shift(60) == pytest.approx(1e-4) == made.shift(90)


SMALL = [
    "model=wavefunction", "model.dim=8", "model.num_heads=2", "model.num_layers=1",
    "task.samples=64", "task.chains=8", "task.chunk_size=64", "task.final_samples=256",
    "task.symmetrized_samples=32", "task.attention_samples=32", "trainer.max_epochs=6",
    "optimizer.warmup=5",
]  # fmt: skip


def configured(folder, *overrides):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        return compose("train", [*SMALL, f"paths.output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run.run(configured(folder, "model.attention=t5"))


def test_run_folder_is_complete(finished):
    folder, metrics = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "metrics.csv", "metrics.json", "observables.json", "report.md",
        "energy.png", "structure_factor.png", "extrapolation.png", "attention.png",
        "checkpoints/last.ckpt",
        "model/model.safetensors", "model/config.json", "model/card.md", "model/SHA256SUMS",
    }  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    fresh = metrics["energies"]["fresh samples"]
    assert {"mean", "error", "variance", "v_score", "tau", "r_hat", "pauli"} <= fresh.keys()
    assert fresh["pauli"] == pytest.approx(4 * fresh["mean"])
    exact = metrics["exact_sum"]["all configurations"]
    assert abs(fresh["mean"] - exact["energy"]) < 5 * fresh["error"]
    assert exact["energy"] > metrics["reference"]["energy"]
    assert fresh["relative_error"] < 0.5 and 0 <= sum(exact["overlaps"]) <= 1
    better = metrics["exact_sum"]["symmetrized, all configurations"]
    assert better["energy"] < exact["energy"]
    attention = metrics["attention"]
    assert np.array(attention["ratio"]).shape == (1, 2) and 0 < attention["fidelity"] <= 1
    report = (folder / "report.md").read_text()
    for text in ("| fresh samples |", "Lanczos", "frozen to its mean", "Marshall sign"):
        assert text in report


def test_observables_of_a_saved_state(finished):
    folder, metrics = finished
    shown = CliRunner().invoke(app, ["predict", str(folder / "model")])
    assert shown.exit_code == 0, shown.output
    rows = {row["observable"]: row for row in csv.DictReader(io.StringIO(shown.stdout))}
    found = rows["energy per site (S.S)"]
    fresh = metrics["energies"]["fresh samples"]
    error = np.hypot(float(found["error"]), fresh["error"])
    assert abs(float(found["value"]) - fresh["mean"]) < 5 * error
    assert float(rows["Marshall sign"]["value"]) > 0.5
    state = matattn.load(folder / "model")
    assert state.log_psi(np.ones((2, 16))).shape == (2,)
    refused = CliRunner().invoke(app, ["predict", str(folder / "model"), "NaCl.cif"])
    assert refused.exit_code == 2 and "needs no input" in refused.stderr
    cited = CliRunner().invoke(app, ["cite", str(folder / "model")])
    assert "ada1a0" in cited.stdout and "2603.18148" in cited.stdout


def test_a_damaged_bundle_is_refused(finished, tmp_path):
    import shutil

    from matattn.files import sha256

    folder = tmp_path / "model"
    shutil.copytree(finished[0] / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["dim"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="checksum differs"):
        matattn.load(folder)
    names = [p.name for p in folder.iterdir() if p.name != "SHA256SUMS"]
    sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)
    with pytest.raises(BundleError, match="do not fit"):
        matattn.load(folder)


def started(folder, devices):
    """A run in a process of its own, with so many of jax's devices, and its progress as a file."""
    train = Path(__file__).parents[2] / "train.py"
    few = ["task.symmetrized_samples=0", "task.attention_samples=0", "trainer.max_epochs=12"]
    environment = dict(os.environ, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    with open(f"{folder}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, train, *SMALL, *few, f"paths.output_dir={folder}"],
            env=environment, stderr=log, stdout=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_terminated_runs_resume_bit_for_bit(tmp_path, devices):
    whole, cut = (started(tmp_path / name, devices) for name in ("whole", "cut"))
    log = tmp_path / "cut.log"
    while "epoch 2/" not in log.read_text() and cut.poll() is None:
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(300) == 143, log.read_text()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    again = started(tmp_path / "cut", devices)
    assert again.wait(300) == 0 and whole.wait(300) == 0, log.read_text()
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_run_starts_from_another(finished, tmp_path):
    start = f"init_from={finished[0] / 'model'}"
    metrics = run.run(
        configured(tmp_path, start, "data.j2=0.4", "trainer.max_epochs=1", "model.attention=t5")
    )
    assert metrics["energies"]["fresh samples"]["relative_error"] < 0.5
    with pytest.raises(BundleError, match="for another lattice"):
        run.run(configured(tmp_path / "b", start, "data.extent=6x6"))
    with pytest.raises(ConfigError, match="Crystalformer is no wave function"):
        run.run(configured(tmp_path / "c", "init_from=mp-band-gap"))
    with pytest.raises(BundleError, match="is no torch network"):
        bundle.load(finished[0] / "model")


@pytest.mark.parametrize(
    "override, message",
    [
        ("task.samples=65", "no multiple of task.chains"),
        ("data.lattice=triangular", "odd loops"),
        ("model.patch=3", "do not divide"),
        ("data.total_sz=0.5", "does not exist"),
        ("trainer.devices=2", "use all devices that jax sees"),
        ("+trainer.strategy=ddp", "one process"),
        ("task.blur=1.0", "to below 1"),
        ("model.num_heads=8", "heads of width 1"),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    with pytest.raises(matattn.errors.MatattnError, match=message):
        run.run(configured(tmp_path, override))
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "netket", None)
    for name in [name for name in sys.modules if name.startswith("matattn.workflows.")]:
        if name.rsplit(".", 1)[1].startswith(("spin_", "vmc_", "variational", "natural_")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="needs the package netket.*matattn.all"):
        run.run(configured(tmp_path))


def test_short_chains_are_told(tmp_path):
    from matattn.workflows.spins.train import prepare

    register()
    cfg = configured(tmp_path, "task.chains=32")
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(cfg, resolve=True)
    for section, key in (("model", "name"), ("data", "kind"), ("task", "data_kind")):
        config[section].pop(key)
    with pytest.warns(UserWarning, match="2 samples per chain"):
        prepare(config)
    config["task"]["chains"] = 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(config)
