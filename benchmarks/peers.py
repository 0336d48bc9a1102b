"""Crystalformer side by side with CGCNN and SchNet: the same rows, split and CPU time.

    MATATTN_DATA=... python benchmarks/peers.py [--seconds 300 | --epochs 30] [--seeds 0 1 2]
        [--networks ...] [--data mp2018 | log_gvrh] [--output benchmarks/results] [--again]

Formation energy of the crystals of ``mp2018_subset`` with at most 12 sites, official training and
validation rows; or shear moduli of Matbench, training rows of fold 0, a fifth of them kept apart.
Every network gets ``--seconds`` of CPU time on one thread for joining ready lists
to batches, forward, L1 loss, backward and AdamW; the number of steps is planned from the cost of
50 steps of a network that is thrown away, and the learning rate does one cycle over them. The last
weights count: validation rows choose nothing. Making the lists is counted apart. Crystalformer
trains on orbits and is asked, as in ``matattn predict``, on all atoms. "scalar" and "angular" have
moments of attention for l = 0 and l = 0 to 3, and SiLU.

Every run is a process of its own and one row of ``peers.csv`` (``peers_log_gvrh.csv``); runs that
stand there are not repeated, unless with ``--again``. Predictions in batches are compared with
those of one crystal at a time before a row is written. Ends with a table in Markdown.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_networks import CGCNN, PeriodicSchNet, nearest_graph, published_elements
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from matattn.datasets import matbench
from matattn.datasets.crystals import load
from matattn.files import write_text
from matattn.models.crystalformer import Crystalformer
from matattn.runtime import tune_malloc
from matattn.structures.batch import geometry, join, to_graph
from matattn.structures.dataset import PropertyDataset
from matattn.structures.image_rule import ImageRule
from matattn.structures.metrics import baselines, mean_absolute_error
from matattn.training.optimizers import adamw, per_step
from matattn.training.sampler import EpochShuffle
from matattn.training.schedules import OneCycle

BATCH = 64
TRIAL = 50  # steps
SITES, SPEED_SITES, SPEED_CRYSTALS = 12, 20, 500
ALONE = 100  # crystals that are predicted a second time, one by one
DISAGREEMENT = 1e-3  # of the unit, mean of predictions in batches and alone
UNITS = {"mp2018": "eV/atom", "log_gvrh": "log10(GPa)"}
COLUMNS = ["network", "seed", "budget", "parameters", "lists_s", "train_s", "steps", "epochs",
           "val_mae", "network_per_s", "with_lists_per_s", "peak_MB"]  # fmt: skip
Row = dict[str, Any]
Graphs = Sequence[Any]


@dataclass(frozen=True)
class Contender:
    """A network with the lists it is trained on and asked with, and its optimiser's settings."""

    network: Callable[[], nn.Module]
    training_graph: Callable[[Data], Any]
    graph: Callable[[Data], Any]
    join: Callable[[Graphs], Any]
    lr: float
    betas: tuple[float, float]


def crystalformer(moments: str = "none", lr: float = 2e-3, activation: str = "relu") -> Contender:
    network = partial(
        Crystalformer, element_features="properties", moments=moments, activation=activation
    )
    training, asking = network().image_rule(3e-4, 1e-3), network().image_rule(1e-6)

    def graph(images: ImageRule, item: Data) -> Any:
        return to_graph(item, images(*geometry(item)))

    return Contender(network, partial(graph, training), partial(graph, asking), join, lr,
                     (0.9, 0.98))  # fmt: skip


def peer(
    network: Callable[[], nn.Module], cutoff: float, nearest: int | None, lr: float
) -> Contender:
    graph = partial(nearest_graph, cutoff=cutoff, nearest=nearest)
    return Contender(network, graph, graph, Batch.from_data_list, lr, (0.9, 0.999))


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "Crystalformer": crystalformer,
    "Crystalformer, scalar": lambda: crystalformer("scalar", 1e-3, "silu"),
    "Crystalformer, angular": lambda: crystalformer("angular", 1e-3, "silu"),
    "CGCNN": lambda: peer(lambda: CGCNN(published_elements()), 8.0, 12, 1e-3),
    "SchNet": lambda: peer(lambda: PeriodicSchNet(5.0), 5.0, None, 2e-3),
}


def read(data: str) -> PropertyDataset:
    folder = Path(os.environ["MATATTN_DATA"])
    if data == "log_gvrh":
        path = folder / "matbench" / "matbench_log_gvrh.jsonl.gz"
        return matbench.load("log_gvrh", str(path), "log_gvrh", fold=0, inner=True)
    path = folder / "crystals" / "mp2018.jsonl.gz"
    return load("mp2018_subset", str(path), ["formation_energy_per_atom"], max_sites=SPEED_SITES)


def trained_on(dataset: PropertyDataset, data: str) -> PropertyDataset:
    """All rows of ``log_gvrh``; the crystals of ``mp2018`` of at most 12 sites."""
    if data == "log_gvrh":
        return dataset
    kept = [row for row, item in enumerate(dataset.items) if len(item.z) <= SITES]
    return replace(dataset, items=[dataset.items[row] for row in kept], split=dataset.split[kept])


def batches(number: int, seed: int) -> Iterator[list[int]]:
    """Rows of batch after batch, shuffled every epoch, without end."""
    order, size = EpochShuffle(number, seed), min(BATCH, number)
    for epoch in count():
        order.set_epoch(epoch)
        rows = list(order)
        for begin in range(0, number - size + 1, size):
            yield rows[begin : begin + size]


def train(
    contender: Contender, network: nn.Module, graphs: Graphs, labels: Tensor, steps: int, seed: int
) -> float:
    """Train on normalised labels [n, 1]; returns CPU seconds."""
    network.train()
    optimizer = adamw(network, contender.lr, contender.betas, 1e-5)
    schedule = per_step(optimizer, OneCycle(), steps, steps)
    start = time.process_time()
    for rows in islice(batches(len(graphs), seed), steps):
        batch = contender.join([graphs[row] for row in rows])
        optimizer.zero_grad()
        (network(batch) - labels[rows]).abs().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return time.process_time() - start


def planned_steps(
    contender: Contender, graphs: Graphs, labels: Tensor, seconds: float, seed: int
) -> int:
    network = contender.network()
    train(contender, network, graphs, labels, TRIAL // 5, seed)  # the first steps are slower
    return max(1, round(TRIAL * seconds / train(contender, network, graphs, labels, TRIAL, seed)))


@torch.no_grad()
def outputs(contender: Contender, network: nn.Module, graphs: Graphs, size: int = BATCH) -> Tensor:
    network.eval()
    parts = [graphs[begin : begin + size] for begin in range(0, len(graphs), size)]
    return torch.cat([network(contender.join(part)) for part in parts])


@torch.no_grad()
def speeds(contender: Contender, network: nn.Module, items: Sequence[Data]) -> tuple[float, float]:
    """Crystals per CPU second, best of three: on ready batches, and from the atoms on."""
    network.eval()
    graphs = [contender.graph(item) for item in items]
    ready = [contender.join(graphs[n : n + BATCH]) for n in range(0, len(graphs), BATCH)]

    def per_second(function: Callable[[], Any]) -> float:
        return len(items) / min(cpu_seconds(function)[1] for _ in range(3))

    alone = per_second(lambda: [network(batch) for batch in ready])
    return alone, per_second(
        lambda: outputs(contender, network, [contender.graph(item) for item in items])
    )


def cpu_seconds(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB. Linux only."""
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def run(name: str, seed: int, arguments: argparse.Namespace) -> Row:
    """Train and measure one network (in its own process)."""
    torch.set_num_threads(1)
    everything, contender = read(arguments.data), CONTENDERS[name]()
    dataset = trained_on(everything, arguments.data)
    train_rows, val_rows = dataset.rows("train"), dataset.rows("val")
    values = dataset.labels()
    mean, std = values[train_rows].mean(), values[train_rows].std()
    labels = torch.from_numpy((values[train_rows] - mean) / std).float()

    graphs, lists_s = cpu_seconds(
        lambda: [contender.training_graph(dataset.items[row]) for row in train_rows]
    )
    if arguments.epochs:
        steps = arguments.epochs * (len(graphs) // BATCH)
    else:
        steps = planned_steps(contender, graphs, labels, arguments.seconds, seed)
    torch.manual_seed(seed)
    network = contender.network()
    train_s = train(contender, network, graphs, labels, steps, seed)
    peak = peak_memory()

    val = [dataset.items[row] for row in val_rows]
    found = outputs(contender, network, [contender.graph(item) for item in val]) * std + mean
    alone = outputs(contender, network, [contender.graph(item) for item in val[:ALONE]], 1)
    difference = float((alone * std + mean - found[:ALONE]).abs().mean())
    if not difference < DISAGREEMENT:
        sys.exit(f"predictions alone and in batches differ by {difference:.1e} on average: no row")

    all_val = [everything.items[row] for row in everything.rows("val")]
    network_per_s, with_lists_per_s = speeds(contender, network, all_val[:SPEED_CRYSTALS])
    return {
        "network": name,
        "seed": seed,
        "budget": budget(arguments),
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "lists_s": f"{lists_s:.1f}",
        "train_s": f"{train_s:.1f}",
        "steps": steps,
        "epochs": f"{steps / (len(graphs) // BATCH):.1f}",
        "val_mae": f"{mean_absolute_error(values[val_rows], found.numpy()):.4f}",
        "network_per_s": f"{network_per_s:.0f}",
        "with_lists_per_s": f"{with_lists_per_s:.0f}",
        "peak_MB": f"{peak:.0f}",
    }


def budget(arguments: argparse.Namespace) -> str:
    return f"{arguments.epochs} epochs" if arguments.epochs else f"{arguments.seconds:g} s"


def floors(arguments: argparse.Namespace) -> list[Row]:
    """Errors of the baselines that see no structure, on the same rows."""
    dataset = trained_on(read(arguments.data), arguments.data)
    rows, values = dataset.rows("val"), dataset.labels()
    return [
        {"network": name, "budget": budget(arguments),
         "val_mae": f"{mean_absolute_error(values[rows], predicted[rows]):.4f}"}
        for name, predicted in baselines(dataset).items()
    ]  # fmt: skip


def markdown(rows: Sequence[Row], data: str) -> str:
    """Means over the seeds of every network, best first; errors with their standard deviation."""
    titles = {
        "network": "network", "parameters": "parameters", "lists_s": "lists, CPU s",
        "train_s": "training, CPU s", "epochs": "epochs",
        "val_mae": f"validation MAE, {UNITS[data]}",
        "network_per_s": "crystals per CPU s", "with_lists_per_s": "lists included",
        "peak_MB": "peak MB",
    }  # fmt: skip
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["network"], []).append(row)

    def cell(name: str, column: str) -> str:
        if column == "network":
            return name
        values = [float(row[column]) for row in groups[name] if row.get(column)]
        if column != "val_mae":
            return f"{np.mean(values):,.0f}" if values else ""
        spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        return f"{np.mean(values):.4f}{spread}"

    ranked = sorted(groups, key=lambda name: cell(name, "val_mae"))
    table = [[*titles.values()], ["---"] * len(titles)]
    table += [[cell(name, column) for column in titles] for name in ranked]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=300, help="CPU time of every training")
    length.add_argument("--epochs", type=int, help="epochs of every training, instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--data", default="mp2018", choices=UNITS)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--again", action="store_true", help="start the table anew")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.output / ("peers.csv" if arguments.data == "mp2018" else "peers_log_gvrh.csv")
    tune_malloc()
    if arguments.run:
        name, seed = arguments.run
        print(json.dumps(run(name, int(seed), arguments)))
        return

    rows: list[Row] = []
    if path.exists() and not arguments.again:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))

    def add(found: Sequence[Row]) -> None:
        rows.extend(found)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    done = {(row["network"], row["seed"], row["budget"]) for row in rows}
    if ("mean", "", budget(arguments)) not in done:
        add(floors(arguments))
    for seed, name in product(arguments.seeds, arguments.networks):
        if (name, str(seed), budget(arguments)) in done:
            continue
        command = [sys.executable, __file__, "--run", name, str(seed), "--data", arguments.data]
        command += ["--epochs", str(arguments.epochs)] if arguments.epochs else [
            "--seconds", str(arguments.seconds)]  # fmt: skip
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if finished.returncode:
            sys.exit(f"{name}, seed {seed} failed")
        add([json.loads(finished.stdout.splitlines()[-1])])
        print(finished.stdout, end="", file=sys.stderr)
    print(markdown([row for row in rows if row["budget"] == budget(arguments)], arguments.data))


if __name__ == "__main__":
    main()
