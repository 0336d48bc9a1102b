"""Train MACE on the rows of mlearn that our potential is trained on, for a given CPU time.

    MATATTN_DATA=... python benchmarks/potential_peer.py [--element Si] [--seconds 480] [--seed 0]
        [--channels 32] [--degree 1] [--rate 0.01]

Needs the package ``mace-torch`` (Batatia et al., NeurIPS 2022), which is no dependency of matattn.
One thread; float32; batches of 4; its Huber losses with the weights of MACE-MP; one cycle of the
rate; a range of 5 Å, two interactions, correlation 3. The number of steps is planned from those of
a network that is thrown away. Prints mean absolute errors on the official test rows and on our
validation rows. MACE computes most quickly on a GPU, and its published errors are of trainings of
hours: this compares equal CPU time.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from e3nn import o3
from mace import data, modules
from mace.tools import AtomicNumberTable, torch_geometric

from matattn.datasets import mlearn
from matattn.potentials.dataset import Frame, PotentialDataset
from matattn.workflows.potentials.errors import GPA, constants_of

RANGE, BATCH, PLANNED_FROM = 5.0, 4, 20  # Å; structures; steps


def graph(frame: Frame, table: AtomicNumberTable) -> data.AtomicData:
    """Return a frame as MACE takes it; labels that are not known have no weight."""
    labels = {"energy": frame.energy, "forces": frame.forces, "stress": frame.stress}
    known = {name: float(np.isfinite(value).all()) for name, value in labels.items()}
    properties = {name: value if known[name] else None for name, value in labels.items()}
    config = data.Configuration(
        atomic_numbers=frame.z, positions=frame.pos, properties=properties,
        property_weights=known, cell=frame.cell, pbc=(True, True, True),
    )  # fmt: skip
    return data.AtomicData.from_config(config, z_table=table, cutoff=RANGE)


def network(
    dataset: PotentialDataset, neighbors: float, channels: int, degree: int
) -> torch.nn.Module:
    """Return MACE with our constants of the elements and our scale of the forces."""
    constants = constants_of([dataset.frames[row] for row in dataset.rows("train")])
    elements = dataset.elements()
    irreps = "+".join(f"{channels}x{order}{'eo'[order % 2]}" for order in range(degree + 1))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    first = modules.interaction_classes["RealAgnosticInteractionBlock"]
    return modules.ScaleShiftMACE(
        atomic_inter_scale=constants.scale, atomic_inter_shift=0.0, r_max=RANGE, num_bessel=8,
        num_polynomial_cutoff=5, max_ell=3, interaction_cls=block, interaction_cls_first=first,
        num_interactions=2, num_elements=len(elements), hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu,
        atomic_energies=constants.alone[elements], avg_num_neighbors=neighbors,
        atomic_numbers=elements, correlation=3, radial_type="bessel",
    )  # fmt: skip


def train(model: torch.nn.Module, loader: Any, rate: float, steps: int) -> float:
    """Train so many steps, one cycle of the rate, and return the seconds of CPU time."""
    loss = modules.UniversalLoss(energy_weight=1.0, forces_weight=10.0, stress_weight=100.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, amsgrad=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps + 1, pct_start=0.1
    )
    start = time.process_time()
    for number, batch in enumerate(islice(chain.from_iterable(repeat(loader)), steps), start=1):
        optimizer.zero_grad()
        found = model(batch.to_dict(), training=True, compute_force=True, compute_stress=True)
        value = loss(ref=batch, pred=found)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if number % 50 == 0:
            print(f"step {number} of {steps}: loss {value.item():.4g}", flush=True)
    return time.process_time() - start


def errors(model: torch.nn.Module, graphs: list[Any], frames: list[Frame]) -> str:
    """Return mean absolute errors: meV/atom, eV/Å, GPa."""
    found: dict[str, list[np.ndarray]] = {"energy": [], "forces": [], "stress": []}
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=1, shuffle=False)
    for frame, batch in zip(frames, loader, strict=True):
        given = model(batch.to_dict(), compute_force=True, compute_stress=True)
        energy, forces, stress = (given[name].detach().numpy() for name in found)
        found["energy"].append(np.array([(energy[0] - frame.energy) / len(frame.z)]))
        found["forces"].append((forces - frame.forces).ravel())
        found["stress"].append((stress[0] - frame.stress).ravel())
    mean = {name: np.nanmean(np.abs(np.concatenate(values))) for name, values in found.items()}
    return (
        f"{1000 * mean['energy']:.2f} meV/atom, {mean['forces']:.4f} eV/Å, "
        f"{GPA * mean['stress']:.3f} GPa"
    )


def main() -> None:
    """Train, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--element", default="Si")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--degree", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.01)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    path = Path(os.environ["MATATTN_DATA"]) / "potentials"
    dataset = mlearn.load("mlearn", str(path), given.element)
    table = AtomicNumberTable(dataset.elements())
    frames = {split: [dataset.frames[row] for row in dataset.rows(split)]
              for split in ("train", "val", "test")}  # fmt: skip
    graphs = {split: [graph(frame, table) for frame in part] for split, part in frames.items()}
    edges = sum(one.edge_index.shape[1] for one in graphs["train"])
    neighbors = edges / sum(len(frame.z) for frame in frames["train"])
    model = network(dataset, neighbors, given.channels, given.degree)
    loader = torch_geometric.dataloader.DataLoader(
        graphs["train"], batch_size=BATCH, shuffle=True, drop_last=True
    )
    each = train(copy.deepcopy(model), loader, given.rate, PLANNED_FROM) / PLANNED_FROM
    steps = max(1, int(given.seconds / each))
    seconds = train(model, loader, given.rate, steps)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"MACE {given.channels} channels, l <= {given.degree}: {weights:,} weights, {steps} steps, "
        f"{seconds:.0f} CPU s, seed {given.seed}"
    )
    for split in ("val", "test"):
        print(f"{split}: {errors(model, graphs[split], frames[split])}", flush=True)


if __name__ == "__main__":
    main()
