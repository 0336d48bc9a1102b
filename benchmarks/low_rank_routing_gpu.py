"""Low-rank routing on a GPU: the ``triton`` backend against two calls of PyTorch's attention.

    python benchmarks/low_rank_routing_gpu.py [--tokens 1000000] [--clock 1.83]

One mesh, 256 latents, 8 heads of 8, 16 and 32 numbers, forward and backward. Both are compared
with the float64 reference on 2,000 tokens first, then timed (median, milliseconds); ``peak_MB`` is
how far both passes raise the peak memory. The floor is the larger of two bounds: arrays that have
to be read and written, at the rate that a copy reaches on the same GPU; and four exponentials for
each pair of token and latent (encode, decode, gradient of z, and one for all gradients of tokens
and queries), 16 in a clock of a multiprocessor.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from matattn.kernels.low_rank_routing import low_rank_routing

HEADS, LATENTS = 8, 256
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return low_rank_routing(q, k, v, backend="triton")


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    z = scaled_dot_product_attention(q[None], k, v, scale=1.0)
    return scaled_dot_product_attention(k, q[None], z, scale=1.0)


def leaves(tokens: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q [H, M, D], k, v and grad_y [1, H, N, D] as a network makes them, from [1, N, H, D]."""
    torch.manual_seed(0)
    q = torch.randn(HEADS, LATENTS, dim, device="cuda").to(dtype)
    kv = (torch.randn(1, tokens, HEADS, dim, device="cuda").to(dtype) for _ in range(3))
    return [q, *(x.transpose(1, 2) for x in kv)]


def both_passes(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """y and the gradients for q, k and v."""
    inputs = [t.detach().requires_grad_() for t in tensors[:3]]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, tensors[3])]


def largest_error(function: Callable[..., Tensor], dim: int, dtype: torch.dtype) -> float:
    """Against the reference, of the largest element of y and of each gradient."""
    tensors = leaves(2000, dim, dtype)
    wide = [t.double() for t in tensors]
    exact = both_passes(lambda *x: low_rank_routing(*x, backend="reference"), wide)
    pairs = zip(both_passes(function, tensors), exact, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def milliseconds(function: Callable[[], object]) -> float:
    """Median time on the GPU of 20 calls, fewer (3 at least) if they take more than 2 s, after
    three that are not counted."""
    times: list[float] = []
    while len(times) < 6 or (len(times) < 23 and sum(times) < 2000):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def bytes_per_ms() -> float:
    """Bytes that a copy reads and writes in a millisecond."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / milliseconds(partial(target.copy_, source))


def exponentials_per_ms(clock: float) -> float:
    """Exponentials that all multiprocessors make in a millisecond, at ``clock`` GHz."""
    return 16 * torch.cuda.get_device_properties(0).multi_processor_count * clock * 1e6


def floor(tokens: int, dim: int, dtype: torch.dtype, clock: float) -> float:
    """Milliseconds that both passes take at least."""
    arrays = 4 + 8  # k twice, v, y; k twice, grad_y twice, v, y, grad_k, grad_v
    moved = arrays * tokens * HEADS * dim * dtype.itemsize
    exponentials = 4 * tokens * HEADS * LATENTS
    return max(moved / bytes_per_ms(), exponentials / exponentials_per_ms(clock))


def main() -> None:
    parser = argparse.ArgumentParser(description="Low-rank routing against two attention calls.")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--clock", type=float, default=1.83, help="GHz (default: of an H100)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("low_rank_routing_gpu.py: PyTorch sees no NVIDIA GPU; this benchmark needs one")
    columns = ("gpu", "dtype", "dim", "contender", "tokens", "ms", "floor_ms", "peak_MB", "error")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for dtype, dim, contender in product(TOLERANCES, (8, 16, 32), (triton, sdpa)):
        error = largest_error(contender, dim, dtype)
        if contender is triton and error > TOLERANCES[dtype]:
            sys.exit(f"{contender.__name__}, {dtype}, D = {dim}: error {error:.1e}")
        tensors = leaves(arguments.tokens, dim, dtype)
        least = floor(arguments.tokens, dim, dtype, arguments.clock)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        time = milliseconds(partial(both_passes, contender, tensors))
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
        writer.writerow([
            torch.cuda.get_device_name(), str(dtype).removeprefix("torch."), dim,
            contender.__name__, arguments.tokens, f"{time:.2f}", f"{least:.2f}", f"{peak:.0f}",
            f"{error:.1e}",
        ])  # fmt: skip
        sys.stdout.flush()


if __name__ == "__main__":
    main()
