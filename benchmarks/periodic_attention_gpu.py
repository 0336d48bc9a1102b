"""Infinitely connected attention on a GPU: the ``triton`` backend against PyTorch's operations.

    python benchmarks/periodic_attention_gpu.py [--clock 1.83]

Random crystals of 0.06 atoms/Å^3, 8 heads of 16 numbers, 64 radial functions, forward and backward
with gradients for q, k, v, a and W (``level=op``), or the published network from ready neighbour
lists to the gradients of all parameters (``level=network``, float32). Contenders:

torch     the ``torch`` backend
compiled  ``torch.compile`` of the flat formula (``reference.neighbor_attention``), float32
triton    the ``triton`` backend

Every contender is compared with the float64 reference on a small problem before it is timed
(median of 20, milliseconds); ``error`` is the largest, of the largest element of y or a gradient.
``peak_MB`` is how far a call raises the peak memory. The floor is the larger of two bounds: the
arrays that have to be read and written, at the rate that a copy reaches on the same GPU, and
2 (K + H) exponentials a neighbour, 16 in a clock of a multiprocessor.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Sequence

import torch
from low_rank_routing_gpu import bytes_per_ms, exponentials_per_ms, milliseconds
from periodic_attention import COUNT, DIM, HEADS, SPACING, TRAINING, crystals
from torch import Tensor

from matattn.kernels.periodic_attention import periodic_attention, reference
from matattn.models.crystalformer import Crystalformer
from matattn.structures.batch import CrystalBatch, collate

SIZES = ((32, 20), (256, 20), (1024, 20), (128, 200))  # crystals, atoms in each
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
CONTENDERS = {
    torch.float32: ("torch", "triton", "compiled"),
    torch.bfloat16: ("torch", "triton"),
}


def batch_of(number: int, atoms: int) -> CrystalBatch:
    return collate(crystals(number, atoms), Crystalformer().image_rule(TRAINING)).to("cuda")


def arguments(batch: CrystalBatch, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """q, k, v, a and W; distance and lists; and the gradient of y."""
    torch.manual_seed(0)
    shape = (len(batch.z), HEADS, DIM)
    q, k, v, grad = (torch.randn(shape, device="cuda").to(dtype) for _ in range(4))
    a = -0.13 - 0.3 * torch.rand(shape[:2], device="cuda")
    weight = 0.1 * torch.randn(HEADS, DIM, COUNT, device="cuda")
    geometry = Crystalformer().geometry(batch)
    lists = [geometry.distance.to(dtype), geometry.source, geometry.row_ptr]
    return [q, k, v, a.to(dtype), weight.to(dtype)], lists, grad


def both_passes(
    contender: str, leaves: Sequence[Tensor], lists: Sequence[Tensor], grad: Tensor
) -> list[Tensor]:
    """y, and the gradients of the leaves."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    if contender == "compiled":
        y = compiled(*leaves, *lists, None, SPACING, SPACING)[0]
    else:
        y = periodic_attention(*leaves, *lists, spacing=SPACING, width=SPACING, backend=contender)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


compiled = torch.compile(reference.neighbor_attention, dynamic=False)


def largest_error(contender: str, dtype: torch.dtype) -> float:
    batch = batch_of(4, 12)
    leaves, lists, grad = arguments(batch, dtype)
    wide = [leaf.double() for leaf in leaves]
    exact = both_passes("reference", wide, [lists[0].double(), *lists[1:]], grad.double())
    pairs = zip(both_passes(contender, leaves, lists, grad), exact, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def floor(atoms: int, neighbours: int, dtype: torch.dtype, clock: float) -> float:
    """Milliseconds that both passes of the operator take at least."""
    rows = 4 + 8  # q, k, v, y; q, k, v, y, grad_y, and the gradients of q, k, v
    moved = atoms * HEADS * DIM * dtype.itemsize * rows + neighbours * 2 * (8 + dtype.itemsize)
    exponentials = 2 * (COUNT + HEADS) * neighbours
    return max(moved / bytes_per_ms(), exponentials / exponentials_per_ms(clock))


def network_call(contender: str, batch: CrystalBatch) -> Callable[[], object]:
    torch.manual_seed(0)
    network = Crystalformer().cuda().eval()
    parameters = [p for p in network.parameters() if p.numel()]

    def call() -> object:
        os.environ["MATATTN_BACKEND"] = contender
        return torch.autograd.grad(network(batch).sum(), parameters)

    return call


def measured(call: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of a call, and how far it raises the peak memory (MB)."""
    call()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    peak = torch.cuda.max_memory_allocated() - before
    return milliseconds(call), peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", type=float, default=1.83, help="GHz (default: of an H100)")
    clock = parser.parse_args().clock
    if not torch.cuda.is_available():
        sys.exit("periodic_attention_gpu.py: PyTorch sees no NVIDIA GPU; this benchmark needs one")
    columns = ("gpu", "level", "dtype", "contender", "crystals", "atoms", "neighbours", "ms",
               "floor_ms", "peak_MB", "error")  # fmt: skip
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)

    def row(level, dtype, contender, size, batch, time, least, peak, error):  # noqa: ANN001
        writer.writerow([
            torch.cuda.get_device_name(), level, str(dtype).removeprefix("torch."), contender,
            *size, batch.edge_index.shape[1], f"{time:.3f}", least, f"{peak:.0f}", error,
        ])  # fmt: skip
        sys.stdout.flush()

    batches = {size: batch_of(*size) for size in SIZES}
    for dtype, contenders in CONTENDERS.items():
        errors = {name: largest_error(name, dtype) for name in contenders}
        for name, error in errors.items():
            if error > TOLERANCES[dtype]:
                sys.exit(f"{name}, {dtype}: error {error:.1e}; no times")
        for size, batch in batches.items():
            leaves, lists, grad = arguments(batch, dtype)
            least = floor(len(batch.z), len(lists[0]), dtype, clock)
            for name in contenders:
                time, peak = measured(lambda: both_passes(name, leaves, lists, grad))  # noqa: B023
                row("op", dtype, name, size, batch, time, f"{least:.3f}", peak,
                    f"{errors[name]:.1e}")  # fmt: skip
    for size, batch in batches.items():
        for name in ("torch", "triton"):
            time, peak = measured(network_call(name, batch))
            row("network", torch.float32, name, size, batch, time, "", peak, "")


if __name__ == "__main__":
    main()
