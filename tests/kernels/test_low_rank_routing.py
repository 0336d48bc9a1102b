"""Low-rank routing against golden numbers and its own reference, in every backend.

Needs torch, numpy and pytest only.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.kernels.dispatch import BackendError
from matattn.kernels.low_rank_routing import BACKENDS as TABLE
from matattn.kernels.low_rank_routing import cpu, low_rank_routing, reference

GOLDEN = Path(__file__).parents[1] / "golden" / "flare"
HERE = (torch.device("cpu"), torch.float64)
CPU_REFUSES = cpu.refuses(*HERE)
compiled = pytest.mark.skipif(CPU_REFUSES is not None, reason=f"cpu backend: {CPU_REFUSES}")
BACKENDS = [name for name, backend in TABLE.items() if not backend.refuses(*HERE)]
CORES = (
    "small", "n1", "m1", "elasticity", "extreme_logits", "large_offset", "identical_tokens",
    "zero_latents", "split_n", "batched_q", "ragged",
)  # fmt: skip
ILL_CONDITIONED = ("n1", "extreme_logits", "large_offset")  # gradients are differences: README.md


@cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.as_tensor(arrays[key]) for key in arrays.files}


def run(data, dtype, backend):
    q, k, v = (data[key].to(dtype).requires_grad_() for key in "qkv")
    y = low_rank_routing(
        q, k, v, cu_seqlens=data.get("cu_seqlens"), scale=data["scale"].item(), backend=backend
    )
    return y, torch.autograd.grad(y, (q, k, v), data["dy"].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("core", CORES)
def test_golden(core, backend, dtype):
    data = golden(f"core_{core}")
    y, gradients = run(data, dtype, backend)
    exact = dtype == torch.float64
    # Logits of 8,000 and 14,000, and the logarithms that are subtracted from them, are known to
    # 5e-4 and 1e-3 in float32, to 1e-12 in float64.
    large = core in ("extreme_logits", "large_offset")
    tolerance = (1e-10 if large else 1e-12) if exact else 2e-3 if large else 1e-5
    assert y.dtype == dtype and y.shape == data["y"].shape
    assert relative(y, data["y"]) <= tolerance
    assert relative(gradients[2], data["dv"]) <= tolerance
    for name, gradient in zip(("dq", "dk"), gradients[:2], strict=True):
        if core in ILL_CONDITIONED:
            largest = max(data["q"].abs().max(), data["k"].abs().max()) * data["dy"].abs().max()
            bound = (1e-2 if large and not exact else tolerance) * largest
            assert (gradient - data[name]).abs().max() <= bound, name
        elif core in ("identical_tokens", "zero_latents"):
            assert (gradient - data[name]).abs().max() <= tolerance, name
        else:
            assert relative(gradient, data[name]) <= tolerance, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("core", ["small", "elasticity", "split_n", "ragged"])
def test_golden_latents_and_sums(core, backend):
    data = golden(f"core_{core}")
    k, v = data["k"].double(), data["v"].double()
    ptr = data.get("cu_seqlens")
    if ptr is None:
        ptr = torch.arange(len(k) + 1) * k.shape[2]
        k, v = (x.transpose(1, 2).flatten(0, 1) for x in (k, v))
    module = TABLE[backend].module
    z, lse = module.encode(data["q"].double()[None], k, v, ptr, data["scale"].item())
    assert relative(z, data["z"]) <= 1e-12
    assert relative(lse, data["lse_enc"]) <= 1e-12
    y, lse = module.decode(data["q"].double()[None], k, z, ptr, data["scale"].item())
    expected = data["lse_dec"]
    if expected.dim() == 3:
        expected = expected.transpose(1, 2).flatten(0, 1)
    assert relative(lse, expected) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_of_queries_that_depend_on_the_tokens(backend):
    """FLARE++: q = q_fixed + gate * attention of q0 over the tokens."""
    data = golden("flarepp_core")
    names = ("q0", "qf", "gate", "k0", "k", "v")
    q0, qf, gate, k0, k, v = leaves = [data[name].clone().requires_grad_() for name in names]
    scale = data["scale"].item()
    attended = torch.nn.functional.scaled_dot_product_attention(
        q0.expand(len(k0), -1, -1, -1), k0, k0, scale=scale
    )
    y = low_rank_routing(qf + gate * attended, k, v, scale=scale, backend=backend)
    assert relative(y, data["y"]) <= 1e-12
    gradients = torch.autograd.grad(y, leaves, data["dy"])
    for name, gradient in zip(names, gradients, strict=True):
        expected = data[f"d_{name}"]
        assert relative(gradient, expected) <= 1e-11, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_mixing_matrix(backend):
    data = golden("eigen")
    k = data["k"]
    columns = torch.eye(40, dtype=torch.float64)[
        None, None
    ]  # token n's value is the n-th unit vector
    parts = [
        low_rank_routing(data["q"], k, part, backend=backend) for part in columns.split(4, dim=-1)
    ]
    matrix = torch.cat(parts, -1)[0, 0]
    assert (matrix - data["W"]).abs().max() <= 1e-12
    assert (matrix.sum(1) - 1).abs().max() <= 1e-12


def tokens(dtype, sizes=(5, 130, 1, 0, 61), heads=3, latents=7, dim=5, meshes_of_q=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q = random(meshes_of_q, heads, latents, dim)
    if meshes_of_q == 1:
        q = q[0]
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    return q, random(sum(sizes), heads, dim), random(sum(sizes), heads, dim), ptr, random


SHAPES = [
    {},
    {"latents": 1},
    {"dim": 4, "latents": 64},
    {"dim": 8, "latents": 64, "heads": 8, "sizes": (300,)},
    {"dim": 8, "latents": 33, "sizes": (972, 972)},
    {"dim": 16, "latents": 17, "sizes": (1, 1, 1)},
    {"dim": 32, "latents": 300, "heads": 1, "sizes": (77, 3)},
    {"dim": 1, "latents": 2, "sizes": (513,)},
    {"dim": 42, "latents": 5, "heads": 2},
    {"dim": 8, "latents": 6, "heads": 2, "sizes": (2048, 4097, 1)},
    {"dim": 4, "latents": 4100, "heads": 1, "sizes": (40,)},
    {"meshes_of_q": 5},
]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_output_and_gradients_equal_the_reference(dtype, backend, shape, separate):
    q, k, v, ptr, random = tokens(dtype, **shape)
    decode_q = random(*q.shape) if separate else None
    received = random(*v.shape)
    results = {}
    for name in (backend, "reference"):
        leaves = [None if t is None else t.clone().requires_grad_() for t in (q, decode_q, k, v)]
        given = {"decode_q": leaves[1], "cu_seqlens": ptr, "scale": 0.7}
        y = low_rank_routing(leaves[0], *leaves[2:], **given, backend=name)
        used = [t for t in leaves if t is not None]
        results[name] = [y, *torch.autograd.grad(y, used, received)]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for place, (actual, expected) in enumerate(zip(*results.values(), strict=True)):
        # Gradients that vanish (one token, one latent) are compared with the inputs, of order 1.
        size = expected.abs().max().clamp(min=1.0)
        assert (actual - expected).abs().max() <= tolerance * size, f"result {place}"


def test_reference_gradients_are_those_of_autograd():
    q, k, v, ptr, random = tokens(torch.float64, meshes_of_q=5)
    leaves = [t.requires_grad_() for t in (q, random(*q.shape), k, v)]
    received = random(*v.shape)
    given = {"cu_seqlens": ptr, "scale": 0.7}
    y = low_rank_routing(leaves[0], *leaves[2:], decode_q=leaves[1], **given, backend="reference")
    expected = reference.routing(*leaves, ptr, 0.7)
    assert relative(y, expected) <= 1e-14
    pairs = zip(
        torch.autograd.grad(y, leaves, received),
        torch.autograd.grad(expected, leaves, received),
        strict=True,
    )
    for place, (actual, exact) in enumerate(pairs):
        assert relative(actual, exact) <= 1e-12, f"gradient {place}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    q, k, v, ptr, random = tokens(torch.float64, sizes=(2, 0, 3), heads=2, latents=3, dim=2)

    def routed(q, decode_q, k, v):
        return low_rank_routing(q, k, v, decode_q=decode_q, cu_seqlens=ptr, backend=backend)

    leaves = [t.requires_grad_() for t in (q, random(*q.shape), k, v)]
    assert torch.autograd.gradcheck(routed, leaves)
    assert torch.autograd.gradgradcheck(routed, leaves, fast_mode=True)  # along one direction
    assert torch.autograd.gradgradcheck(
        lambda q, k, v: routed(q, None, k, v), [q, k, v], fast_mode=True
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_properties_of_the_mixing(backend):
    q, k, v, _, random = tokens(torch.float64, sizes=(53,))
    k, v = (x.transpose(0, 1)[None] for x in (k, v))

    def routed(k, v):
        return low_rank_routing(q, k, v, backend=backend)

    y = routed(k, v)
    constant = random(1, 3, 1, 5).expand_as(v)
    assert relative(routed(k, constant), constant) <= 1e-13  # rows of the mixing matrix sum to 1
    order = torch.randperm(53, generator=torch.Generator().manual_seed(1))
    assert relative(routed(k[:, :, order], v[:, :, order]), y[:, :, order]) <= 1e-12
    doubled = routed(*(x.repeat(1, 1, 2, 1) for x in (k, v)))
    assert relative(doubled, y.repeat(1, 1, 2, 1)) <= 1e-12
    pooled = low_rank_routing(torch.zeros_like(q), k, v, backend=backend)
    assert relative(pooled, v.mean(2, keepdim=True).expand_as(v)) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_meshes_do_not_mix_and_layout_does_not_matter(backend):
    q, k, v, ptr, _ = tokens(torch.float64)
    packed = low_rank_routing(q, k, v, cu_seqlens=ptr, backend=backend)
    for begin, end in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        if begin == end:
            continue
        alone = (x[begin:end].transpose(0, 1)[None] for x in (k, v))
        y = low_rank_routing(q, *alone, backend=backend)
        assert relative(y[0].transpose(0, 1), packed[begin:end]) <= 1e-13
        apart = (x[begin:end].transpose(0, 1)[None].contiguous() for x in (k, v))
        assert relative(low_rank_routing(q, *apart, backend=backend), y) <= 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_tokens(backend):
    """k and v may be slices of one projection."""
    q, k, v, ptr, _ = tokens(torch.float32, dim=8)
    both = torch.stack([k, v], 1).requires_grad_()
    y = low_rank_routing(q, both[:, 0], both[:, 1], cu_seqlens=ptr, backend=backend)
    expected = low_rank_routing(q, k, v, cu_seqlens=ptr, backend=backend)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert both.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_calls_are_equal_bit_by_bit(backend):
    q, k, v, ptr, random = tokens(torch.float32, sizes=(700, 3000), dim=8, latents=64)
    received = random(*v.shape)

    once, again = (results([q, k, v], None, ptr, received, backend) for _ in range(2))
    assert all(map(torch.equal, once, again))


def results(leaves, decode_q, ptr, received, backend):
    """y and all gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    given = {"cu_seqlens": ptr, "scale": 0.7, "backend": backend}
    if decode_q is not None:
        given["decode_q"] = decode_q.detach().clone().requires_grad_()
        y = low_rank_routing(*leaves, **given)
        return [y, *torch.autograd.grad(y, [*leaves, given["decode_q"]], received)]
    y = low_rank_routing(*leaves, **given)
    return [y, *torch.autograd.grad(y, leaves, received)]


@compiled
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_results_do_not_depend_on_the_number_of_threads(dtype, separate):
    sizes = (5000, 3, 0, 2049, *[17] * 40)
    *leaves, ptr, random = tokens(dtype, sizes=sizes, heads=2, dim=8)
    decode_q = random(*leaves[0].shape) if separate else None
    received = random(*leaves[2].shape)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(results(leaves, decode_q, ptr, received, "cpu"))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@compiled
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dim", [3, 4, 8, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_code_for_every_kind_of_processor(dtype, dim, separate):
    library = cpu._library()
    most = ctypes.c_int.in_dll(library, "most_variant")
    *leaves, ptr, random = tokens(dtype, sizes=(5, 2301, 1, 0, 61), dim=dim, meshes_of_q=5)
    decode_q = random(*leaves[0].shape) if separate else None
    received = random(*leaves[2].shape)
    found = {}
    try:
        for most.value in range(3):
            found[library.variant()] = results(leaves, decode_q, ptr, received, "cpu")
    finally:
        most.value = 2
    assert set(found) == set(range(library.variant() + 1))
    expected = results(leaves, decode_q, ptr, received, "reference")
    for variant, values in found.items():
        for place, (actual, exact) in enumerate(zip(values, expected, strict=True)):
            error = (actual - exact).abs().max() / exact.abs().max()
            assert error <= (1e-12 if dtype == torch.float64 else 1e-5), (variant, place)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_stays_visible(backend, dtype, place):
    """Bad data must reach the loss, where it is noticed."""
    *leaves, ptr, random = tokens(dtype, sizes=(37, 20), heads=2)
    leaves[place][1, 1, 2] = math.nan  # of one head; in k and v, of the first mesh
    y, *gradients = results(leaves, None, ptr, random(*leaves[2].shape), backend)
    reached = slice(None) if place == 0 else slice(37)
    assert y[reached, 1].isnan().any(-1).all() and y[:, 0].isfinite().all()
    assert y[37:, 1].isfinite().all() == (place > 0)
    assert all(gradient.isnan().any() for gradient in gradients[:2])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_ten_thousand(backend, sign):
    """All far from 0, so that exp(logit) itself is 0 or infinite; 3 tokens leave lanes empty."""
    q, k, v, ptr, random = tokens(torch.float32, sizes=(3,), dim=4)
    q[..., 0], k[..., 0] = sign * 100.0, 142.0
    y, *gradients = results([q, k, v], None, ptr, random(*v.shape), backend)
    wide = [t.double() for t in (q, k, v)]
    expected = low_rank_routing(*wide, cu_seqlens=ptr, scale=0.7, backend="reference")
    assert relative(y, expected) <= 5e-3  # 9,940 is known to 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens(backend):
    q, k, v, ptr, _ = tokens(torch.float32, sizes=(0, 0))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    y = low_rank_routing(*leaves, cu_seqlens=ptr, backend=backend)
    y.sum().backward()
    assert y.shape == (0, 3, 5) and not q.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    q, k, v, ptr, random = tokens(torch.float64, sizes=(3, 6))
    for decode_q in (None, random(1, *q.shape).requires_grad_()):
        leaves = [t.detach().clone().requires_grad_() for t in (q[None], k, v)]
        arguments = (leaves[0], decode_q, *leaves[1:], ptr, 0.7, backend)
        torch.library.opcheck(torch.ops.matattn.low_rank_routing, arguments)


def test_compiles_without_graph_breaks():
    q, k, v, _, _ = tokens(torch.float32, sizes=(40,), dim=8)
    k, v = (x.transpose(0, 1)[None] for x in (k, v))
    compiled = torch.compile(lambda q, k, v: low_rank_routing(q, 2 * k, v) + v, fullgraph=True)
    expected = low_rank_routing(q, 2 * k, v) + v
    assert relative(compiled(q, k, v), expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    q, k, v, ptr, random = tokens(dtype, sizes=(300, 20), dim=8, latents=16)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    y = low_rank_routing(*leaves, cu_seqlens=ptr)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = low_rank_routing(*wide, cu_seqlens=ptr, backend="reference")
    assert y.dtype == dtype and relative(y, expected) <= 2e-2
    received = random(*v.shape)
    pairs = zip(
        torch.autograd.grad(y, leaves, received),
        torch.autograd.grad(expected, wide, received.double()),
        strict=True,
    )
    for place, (actual, exact) in enumerate(pairs):
        assert relative(actual, exact) <= 2e-2, f"gradient {place}"


@compiled
def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_ABI", -1)
    assert "install matattn again" in cpu.refuses(*HERE)


def test_without_a_compiled_library_the_torch_backend_serves(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "_library", lambda: None)
    monkeypatch.setattr("matattn.kernels.dispatch._announced", set())
    q, k, v, ptr, _ = tokens(torch.float32)
    with caplog.at_level("INFO", logger="matattn"):
        low_rank_routing(q, k, v, cu_seqlens=ptr)
    (record,) = caplog.records
    assert "runs on backend 'torch'" in record.getMessage()
    assert "not 'cpu': it was not compiled when matattn was installed" in record.getMessage()
    with pytest.raises(BackendError, match="'cpu' cannot take this call: it was not compiled"):
        low_rank_routing(q, k, v, cu_seqlens=ptr, backend="cpu")


def test_mistakes_are_named():
    q, k, v, ptr, _ = tokens(torch.float32)
    with pytest.raises(ValueError, match=r"k .* must be \[B, H, N, D\] without cu_seqlens"):
        low_rank_routing(q, k, v)
    with pytest.raises(ValueError, match=r"must be packed, \[T, H, D\] with cu_seqlens"):
        low_rank_routing(q, k, v[1:], cu_seqlens=ptr)
    with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to the number of tokens"):
        low_rank_routing(q, k, v, cu_seqlens=ptr - 1)
    with pytest.raises(ValueError, match=r"cu_seqlens must rise"):
        low_rank_routing(q, k, v, cu_seqlens=torch.tensor([0, 50, 30, len(k)]))
    with pytest.raises(ValueError, match=r"cu_seqlens must be \[B \+ 1\]"):
        low_rank_routing(q, k, v, cu_seqlens=ptr[:1])
    with pytest.raises(ValueError, match=r"q has shape .*expected \[3, M, 5\]"):
        low_rank_routing(q[:2], k, v, cu_seqlens=ptr)
    with pytest.raises(ValueError, match="q has no latent"):
        low_rank_routing(q[:, :0], k, v, cu_seqlens=ptr)
    with pytest.raises(ValueError, match="decode_q has shape"):
        low_rank_routing(q, k, v, decode_q=q[:, :2], cu_seqlens=ptr)
    with pytest.raises(BackendError, match="no backend named 'magic'"):
        low_rank_routing(q, k, v, cu_seqlens=ptr, backend="magic")


def relative(actual, expected):
    """Largest difference over the largest expected value."""
    if not expected.numel():
        assert actual.shape == expected.shape
        return 0.0
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs().max().item()
    assert math.isfinite(difference)
    return difference / max(expected.abs().max().item(), 1e-300)


def test_autocast_sums_in_float32():
    q, k, v, ptr, random = tokens(torch.float32, sizes=(30, 20), dim=8, latents=4)
    leaves = [q.requires_grad_(), k.bfloat16().requires_grad_(), v.bfloat16().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        y = low_rank_routing(*leaves, cu_seqlens=ptr)
    exact = [t.detach().float().requires_grad_() for t in leaves]
    expected = low_rank_routing(*exact, cu_seqlens=ptr)
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    received = random(*y.shape).float()
    found = torch.autograd.grad(y, leaves, received)
    assert [grad.dtype for grad in found] == [leaf.dtype for leaf in leaves]
    for actual, right in zip(found, torch.autograd.grad(expected, exact, received), strict=True):
        assert torch.equal(actual, right.to(actual.dtype))
