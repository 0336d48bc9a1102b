"""Infinitely connected attention: the operator and the whole network, against named alternatives.

    python benchmarks/periodic_attention.py [--repeats 9] [--output benchmarks/results]

Random crystals of 0.06 atoms/Å^3, 8 heads of 16 numbers and 64 radial functions (the published
sizes), forward and backward in float32. Contenders:

dense     the paper's equations as they stand: alpha and beta of every pair over the images
          |n_t| <= 2, then attention over pairs (``reference.image_sums``), as in the authors'
          PyTorch path
compiled  ``torch.compile`` of the flat formula (``reference.neighbor_attention``)
torch     the ``torch`` backend
cpu       the ``cpu`` backend

``level=op`` times the operator alone on ready neighbour lists; ``level=network`` the published
network (853,505 parameters) from the atoms to all gradients, neighbour lists included. Every case
runs in a process of its own; outputs and gradients of the contenders are compared before any time
is written. The floor is derived in ``kernels/periodic_attention/README.md``: counted multiply-adds
at the sgemm rate that the same process measures. ``extra_MB`` is how far the first call raises the
peak memory, its outputs and gradients (``outputs_MB``) included.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.files import write_text
from matattn.kernels.periodic_attention import (
    periodic_attention,
    periodic_moments,
    reference,
)
from matattn.models.crystalformer import Crystalformer, Geometry, InfinitelyConnectedAttention
from matattn.runtime import tune_malloc
from matattn.structures.batch import CrystalBatch, collate, edge_harmonics
from matattn.structures.image_rule import ImageRule
from matattn.structures.structure import tensors_from_arrays

HEADS, DIM, COUNT, SPACING = 8, 16, 64, 14 / 64
DENSITY = 0.06  # atoms/Å^3
BOX = torch.tensor([2, 2, 2])
TRAINING, PREDICTION = 3e-4, 1e-6  # smallest weight that is summed: 8.0 and 10.4 Å


@dataclass(frozen=True)
class Case:
    level: str
    contender: str
    crystals: int
    atoms: int
    tolerance: float = TRAINING
    threads: int = 1


def cases() -> list[Case]:
    fast = ("torch", "cpu")
    listed = [Case("op", c, 32, 20, t) for t in (TRAINING, PREDICTION)
              for c in ("dense", "compiled", *fast)]  # fmt: skip
    listed += [Case("op", c, 32, 20, t, 2) for t in (TRAINING, PREDICTION) for c in fast]
    for atoms in (1, 5, 50, 100, 200, 500):  # growth with the cell, about 1,000 atoms in all
        listed += [Case("op", c, max(2, 1000 // atoms), atoms) for c in fast]
    for crystals in (1, 8, 128, 256):  # growth with the batch
        listed += [Case("op", c, crystals, 20, threads=t) for c in fast for t in (1, 2)]
    listed += [Case("op", c, 256, 40) for c in fast]  # memory
    listed += [Case("network", c, 32, 20, t) for t in (TRAINING, PREDICTION)
               for c in ("dense", *fast)]  # fmt: skip
    listed += [Case("network", "cpu", max(2, 1000 // atoms), atoms) for atoms in (1, 5, 100, 500)]
    listed += [Case("moments", c, 32, 20, threads=t) for c in fast for t in (1, 2)]
    return listed


def crystals(number: int, atoms: int) -> list[dict[str, Tensor]]:
    generator = np.random.default_rng(0)
    items = []
    for _ in range(number):
        cell = np.eye(3) + 0.15 * generator.standard_normal((3, 3))
        cell *= np.cbrt(atoms / DENSITY / abs(np.linalg.det(cell)))
        z, frac = generator.integers(1, 90, atoms), generator.random((atoms, 3))
        items.append(tensors_from_arrays(z, frac, cell))
    return items


def dense_attention(
    items: list[dict[str, Tensor]], q: Tensor, k: Tensor, v: Tensor, a: Tensor, weight: Tensor
) -> Tensor:
    """All image sums of all pairs, crystal by crystal."""
    outputs, start = [], 0
    for item in items:
        atoms = slice(start, start := start + len(item["z"]))
        alpha, beta = reference.image_sums(
            item["pos"], item["cell"][0], a[atoms], reference.box_images(BOX),
            spacing=SPACING, width=SPACING, count=COUNT,
        )  # fmt: skip
        outputs.append(
            reference.pair_attention(q[atoms], k[atoms], v[atoms], alpha, beta, weight)[0]
        )
    return torch.cat(outputs)


class DenseAttention(InfinitelyConnectedAttention):
    """The network's layer in the dense formulation."""

    items: list[dict[str, Tensor]]

    def mix(self, x: Tensor, geometry: Geometry) -> Tensor:
        shape = (len(x), self.num_heads, self.head_dim)
        q, k, v = (p(x).view(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        a = -0.5 * self.inverse_square_sigma(q)
        y = dense_attention(self.items, q, k, v, a, self.radial_weight)
        return self.out_proj(y.flatten(1))


Call = Callable[[], list[Tensor]]  # one forward and backward: the output and gradients


def operator_call(case: Case, items: list[dict[str, Tensor]], batch: CrystalBatch) -> Call:
    generator = torch.Generator().manual_seed(0)
    shape = (len(batch.z), HEADS, DIM)
    q, k, v, direction = (torch.randn(shape, generator=generator) for _ in range(4))
    a = -0.13 - 0.3 * torch.rand(shape[:2], generator=generator)
    leaves = [q, k, v, a, 0.1 * torch.randn(HEADS, DIM, COUNT, generator=generator)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    geometry = Crystalformer().geometry(batch)
    neighbors = (geometry.distance, geometry.source, geometry.row_ptr)
    if case.level == "moments":
        return moments_call(case, batch, leaves, neighbors)
    if case.contender == "dense":
        forward = lambda: dense_attention(items, *leaves)  # noqa: E731
    elif case.contender == "compiled":
        formula = torch.compile(reference.neighbor_attention)
        forward = lambda: formula(*leaves, *neighbors, None, SPACING, SPACING)[0]  # noqa: E731
    else:
        forward = lambda: periodic_attention(  # noqa: E731
            *leaves, *neighbors, spacing=SPACING, width=SPACING, backend=case.contender
        )

    def call() -> list[Tensor]:
        y = forward()
        return [y, *torch.autograd.grad(y, leaves, direction)]

    return call


def moments_call(
    case: Case, batch: CrystalBatch, leaves: list[Tensor], neighbors: tuple[Tensor, ...]
) -> Call:
    """The operator with moments of two channels up to l = 3; no gradient of positions."""
    table = edge_harmonics(batch, 3)
    table = torch.cat([torch.ones(len(table), 1), table], 1)
    u = torch.randn(len(batch.z), HEADS, 2).requires_grad_()
    weight = (0.1 * torch.randn(HEADS, 2, COUNT)).requires_grad_()

    def call() -> list[Tensor]:
        y, moments = periodic_moments(
            *leaves, u, weight, *neighbors, table, spacing=SPACING, width=SPACING,
            backend=case.contender,
        )  # fmt: skip
        loss = y.sum() + moments.sum()
        return [y, moments, *torch.autograd.grad(loss, [*leaves, u, weight])]

    return call


def network_call(case: Case, items: list[dict[str, Tensor]], images: ImageRule) -> Call:
    torch.manual_seed(0)
    network = Crystalformer().eval()
    if case.contender == "dense":
        DenseAttention.items = items
        for block in network.blocks:
            block.attention.__class__ = DenseAttention
    else:
        os.environ["MATATTN_BACKEND"] = case.contender

    def call() -> list[Tensor]:
        output = network(collate(items, images))
        parameters = [p for p in network.parameters() if p.numel()]
        return [output, *torch.autograd.grad(output.sum(), parameters)]

    return call


def make_call(case: Case, items: list[dict[str, Tensor]], images: ImageRule) -> Call:
    if case.level == "network":
        return network_call(case, items, images)
    return operator_call(case, items, collate(items, images))


def run(case: Case, repeats: int) -> dict:
    """Times and a summary of the results of one case (in its own process)."""
    torch.set_num_threads(case.threads)
    items, network = crystals(case.crystals, case.atoms), Crystalformer()
    images = network.image_rule(case.tolerance)
    if case.contender == "dense":
        images = ImageRule(0.5)  # it sums its own images: the list only gives the batch its form
    batch = collate(items, images)
    small = Case(**asdict(case) | {"crystals": 2, "atoms": 2})
    if case.contender != "compiled":  # load all code before memory is measured
        make_call(small, crystals(2, 2), images)()
    call = make_call(case, items, images)
    extra, results = extra_memory(call)
    times: list[float] = []
    while len(times) < repeats or (len(times) < 300 and sum(times) < 2):
        start = time.perf_counter()
        results = call()
        times.append(time.perf_counter() - start)
    neighbours = 0 if case.contender == "dense" else batch.edge_index.shape[1]
    pairs = len(torch.unique(batch.edge_index[0] * len(batch.z) + batch.edge_index[1]))
    floor = floor_seconds(case, neighbours, pairs, len(batch.z)) if neighbours else math.nan
    return {
        "checks": [check for result in results for check in summary(result.detach().double())],
        "neighbours": neighbours,
        "pairs": pairs,
        "times": times,
        "floor": floor,
        "extra": extra,
        "outputs": sum(result.numel() * result.element_size() for result in results),
    }


def summary(result: Tensor) -> list[float]:
    """Its norm, and its product with a fixed random direction, which sees order and signs."""
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    return [float(result.norm()), float((result * direction).sum())]


def extra_memory(call: Call) -> tuple[float, list[Tensor]]:
    """How many bytes a call raises the peak of resident memory, and its results. Linux only."""
    ctypes.CDLL(None).malloc_trim(0)  # what the setting up left must not serve the call
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present, from now on

    def resident() -> float:
        status = Path("/proc/self/status").read_text()
        return 1024 * float(status.split("VmHWM:")[1].split()[0])

    before = resident()
    results = call()
    return resident() - before, results


def floor_seconds(case: Case, neighbours: int, pairs: int, atoms: int) -> float:
    """The time of all multiply-adds at the sgemm rate (README of the kernel, section 5)."""
    reaching, exponential = 13, 13  # radial functions at a distance; operations of one exponential
    per_neighbour = 2 * (reaching * HEADS + exponential * (reaching + HEADS)) + 10 * HEADS
    if case.level == "moments":  # C = 2, F = 16
        per_neighbour += 2 * HEADS * (reaching + 16) + 2 * HEADS * (2 * reaching + 2 * 16)
    total = neighbours * per_neighbour + pairs * 7 * HEADS * DIM + 3 * atoms * HEADS * DIM * COUNT
    if case.level == "network":
        blocks = Crystalformer().blocks
        linear = sum(p.numel() for p in blocks.parameters() if p.dim() == 2)
        total = len(blocks) * total + 3 * atoms * linear
    a = torch.randn(1024, 1024)
    best = math.inf
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return total / (1024**3 / best)


COLUMNS = ["level", "contender", "crystals", "atoms", "cutoff_A", "threads", "neighbours", "p20_ms",
           "p50_ms", "p80_ms", "us_per_atom", "floor_ms", "percent_of_floor", "extra_MB",
           "outputs_MB", "times_faster_than_torch", "times_faster_than_dense"]  # fmt: skip


def table(results: dict[Case, dict]) -> list[dict[str, Any]]:
    rows = []
    for case, result in results.items():
        p20, p50, p80 = np.percentile(result["times"], [20, 50, 80]) * 1e3
        ratios = []
        for other in ("torch", "dense"):
            twin = Case(**asdict(case) | {"contender": other})
            known = twin in results and other != case.contender
            ratios.append(f"{np.median(results[twin]['times']) * 1e3 / p50:.1f}" if known else "")
        floor = result["floor"] * 1e3
        cutoff = "|n| <= 2" if case.contender == "dense" else (
            f"{Crystalformer().cutoff(case.tolerance):.1f}")  # fmt: skip
        atoms = case.crystals * case.atoms
        values = [case.level, case.contender, case.crystals, case.atoms, cutoff, case.threads,
                  result["neighbours"], f"{p20:.2f}", f"{p50:.2f}", f"{p80:.2f}",
                  f"{p50 / atoms * 1e3:.2f}", f"{floor:.2f}", f"{100 * floor / p50:.0f}",
                  f"{result['extra'] / 1e6:.1f}", f"{result['outputs'] / 1e6:.1f}",
                  *ratios]  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def compare(results: dict[Case, dict]) -> None:
    """Leave with an error where contenders disagree on one problem."""
    for case, result in results.items():
        twin = Case(**asdict(case) | {"contender": "torch", "threads": 1})
        if twin not in results:
            continue
        # The dense box leaves out images that the sphere holds, and the other way round.
        tolerance = 1e-2 if case.contender == "dense" else 1e-4
        expected = results[twin]["checks"]
        sizes = [max(norm, 0.01 * max(expected)) for norm in expected[::2] for _ in range(2)]
        for ours, theirs, size in zip(result["checks"], expected, sizes, strict=True):
            if abs(ours - theirs) > tolerance * size:
                sys.exit(f"{case}: {ours}, but {theirs} on the torch backend: no times")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    chosen = [r for r in rows if r["level"] == "op" and r["cutoff_A"] in ("8.0", "|n| <= 2")]
    by_size = [r for r in chosen if 600 < r["crystals"] * r["atoms"] <= 1000 and r["threads"] == 1]
    by_batch = [r for r in chosen if r["atoms"] == 20]
    colors = {"dense": "C0", "compiled": "C1", "torch": "C2", "cpu": "C3"}
    for axis, key, shown, label in (
        (axes[0], "atoms", by_size, "atoms in the cell (about 1,000 in all)"),
        (axes[1], "crystals", by_batch, "crystals of 20 atoms in the batch"),
    ):
        for contender, threads in itertools.product(colors, (1, 2)):
            points = sorted((r[key], float(r["us_per_atom"])) for r in shown
                            if (r["contender"], r["threads"]) == (contender, threads))  # fmt: skip
            if points:
                name = contender if threads == 1 else f"{contender}, 2 threads"
                style = {"marker": "o"} if threads == 1 else {"marker": "s", "ls": "--", "mfc": "w"}
                axis.plot(*zip(*points, strict=True), label=name, color=colors[contender], **style)
        floors = sorted(
            (r[key], 1e3 * float(r["floor_ms"]) / (r["crystals"] * r["atoms"]))
            for r in shown
            if (r["contender"], r["threads"]) == ("cpu", 1)
        )
        axis.plot(*zip(*floors, strict=True), "k:", label="floor, 1 thread")
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("forward and backward, µs per atom")
    figure.suptitle("Infinitely connected attention, 8 heads, 8.0 Å")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="at least; and for two seconds")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tune_malloc()
    if arguments.case:
        print(json.dumps(run(Case(**arguments.case), arguments.repeats)))
        return
    results = {}
    for case in cases():
        repeats = min(arguments.repeats, 1) if case.contender == "dense" else arguments.repeats
        command = [sys.executable, __file__, "--case", json.dumps(asdict(case)),
                   "--repeats", str(repeats)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{case} failed:\n{done.stderr}")
        results[case] = json.loads(done.stdout.splitlines()[-1])
        print(f"{case}: {np.median(results[case]['times']) * 1e3:.2f} ms", file=sys.stderr)
    compare(results)
    rows = table(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    print(text.getvalue(), end="")
    if arguments.output:
        write_text(arguments.output / "periodic_attention.csv", text.getvalue())
        plot(rows, arguments.output / "periodic_attention.png")


if __name__ == "__main__":
    main()
