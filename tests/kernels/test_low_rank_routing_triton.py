"""The Triton backend: on a GPU where there is one, else interpreted, and compiled ahead of time.

As in test_periodic_attention_triton.py, a machine without a GPU runs this file in another process
with TRITON_INTERPRET=1. Needs torch, triton, numpy and pytest only.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.kernels import triton_support
from matattn.kernels.dispatch import Backend, BackendError
from matattn.kernels.low_rank_routing import (
    cpu,
    low_rank_routing,
    reference,
    torch_ops,
    triton_ops,
)
from matattn.kernels.low_rank_routing.backends import BACKENDS, find

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REFUSES = triton_support.refuses(DEVICE, torch.float32)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
on_device = pytest.mark.skipif(REFUSES is not None, reason=f"triton backend: {REFUSES}")
interpreted = pytest.mark.skipif(
    REFUSES is not None or not INTERPRETED, reason="needs Triton's interpreter"
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


common = load(ROOT / "tests" / "kernels" / "test_low_rank_routing.py")


def interpret(*tests):
    """Run tests with Triton's interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Triton 3.6 reads the bounds of a loop so; NumPy 2.4 no longer lets it.
    command += ["-W", "ignore:Conversion of an array with ndim:DeprecationWarning"]
    # It computes with NumPy, which warns of NaN and infinities where a GPU does not.
    command += ["-W", "ignore::RuntimeWarning", *tests]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("this Triton's interpreter does not work with NumPy 2.4")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="tested in this process")
def test_interpreted():
    shared = "tests/kernels/test_low_rank_routing.py::test_"
    interpret(
        "tests/kernels/test_low_rank_routing_triton.py",
        f"{shared}golden[small-triton-dtype0]",
        f"{shared}golden[extreme_logits-triton-dtype1]",
        f"{shared}golden[ragged-triton-dtype1]",
        f"{shared}opcheck[triton]",
        f"{shared}strided_tokens[triton]",
    )


@needs_triton
@pytest.mark.slow
def test_interpreted_thoroughly():
    # Minutes more with the shapes that are made for others, and for finite differences.
    tests = "triton and not equal_the_reference and not gradcheck and not bit_by_bit"
    interpret("tests/kernels/test_low_rank_routing.py", "-k", tests)


def results(leaves, ptr, received, backend, scale=0.7):
    """y and gradients for q, decode_q (unless that is None), k and v."""
    leaves = [None if t is None else t.to(DEVICE).requires_grad_() for t in leaves]
    q, decode_q, k, v = leaves
    y = low_rank_routing(q, k, v, decode_q=decode_q, cu_seqlens=ptr, scale=scale, backend=backend)
    used = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, used, received.to(y))]


def check(leaves, ptr, received, bound, scale=0.7):
    """Errors against the float64 reference, of the largest element or of 1 if that is more."""
    actual = results(leaves, ptr, received, "triton", scale)
    wide = [None if t is None else t.double() for t in leaves]
    expected = results(wide, ptr, received, "reference", scale)
    used = [t for t in leaves if t is not None]
    for place, (value, exact) in enumerate(zip(actual, expected, strict=True)):
        like = (leaves[3], *used)[place]
        assert value.dtype == like.dtype and value.shape == like.shape
        assert value.isfinite().all(), f"result {place}"
        if value.numel():
            error = (value - exact).abs().max() / exact.abs().max().clamp(min=1.0)
            assert error <= bound, f"result {place}: {error:.1e}"
    return actual


def problem(dtype, separate=False, sizes=(5, 40, 1, 0, 18), heads=2, **shape):
    q, k, v, ptr, random = common.tokens(dtype, sizes=sizes, heads=heads, **shape)
    return (q, random(*q.shape) if separate else None, k, v), ptr, random(*v.shape)


SHAPES = [
    {},
    {"latents": 1, "dim": 4, "sizes": (7,)},
    {"latents": 3, "dim": 8, "sizes": (1, 1, 1)},
    {"latents": 16, "dim": 16, "sizes": (64, 65), "heads": 1},
    {"latents": 70, "dim": 5, "sizes": (66, 3), "heads": 1},
    {"latents": 33, "dim": 32, "sizes": (17,)},
    {"latents": 35, "dim": 50, "sizes": (17,), "heads": 1},
    {"meshes_of_q": 3, "sizes": (9, 0, 20)},
]


@on_device
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_every_gradient(shape, separate):
    check(*problem(torch.float64, separate, **shape), BOUNDS[torch.float64])


@on_device
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4], SHAPES[6]], ids=str)
def test_single_precision(shape):
    check(*problem(torch.float32, separate=True, **shape), BOUNDS[torch.float32])


@on_device
@pytest.mark.parametrize("programs", [1, 10**6])
@pytest.mark.parametrize("latents", [7, 70])
def test_meshes_in_one_piece_and_in_many(latents, programs, monkeypatch):
    """One item walks over all tiles of a mesh, or every tile is an item."""
    monkeypatch.setattr(triton_ops, "PROGRAMS", programs)
    shape = {"latents": latents, "heads": 1, "sizes": (70, 0, 31)}
    check(*problem(torch.float64, **shape), BOUNDS[torch.float64])


def test_items_cover_every_token_once():
    items, item_ptr = triton_ops._items((0, 5, 5, 70, 134), 32, torch.device("cpu"))
    assert item_ptr.tolist() == [0, 1, 1, 4, 6]
    assert items.tolist() == [
        [0, 0, 5], [2, 5, 37], [2, 37, 69], [2, 69, 70], [3, 70, 102], [3, 102, 134],
    ]  # fmt: skip


def unequal_logits(dtype):
    """Logits of some hundred, and a token whose logits are zero."""
    leaves, ptr, received = problem(dtype, sizes=(40, 3), heads=1)
    leaves[0].mul_(100)
    leaves[2][7] = 0
    return leaves, ptr, received


@on_device
@pytest.mark.parametrize("dtype", BOUNDS)
def test_very_unequal_logits_do_not_overflow(dtype):
    leaves, ptr, received = unequal_logits(dtype)
    check(leaves, ptr, received, 1e-3 if dtype == torch.float32 else 1e-11)
    z, lse = reference.encode(leaves[0][None].double(), *leaves[2:], ptr, 0.7)
    assert lse.max() > 150  # half the difference is more than the exponent of float32 can hold


@interpreted
@pytest.mark.parametrize("latents", [7, 70])
def test_shared_exponential_equals_two(latents, monkeypatch):
    from triton.language import constexpr

    from matattn.kernels.low_rank_routing import triton_kernels

    usual = problem(torch.float64, sizes=(40, 3), heads=1, latents=latents)
    found = {}
    for limit in (-1.0, 57.0, 1e9):
        monkeypatch.setattr(triton_kernels, "HALF_RANGE", constexpr(limit))
        found[limit] = results(*usual, "triton")
    for never, guarded, always in zip(*found.values(), strict=True):
        assert torch.equal(guarded, always)
        assert (never - guarded).abs().max() <= 1e-12 * never.abs().max()
    assert not torch.equal(found[-1.0][1], found[57.0][1])  # they are rounded differently

    # The guard matters: without it, a float32 factor overflows.
    found = {}
    for limit in (-1.0, 57.0, 1e9):
        monkeypatch.setattr(triton_kernels, "HALF_RANGE", constexpr(limit))
        with np.errstate(all="ignore"):
            found[limit] = results(*unequal_logits(torch.float32), "triton")
    assert all(map(torch.equal, found[-1.0], found[57.0]))
    assert not all(t.isfinite().all() for t in found[1e9])


@on_device
@pytest.mark.parametrize("latents", [7, 70])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision(dtype, latents):
    if dtype == torch.bfloat16 and INTERPRETED:
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    leaves, ptr, received = problem(dtype, sizes=(40, 3), heads=1, latents=latents)
    check(leaves, ptr, received, 4 * torch.finfo(dtype).eps)


@on_device
def test_gradients_that_float16_cannot_hold():
    """The gradient of z is a sum over the tokens, beyond 65504 here; those of k and v are not."""
    leaves, ptr, received = problem(torch.float16, sizes=(64,), heads=1, latents=2)
    leaves[0].zero_()
    received = torch.full_like(received, 4000.0)
    _, _, grad_k, grad_v = results(leaves, ptr, received, "triton")
    assert (grad_v - 4000).abs().max() <= 4 and not grad_k.any()


@on_device
def test_the_same_call_gives_the_same_bits():
    arguments = problem(torch.float32, sizes=(130, 70), heads=1, latents=64, dim=8)
    first, second = (results(*arguments, "triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


@on_device
def test_no_tokens():
    leaves, ptr, received = problem(torch.float32, sizes=(0, 0))
    y, grad_q, grad_k, grad_v = results(leaves, ptr, received, "triton")
    assert y.shape == grad_k.shape == grad_v.shape == (0, 2, 5) and not grad_q.any()


@on_device
def test_heads_that_are_too_large_are_refused():
    leaves, ptr, received = problem(torch.float32, sizes=(3,), dim=65)
    with pytest.raises(BackendError, match="at most, not 65; use 'torch'"):
        results(leaves, ptr, received, "triton")


def test_large_heads_are_not_given_to_it(monkeypatch):
    """Unless it is asked for by name."""
    monkeypatch.delenv("MATATTN_BACKEND", raising=False)
    monkeypatch.setitem(BACKENDS, "cpu", Backend(cpu, lambda device, dtype: "no compiler"))
    monkeypatch.setitem(BACKENDS, "triton", Backend(triton_ops))
    small, large = (torch.zeros(1, 1, 3, dim) for dim in (64, 65))
    assert find("auto", small) is triton_ops and find("auto", large) is torch_ops
    assert find("triton", large) is triton_ops


def test_reasons_to_refuse(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert (
        triton_support.refuses(cpu, torch.float32)
        == "it runs on NVIDIA GPUs, the tensors are on cpu"
    )
    assert "not torch.int64" in triton_support.refuses(gpu, torch.int64)
    monkeypatch.setattr(triton_support, "installed", lambda: None)
    assert "not installed" in triton_support.refuses(gpu, torch.float32)


def test_importing_the_operator_does_not_import_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules;"
        "from matattn.kernels.low_rank_routing import low_rank_routing as f;"
        "q = torch.ones(1, 1, 1, 1); f(q[0], q, q);"
        "assert before or 'triton' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


KERNELS = ("encode", "decode", "latent_gradient", "query_gradients", "token_gradients")


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiled_kernels_fit_on_the_chip(kernel, arch, tmp_path, monkeypatch):
    """Compiled ahead of time for compute capabilities 8.0 and 9.0, with or without a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    report = load(ROOT / "benchmarks" / "triton_compile_report.py")
    rows = [
        report.measure_routing(variant)
        for variant in report.routing_variants()
        if (variant.kernel, variant.arch) == (kernel, arch)
    ]
    assert rows
    for row in rows:
        # Triton 3.9 spills nothing, 3.6 two registers of the gradients for compute capability 8.0.
        assert row["spilled_bytes"] <= 8, row
        # What a program may have on the smaller chips of a generation.
        assert row["registers"] <= 255 and row["shared_bytes"] <= 99 * 1024, row
        assert row["programs"] >= 2, row
