"""Local energies and whole steps of a wave function, against NetKet's own, CPU.

    python benchmarks/local_energy.py [--systems 4x4 6x6 10x10] [--output benchmarks/results]

Local energies of 512 configurations (10x10: 128) of the network that ``model=wavefunction`` trains
(10x10: that of NetKet's tutorial, 155,620 parameters): NetKet's padded kernel, its experimental
packed one, ours on the network and ours with the first layer updated. Each at four chunk sizes, of
which the best counts; interleaved, the least of five (10x10: two). All agree to 1e-12 first.
Beside them the time of the network's matrix products on the antiparallel pairs alone at this
machine's rate of products (dgemm). Steps: sampling, local energies, derivatives and natural
gradient, by NetKet's VMC_SR (dense, and on the fly, its default) and by ``VMCEngine`` at the same
chunk size, also with queries and keys, the least of 5.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import netket as nk
import numpy as np
import optax
from netket.vqs.mc.kernels import local_value_kernel_jax_chunked
from netket.vqs.mc.kernels_packed import local_value_kernel_jax_packed

from matattn.datasets.j1j2 import load
from matattn.models.factored_attention import TransformerWaveFunction
from matattn.spins import PAULI, SpinSystem
from matattn.tables import write_table
from matattn.workflows.spins.engine import Settings, VMCEngine
from matattn.workflows.spins.exchange import exchange, local_energies

COLUMNS = ("system", "parameters", "what", "chunk_size", "seconds", "ratio_to_netket", "floor_s")
CHUNKS = (128, 256, 512, 1024)


def network(system: SpinSystem) -> TransformerWaveFunction:
    small = {"dim": 16, "num_heads": 4, "num_layers": 2, "ffn_ratio": 2}
    large = {"dim": 60, "num_heads": 10, "num_layers": 4, "ffn_ratio": 4}
    return TransformerWaveFunction(system.extent, **(small if system.sites < 100 else large))


def products(model: TransformerWaveFunction) -> float:
    """Multiply-adds of the matrix products of one configuration."""
    n, d = math.prod(model.grid), model.dim
    layer = n * ((2 + 2 * model.ffn_ratio) * d**2 + n * d)
    return n * math.prod(model.patch) * d + model.num_layers * layer + 2 * d**2


def dgemm_rate() -> float:
    """Multiply-adds per second of a product of two 1,024 x 1,024 matrices."""
    a, b = np.random.default_rng(0).normal(size=(2, 1024, 1024))
    return 1024**3 / least(lambda: a @ b, 5)


def least(function: Callable[[], Any], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        best = min(best, time.perf_counter() - begin)
    return best


def kernels(
    system: SpinSystem, model: TransformerWaveFunction, chunk: int
) -> dict[str, Callable[[Any, Any], Any]]:
    """Name: variables, configurations -> energies in NetKet's units."""
    total = PAULI * system.sites

    def own(incremental: bool) -> Callable[[Any, Any], Any]:
        ratios_of = exchange(model, system.bonds[0], chunk, incremental)
        return lambda v, s: total * local_energies(system, s, ratios_of(v, s)[1])

    def netket(kernel: Callable) -> Callable[[Any, Any], Any]:
        return lambda v, s: kernel(model.apply, v, s, system.hamiltonian, chunk_size=chunk)

    made = {
        "local energy, netket": netket(local_value_kernel_jax_chunked),
        "local energy, netket packed": netket(local_value_kernel_jax_packed),
        "local energy, ours on the network": own(False),
        "local energy, ours": own(True),
    }
    return {name: jax.jit(function) for name, function in made.items()}


def measure_energies(extent: str) -> list[dict[str, Any]]:
    system = load("benchmark", "square", extent, 0.5)
    model = network(system)
    count, times = (512, 5) if system.sites < 100 else (128, 2)
    spins = system.hilbert.random_state(jax.random.key(0), count)
    variables = model.init(jax.random.key(1), spins)
    system.hamiltonian.get_conn_padded(spins)
    pairs = system.bonds[0]
    antiparallel = int((spins[:, pairs[:, 0]] != spins[:, pairs[:, 1]]).sum())
    floor = antiparallel * products(model) / dgemm_rate()
    best: dict[str, tuple[float, int]] = {}
    wanted = None
    for chunk in CHUNKS:
        made = kernels(system, model, chunk)
        for function in made.values():
            found = np.asarray(function(variables, spins))
            wanted = found if wanted is None else wanted
            assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()
        for _ in range(times):
            for name, function in made.items():
                seconds = least(lambda f=function: f(variables, spins), 1)
                best[name] = min(best.get(name, (float("inf"), 0)), (seconds, chunk))
    netket = best["local energy, netket"][0]
    size = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return [
        row(extent, size, name, chunk, seconds, netket, floor)
        for name, (seconds, chunk) in best.items()
    ]


def measure_steps(extent: str) -> list[dict[str, Any]]:
    system = load("benchmark", "square", extent, 0.5)
    model = network(system)
    samples = 512 if system.sites < 100 else 128
    chunk, chains = 256, 64
    found: dict[str, float] = {}
    for name, on_the_fly in (("netket", False), ("netket on the fly", True)):
        state = nk.vqs.MCState(
            system.sampler(chains),
            model,
            n_samples=samples,
            n_discard_per_chain=0,
            chunk_size=chunk,
        )
        driver = nk.driver.VMC_SR(
            system.hamiltonian, optax.sgd(0.02), diag_shift=1e-2, momentum=0.8, use_ntk=True,
            variational_state=state, on_the_fly=on_the_fly, mode="complex",
            chunk_size_bwd=min(chunk, samples),
        )  # fmt: skip
        driver.run(1, out=None, show_progress=False)
        found[f"step, {name}"] = least(
            lambda d=driver: d.run(1, out=None, show_progress=False) and None, 5
        )
        size = state.n_parameters
    settings = Settings(
        steps=1000, samples=samples, chains=chains, blur=0.5, sampling="metropolis",
        chunk_size=chunk, lr=0.02, warmup=30, diag_shift=(1e-2, 1e-3), momentum=0.8, seed=0,
    )  # fmt: skip
    for name, attention in (("ours", "factored"), ("ours with t5 attention", "t5")):
        engine = VMCEngine(system, model.clone(attention=attention), settings)
        engine.step()
        found[f"step, {name}"] = least(lambda e=engine: e.step() and None, 5)
    return [
        row(extent, size, name, chunk, seconds, found["step, netket"], None)
        for name, seconds in found.items()
    ]


def row(
    extent: str, size: int, what: str, chunk: int, seconds: float, netket: float, floor: Any
) -> dict[str, Any]:
    values = (extent, size, what, chunk, f"{seconds:.4f}", f"{netket / seconds:.2f}",
              "" if floor is None else f"{floor:.4f}")  # fmt: skip
    made = dict(zip(COLUMNS, values, strict=True))
    print(*made.values(), sep="  ", flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", default=["4x4", "6x6", "10x10"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rows = []
    for extent in arguments.systems:
        rows += measure_energies(extent)
        rows += measure_steps(extent)
    write_table(arguments.output / "local_energy.csv", rows)


if __name__ == "__main__":
    main()
