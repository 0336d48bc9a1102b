"""Directional sums against brute force and the reference, in every backend."""

import ctypes

import numpy as np
import pytest
import torch

from matattn.kernels import directional_sums as package
from matattn.kernels.directional_sums import cpu, directional_sums
from matattn.kernels.dispatch import BackendError

HERE = (torch.device("cpu"), torch.float64)
BACKENDS = [name for name, backend in package.BACKENDS.items() if not backend.refuses(*HERE)]
compiled = pytest.mark.skipif("cpu" not in BACKENDS, reason="not compiled")
USUAL = {"channels": 32, "functions": 16}  # has code of its own
SIZES = [USUAL, {"channels": 3, "functions": 5}, {"channels": 9, "functions": 17},
         {"channels": 1, "functions": 1}, {"targets": 1, "atoms": 1}, {"most": 1}]  # fmt: skip
ARRAYS = ("radial", "values", "table")


def problem(targets=7, atoms=6, most=9, channels=8, functions=4, dtype=torch.float64, seed=0):
    """Lists of 0 to ``most`` - 1 neighbours an atom."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, most, targets)
    edges = int(counts.sum())
    shapes = (edges, channels), (atoms, channels), (edges, functions)
    arrays = [torch.tensor(random.normal(size=shape), dtype=dtype) for shape in shapes]
    source = torch.tensor(random.integers(0, atoms, edges))
    return *arrays, source, torch.tensor(np.concatenate([[0], np.cumsum(counts)]))


def brute_force(radial, values, table, source, row_ptr):
    sums = np.zeros((len(row_ptr) - 1, radial.shape[1], table.shape[1]))
    for i in range(len(sums)):
        for e in range(int(row_ptr[i]), int(row_ptr[i + 1])):
            weight = (radial[e] * values[source[e]]).numpy()
            sums[i] += np.outer(weight, table[e].numpy())
    return torch.tensor(sums)


def results(given, backend):
    """The sums, and their gradients for a loss that is linear in them."""
    leaves = [t.clone().requires_grad_() for t in given[:3]]
    sums = directional_sums(*leaves, *given[3:], backend=backend)
    slope = torch.tensor(np.random.default_rng(1).normal(size=sums.shape)).to(sums)
    return sums.detach(), *torch.autograd.grad(sums, leaves, slope)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_the_definition(backend, sizes):
    given = problem(**sizes)
    sums = directional_sums(*given, backend=backend)
    assert (sums - brute_force(*given)).abs().max() < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_finite_sums(backend, sizes):
    """The sums are linear in each array: differences of any size are exact."""
    given = problem(**sizes)
    sums, *gradients = results(given, backend)
    slope = torch.tensor(np.random.default_rng(1).normal(size=sums.shape))
    random = np.random.default_rng(5)
    for place, gradient in enumerate(gradients):
        direction = torch.tensor(random.normal(size=given[place].shape))
        moved = list(given)
        moved[place] = given[place] + direction
        change = ((brute_force(*moved) - brute_force(*given)) * slope).sum()
        assert abs(change - (gradient * direction).sum()) < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend):
    radial, values, table, *lists = problem(targets=3, atoms=2, most=4, channels=2, functions=2)
    leaves = [t.requires_grad_() for t in (radial, values, table)]

    def sums(*arrays):
        return directional_sums(*arrays, *lists, backend=backend)

    assert torch.autograd.gradcheck(sums, leaves)
    assert torch.autograd.gradgradcheck(sums, leaves)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [USUAL, {"channels": 9, "functions": 17}])
def test_every_build_and_any_number_of_threads(dtype, sizes):
    given = problem(targets=90, atoms=40, most=60, dtype=dtype, **sizes)
    expected = results([t.double() if t.is_floating_point() else t for t in given], "reference")
    library = cpu._library()
    most = ctypes.c_int.in_dll(library, "most_variant")
    threads, found = torch.get_num_threads(), {}
    try:
        for most.value in range(3):
            found[library.variant()] = results(given, "cpu")
        torch.set_num_threads(3)
        again = results(given, "cpu")
    finally:
        most.value = 2
        torch.set_num_threads(threads)
    assert set(found) == set(range(library.variant() + 1))
    assert all(map(torch.equal, again, found[library.variant()]))
    for values in found.values():
        for actual, exact in zip(values, expected, strict=True):
            error = (actual - exact).abs().max() / exact.abs().max()
            assert error <= (1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_stays_visible(backend, place):
    given = problem()
    given[place][1, 0] = torch.nan
    sums, *gradients = results(given, backend)
    assert sums.isnan().any() and sums.isfinite().any()
    others = [g for n, g in enumerate(gradients) if n != place]
    assert any(g.isnan().any() for g in others)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_neighbours(backend):
    radial, values, table, *_ = problem()
    leaves = [t.requires_grad_() for t in (radial[:0], values, table[:0])]
    lists = torch.zeros(0, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    sums = directional_sums(*leaves, *lists, backend=backend)
    gradients = torch.autograd.grad(sums.sum(), leaves)
    assert sums.shape == (3, 8, 4) and not sums.any() and not any(g.any() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    *arrays, source, row_ptr = problem()
    arguments = (*(t.requires_grad_() for t in arrays), source, row_ptr, backend)
    torch.library.opcheck(torch.ops.matattn.directional_sums, arguments)


def test_half_precision_under_autocast():
    given = problem(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        sums = directional_sums(*given)
    wide = [t.double() if t.is_floating_point() else t for t in given]
    assert sums.dtype == torch.float32
    assert (sums - directional_sums(*wide)).abs().max() < 1e-5


@compiled
def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_ABI", -1)
    assert "install matattn again" in cpu.refuses(*HERE)


def test_without_a_compiled_library_the_torch_backend_serves(monkeypatch):
    monkeypatch.setattr(cpu, "_library", lambda: None)
    given = problem()
    assert torch.equal(directional_sums(*given), directional_sums(*given, backend="torch"))
    with pytest.raises(BackendError, match="'cpu' cannot take this call: it was not compiled"):
        directional_sums(*given, backend="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_mistakes_are_named(backend):
    radial, values, table, source, row_ptr = problem()
    call = {"backend": backend}
    with pytest.raises(ValueError, match=r"radial has shape .*, expected \(\d+, 8\)"):
        directional_sums(radial[1:], values, table, source, row_ptr, **call)
    with pytest.raises(ValueError, match=r"table has shape .*, expected"):
        directional_sums(radial, values, table[1:], source, row_ptr, **call)
    with pytest.raises(ValueError, match="at least one channel and one function"):
        directional_sums(radial, values, table[:, :0], source, row_ptr, **call)
    with pytest.raises(ValueError, match=r"row_ptr has shape \(0,\)"):
        directional_sums(radial, values, table, source, row_ptr[:0], **call)
    for wrong in (row_ptr + 1, row_ptr.flip(0)):
        with pytest.raises(ValueError, match="row_ptr must run from 0 to the number of"):
            directional_sums(radial, values, table, source, wrong, **call)
    for wrong in (source - 6, source + 6):
        with pytest.raises(ValueError, match="source must lie in 0..N - 1 for N"):
            directional_sums(radial, values, table, wrong, row_ptr, **call)
