"""A small ground-state search, and what its parts need."""

import jax
import numpy as np
import pytest

from matattn.models.factored_attention import TransformerWaveFunction
from matattn.workflows import run
from matattn.workflows.spins.engine import Settings

SETTINGS = {
    "steps": 60, "samples": 64, "chains": 8, "blur": 0.5, "sampling": "metropolis",
    "chunk_size": 64, "lr": 0.02, "warmup": 10, "diag_shift": (1e-2, 1e-3), "momentum": 0.8,
    "seed": 0,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
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


@pytest.fixture(scope="session")
def settings():
    """Return a function: the settings of a short search, but for what is changed."""
    return lambda **changed: Settings(**{**SETTINGS, **changed})


@pytest.fixture(scope="session")
def network():
    """Return a function: a small network for a system."""

    def make(system, **arguments):
        patch = (2,) * len(system.extent)
        given = {"dim": 8, "num_heads": 2, "num_layers": 1} | arguments
        return TransformerWaveFunction(system.extent, patch, **given)

    return make


@pytest.fixture(scope="session")
def perturbed():
    """Return a function: random weights of a network, and twelve random configurations."""

    def make(model, system):
        spins = system.hilbert.random_state(jax.random.key(3), 12)
        variables = model.init(jax.random.key(0), spins)
        generator = np.random.default_rng(1)
        moved = jax.tree.map(lambda x: x + 0.3 * generator.normal(size=x.shape), variables)
        return moved, spins

    return make


SMALL = [
    "model=wavefunction", "model.dim=8", "model.num_heads=2", "model.num_layers=1",
    "task.samples=64", "task.chains=8", "task.chunk_size=64", "task.final_samples=256",
    "task.symmetrized_samples=32", "task.attention_samples=32", "trainer.max_epochs=6",
    "optimizer.warmup=5",
]  # fmt: skip


@pytest.fixture(scope="session")
def small():
    """The overrides of a small search, for ``train.py``."""
    return SMALL


@pytest.fixture(scope="session")
def configured(compose):
    """Return a function: the configuration of a small search."""
    return lambda folder, *overrides: compose(*SMALL, f"paths.output_dir={folder}", *overrides)


@pytest.fixture(scope="session")
def finished(configured, tmp_path_factory):
    """A finished run: its folder and metrics; to be read only."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run.run(configured(folder, "model.attention=t5"))
