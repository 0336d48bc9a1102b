"""Infinitely connected attention against the dense formulation, in one run, on one thread.

    python benchmarks/periodic_attention.py [--repeats 5]
        [--output benchmarks/results/periodic_attention.csv]

32 random crystals of 20 atoms at 0.06 atoms/Å^3, the published network (853,505 parameters),
forward and backward of the summed output in float32. Neighbour lists and radial functions are made
anew in every repeat, as they are for every training batch.

The alternative is the paper's equations as they stand (alpha and beta of every pair over the images
|n_t| <= 2, then attention over pairs; ``kernels/periodic_attention/reference.py`` in float32),
which is what the authors' PyTorch path computes. Outputs are compared before any time is printed.
Each contender runs in a process of its own, so that its peak memory is its own.

The floor is the time of the matrix products alone (linear layers, and P·B and G·Bᵀ of every
neighbour) at the sgemm rate measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from matattn.batch import collate
from matattn.files import write_text
from matattn.kernels.periodic_attention import reference
from matattn.models.crystalformer import Crystalformer, Geometry, InfinitelyConnectedAttention
from matattn.neighbors import ImageRule
from matattn.runtime import tune_malloc
from matattn.structure import tensors_from_arrays

CRYSTALS, ATOMS, DENSITY = 32, 20, 0.06
# name: (backend, summation, tolerance)
CONTENDERS = {
    "dense, R = 2": ("dense", "published_r2", 0.0),
    "torch backend, R = 2": ("torch", "published_r2", 0.0),
    "cpu backend, R = 2": ("cpu", "published_r2", 0.0),
    "torch backend, 10.4 Å (tolerance 1e-6)": ("torch", "converged", 1e-6),
    "cpu backend, 10.4 Å (tolerance 1e-6)": ("cpu", "converged", 1e-6),
    "torch backend, 8.0 Å (tolerance 3e-4)": ("torch", "converged", 3e-4),
    "cpu backend, 8.0 Å (tolerance 3e-4)": ("cpu", "converged", 3e-4),
}


class DenseAttention(InfinitelyConnectedAttention):
    """The same layer with all image sums of all pairs formed, crystal by crystal."""

    crystals: list[tuple[slice, Tensor, Tensor]]  # atoms, pos, cell

    def mix(self, x: Tensor, geometry: Geometry) -> Tensor:
        shape = (len(x), self.num_heads, self.head_dim)
        q, k, v = (p(x).view(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        a = -0.5 * self.inverse_square_sigma(q)
        images = reference.box_images(torch.tensor([2, 2, 2]))
        outputs = []
        for atoms, pos, cell in self.crystals:
            alpha, beta = reference.image_sums(
                pos, cell, a[atoms], images,
                spacing=self.spacing, width=self.width, count=self.radial_weight.shape[-1],
            )  # fmt: skip
            y, _ = reference.pair_attention(
                q[atoms], k[atoms], v[atoms], alpha, beta, self.radial_weight
            )
            outputs.append(y)
        return self.out_proj(torch.cat(outputs).flatten(1))


def crystals() -> list[dict[str, Tensor]]:
    generator = np.random.default_rng(0)
    items = []
    for _ in range(CRYSTALS):
        cell = np.eye(3) + 0.15 * generator.standard_normal((3, 3))
        cell *= np.cbrt(ATOMS / DENSITY / abs(np.linalg.det(cell)))
        z, frac = generator.integers(1, 90, ATOMS), generator.random((ATOMS, 3))
        items.append(tensors_from_arrays(z, frac, cell))
    return items


def network_for(backend: str, summation: str) -> Crystalformer:
    torch.manual_seed(0)
    network = Crystalformer(summation=summation)
    if backend == "dense":
        for block in network.blocks:
            block.attention.__class__ = DenseAttention
    return network.eval()


def run_contender(name: str, repeats: int) -> dict:
    """Times and output of one contender (in its own process)."""
    backend, summation, tolerance = CONTENDERS[name]
    items, network = crystals(), network_for(backend, summation)
    images = network.image_rule(tolerance)
    if backend == "dense":  # sums its own images: the list only gives the batch its form
        images = ImageRule(0.5)
        DenseAttention.crystals = [
            (slice(n * ATOMS, (n + 1) * ATOMS), item["pos"], item["cell"][0])
            for n, item in enumerate(items)
        ]
    else:
        os.environ["MATATTN_BACKEND"] = backend
    times, list_times = [], []
    for _ in range(repeats + (backend != "dense")):  # one round to warm up; not for the slow one
        start = time.perf_counter()
        batch = collate(items, images)
        list_times.append(time.perf_counter() - start)
        network.zero_grad()
        output = network(batch)
        output.sum().backward()
        times.append(time.perf_counter() - start)
    return {
        "output": output[:, 0].tolist(),
        "gradient": float(network.embedding.weight.grad.norm()),
        "neighbours": 0 if backend == "dense" else batch.edge_index.shape[1],
        "times": times[-repeats:],
        "list": float(np.median(list_times[-repeats:])),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def sgemm_rate() -> float:
    """Multiply-adds counted as two operations, per second, of one thread."""
    a = torch.randn(1024, 1024)
    (a @ a).sum()
    start = time.perf_counter()
    for _ in range(10):
        a @ a
    return 10 * 2 * 1024**3 / (time.perf_counter() - start)


def floor_seconds(neighbours: int, rate: float) -> float:
    network = Crystalformer()
    linear = sum(p.numel() for p in network.blocks.parameters() if p.dim() == 2)
    dense_layers = 3 * 2 * linear * CRYSTALS * ATOMS  # forward, and two products backward
    images = 4 * 2 * 2 * 8 * 64 * neighbours  # per layer P·B forward and G·Bᵀ backward
    return (dense_layers + images) / rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_malloc()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.repeats)))
        return

    results = {}
    for name in CONTENDERS:
        repeats = min(arguments.repeats, 2) if name.startswith("dense") else arguments.repeats
        command = [sys.executable, __file__, "--contender", name, "--repeats", str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[name] = json.loads(done.stdout)
    dense = results["dense, R = 2"]
    spread, difference = np.std(dense["output"]), 0.0
    for name in ("torch backend, R = 2", "cpu backend, R = 2"):
        same = results[name]
        difference = max(difference, np.abs(np.subtract(dense["output"], same["output"])).max())
        if difference > 1e-3 * spread or abs(same["gradient"] / dense["gradient"] - 1) > 1e-3:
            sys.exit(f"{name}: outputs differ by {difference:.1e} (spread {spread:.1e}): no times")
    rate = sgemm_rate()
    print(f"largest difference of outputs at R = 2: {difference:.1e} (their spread: {spread:.1e})")
    print(f"sgemm on one thread: {rate / 1e9:.0f} GFLOP/s")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["contender", "neighbours", "p20_s", "p50_s", "p80_s", "list_s", "floor_s",
                     "peak_memory_MB", "speedup"])  # fmt: skip
    for name, result in results.items():
        p20, p50, p80 = np.percentile(result["times"], [20, 50, 80])
        floor = floor_seconds(result["neighbours"], rate) if result["neighbours"] else float("nan")
        speedup = np.median(dense["times"]) / p50
        writer.writerow([name, result["neighbours"], f"{p20:.4f}", f"{p50:.4f}", f"{p80:.4f}",
                         f"{result['list']:.4f}", f"{floor:.4f}", f"{result['peak_mb']:.0f}",
                         f"{speedup:.1f}"])  # fmt: skip
    print(text.getvalue(), end="")
    if arguments.output:
        write_text(arguments.output, text.getvalue())


if __name__ == "__main__":
    main()
