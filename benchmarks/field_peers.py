"""FLARE beside the same network with full attention: equal data, equal width, equal CPU time.

    python benchmarks/field_peers.py [--seconds 180] [--seeds 0 1 2] [--output benchmarks/results]

Von Mises stress of ``plate_with_hole``, 1,000 training plates. Both networks get ``--seconds`` of
CPU time on one thread for collating, forward, loss, backward and AdamW; the number of steps is
planned from the cost of 30 steps of a network that is thrown away, and the rate does one cycle over
them. The last weights count: validation plates choose nothing. Learning rate and initialisation
were chosen for neither network by a search; both have those of ``model=flare``.

Every run is a process of its own and one row of ``field_peers.csv``; runs that stand there are not
repeated. Ends with a table in Markdown.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from matattn.datasets.pde import plate_with_hole as pde_plate_with_hole
from matattn.files import write_text
from matattn.meshes.baselines import baselines, relative_l2
from matattn.meshes.batch import InputScaling, collate_meshes
from matattn.models.flare import FLARE, FullAttention
from matattn.runtime import peak_memory, tune_malloc
from matattn.training.optimizers import adamw, per_step
from matattn.training.sampler import EpochShuffle
from matattn.training.schedules import OneCycleWithMomentum
from matattn.workflows.meshes.train import relative_errors

SHARED = {"num_inputs": 2, "dim": 32, "num_blocks": 4, "num_heads": 4, "num_octaves": 3,
          "init": "xavier"}  # fmt: skip
NETWORKS = {
    "FLARE": lambda: FLARE(**SHARED, num_latents=32),
    "full attention": lambda: FullAttention(**SHARED),
}
LR, BATCH, TRIAL = 2e-3, 2, 30
COLUMNS = ("network", "seed", "budget_s", "parameters", "train_s", "steps", "epochs",
           "step_ms", "val", "test", "peak_MB")  # fmt: skip


def train(name: str, seed: int, seconds: float) -> dict[str, object]:
    torch.set_num_threads(1)
    tune_malloc()
    data = pde_plate_with_hole.load("plate_with_hole")
    scaling = InputScaling.fit(data)
    rows = data.rows("train").tolist()
    fields = np.concatenate([s.y for s in data.samples("train")])
    mean, std = float(fields.mean()), float(fields.std())
    order = EpochShuffle(len(rows), seed)

    def batches():
        for epoch in range(10**6):
            order.set_epoch(epoch)
            shuffled = [rows[place] for place in order]
            for begin in range(0, len(rows) - BATCH + 1, BATCH):
                chosen = [data.items[row] for row in shuffled[begin : begin + BATCH]]
                yield collate_meshes(chosen, scaling)

    def run(network: torch.nn.Module, steps: int) -> float:
        optimizer = adamw(network, LR, (0.9, 0.999), 1e-5, decay_norms=False)
        schedule = per_step(optimizer, OneCycleWithMomentum(), steps)
        source, begin = batches(), time.process_time()
        for _ in range(steps):
            batch = next(source)
            loss = relative_errors(network(batch) * std + mean, batch.y, batch.ptr).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return time.process_time() - begin

    def error(network: torch.nn.Module, split: str) -> float:
        found = []
        for sample in data.samples(split):
            with torch.no_grad():
                made = network(collate_meshes([sample], scaling)).numpy() * std + mean
            found.append(relative_l2(sample.y, made))
        return float(np.mean(found))

    torch.manual_seed(seed)
    run(NETWORKS[name](), TRIAL)  # the first steps are slower
    torch.manual_seed(seed)
    steps = max(TRIAL, round(seconds / (run(NETWORKS[name](), TRIAL) / TRIAL)))
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    used = run(network, steps)
    return {
        "network": name,
        "seed": seed,
        "budget_s": seconds,
        "parameters": sum(p.numel() for p in network.parameters()),
        "train_s": round(used, 1),
        "steps": steps,
        "epochs": round(steps * BATCH / len(rows), 2),
        "step_ms": round(1e3 * used / steps, 1),
        "val": round(error(network, "val"), 4),
        "test": round(error(network, "test"), 4),
        "peak_MB": round(peak_memory() / 2**20),
    }


def floors() -> dict[str, float]:
    """Test errors of predictions that need no network."""
    data = pde_plate_with_hole.load("plate_with_hole")
    test = data.samples("test")
    return {
        name: float(np.mean([relative_l2(s.y, predict(s)) for s in test]))
        for name, predict in baselines(data).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(train(options.run[0], int(options.run[1]), options.seconds)))
        return
    path = options.output / "field_peers.csv"
    done = list(csv.DictReader(path.open())) if path.exists() else []
    for seed, name in product(options.seeds, NETWORKS):
        if any((row["network"], row["seed"]) == (name, str(seed)) for row in done):
            continue
        command = [sys.executable, __file__, "--run", name, str(seed)]
        command += ["--seconds", str(options.seconds)]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        done.append(json.loads(output.stdout))
        print(done[-1], flush=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(done)
        write_text(path, text.getvalue())
    print("| network | parameters | steps | epochs | ms per step | test relative L2 |")
    print("|---|---|---|---|---|---|")
    for name in NETWORKS:
        runs = [row for row in done if row["network"] == name]
        tests = [float(row["test"]) for row in runs]
        steps, epochs, cost = (
            np.mean([float(row[key]) for row in runs]) for key in ("steps", "epochs", "step_ms")
        )
        spread = np.std(tests, ddof=1) if len(tests) > 1 else 0
        print(
            f"| {name} | {int(runs[0]['parameters']):,} | {steps:.0f} | {epochs:.1f} | {cost:.0f} "
            f"| {np.mean(tests):.4f} ± {spread:.4f} ({len(tests)} seeds) |"
        )
    for name, value in floors().items():
        print(f"| {name.replace('_', ' ')} | | | | | {value:.4f} |")


if __name__ == "__main__":
    main()
