"""Low-rank routing with the tokens of a mesh in two processes, against one process.

Run as a script, this file is one of the two processes. Needs torch, numpy and pytest only.
"""

import datetime
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from matattn.kernels.low_rank_routing import (
    BACKENDS,
    low_rank_routing,
    sharded,
    sharded_low_rank_routing,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "flare"
HERE = (torch.device("cpu"), torch.float64)
NAMES = [name for name, backend in BACKENDS.items() if not backend.refuses(*HERE)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
TAKEN = [
    (name, dtype)
    for name in NAMES
    for dtype in TOLERANCES
    if not BACKENDS[name].refuses(HERE[0], dtype)
]
HEADS, LATENTS, DIM, SCALE = 3, 7, 5, 0.7
# Tokens of every mesh in the two processes; of the last but one mesh neither has any.
SHARES = torch.tensor([[0, 100, 1, 0, 30], [5, 30, 0, 0, 31]])
CASES = ("shared_q", "batched_q", "separate_decode_q", "equal_meshes", "all_in_one_process")


def problem(case, dtype):
    """q, decode_q, k, v and grad_y of whole meshes, and the tokens of each in both processes."""
    generator = torch.Generator().manual_seed(0)
    shares = SHARES
    if case == "equal_meshes":
        shares = torch.tensor([[12, 12], [20, 20]])
    if case == "all_in_one_process":
        shares = torch.stack([SHARES.sum(0), torch.zeros_like(SHARES[0])])

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q = random(*([shares.shape[1]] if case == "batched_q" else []), HEADS, LATENTS, DIM)
    decode_q = random(*q.shape) if case == "separate_decode_q" else None
    return q, decode_q, *(random(int(shares.sum()), HEADS, DIM) for _ in range(3)), shares


def rows_of(rank, shares):
    """Which tokens of the whole meshes a process has."""
    owner = [torch.tensor([0, 1]).repeat_interleave(counts) for counts in shares.T]
    return torch.cat(owner) == rank


def ends(counts):
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def dense(x, meshes):
    """Packed tokens of meshes of one size as [B, H, N, D]."""
    return x.unflatten(0, (meshes, -1)).transpose(1, 2)


def routed(function, case, tensors, counts, backend, **more):
    """y [T, H, D] and the gradients for q, decode_q (unless None), k and v."""
    *inputs, grad_y = tensors
    q, decode_q, k, v = (None if t is None else t.clone().requires_grad_() for t in inputs)
    given = {"decode_q": decode_q, "scale": SCALE, "backend": backend, **more}
    if case == "equal_meshes":
        meshes = len(counts)
        y = function(q, dense(k, meshes), dense(v, meshes), **given)
        y = y.transpose(1, 2).flatten(0, 1)
    else:
        y = function(q, k, v, cu_seqlens=ends(counts), **given)
    used = [t for t in (q, decode_q, k, v) if t is not None]
    return [y.detach(), *torch.autograd.grad(y, used, grad_y)]


def work(rank, folder):
    """One process: its results of every case, and how many numbers it exchanged."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    sent = []
    all_reduce = dist.all_reduce

    def counted(tensor, *arguments):
        sent.append(tensor.numel())
        return all_reduce(tensor, *arguments)

    dist.all_reduce = counted
    found = {}
    for case in CASES:
        for name, dtype in TAKEN:
            *tensors, shares = problem(case, dtype)
            mine = rows_of(rank, shares)
            tensors[2:] = [t[mine] for t in tensors[2:]]
            sent.clear()
            results = routed(
                sharded_low_rank_routing, case, tensors, shares[rank], name, group=None
            )
            found[case, name, str(dtype)] = results, list(sent)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes found."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-W", "error", __file__]
    running = [
        subprocess.Popen([*command, str(rank), folder], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in running:
            _, messages = process.communicate(timeout=180)
            assert process.returncode == 0, messages
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("backend, dtype", TAKEN)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, backend, dtype, found):
    *tensors, shares = problem(case, dtype)
    expected = routed(low_rank_routing, case, tensors, shares.sum(0), backend)
    parts = [results[case, backend, str(dtype)][0] for results in found]
    queries = len(expected) - 3
    for place, exact in enumerate(expected):
        if 1 <= place <= queries:  # of q and decode_q, each process has its own part
            actual = parts[0][place] + parts[1][place]
        else:
            actual = torch.full_like(exact, math.nan)
            for rank in range(2):
                actual[rows_of(rank, shares)] = parts[rank][place]
        assert actual.dtype == dtype
        error = (actual - exact).abs().max() / exact.abs().max()
        assert error <= TOLERANCES[dtype], f"result {place}: {error:.1e}"


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_exchanged(case, backend, found):
    """H M (D + 2) a mesh forward, H M D backward, however many tokens there are."""
    rows = problem(case, torch.float64)[-1].shape[1] * HEADS * LATENTS
    for results in found:
        _, sent = results[case, backend, "torch.float64"]
        assert sent == [rows, rows * (DIM + 1), rows * DIM]


def reduce_first_dimension(tensor, operation, group):
    """``all_reduce`` where the processes' tensors are the rows of one."""
    total = tensor.amax(0) if operation == dist.ReduceOp.MAX else tensor.sum(0)
    tensor.copy_(total.expand_as(tensor))


@pytest.mark.parametrize("backend", NAMES)
def test_golden_shards(backend, monkeypatch):
    with np.load(GOLDEN / "core_split_n.npz") as arrays:
        data = {key: torch.as_tensor(arrays[key]) for key in arrays.files}
    monkeypatch.setattr(dist, "all_reduce", reduce_first_dimension)
    bounds = data["bounds"].tolist()
    parts = []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        k, v = (data[x][0, :, begin:end].transpose(0, 1) for x in "kv")
        ptr = torch.tensor([0, end - begin])
        encode = BACKENDS[backend].module.encode
        parts.append(encode(data["q"][None], k, v, ptr, data["scale"].item()))
    z, lse = (torch.stack(part) for part in zip(*parts, strict=True))
    assert (z - data["part_acc"] / data["part_sum"][..., None]).abs().max() <= 1e-12
    assert (lse - data["part_max"] - data["part_sum"].log()).abs().max() <= 1e-12
    z, lse = sharded.merge_shards(z, lse, None)
    for merged, exact in ((z, data["z"]), (lse, data["lse_enc"])):
        assert (merged - exact).abs().max() <= 1e-13 * exact.abs().max()


def test_empty_meshes_and_nan_when_shards_are_merged(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", reduce_first_dimension)
    z = torch.tensor([[1.0, 0.0, 0.0, math.nan], [3.0, 2.0, 0.0, 1.0]])[..., None]
    lse = torch.tensor([[0.0, -math.inf, -math.inf, math.nan], [0.0, -500.0, -math.inf, 1.0]])
    z, lse = sharded.merge_shards(z, lse, None)
    assert z[0, :3, 0].tolist() == [2.0, 2.0, 0.0] and z[0, 3].isnan()
    assert lse[0, :3].tolist() == [pytest.approx(math.log(2)), -500.0, -math.inf]
    assert lse[0, 3].isnan()


def test_without_processes_it_says_so():
    q, _, k, v, *_ = problem("equal_meshes", torch.float64)
    with pytest.raises(RuntimeError, match="call torch.distributed.init_process_group"):
        sharded_low_rank_routing(q, dense(k, 2), dense(v, 2))


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
