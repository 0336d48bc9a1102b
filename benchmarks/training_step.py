"""A training step on real crystals: Crystalformer beside CGCNN and SchNet.

    MATATTN_DATA=... python benchmarks/training_step.py [--epoch] [--output benchmarks/results]

The first 500 validation crystals of ``mp2018_subset`` with at most 20 sites, batches of 64, on one
thread: CPU time per crystal for collating ready graphs, forward, L1 loss, backward and AdamW, best
of five passes, after the making of graphs, which is timed apart. The peers are PyTorch Geometric's
operators in their papers' default sizes with graphs of their own: CGCNN (64 channels, 3
convolutions, 12 neighbours within 8 Å) and SchNet (128 channels, 6 blocks, 32 neighbours within
10 Å). ``share`` is the part of the step in ``periodic_attention``.

Crystalformer with symmetry is checked against the sum over all atoms before its time counts.
``--epoch`` also times one epoch of all training crystals (21,310).
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peer_networks import CGCNN, PeriodicSchNet, nearest_graph
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_geometric.data import Batch, Data

from matattn.datasets.crystals import load
from matattn.files import write_text
from matattn.models.crystalformer import Crystalformer
from matattn.runtime import tune_malloc
from matattn.structures.batch import geometry, join, to_graph
from matattn.training.optimizers import adamw

BATCH = 64
Graphs = list[Any]


def passes(
    network: nn.Module, graphs: Graphs, collate: Callable[[Sequence[Any]], Any]
) -> Callable[[], None]:
    optimizer = adamw(network, 5e-4, (0.9, 0.98), 1e-5)

    def one_pass() -> None:
        for begin in range(0, len(graphs), BATCH):
            batch = collate(graphs[begin : begin + BATCH])
            optimizer.zero_grad()
            (network(batch) - batch.y).abs().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    return one_pass


def cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def share_of_operator(one_pass: Callable[[], None]) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        one_pass()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    names = ("matattn::periodic_attention", "matattn::periodic_attention_backward")
    return sum(event.cpu_time_total for event in events if event.key in names) / total


def check(network: Crystalformer, items: Sequence[Data]) -> None:
    """The network on orbits against the same network on all atoms."""
    outputs = []
    with torch.no_grad():
        for symmetry in (1e-3, 0.0):
            rule = network.eval().image_rule(3e-4, symmetry)
            outputs.append(network(join([to_graph(item, rule(*geometry(item))) for item in items])))
    spread, difference = outputs[1].std(), (outputs[0] - outputs[1]).abs().max()
    print(f"symmetry changes outputs by {difference:.1e} at most (their spread: {spread:.1e})")
    if difference > 1e-3 * spread:
        sys.exit("too much: no times")


def contenders() -> list[tuple[str, str, float]]:
    """Name, backend and symmetry of Crystalformer's rows."""
    return [
        ("Crystalformer, torch backend, all atoms", "torch", 0.0),
        ("Crystalformer, cpu backend, all atoms", "cpu", 0.0),
        ("Crystalformer, torch backend, orbits", "torch", 1e-3),
        ("Crystalformer, cpu backend, orbits", "cpu", 1e-3),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--epoch", action="store_true")
    arguments = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(1)
    path = Path(os.environ["MATATTN_DATA"]) / "crystals" / "mp2018.jsonl.gz"
    dataset = load("mp2018_subset", str(path), ["formation_energy_per_atom"])
    val = [dataset.items[row] for row in dataset.rows("val")]
    items = [item for item in val if len(item.z) <= 20][:500]
    torch.manual_seed(0)
    check(Crystalformer(), items)

    rows: list[list[object]] = []

    def measure(
        name: str, network: nn.Module, graphs: Graphs, seconds: float, collate: Any
    ) -> None:
        one_pass = passes(network.train(), graphs, collate)
        number = 1 if len(graphs) > 1000 else 5
        best = min(cpu_seconds(one_pass) for _ in range(number))
        profiled = isinstance(network, Crystalformer) and number > 1
        share = f"{share_of_operator(one_pass):.2f}" if profiled else ""
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        per_crystal = 1e3 / len(graphs)
        rows.append([name, parameters, len(graphs), f"{seconds * per_crystal:.2f}",
                     f"{best * per_crystal:.3f}", f"{best:.1f}", share])  # fmt: skip
        print(rows[-1], file=sys.stderr)

    def timed(make: Callable[[], Graphs]) -> tuple[Graphs, float]:
        start = time.process_time()
        return make(), time.process_time() - start

    elements = torch.rand(100, 92)  # their values do not change the cost
    for name, network, cutoff, nearest in (("CGCNN", CGCNN(elements), 8.0, 12),
                                           ("SchNet", PeriodicSchNet(10.0), 10.0, 32)):  # fmt: skip
        made = timed(lambda c=cutoff, n=nearest: [nearest_graph(item, c, n) for item in items])
        measure(name, network, *made, Batch.from_data_list)
    train = [dataset.items[row] for row in dataset.rows("train")]
    for name, backend, symmetry in contenders():
        os.environ["MATATTN_BACKEND"] = backend
        rule = Crystalformer().image_rule(3e-4, symmetry)
        made = timed(lambda r=rule: [to_graph(item, r(*geometry(item))) for item in items])
        measure(name, Crystalformer(), *made, join)
        if arguments.epoch and backend == "cpu":
            made = timed(lambda r=rule: [to_graph(item, r(*geometry(item))) for item in train])
            measure(f"{name}, one epoch", Crystalformer(), *made, join)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["network", "parameters", "crystals", "graph_ms_per_crystal",
                     "step_ms_per_crystal", "pass_s", "share"])  # fmt: skip
    writer.writerows(rows)
    print(text.getvalue(), end="")
    if arguments.output:
        write_text(arguments.output / "training_step.csv", text.getvalue())


if __name__ == "__main__":
    main()
