"""Time and memory of the published FLARE on one mesh of 1e3 to 1e6 nodes, CPU.

    python benchmarks/mesh_scaling.py [--sizes 1000 ...] [--threads 2] [--output benchmarks/results]

The network of ``model=flare_published`` (8 blocks, 64 channels, 8 heads, 64 latents; 592,641
parameters) in float32 on random points. Forward alone without gradients, and forward with backward,
each the median of three in a process of its own, for its peak memory; a size that does not fit is
reported as such. Beside them the time of the network's matrix products alone at this machine's
measured rate of products (sgemm), below which no implementation can go. No process gets more than
95 % of the memory that is free.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from matattn.meshes.batch import MeshBatch
from matattn.models.flare import FLARE
from matattn.runtime import peak_memory, tune_malloc
from matattn.tables import write_table

SIZES = (1_000, 10_000, 100_000, 150_000, 200_000, 1_000_000)
COLUMNS = ("nodes", "mode", "threads", "seconds", "us_per_node", "floor_s", "peak_GB")


def products_per_node(network: FLARE) -> float:
    """Multiply-adds of all matrix products for one node, forward."""
    linear = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear))
    latents = network.blocks[0].att.latent_q.numel()
    return linear + 4 * latents * len(network.blocks)  # scores twice, z and y


def sgemm_rate() -> float:
    """Multiply-adds per second of a product of two 2,048 x 2,048 matrices."""
    a, b = torch.randn(2, 2048, 2048)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2048**3 / best


def measure(nodes: int, mode: str, threads: int) -> dict[str, object]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(0.95 * free),) * 2)
    torch.set_num_threads(threads)
    tune_malloc()
    rate = sgemm_rate()
    torch.manual_seed(0)
    network = FLARE(3)
    batch = MeshBatch(torch.rand(nodes, 3), torch.tensor([0, nodes]), torch.empty(0))
    times = []
    for _ in range(3 if nodes < 10**6 else 2):
        begin = time.perf_counter()
        with torch.set_grad_enabled(mode != "forward"):
            y = network(batch)
        if mode != "forward":
            y.square().mean().backward()
            network.zero_grad()
        del y
        times.append(time.perf_counter() - begin)
    seconds = sorted(times)[(len(times) - 1) // 2]
    passes = 1 if mode == "forward" else 3
    return {
        "nodes": nodes,
        "mode": mode,
        "threads": threads,
        "seconds": round(seconds, 3),
        "us_per_node": round(1e6 * seconds / nodes, 2),
        "floor_s": round(passes * nodes * products_per_node(network) / rate, 3),
        "peak_GB": round(peak_memory() / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(int(options.run[0]), options.run[1], options.threads)))
        return
    rows = []
    for mode in ("forward", "forward+backward"):
        for nodes in options.sizes:
            command = [sys.executable, __file__, "--run", str(nodes), mode, "--threads"]
            result = subprocess.run([*command, str(options.threads)], capture_output=True)
            if result.returncode:
                row = {"nodes": nodes, "mode": mode, "threads": options.threads,
                       "seconds": "does not fit"}  # fmt: skip
            else:
                row = json.loads(result.stdout)
            print(row, flush=True)
            rows.append(row)
    write_table(options.output / "mesh_scaling.csv", rows)


if __name__ == "__main__":
    main()
