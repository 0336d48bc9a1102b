r"""Cost of CoulGAT's attention: edge lists against dense matrices, forward and backward.

    python benchmarks/coulgat.py

Random points at 30 neighbours each, 4 heads of 8 channels, one thread; times in float32. The
results are compared in float64 before they are timed. Writes ``benchmarks/results/coulgat.csv``,
one row per figure.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from matattn.models.coulomb_attention import CoulombGATConv
from matattn.runtime import processor, tune_malloc
from matattn.structures.image_rule import ImageRule
from matattn.tables import write_table

HEADS, CHANNELS, DEGREE, CUTOFF = 4, 8, 30, 3.0
NODES = (1024, 4096, 16384, 65536)
DENSE = 4096  # nodes up to which the matrices fit
REPEATS = 3
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # features, edges, lengths, species
RESULT = Path(__file__).parent / "results" / "coulgat.csv"


def main() -> None:
    torch.set_num_threads(1)
    tune_malloc()
    torch.manual_seed(0)
    conv = CoulombGATConv(
        64, CHANNELS, heads=HEADS, num_species=4, cutoff=CUTOFF, add_self_loops=False
    )
    rows = []
    for nodes in NODES:
        inputs = graph(nodes)
        sparse = timed(conv, inputs)
        edges = inputs[1].shape[1]
        row = {"nodes": nodes, "edges": edges, "sparse_s": f"{sparse:.3f}"}
        row["ns_per_edge"] = f"{1e9 * sparse / edges:.0f}"
        row |= {"dense_s": "", "difference": ""}
        if nodes <= DENSE:
            row["difference"] = f"{compared(conv, inputs):.1e}"
            row["dense_s"] = f"{timed(partial(dense, conv), inputs):.3f}"
        rows.append(row | {"processor": processor()})
        print(rows[-1], flush=True)
    write_table(RESULT, rows)


def graph(nodes: int) -> Inputs:
    """Features, edges with self loops, lengths and species of points with DEGREE neighbours."""
    generator = np.random.default_rng(0)
    side = CUTOFF * (4 / 3 * math.pi * nodes / DEGREE) ** (1 / 3)
    pos = side * generator.random((nodes, 3))
    found = ImageRule(CUTOFF)(np.ones(nodes), pos, np.zeros((3, 3)))
    target = np.repeat(np.arange(nodes), found.counts)
    edges = torch.from_numpy(np.stack([found.source, target]).astype(np.int64))
    x = torch.randn(nodes, 64, requires_grad=True)
    species = torch.from_numpy(generator.integers(0, 4, nodes))
    return x, edges, torch.from_numpy(found.distance).float(), species


def compared(conv: CoulombGATConv, inputs: Inputs) -> float:
    """Largest difference between sparse and dense in float64; ends the program above 1e-12."""
    exact = copy.deepcopy(conv).double()
    x, edges, length, species = inputs
    double = x.detach().double(), edges, length.double(), species
    with torch.no_grad():
        difference = (exact(*double) - dense(exact, *double)).abs().max().item()
    if difference > 1e-12:
        raise SystemExit(f"{len(x)} nodes: sparse and dense differ by {difference:.1e}")
    return difference


def dense(
    conv: CoulombGATConv, x: Tensor, edges: Tensor, length: Tensor, species: Tensor
) -> Tensor:
    """The same operator on matrices of all pairs of nodes [N, N, H]."""
    source, target = edges
    logits = x.new_full((len(x), len(x), HEADS), -math.inf)
    logits[target, source] = conv.law(length, species[target], species[source])
    value = conv.lin(x).view(-1, HEADS, CHANNELS) + conv.bias
    z = torch.einsum("ijh,jhc->ihc", logits.softmax(1), value)
    score = torch.einsum("ihc,jhc->ijh", conv.att[species], z)
    score = torch.nn.functional.leaky_relu(score, conv.negative_slope)
    return torch.einsum("ijh,jhc->ihc", (score + logits).softmax(1), value).flatten(1)


def timed(run: Callable[..., Tensor], inputs: Inputs) -> float:
    """Least processor time of a forward and backward pass, seconds: other programs do not count."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.process_time()
        run(*inputs).square().sum().backward()
        seconds.append(time.process_time() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
