"""Low-rank routing on the CPU, against two calls of PyTorch's attention.

    python benchmarks/low_rank_routing.py [--threads 1 2] [--output benchmarks/results]

FLARE's operator in float32, scale 1, forward and backward. Contenders:

sdpa_heads   two calls of ``scaled_dot_product_attention`` and autograd, k and v contiguous
             [B, H, N, D]
sdpa_tokens  the same, on a transposed view of [B, N, H, D], as a linear layer gives it
torch, cpu   ``low_rank_routing`` with that backend, on the same view

Of meshes of different sizes, SDPA does one after another, the backends all at once, packed. Every
case runs in a process of its own, in which outputs and gradients are compared before anything is
timed, and the contenders take turns (A B C A B C). Times on one thread are the process's own
(``time.process_time``): other work on the machine counts less; on several, they are wall-clock
times. The floor is derived in ``kernels/low_rank_routing/README.md``, section 4: multiplications at
the sgemm rate, or bytes at the rate of a copy, both measured in the same process. ``extra_MB`` is
how far one forward and backward raises the peak memory, results included.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from matattn.kernels.low_rank_routing import low_rank_routing
from matattn.runtime import tune_malloc

CONTENDERS = ("sdpa_heads", "sdpa_tokens", "torch", "cpu")


@dataclass(frozen=True)
class Case:
    sizes: tuple[int, ...]  # tokens of each mesh
    latents: int = 64
    heads: int = 8
    dim: int = 8

    @property
    def tokens(self) -> int:
        return sum(self.sizes)


RAGGED = (736, 1100, 972, 2210, 815, 1423, 1024, 990)
CASES = [
    Case((972,) * 8), Case((972,) * 2, 32, 4), Case((972,)), Case((300,) * 4, 32, 4), Case(RAGGED),
    Case((7225,) * 2, 256, 16, 4), Case((16_384,), 64, 8, 16), Case((16_384,), 64, 4, 32),
    Case((10_000,)), Case((16_384,)), Case((65_536,)), Case((100_000,)), Case((1_000_000,)),
]  # fmt: skip


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.expand(len(k), -1, -1, -1)  # without it PyTorch leaves the fused kernel
    return scaled_dot_product_attention(
        k, q, scaled_dot_product_attention(q, k, v, scale=1.0), scale=1.0
    )


Forward = Callable[[], tuple[Tensor, ...]]  # outputs, one or one of each mesh


def contender(name: str, case: Case) -> tuple[Forward, list[Tensor], list[Tensor]]:
    """Its forward, its leaves (q, then k and v) and the gradients that its outputs receive."""
    generator = torch.Generator().manual_seed(0)

    def tokens() -> tuple[Tensor, ...]:  # [T, H, D], by mesh
        shape = (case.tokens, case.heads, case.dim)
        return torch.randn(shape, generator=generator).split(case.sizes)

    q = torch.randn(case.heads, case.latents, case.dim, generator=generator).requires_grad_()
    k, v, received = tokens(), tokens(), tokens()
    equal = len(set(case.sizes)) == 1

    def leaves_of(meshes: tuple[Tensor, ...]) -> list[Tensor]:
        if name == "sdpa_heads":
            parts = [mesh.transpose(0, 1)[None] for mesh in meshes]  # [1, H, N, D]
        else:
            parts = [mesh[None] for mesh in meshes]  # [1, N, H, D]
        if equal or not name.startswith("sdpa"):
            parts = [torch.cat(parts, 0 if equal else 1)]
        return [part.contiguous().requires_grad_() for part in parts]

    def as_heads(leaf: Tensor) -> Tensor:
        return leaf if name == "sdpa_heads" else leaf.transpose(1, 2)

    keys, values = leaves_of(k), leaves_of(v)
    directions = [leaf.detach() for leaf in leaves_of(received)]
    if equal or name.startswith("sdpa"):
        directions = [as_heads(direction) for direction in directions]

        def forward() -> tuple[Tensor, ...]:
            pairs = ((as_heads(a), as_heads(b)) for a, b in zip(keys, values, strict=True))
            if name.startswith("sdpa"):
                return tuple(sdpa(q, *pair) for pair in pairs)
            return tuple(low_rank_routing(q, *pair, backend=name) for pair in pairs)
    else:
        directions = [directions[0][0]]
        ends = torch.tensor([0, *case.sizes]).cumsum(0)

        def forward() -> tuple[Tensor, ...]:
            return (low_rank_routing(q, keys[0][0], values[0][0], cu_seqlens=ends, backend=name),)

    return forward, [q, *keys, *values], directions


def packed(name: str, case: Case, results: list[Tensor]) -> Tensor:
    """k or v's gradients, or outputs, as one [T, H, D], to compare contenders."""
    parts = []
    for result in results:
        if result.dim() == 4:
            result = result.transpose(1, 2) if name == "sdpa_heads" else result
            result = result.flatten(0, 1)
        parts.append(result)
    return torch.cat(parts)


def compare(case: Case) -> None:
    """Leaves with an error where a contender's output or a gradient differs from SDPA's."""
    expected: list[Tensor] = []
    for name in CONTENDERS:
        forward, leaves, directions = contender(name, case)
        outputs = forward()
        grad_q, *grads = torch.autograd.grad(outputs, leaves, directions)
        half = len(grads) // 2
        tokens_first = [y.transpose(1, 2).flatten(0, 1) if y.dim() == 4 else y for y in outputs]
        found = [grad_q, torch.cat(tokens_first).detach(),
                 *(packed(name, case, part) for part in (grads[:half], grads[half:]))]  # fmt: skip
        expected = expected or found
        for actual, other in zip(found, expected, strict=True):
            error = float((actual - other).abs().max() / other.abs().max())
            if not error <= 5e-4:  # dq is a sum over up to a million tokens, in float32
                sys.exit(f"{case}: {name} differs by {error:.1e}: no times")


def extra_memory(name: str, case: Case) -> float:
    """How many bytes a forward and backward raises the peak of resident memory. Linux only."""
    forward, leaves, directions = contender(name, case)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present, from now on

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return 1024 * float(status.split("VmHWM:")[1].split()[0])

    before = peak()
    results = torch.autograd.grad(forward(), leaves, directions)
    after = peak()
    del results
    return after - before


def best(call: Callable[[], object], clock: Callable[[], float]) -> float:
    times = []
    for _ in range(10):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def floors(case: Case, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds that the multiplications and the bytes of each pass take (README.md, section 4)."""
    square, other, large = torch.randn(1024, 1024), torch.empty(2**25), torch.randn(2**25)
    rate = 1024**3 / best(lambda: torch.mm(square, square), clock)
    copied = 2 * large.nbytes / best(lambda: other.copy_(large), clock)
    scores = case.tokens * case.heads * case.latents
    size = case.tokens * case.heads * case.dim * 4
    exponential = 7
    multiplications = {
        "forward": 4 * case.dim + 2 * exponential,
        "backward": 8 * case.dim + 3 * exponential + 2,
    }
    transferred = {"forward": 4, "backward": 8}
    found = {
        key: max(scores * multiplications[key] / rate, size * transferred[key] / copied)
        for key in multiplications
    }
    return {**found, "both": sum(found.values())}


def run(case: Case, threads: int, repeats: int) -> dict:
    """Times of all contenders on one case (in its own process)."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    compare(case)
    extra = {name: extra_memory(name, case) for name in CONTENDERS}
    calls = {name: contender(name, case) for name in CONTENDERS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    begin = time.perf_counter()
    while len(times["cpu"]) < repeats or (
        len(times["cpu"]) < 100 and time.perf_counter() - begin < 4
    ):
        for name, (forward, leaves, directions) in calls.items():
            start = clock()
            outputs = forward()
            middle = clock()
            torch.autograd.grad(outputs, leaves, directions)
            times[name].append((middle - start, clock() - middle))
    return {"times": times, "extra": extra, "floors": floors(case, clock)}


COLUMNS = ["meshes", "tokens", "latents", "heads", "dim", "threads", "pass", "contender", "repeats",
           "p20_ms", "p50_ms", "p80_ms", "ns_per_token", "floor_ms", "percent_of_floor", "extra_MB",
           "times_faster_than_sdpa"]  # fmt: skip


def rows(case: Case, threads: int, result: dict) -> list[dict]:
    listed = []
    measured = {name: np.array(result["times"][name]) for name in CONTENDERS}
    for place, key in enumerate(("forward", "backward", "both")):
        times = {name: t.sum(1) if key == "both" else t[:, place] for name, t in measured.items()}
        medians = {name: float(np.median(t)) for name, t in times.items()}
        fastest = min(medians[name] for name in CONTENDERS if name.startswith("sdpa"))
        for name in CONTENDERS:
            p20, p50, p80 = np.percentile(times[name], [20, 50, 80]) * 1e3
            floor = result["floors"][key] * 1e3
            values = [len(case.sizes), case.tokens, case.latents, case.heads, case.dim, threads,
                      key, name, len(times[name]), f"{p20:.3f}", f"{p50:.3f}", f"{p80:.3f}",
                      f"{p50 / case.tokens * 1e6:.1f}", f"{floor:.3f}", f"{100 * floor / p50:.0f}",
                      f"{result['extra'][name] / 1e6:.1f}" if key == "both" else "",
                      f"{fastest / medians[name]:.2f}"]  # fmt: skip
            listed.append(dict(zip(COLUMNS, values, strict=True)))
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="at least; and for four seconds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tune_malloc()
    if arguments.case:
        case = Case(**{**arguments.case, "sizes": tuple(arguments.case["sizes"])})
        print(json.dumps(run(case, arguments.threads[0], arguments.repeats)))
        return
    table: list[dict] = []
    for threads in arguments.threads:
        for case in CASES:
            if threads > 1 and case.tokens > 100_000:
                continue
            repeats = min(arguments.repeats, max(2, math.ceil(2e6 / case.tokens)))
            command = [sys.executable, __file__, "--case", json.dumps(asdict(case)),
                       "--threads", str(threads), "--repeats", str(repeats)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{case} failed:\n{done.stderr}")
            table += rows(case, threads, json.loads(done.stdout.splitlines()[-1]))
            for row in table[-3 * len(CONTENDERS) :]:
                print(*row.values(), file=sys.stderr)
    files = [sys.stdout]
    if arguments.output:
        files.append((arguments.output / "low_rank_routing.csv").open("w"))
    for file in files:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        file.flush()


if __name__ == "__main__":
    main()
