"""What a step of training on forces costs, and energies and forces an atom, in one run.

    python benchmarks/potential_cost.py

Four cells of 64 silicon atoms (Stillinger-Weber data), float32, one thread; the default network,
and one with attention besides. A step on energies alone is one forward and backward pass; the step
of the training takes differences of two; the exact one differentiates the forces. All take turns,
and the least time of each counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import matattn
from matattn.files import write_text
from matattn.kernels.directional_sums import BACKENDS
from matattn.runtime import tune_malloc
from matattn.structures.derivatives import energy_forces_stress, loss_gradient

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
ROUNDS = 12


def main() -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    tune_malloc()  # as the command line does
    header = "heads,what,ms,times energies only,µs an atom"
    rows = [row for heads in (0, 4) for row in measured(heads)]
    text = "\n".join([header, *rows]) + "\n"
    print(text)
    write_text(RESULTS / "potential_cost.csv", text)


def measured(heads: int) -> list[str]:
    """Return the rows of a network with so many heads of attention."""
    task = matattn.prepare("model=potential", f"model.num_heads={heads}")
    network: Any = task.module.network
    batches = task.data.train_dataloader()
    batch = next(batch for batch in batches if len(batch.structures.z) == 256)
    crystals = batch.structures
    parameters = list(network.parameters())

    def backward(value: torch.Tensor) -> None:
        torch.autograd.grad(value, parameters, allow_unused=True)

    def energies() -> None:
        backward(network(crystals).square().sum())

    def trained() -> None:
        found = energy_forces_stress(network, crystals)
        slopes = found.energy - batch.energy, found.forces - batch.forces, found.stress
        backward(loss_gradient(network, crystals, *slopes))

    def exact() -> None:
        found = energy_forces_stress(network, crystals, create_graph=True)
        error = (found.forces - batch.forces).square().sum() + found.stress.square().sum()
        backward(error + (found.energy - batch.energy).square().sum())

    def predicted() -> None:
        energy_forces_stress(network, crystals)

    def padded() -> None:
        with patch.dict(BACKENDS, {"torch": BACKENDS["torch"]}, clear=True):
            energy_forces_stress(network, crystals)

    arms: dict[str, Callable[[], None]] = {
        "energies only, a step": energies,
        "energies, forces and stress, no training": predicted,
        "the same, sums without the compiled kernel": padded,
        "the same, a step": trained,
        "the same, a step with second derivatives": exact,
    }
    times = {name: float("inf") for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            begin = time.perf_counter()
            arm()
            times[name] = min(times[name], time.perf_counter() - begin)
    first = times["energies only, a step"]
    return [
        f"{heads},{name},{1e3 * seconds:.1f},{seconds / first:.2f},{1e6 * seconds / 256:.0f}"
        for name, seconds in times.items()
    ]


if __name__ == "__main__":
    main()
